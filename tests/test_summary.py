"""The figures of a run: of all its steps, whatever is logged, and never a number that JSON does not have."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkout import ROOT
from support.toy_loop import Journal, make

from paribus.config import Config
from paribus.errors import UserError
from paribus.summary import (
    not_finite,
    refuse_divergence,
    rl_metrics,
    supervised_metrics,
    write_json,
    write_metrics,
)
from paribus.train.loop import Plan, Position
from paribus.train.objectives import Making, MicroBatch, Work

TIMED = ("seconds", "tokens_per_second", "effective_samples_per_second", "peak_memory_bytes")


class Sampled:
    """A policy gradient's work: not pure, and with figures of each step's samples."""

    pure = False
    dropout = True
    ragged = False

    def __init__(self) -> None:
        self.making = Making()

    def work(self, step: int) -> Work:
        row = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(step))
        figures = {
            "mean_reward": step / 10,
            "groups": 2 + step % 2,
            "zero_reward_groups": 0.5,
            "all_reward_groups": 0.0,
            "zero_gradient_groups": float(step % 3 == 0),
            "samples_drawn": 4,
            "redrawn_samples": step % 2,
            "gradient_samples": 2,
            "wasted_token_fraction": 0.25,
            "sampled_tokens": 10 + step,
        }
        metrics = {f"rl/{name}": float(value) for name, value in figures.items()}
        return Work([MicroBatch(row, row)], row.numel(), row.numel(), metrics)


def untimed(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name not in TIMED}


@pytest.mark.parametrize("log_every", [2, 4, 100])
def test_figures_of_samples_count_every_step_whatever_log_every_says(
    tiny_config: Config, tmp_path: Path, log_every: int
) -> None:
    found = []
    for every in (1, log_every):
        plan = Plan(8, lambda step: 1.0, 1.0, 1.0, 0.0, every)
        loop, journal = make(tiny_config, tmp_path / str(every), plan=plan)
        loop.objective = Sampled()
        loop.run()
        rows = rows_of(journal)
        looks = [{"step": 0, "watch/pass_at_1": 0.1}, {"step": 8, "watch/pass_at_1": 0.2}]
        found.append(untimed(rl_metrics([*rows, *looks], loop.position)))
    assert found[0] == found[1]
    assert found[0]["samples"] == 32
    assert found[0]["groups"] == 20


@pytest.mark.parametrize("log_every", [2, 100])
def test_figures_of_losses_do_not_depend_on_log_every(
    tiny_config: Config, tmp_path: Path, log_every: int
) -> None:
    found, logged = [], []
    for every in (1, log_every):
        plan = Plan(8, lambda step: 1.0, 1.0, 1.0, 0.0, every)
        loop, journal = make(tiny_config, tmp_path / str(every), plan=plan)
        loop.run()
        found.append(untimed(supervised_metrics(loop.position)))
        logged.append(len(journal.rows))
    assert found[0] == found[1]
    assert logged[0] > logged[1]


def rows_of(journal: Journal) -> list[dict[str, float]]:
    return [{"step": step} | row for step, row in journal.rows.items()]


def test_the_training_loss_is_the_mean_of_the_last_losses() -> None:
    position = Position(step=40, train_seconds=1.0, last_losses=[3.0, 1.0])
    assert supervised_metrics(position)["train_loss"] == 2.0


def test_a_run_without_a_finite_loss_is_refused() -> None:
    metrics = supervised_metrics(Position(step=2, train_seconds=1.0))
    with pytest.raises(UserError, match="pretrain: diverged by step 2: train_loss is nan"):
        refuse_divergence("pretrain", metrics)


def test_every_number_that_is_not_finite_is_named_however_deep() -> None:
    values = {"a": math.nan, "b": {"c": [1.0, math.inf]}, "d": None, "e": "nan", "f": 3}
    assert not_finite(values) == ["a is nan", "b.c.1 is inf"]


def test_a_metrics_file_is_json_or_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics/x.json"
    with pytest.raises(UserError, match="x.json: not written: a is nan"):
        write_json(path, {"a": math.nan})
    assert not path.exists()
    write_json(path, {"a": 1.5, "b": [None]})
    assert json.loads(path.read_text()) == {"a": 1.5, "b": [None]}


@pytest.mark.parametrize("name", ["core", "gsm8k", "pretrain", "rl"])
def test_committed_headlines_are_those_of_the_committed_metrics(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = json.loads((ROOT / f"metrics/{name}.json").read_text())
    monkeypatch.chdir(tmp_path)
    write_metrics(name, metrics)
    for folder in ("metrics", "headline"):
        written = (tmp_path / folder / f"{name}.json").read_bytes()
        assert written == (ROOT / folder / f"{name}.json").read_bytes()


def test_a_stage_without_a_headline_writes_its_metrics_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_metrics("sft", {"train_loss": 1.5})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics"]
