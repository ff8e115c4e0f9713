"""Equal seconds: arms are timed in turns, and the error of the seconds is in the interval."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from support.ablation_file import parse
from support.results import result

from paribus.config import Config
from paribus.study.differences import differences_of
from paribus.study.events import folder_of
from paribus.study.sample import Sample, Timed
from paribus.study.statistics import effects
from paribus.study.timing import ROUNDS, slope_at_end, time_in_turns

pytestmark = pytest.mark.usefixtures("in_checkout")


def configs() -> dict[str, Config]:
    experiment = parse()
    return {name: experiment.config(name) for name in experiment.names}


def test_a_machine_that_slows_down_slows_arm_and_baseline_alike() -> None:
    clock = iter(range(100))

    def slowing(config: Config, _: float) -> float:
        own = 2.0 if config.optimizer.kind == "adamw" else 1.0
        return own * 1.1 ** (next(clock) // 2)  # each round a tenth slower

    found = time_in_turns(configs(), slowing)
    assert found["adamw"][0] / found["baseline"][0] == pytest.approx(2.0)
    assert found["adamw"][1] == pytest.approx(0, abs=1e-12)


def test_an_arm_that_comes_later_is_timed_in_ratio_to_the_baseline() -> None:
    found = time_in_turns(
        configs(), lambda config, _: 6.0 if config.optimizer.kind == "adamw" else 3.0, known=1.5
    )
    assert found["adamw"][0] == pytest.approx(3.0)


def test_the_error_of_a_ratio_is_that_of_its_rounds() -> None:
    rng = np.random.default_rng(1)
    off = []
    for _ in range(2000):
        found = time_in_turns(configs_once, lambda *_: math.exp(rng.normal(0, 0.02)))
        seconds, error = found["adamw"]
        off.append(math.log(seconds / found["baseline"][0]) / error)
    inside = np.mean(np.abs(off) < 3.182)  # Student's t of 3 degrees
    assert inside == pytest.approx(0.95, abs=0.02)


configs_once: dict[str, Config] = {}


@pytest.fixture(autouse=True)
def _read_once(in_checkout: None) -> None:
    configs_once.update(configs())


def test_the_slope_is_of_the_end_of_the_curve() -> None:
    run = result("adamw", 0, 1.0)
    steps = math.log(500 / 400)
    assert slope_at_end(run) == pytest.approx((1 / 4 - 1 / 5) / steps)
    assert slope_at_end(replace(run, curve=run.curve[:1])) is None


def test_the_error_of_the_seconds_widens_the_interval_at_equal_seconds_alone() -> None:
    runs = [
        result(arm, seed, 1.0 + seed / 90) for arm in ("baseline", "adamw") for seed in range(3)
    ]
    for equal in ("seconds", "tokens"):
        experiment = parse(equal=equal)
        path = folder_of(experiment.name) / "study.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"step_seconds": {"adamw": {"error": 0.1}}}))
        sample = Sample.of(differences_of(experiment, runs, "adamw"))
        path.unlink()
        assert (sample.lasting_error > 0) == (equal == "seconds")


@pytest.mark.soak
def test_arms_that_are_equal_but_mistimed_are_rarely_called_different() -> None:
    rng = np.random.default_rng(2)
    wrong = {"seeds alone": 0, "with the error": 0}
    studies = 1000
    for _ in range(studies):
        rounds = rng.normal(0, 0.05, ROUNDS)
        shift, error = rounds.mean(), rounds.std(ddof=1) / math.sqrt(ROUNDS)
        values = list(shift + rng.normal(0, 0.01, 5))
        both = {"seeds alone": values, "with the error": Timed(values, error, ROUNDS)}
        for name, differences in both.items():
            judged = effects(
                {"arm": differences}, direction="lower", smallest_effect=1e-6, alpha=0.05
            )
            wrong[name] += judged["arm"].decided
    assert wrong["seeds alone"] / studies > 0.5
    assert wrong["with the error"] / studies <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)
