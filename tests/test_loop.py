"""The loop: exact resume at any step, pause, spikes, and micro-batches that change memory and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from paribus.config import Config
from paribus.data.loader import Batch
from paribus.errors import UserError
from paribus.model.gpt import GPT
from paribus.session import Interrupt
from paribus.train.checkpoint import StateStore
from paribus.train.loop import MAX_NONFINITE, Hooks, Loop, Paused, Plan
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
        Plan(STEPS, lambda step: 1.0, 1.0, 1.0, save_seconds),
        StateStore(folder / "state", 2),
        interrupt,
        hooks,
    )
    return loop, journal


def weights(loop: Loop) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in loop.model.parameters()])


@pytest.fixture(scope="module")
def reference(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    loop, _ = make(tiny_config, tmp_path_factory.mktemp("reference"))
    loop.run()
    return weights(loop)


@pytest.mark.parametrize("pause", range(1, STEPS))
def test_resume_at_any_step_ends_in_the_same_bits(
    tiny_config: Config, tmp_path: Path, reference: torch.Tensor, pause: int
) -> None:
    first, before = make(tiny_config, tmp_path, stop_after=pause)
    with pytest.raises(Paused, match=f"saved at step {pause} of {STEPS}"):
        first.run()
    second, after = make(tiny_config, tmp_path)
    state = second.store.load()
    assert state is not None and state.step == pause
    second.restore(state)
    second.run()
    assert torch.equal(weights(second), reference)
    assert sorted([*before.rows, *after.rows]) == list(range(1, STEPS + 1))
    assert second.position.tokens == STEPS * ROWS * 16


def test_death_between_saves_goes_back_to_the_last_state(
    tiny_config: Config, tmp_path: Path, reference: torch.Tensor
) -> None:
    """As after kill -9: the loop is abandoned mid-way, and what it did since its last save is done again."""
    first, _ = make(tiny_config, tmp_path)

    def die(step: int) -> dict[str, float]:
        if step == 5:
            raise KeyboardInterrupt
        return {}

    first.hooks = dataclasses.replace(first.hooks, evaluate=die)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    first.store.wait()
    second, _ = make(tiny_config, tmp_path)
    state = second.store.load()
    assert state is not None and state.step == 4
    second.restore(state)
    second.run()
    assert torch.equal(weights(second), reference)


def test_micro_batches_change_memory_not_results(
    tiny_config: Config, tmp_path: Path, reference: torch.Tensor
) -> None:
    loop, _ = make(tiny_config, tmp_path, device_batch_size=1)
    loop.run()
    # AdamW makes a full step of a gradient that is all rounding, so single weights may part; their sum must not.
    assert (weights(loop) - reference).norm() < 1e-3 * reference.norm()


def spoil(loop: Loop, *steps: int) -> None:
    """Make the gradient of these steps not a number."""
    loop.model.embedding.weight.register_hook(
        lambda grad: grad * float("nan") if loop.position.step in steps else grad
    )


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    tiny_config: Config, tmp_path: Path
) -> None:
    loop, journal = make(tiny_config, tmp_path)
    spoil(loop, 3)
    position = loop.run()
    assert position.nonfinite == 1 and journal.events == [(3, "nonfinite")]
    assert torch.isfinite(weights(loop)).all()
    assert journal.rows[STEPS]["train/nonfinite"] == 1


def test_a_run_of_them_rolls_back_and_passes_the_steps_over(
    tiny_config: Config, tmp_path: Path
) -> None:
    bad = tuple(range(3, 3 + MAX_NONFINITE))
    loop, journal = make(tiny_config, tmp_path)
    spoil(loop, *bad)
    position = loop.run()
    assert position.rollbacks == 1 and position.skipped == list(bad)
    assert [name for _, name in journal.events] == ["nonfinite"] * MAX_NONFINITE + ["rollback"]
    assert position.step == STEPS and torch.isfinite(weights(loop)).all()


def test_training_that_cannot_go_on_says_so(tiny_config: Config, tmp_path: Path) -> None:
    loop, _ = make(tiny_config, tmp_path)
    spoil(loop, *range(STEPS))
    with pytest.raises(UserError, match="lr_scale"):
        loop.run()


def test_nothing_is_saved_more_often_than_asked(tiny_config: Config, tmp_path: Path) -> None:
    loop, _ = make(tiny_config, tmp_path, save_seconds=1000.0)
    loop.run()
    assert loop.store.steps() == [STEPS]
