"""A training loop of eight steps, whose batches are functions of (step, row)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from paribus.config import Config, resolve_model
from paribus.data.loader import Batch
from paribus.machine.interrupt import Interrupt
from paribus.model.gpt import GPT
from paribus.train.callback import Callback
from paribus.train.checkpoint import StateStore
from paribus.train.loop import Loop, Plan
from paribus.train.objectives import NextToken
from paribus.train.optim import MuonAdamW
from paribus.train.stepper import PlainStepper, Stepper

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


class Journal(Callback):
    """What the loop called out. `look` is called after every step; nothing is measured."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}
        self.events: list[tuple[int, str]] = []
        self.calls: list[int] = []
        self.look: Callable[[int], None] = lambda step: None

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        assert step not in self.rows, "a step logged twice"
        self.rows[step] = metrics

    def on_event(self, step: int, name: str, detail: str) -> None:
        self.events.append((step, name))

    def on_rollback(self, step: int) -> None:
        self.rows = {kept: row for kept, row in self.rows.items() if kept <= step}

    def is_due(self, step: int) -> bool:
        if self.calls[-1:] != [step]:
            self.calls.append(step)
            self.look(step)
        return False


def make(
    config: Config,
    folder: Path,
    *,
    stop_after: int | None = None,
    device_batch_size: int = 4,
    save_seconds: float = 0.0,
    plan: Plan | None = None,
    journal: Journal | None = None,
    stepper: Callable[[GPT], Stepper] | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Loop, Journal]:
    model = GPT(resolve_model(config.model), 50, dtype)
    model.initialise(1)
    journal, interrupt = journal or Journal(), Interrupt(folder)

    def stop(step: int) -> None:
        if len(journal.calls) == stop_after:
            interrupt.reason = "the test"

    if stop_after is not None:
        journal.look = stop
    if stepper is None:
        made: Stepper = PlainStepper(model, model, MuonAdamW(model, config.optimizer))
    else:
        made = stepper(model)
    loop = Loop(
        made,
        NextToken(Rows(), ROWS, device_batch_size),
        plan or Plan(STEPS, lambda step: 1.0, 1.0, 1.0, save_seconds),
        StateStore(folder / "state", 2),
        interrupt,
        journal,
    )
    return loop, journal


def weights(loop: Loop) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in loop.model.parameters()])
