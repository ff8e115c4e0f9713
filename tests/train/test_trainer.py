"""The one assembly of a training run, and the callbacks that take part in it."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from support.toy_loop import STEPS, Journal, Rows, make

from paribus.config import Config
from paribus.machine.hardware import detect_hardware
from paribus.machine.interrupt import Interrupt
from paribus.recipe import Recipe
from paribus.train.callback import Callback, Callbacks
from paribus.train.checkpoint import StateStore
from paribus.train.loop import Paused
from paribus.train.trainer import Trainer, new_model, next_token


def trainer_of(config: Config, stage: str = "pretrain") -> Trainer:
    recipe, hardware = Recipe.of(config, vocab_size=50), detect_hardware(config.train)
    objective = next_token(Rows(), recipe, "pretrain")
    return Trainer(recipe, stage, new_model(recipe, hardware), objective, hardware)


def trained(trainer: Trainer, folder: Path) -> torch.Tensor:
    trainer.loop(StateStore(folder / "state", 2), Interrupt()).run()
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_steps_that_were_timed_leave_nothing_behind(tiny_config: Config, tmp_path: Path) -> None:
    timed = trainer_of(tiny_config)
    assert all(timed.time_step(step) > 0 for step in range(3))
    timed.start_over()
    fresh = trained(trainer_of(tiny_config), tmp_path / "fresh")
    assert torch.equal(trained(timed, tmp_path / "timed"), fresh)


def test_the_schedule_of_a_stage_decides_steps_and_rates(tiny_config: Config) -> None:
    pretrain = dataclasses.replace(
        tiny_config.pretrain,
        steps=10,
        lr_scale=0.5,
        warmup_fraction=0.0,
        warmdown_fraction=0.5,
        final_lr_fraction=0.0,
    )
    plan = trainer_of(dataclasses.replace(tiny_config, pretrain=pretrain)).plan()
    factors = [plan.lr_factor(step) for step in range(plan.steps)]
    assert plan.steps == 10
    assert factors[:5] == [0.5] * 5
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[4:]))
    assert factors[5:] != [0.5] * 5


def test_rls_rates_fall_from_its_warm_up_on(tiny_config: Config) -> None:
    rl = dataclasses.replace(tiny_config.rl, steps=10, warmup_fraction=0.0, final_lr_fraction=0.0)
    plan = trainer_of(dataclasses.replace(tiny_config, rl=rl), "rl").plan()
    factors = [plan.lr_factor(step) for step in range(plan.steps)]
    assert plan.steps == 10
    assert factors == sorted(set(factors), reverse=True)


class Look(Callback):
    """Measures after every `every` steps, and notes what it was asked."""

    def __init__(self, name: str, every: int) -> None:
        self.name, self.every = name, every
        self.asked: list[int] = []

    def on_start(self) -> dict[str, float]:
        return {f"start/{self.name}": 1.0}

    def is_due(self, step: int) -> bool:
        return step % self.every == 0

    def evaluate(self, step: int) -> dict[str, float]:
        self.asked.append(step)
        return {f"val/{self.name}": float(step)}


def test_each_callback_is_asked_where_it_is_due_and_all_are_logged(
    tiny_config: Config, tmp_path: Path
) -> None:
    config = dataclasses.replace(
        tiny_config, pretrain=dataclasses.replace(tiny_config.pretrain, steps=6)
    )
    two, three, journal = Look("two", 2), Look("three", 3), Journal()
    store = StateStore(tmp_path / "state", 2)
    trainer_of(config).loop(store, Interrupt(), [journal, two, three]).run()
    assert (two.asked, three.asked) == ([2, 4, 6], [3, 6])
    logged = {
        step: {key for key in row if not key.startswith("train/")}
        for step, row in journal.rows.items()
    }
    assert logged == {
        0: {"start/two", "start/three"},
        1: set(),
        2: {"val/two"},
        3: {"val/three"},
        4: {"val/two"},
        5: set(),
        6: {"val/two", "val/three"},
    }


def test_a_run_that_goes_on_does_not_start_again(tiny_config: Config, tmp_path: Path) -> None:
    class Starts(Journal):
        def on_start(self) -> dict[str, float]:
            return {"watch/accuracy": 0.5}

    first, before = make(tiny_config, tmp_path, stop_after=3, journal=Starts())
    with pytest.raises(Paused):
        first.run()
    second, after = make(tiny_config, tmp_path, journal=Starts())
    state = second.store.load()
    assert state is not None
    second.restore(state)
    second.run()
    assert before.rows[0] == {"watch/accuracy": 0.5}
    assert sorted(after.rows) == list(range(4, STEPS + 1))


def test_every_moment_of_a_callback_reaches_all_of_several() -> None:
    moments = [name for name in vars(Callback) if not name.startswith("_")]
    assert set(moments) <= set(vars(Callbacks)), "one that Callbacks does not pass on"
