"""Equal tuning: the same budget for every arm, at seeds that no verdict uses; nothing lost or run twice by kills."""

from __future__ import annotations

import time
from typing import Any

import psutil
import pytest
from support.ablation_file import parse
from support.studied import LightProject, kill
from support.waiting import wait_for

from paribus.errors import UserError
from paribus.study.tuned import (
    ROUND,
    Trial,
    TrialStudy,
    Tuned,
    edge_of,
    ranked,
    trial_study,
    tuned_part,
)

SPACE: dict[str, Any] = {
    "optimizer.matrix_lr": {"low": 0.005, "high": 0.08, "log": True},
    "optimizer.adamw_matrix_lr": {"low": 0.0005, "high": 0.032, "log": True},
}
TUNE: dict[str, Any] = {"space": SPACE, "trials": 6}
# Untuned AdamW is worse by .5 + .1 log 4, Muon by .1 log 2; each has its best within the space.
BEST = {
    "when": {"stage": "pretrain", "kind": "adamw"},
    "do": {"best": {"adamw_matrix_lr": 0.008}},
}
BEST_OF_MUON = {"when": {"stage": "pretrain", "kind": "muon"}, "do": {"best": {"matrix_lr": 0.04}}}


def problems_of(**changes: Any) -> str:
    with pytest.raises(UserError) as refused:
        parse(**changes)
    return "\n".join(refused.value.problems)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, light_project: LightProject) -> LightProject:
    """A project whose study `tuned` was killed in its trials, and called again."""
    project = light_project.copy(tmp_path_factory.mktemp("tuned") / "project")
    project.study("tuned", tune=TUNE)
    project.behave(BEST, BEST_OF_MUON)
    driver = project.begin("tuned", workers=2)
    wait_for(lambda: len(project.ended("tuned-tuning", "done")) >= 5)
    time.sleep(0.2)
    kill([psutil.Process(driver.pid), *project.workers(), *project.stages()])
    driver.wait()
    project.execute("tuned", workers=2)
    return project


@pytest.mark.soak
def test_every_arm_gets_the_same_trials_and_a_kill_repeats_none(tuned: LightProject) -> None:
    done = tuned.ended("tuned-tuning", "done")
    arms = [name.split(".")[1].rpartition("-")[0] for name in done]
    assert sorted(done) == sorted(set(done))
    assert {arm: arms.count(arm) for arm in arms} == {"baseline": 6, "adamw": 6}


@pytest.mark.soak
def test_no_verdict_uses_a_seed_of_the_trials(tuned: LightProject) -> None:
    of_trials = {one.run.seed for one in tuned.experiments("tuned-tuning")}
    of_verdict = {one.run.seed for one in tuned.experiments("tuned")}
    assert of_trials.isdisjoint(of_verdict)


@pytest.mark.soak
def test_the_verdict_is_on_the_best_trial_of_each_arm(tuned: LightProject) -> None:
    trials = tuned.values("tuned-tuning")
    best = {}
    for arm in ("baseline", "adamw"):
        best[arm] = min(
            value for name, value in trials.items() if name.split(".")[1].startswith(arm)
        )
    judged, untuned = tuned.values("tuned"), tuned.values("tuned-untuned")
    for arm in best:
        assert judged[f"tuned.{arm}.s7"] <= untuned[f"tuned-untuned.{arm}.s7"]


# ---------------------------------------------------------------- suggestions


def trials_of(**changes: Any) -> TrialStudy:
    return trial_study(parse(tune=TUNE, **changes), {"threads": None})


def test_the_first_round_of_every_arm_is_known_before_any_result() -> None:
    runs = trials_of().wanted([])
    assert [run.arm for run in runs[:4]] == [
        "baseline-t00",
        "adamw-t00",
        "baseline-t01",
        "adamw-t01",
    ]
    assert len(runs) == 2 * ROUND


def test_trials_are_the_same_whoever_asks() -> None:
    assert trials_of().wanted([]) == trials_of().wanted([])


def test_the_first_trial_has_the_values_of_the_file() -> None:
    tuned = trials_of().tuned([])
    assert tuned["adamw"].trials[0].values == {"optimizer.adamw_matrix_lr": 0.002}


def test_trials_run_at_a_seed_that_no_verdict_has() -> None:
    study = trials_of(seeds="open")
    verdict = range(study.whole.first_seed, study.whole.first_seed + 1000)
    assert {run.seed for run in study.wanted([])}.isdisjoint(verdict)


def test_the_tuned_study_has_each_arms_own_best_and_one_family_of_arms() -> None:
    experiment = parse(tune=TUNE)
    best = {
        "baseline": {"optimizer.matrix_lr": 0.03},
        "adamw": {"optimizer.adamw_matrix_lr": 0.004},
    }
    tuned = {arm: Tuned({}, (), Trial(0, values, (1.0,), True)) for arm, values in best.items()}
    judged = tuned_part(experiment, tuned)
    assert judged.config().optimizer.matrix_lr == 0.03
    assert judged.config("adamw").optimizer.adamw_matrix_lr == 0.004
    assert list(judged.arms) == ["adamw"]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "tune, words",
    [
        ({"trials": 0}, "tune.trials: 0 is not allowed"),
        ({"pick": 9}, "tune.pick: 9 is not allowed; expected a whole number from 1 to 6"),
        ({"trails": 3}, "tune.trails: unknown key; did you mean trials?"),
        ({"seed": 8}, "tune.seed: 8 makes trials at 8, which the verdict may use (7 to 8)"),
        ({"space": {}}, "tune.space: {}"),
        ({"space": {"optimizer.matrix_lr": SPACE["optimizer.matrix_lr"]}}, "adamw reads none of its keys"),
        ({"space": {"optimizer.kind": {"choices": ["muon", "adamw"]}}}, "arms.adamw: sets optimizer.kind"),
        ({"space": {"optimizer.beta1": {"low": 0.9, "high": 0.5}}}, "expected low < high"),
        ({"space": {"optimizer.beta1": {"low": 0.9, "high": 5.0}}}, "tune.space.optimizer.beta1"),
        ({"space": {"optimizer.bta1": {"low": 0.1, "high": 0.5}}}, "did you mean optimizer.beta1?"),
        ({"space": {"rl.steps": {"low": 1, "high": 5}}}, "none of corpus, tokenizer, tokens, pretrain reads it"),
        ({"space": {"pretrain.steps": {"low": 1, "high": 5}}}, "equal: tokens decides it"),
    ],
)  # fmt: skip
def test_tuning_that_would_not_be_equal_is_refused(tune: dict[str, Any], words: str) -> None:
    assert words in problems_of(tune=TUNE | tune)


def test_an_arm_tunes_the_keys_that_it_reads() -> None:
    experiment = parse(tune=TUNE)
    assert experiment.tune is not None
    assert list(experiment.tune.space_of(experiment, "baseline")) == ["optimizer.matrix_lr"]
    assert list(experiment.tune.space_of(experiment, "adamw")) == ["optimizer.adamw_matrix_lr"]


# ---------------------------------------------------------------- picking


@pytest.mark.parametrize("value, edge", [(0.005, "lower"), (0.02, ""), (0.079, "upper")])
def test_a_best_at_the_end_of_its_range_is_on_the_edge(value: float, edge: str) -> None:
    assert edge_of(SPACE["optimizer.matrix_lr"], value) == edge


def test_a_trial_without_a_finite_metric_is_never_the_best() -> None:
    trials = [Trial(number, {}, (score,), True) for number, score in enumerate([2.0, None, 1.0])]
    assert [trial.number for trial in ranked(trials, "lower")] == [2, 0]
