"""A training loop of eight steps, whose batches are functions of (step, row)."""

from __future__ import annotations

from pathlib import Path

import torch

from paribus.config import Config
from paribus.data.loader import Batch
from paribus.machine.interrupt import Interrupt
from paribus.model.gpt import GPT
from paribus.train.checkpoint import StateStore
from paribus.train.loop import Hooks, Loop, Plan
from paribus.train.objectives import NextToken
from paribus.train.optim import MuonAdamW

STEPS, ROWS = 8, 4


class Rows:
    """Tokens that are a function of (step, row)."""

    def batch(self, step: int, rows: range, batch_rows: int) -> Batch:
        tokens = [
            torch.randint(0, 50, (17,), generator=torch.Generator().manual_seed(1000 * step + row))
            for row in rows
        ]
        stacked = torch.stack(tokens)
        return Batch(stacked[:, :-1], stacked[:, 1:], None)


class Journal:
    """What the loop called out."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}
        self.events: list[tuple[int, str]] = []
        self.calls: list[int] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        assert step not in self.rows, "a step logged twice"
        self.rows[step] = metrics

    def rewind(self, step: int) -> None:
        self.rows = {kept: row for kept, row in self.rows.items() if kept <= step}


def make(
    config: Config,
    folder: Path,
    *,
    stop_after: int | None = None,
    device_batch_size: int = 4,
    save_seconds: float = 0.0,
    plan: Plan | None = None,
) -> tuple[Loop, Journal]:
    model = GPT(config.model, 50)
    model.initialise(1)
    journal, interrupt = Journal(), Interrupt(folder)

    def evaluate(step: int) -> dict[str, float]:
        journal.calls.append(step)
        if stop_after is not None and len(journal.calls) == stop_after:
            interrupt.reason = "the test"
        return {}

    hooks = Hooks(
        journal.log,
        lambda step, name, _: journal.events.append((step, name)),
        lambda: None,
        journal.rewind,
        evaluate,
        lambda step, metrics: None,
    )
    loop = Loop(
        model,
        model,
        MuonAdamW(model, config.optimizer),
        NextToken(Rows(), ROWS, device_batch_size),
        plan or Plan(STEPS, lambda step: 1.0, 1.0, 1.0, save_seconds),
        StateStore(folder / "state", 2),
        interrupt,
        hooks,
    )
    return loop, journal


def weights(loop: Loop) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in loop.model.parameters()])
