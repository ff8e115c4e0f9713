"""Training ahead of its numbers, as CUDA does it, run here on a CPU: nothing is read back while a step is started, and
what comes out, skipped steps and rollbacks included, is what reading every step's numbers at once gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy_loop import ROWS, STEPS, Journal, Rows, make, weights
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from paribus.config import Config, resolve_model
from paribus.model.gpt import GPT
from paribus.train.loop import MAX_NONFINITE, Loop, Paused
from paribus.train.objectives import MicroBatch, Work
from paribus.train.optim import MuonAdamW
from paribus.train.stepper import AheadStepper, PlainStepper, Stepper

TIMES = (
    "train/seconds",
    "train/tokens_per_second",
    "train/mfu",
    "train/peak_memory_bytes",
    "train/data_wait_seconds",
)


def started_loop(
    config: Config,
    folder: Path,
    *,
    ahead: bool,
    bad: tuple[int, ...] = (),
    save_seconds: float = 1000.0,
    **settings: Any,
) -> tuple[Loop, Journal]:
    """A loop on an optimizer as on CUDA; the loss of the `bad` steps is not a number."""
    spoilt = [Rows().batch(step, range(1), ROWS).inputs for step in bad]

    def stepper(model: GPT) -> Stepper:
        def forward(tokens: Tensor, *rest: Tensor | None) -> Tensor:
            loss: Tensor = model(tokens, *rest)
            is_bad = any(torch.equal(tokens[:1], one) for one in spoilt)
            return loss * float("nan") if is_bad else loss

        return stepper_on_device(model, config, ahead)(model, forward)

    return make(config, folder, save_seconds=save_seconds, stepper=stepper, **settings)


def stepper_on_device(model: GPT, config: Config, ahead: bool) -> Callable[..., Stepper]:
    """What makes a stepper of (model, forward), its optimizer as on CUDA."""
    settings = dataclasses.replace(config.optimizer, weight_decay=0.1)
    optimizer = MuonAdamW(model, settings, on_device=True)
    kind = AheadStepper if ahead else PlainStepper
    return lambda model, forward: kind(model, forward, optimizer)


def record(loop: Loop, journal: Journal, bad: tuple[int, ...]) -> tuple[Any, ...]:
    """All that a run leaves but for times; whether a step that is undone was still evaluated is left open."""
    position = dataclasses.asdict(loop.position)
    measured = ("seconds", "train_seconds", "peak_memory_bytes")
    kept = {name: value for name, value in position.items() if name not in measured}
    rows = {
        step: {key: value for key, value in row.items() if key not in TIMES}
        for step, row in journal.rows.items()
    }
    return (
        kept,
        repr(rows),
        journal.events,
        {step for step in journal.calls if step - 1 not in bad},
        loop.optimizer.updates,
        loop.store.steps(),
    )


@pytest.mark.parametrize(
    "bad", [(), (3,), (0, 4), tuple(range(3, 3 + MAX_NONFINITE)), (7,)], ids=str
)
@pytest.mark.parametrize("save_seconds", [0.0, 1000.0])
def test_the_run_is_the_same(
    tiny_config: Config, tmp_path: Path, bad: tuple[int, ...], save_seconds: float
) -> None:
    runs = []
    for ahead in (False, True):
        loop, journal = started_loop(
            tiny_config, tmp_path / str(ahead), ahead=ahead, bad=bad, save_seconds=save_seconds
        )
        loop.run()
        runs.append((loop, journal))
    (plain, plain_journal), (ahead_loop, ahead_journal) = runs
    assert torch.equal(weights(plain), weights(ahead_loop))
    assert torch.isfinite(weights(plain)).all()
    assert record(plain, plain_journal, bad) == record(ahead_loop, ahead_journal, bad)
    assert all(
        torch.equal(plain.optimizer.state[name], tensor)
        for name, tensor in ahead_loop.optimizer.state.items()
    )


def test_an_evaluation_sees_the_weights_of_its_step(tiny_config: Config, tmp_path: Path) -> None:

    class Sum(Journal):
        """Every third step the sum of all weights."""

        def is_due(self, step: int) -> bool:
            return step % 3 == 0

        def evaluate(self, step: int) -> dict[str, float]:
            return {"val/sum": float(weights(loop).abs().sum())}

    seen = {}
    for ahead in (False, True):
        folder = tmp_path / str(ahead)
        loop, journal = started_loop(tiny_config, folder, ahead=ahead, journal=Sum())
        loop.run()
        seen[ahead] = {
            step: row["val/sum"] for step, row in journal.rows.items() if "val/sum" in row
        }
    assert seen[False] == seen[True]
    assert list(seen[True]) == [3, 6]


@pytest.mark.parametrize("pause", [1, 4, STEPS - 1])
def test_a_pause_saves_the_step_it_names(tiny_config: Config, tmp_path: Path, pause: int) -> None:
    whole, _ = started_loop(tiny_config, tmp_path / "whole", ahead=True)
    whole.run()
    first, before = started_loop(tiny_config, tmp_path / "cut", ahead=True, stop_after=pause)
    with pytest.raises(Paused, match=f"saved at step {pause} of {STEPS}"):
        first.run()
    second, after = started_loop(tiny_config, tmp_path / "cut", ahead=True)
    state = second.store.load()
    assert state is not None
    assert state.step == pause
    second.restore(state)
    second.run()
    assert torch.equal(weights(second), weights(whole))
    assert sorted([*before.rows, *after.rows]) == list(range(1, STEPS + 1))


@pytest.mark.parametrize("ahead", [True, False])
def test_nothing_is_read_back_while_a_step_is_started(tiny_config: Config, ahead: bool) -> None:
    """Tensors without values: any read of one raises. Numbers that are known at once are such a read."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = GPT(resolve_model(tiny_config.model), 50)
        stepper = stepper_on_device(model, tiny_config, ahead)(model, model)
        row = torch.zeros(ROWS, 16, dtype=torch.int64)
        work = Work([MicroBatch(row, row)], row.numel(), row.numel())
        if ahead:
            assert stepper.submit(0, work, 1.0) is None
            assert stepper.under_way
        else:
            with pytest.raises(DataDependentOutputException):
                stepper.submit(0, work, 1.0)


def test_the_fused_kernel_is_the_same_adamw(tiny_config: Config) -> None:
    config = dataclasses.replace(tiny_config.optimizer, kind="adamw", eps=1e-4, weight_decay=0.1)
    models = [GPT(resolve_model(tiny_config.model), 50) for _ in range(2)]
    optimizers = [
        MuonAdamW(model, config, on_device=fused)
        for model, fused in zip(models, (False, True), strict=True)
    ]
    tokens = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(0))
    for model, optimizer in zip(models, optimizers, strict=True):
        model.initialise(1)
        for _ in range(3):
            (model(tokens, tokens) / 32).backward()
            optimizer.step(1.0)
            optimizer.zero_grad()
    assert optimizers[0].updates == optimizers[1].updates == 3
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)


def test_a_step_is_skipped_only_where_that_can_be(tiny_config: Config) -> None:
    optimizer = MuonAdamW(GPT(resolve_model(tiny_config.model), 50), tiny_config.optimizer)
    with pytest.raises(ValueError, match="on_device"):
        optimizer.step(1.0, torch.tensor(False))
