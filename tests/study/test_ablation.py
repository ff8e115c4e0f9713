"""An ablation's file: what is refused and warned about, what it expands to, budgets held equal, matched seeds, verdicts."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.ablation_file import FILE, parse
from support.results import result
from support.tiny import TINY

from paribus.config import load_config, resolve_model
from paribus.errors import UserError
from paribus.study import budget
from paribus.study.divergence import Diverged, Survivors
from paribus.study.experiment import Experiment
from paribus.study.outcomes import Outcomes
from paribus.study.reading import noise_experiment, parse_experiment
from paribus.study.registration import registered
from paribus.study.results import Result
from paribus.study.sequence import judge
from paribus.study.settled import Study
from paribus.study.statistics import Effect
from paribus.study.status import Row, Standing
from paribus.study.verdict import ArmVerdict, verdicts

pytestmark = pytest.mark.usefixtures("in_checkout")


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"seeeds": 3}, "did you mean seeds?"),
        ({"question": ""}, "expected a sentence"),
        ({"seeds": 1}, "whole number >= 2"),
        ({"seeds": {"from": 5, "to": 3}}, "{from: 3, to: 12}"),
        ({"metric": "val_bpp"}, "did you mean val_bpb?"),
        ({"metric": "pretrain:val_pbb", "direction": "lower"}, "did you mean val_bpb?"),
        ({"metric": "pretrain:train_loss"}, "expected lower or higher"),
        ({"metric": "pretrain:train_loss", "direction": "up"}, "expected lower or higher"),
        ({"metric": "core"}, "add core to stages"),
        ({"direction": "higher"}, "lower is better"),
        ({"equal": "cost"}, "tokens, bytes, flops, seconds, none"),
        ({"alpha": 0.7}, "above 0 and below 0.5"),
        ({"smallest_effect": 0}, "a number above 0"),
        ({"stages": ["pretrian"]}, "did you mean pretrain?"),
        ({"baseline": {"profile": "nobody"}}, "no profile 'nobody'"),
        ({"baseline": {"set": {"model.dept": 3}}}, "did you mean model.depth?"),
        ({"arms": {}}, "at least one"),
        ({"arms": {"baseline": {"model.depth": 3}}}, "not baseline"),
        ({"arms": {"a": {"model.dept": 3}}}, "did you mean model.depth?"),
        ({"arms": {"a": {"model.depth": "many"}}}, "expected a whole number"),
        ({"arms": {"a": {"model.depth": TINY["model.depth"]}}}, "every value is the baseline's"),
        ({"arms": {"a": {"rl.temperature": 0.5}}}, "changes nothing in the stages that run"),
        ({"arms": {"a": {"seed": 3}}}, "every arm runs at the same seeds"),
        ({"arms": {"a": {"pretrain.steps": 9}}}, "held by the steps of pretraining"),
        ({"arms": {"a": {"pretrain.batch_tokens": 1024}}}, "cannot be held"),  # 1.5 steps
        ({"arms": {"a": {"set": {"model.depth": 3}}}}, "both set"),
        ({"arms": {"a": {"sft.steps": 9}}, "stages": ["sft"]}, "cannot be held"),
        ({"arms": {"a": {"model.depth": 3}}, "stages": ["rl"], "equal": "flops"}, "leave rl out"),
        ({"stages": ["sft"], "equal": "seconds"}, "for pretrain alone"),
        ({"stages": ["sft"], "equal": "bytes"}, "for pretrain alone"),
    ],
    ids=str,
)
def test_a_wrong_file_is_told(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(**changes)
    assert any(said in problem for problem in caught.value.problems), caught.value.problems
    assert all(problem.startswith("experiments/tiny.yaml: ") for problem in caught.value.problems)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        parse(
            seeds=0,
            alpha=2,
            equal="x",
            arms={"a": {"model.dept": 3}, "b": {"model.depth": TINY["model.depth"]}},
        )
    assert len(caught.value.problems) == 5
    with pytest.raises(UserError) as caught:
        parse_experiment("tiny", {"arms": {}})
    assert len(caught.value.problems) == 8


def test_more_than_one_change_is_warned_about_unless_it_is_said_to_be_one() -> None:
    change = {"optimizer.kind": "adamw", "optimizer.adamw_matrix_lr": 0.004}
    [warning] = parse(arms={"a": change}).warnings
    assert "changes 2 things (optimizer.adamw_matrix_lr, optimizer.kind)" in warning
    assert not parse(arms={"a": {"set": change, "as_one": "AdamW at its own rate"}}).warnings


def test_a_file_that_is_not_committed_as_it_is_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("a.yaml")
    path.write_text("question: x")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    with pytest.raises(UserError, match="is not committed"):
        registered(path)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "a"], check=True)
    assert len(registered(path)) == 40
    path.write_text("question: y")
    with pytest.raises(UserError, match="differs from what is committed"):
        registered(path)


# ---------------------------------------------------------------- what it expands to


def test_arms_times_seeds() -> None:
    experiment = parse(seeds=3)
    settled: dict[str, Any] = {"threads": 1, "steps": {}}
    runs = Study(experiment, settled).runs(3)
    seed = load_config().seed
    assert [run.name for run in runs] == [
        f"tiny.{arm}.s{seed + i}" for i in range(3) for arm in ("baseline", "adamw")
    ]
    assert runs[3].overrides == TINY | {
        "optimizer.kind": "adamw",
        "train.threads": 1,
        "seed": seed + 1,
    }
    assert len({run.key for run in runs}) == 6
    assert runs[0].key == Study(experiment, settled).run("baseline", 0).key
    assert experiment.stages == ["corpus", "tokenizer", "tokens", "pretrain"]
    assert experiment.direction == "lower"


def test_a_noise_floor_is_an_ablation_without_arms() -> None:
    experiment, metrics = noise_experiment("default", 4, ["val_bpb", "core"])
    assert [metric.name for metric in metrics] == ["val_bpb", "core"]
    assert {
        "pretrain",
        "core",
    } <= set(experiment.stages)
    assert [run.arm for run in Study(experiment, {"threads": 1, "steps": {}}).runs(4)] == [
        "baseline"
    ] * 4


# ---------------------------------------------------------------- held equal


def test_equal_flops_shorten_a_deeper_arm() -> None:
    experiment = parse(
        equal="flops",
        arms={"deep": {"model.depth": 4}},
        baseline={"set": TINY | {"pretrain.steps": 200}},
    )
    steps = budget.steps_for(experiment, "deep")
    assert steps, "its width grows too"
    assert steps < 100, "its width grows too"
    held = budget.cost(experiment, experiment.config("deep", {"pretrain.steps": steps}))
    assert held == pytest.approx(budget.target(experiment), rel=budget.TOLERANCE)


def test_equal_flops_count_what_the_optimiser_multiplies() -> None:
    """AdamW has no matrix products of its own, so that at equal FLOPs it trains for more steps than Muon."""
    from paribus.model.accounting import optimizer_flops_per_step

    base = {"set": TINY | {"pretrain.steps": 200}}
    experiment = parse(equal="flops", arms={"adamw": {"optimizer.kind": "adamw"}}, baseline=base)
    config = experiment.config()
    muon = optimizer_flops_per_step(resolve_model(config.model), config.optimizer)
    steps = budget.steps_for(experiment, "adamw")
    assert steps is not None
    assert muon > 0
    one_more = budget.training_flops(experiment.config("adamw"), 1, 256)
    held = budget.cost(experiment, experiment.config("adamw", {"pretrain.steps": steps}))
    assert held == pytest.approx(budget.cost(experiment, config), abs=one_more / 2)
    assert steps * one_more == pytest.approx(200 * (one_more + muon), abs=one_more / 2)


def test_equal_tokens_halve_the_steps_of_twice_the_batch() -> None:
    experiment = parse(arms={"large": {"pretrain.batch_tokens": 512}})
    assert budget.steps_for(experiment, "large") == TINY["pretrain.steps"] / 2
    assert budget.steps_for(experiment, "baseline") == TINY["pretrain.steps"]
    wanted = parse(equal={"tokens": 2560})
    assert budget.steps_for(wanted, "adamw") == budget.steps_for(wanted, "baseline") == 10


def test_equal_seconds_follow_measured_steps() -> None:
    experiment = parse(equal="seconds", baseline={"set": TINY | {"pretrain.steps": 100}})
    assert budget.steps_for(experiment, "adamw", {"baseline": 0.2, "adamw": 0.16}) == 125
    wanted = parse(equal={"seconds": 30})
    assert budget.steps_for(wanted, "adamw", {"baseline": 0.2, "adamw": 0.16}) == 188


# ---------------------------------------------------------------- matched seeds


@pytest.mark.parametrize(
    "change",
    [
        {"model.mlp": "gelu"},
        {"model.depth": 3, "model.width": 32},
        {"model.value_embeddings": "none"},
        {"optimizer.kind": "adamw"},
    ],
    ids=str,
)
def test_tensors_that_two_arms_share_begin_with_the_same_values(change: dict[str, Any]) -> None:
    from paribus.model.gpt import GPT

    weights = []
    for overrides in ({}, change):
        config = load_config(overrides=TINY | overrides)
        model = GPT(resolve_model(config.model), 400, torch.float32)
        model.initialise(config.seed)
        weights.append(dict(model.named_parameters()))
    shared = [
        name
        for name in weights[0]
        if name in weights[1] and weights[0][name].shape == weights[1][name].shape
    ]
    assert len(shared) >= 10
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in shared)


# ---------------------------------------------------------------- verdicts


def effects_in(
    experiment: Experiment, results: list[Result], diverged: Diverged | None = None
) -> dict[str, Effect]:
    return judge(experiment, Outcomes(results, diverged or {})).effects


def verdicts_in(
    experiment: Experiment, results: list[Result], diverged: Diverged | None = None
) -> list[ArmVerdict]:
    outcomes = Outcomes(results, diverged or {})
    return verdicts(experiment, outcomes, judge(experiment, outcomes).effects)


FROM_ZERO = {"set": TINY | {"seed": 0}}
BASE = [result("baseline", seed, 1.0 + 0.1 * seed) for seed in range(5)]


def test_verdicts_are_on_differences_within_a_seed() -> None:
    arm = [result("adamw", seed, 1.05 + 0.1 * seed + 0.001 * (seed % 2)) for seed in range(5)]
    found = effects_in(parse(seeds=5, baseline=FROM_ZERO), BASE + arm)["adamw"]
    assert found.verdict == "worse"
    assert found.mean == pytest.approx(0.0504)
    assert found.n == 5
    lost = BASE + arm[:2] + [replace(one, value=None) for one in arm[2:]]
    assert effects_in(parse(seeds=5, baseline=FROM_ZERO), lost)["adamw"].n == 2, "without a value"
    assert effects_in(parse(seeds=5, baseline=FROM_ZERO), BASE) == {}


def test_no_verdict_rests_on_the_seeds_that_survived() -> None:
    better = [result("adamw", seed, 0.9 + 0.1 * seed + 0.001 * (seed % 2)) for seed in range(5)]
    worse = [result("adamw", seed, 1.2 + 0.1 * seed + 0.001 * (seed % 2)) for seed in range(5)]
    same = [result("adamw", seed, 1.0 + 0.1 * seed + 1e-5 * (seed % 2)) for seed in range(5)]
    study = parse(seeds=6, baseline=FROM_ZERO)

    def verdict(arm: list[Result], **diverged: list[int]) -> str:
        ended = {"adamw": [5], "baseline": [5]}  # given up, where it did not diverge
        outcomes = Outcomes(BASE + arm, diverged, ended)
        return judge(study, outcomes).effects["adamw"].verdict

    assert [verdict(one) for one in (better, worse, same)] == ["better", "worse", "equivalent"]
    assert [verdict(one, adamw=[5]) for one in (better, worse, same)] == [
        "undecided",
        "worse",
        "undecided",
    ]
    assert [verdict(one, baseline=[5]) for one in (better, worse, same)] == [
        "better",
        "undecided",
        "undecided",
    ]
    [found] = verdicts_in(study, BASE + better, {"adamw": [5]})
    assert found.effect is not None, "one run has not ended"
    assert found.effect.verdict == "not yet", "one run has not ended"
    assert found.survivors == Survivors(1, 6, 0, 5)
    assert found.survivors.sentence("adamw") == "adamw diverged 1 of 6"


def test_an_arm_with_the_baselines_weights_is_named_unless_it_is_of_the_evaluation_alone() -> None:
    def weights(results: list[Result], mark: str) -> list[Result]:
        return [replace(one, weights={"pretrain": f"{mark}{one.seed}"}) for one in results]

    same = weights([replace(one, arm="adamw") for one in BASE], "w")
    [found] = verdicts_in(parse(seeds=5, baseline=FROM_ZERO), weights(BASE, "w") + same)
    assert found.changed_nothing
    [found] = verdicts_in(
        parse(seeds=5, baseline=FROM_ZERO), weights(BASE, "w") + weights(same, "v")
    )
    assert not found.changed_nothing
    other_value = [replace(one, value=(one.value or 0) + 0.1) for one in same]
    [found] = verdicts_in(parse(seeds=5, baseline=FROM_ZERO), weights(BASE, "w") + other_value)
    assert not found.changed_nothing, "what is measured differs, although the weights do not"
    file = FILE | {"arms": {"few": {"eval.core.max_per_task": 2}}, "stages": ["core"], "seeds": 5}
    evaluation = parse_experiment("tiny", file | {"metric": "core"})
    same = [replace(one, arm="few") for one in weights(BASE, "w")]
    [found] = verdicts_in(evaluation, weights(BASE, "w") + same)
    assert not found.changed_nothing


def test_the_difference_over_training_is_taken_at_equal_tokens_and_at_equal_time() -> None:
    arm = [
        result("adamw", seed, 1.05 + 0.1 * seed + 0.001 * seed, speed=200.0) for seed in range(5)
    ]
    [found] = verdicts_in(parse(seeds=5, baseline=FROM_ZERO), BASE + arm)
    assert found.over_training is not None
    assert found.over_training.mean == pytest.approx([0.052] * 5)
    assert found.over_seconds is not None
    assert found.over_seconds.steps[-1] == 2.5
    assert found.at_equal_time is not None
    assert found.at_equal_time.mean == pytest.approx(0.052 + 1 / 5 - (1 / 2 + 1 / 3) / 2)
    assert found.cost["tokens_per_second"] == 200


def test_a_study_with_looks_asks_for_more_seeds_only_of_the_undecided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = parse(
        seeds={"from": 3, "to": 5},
        arms={"clear": {"optimizer.kind": "adamw"}, "open": {"model.mlp": "gelu"}},
    )
    study = Study(experiment, {"threads": 1, "steps": {}})
    monkeypatch.setattr("paribus.study.settled.given_up", lambda *_: {})
    study.__dict__["code"] = dict.fromkeys(experiment.names, "c")
    noise = {
        "baseline": [0.0] * 5,
        "clear": [0.5, 0.501, 0.499, 0.5, 0.5],
        "open": [0.05, -0.04, 0.0, 0.06, -0.05],
    }

    def runs_done(seeds: int, arms: tuple[str, ...]) -> list[Result]:
        return [
            replace(result(arm, run.seed, 1 + noise[arm][number]), key=run.key)
            for arm in arms
            for number in range(seeds)
            for run in [study.run(arm, number)]
        ]

    assert {run.arm for run in study.wanted([])} == set(experiment.names)
    assert len(study.wanted([])) == 9
    after = study.wanted(runs_done(3, ("baseline", "clear", "open")))
    assert [run.arm for run in after].count("clear") == 3
    assert [run.arm for run in after].count("open") == 5
    last = runs_done(5, ("baseline", "open")) + runs_done(3, ("clear",))
    assert {run.name for run in study.wanted(last)} == {one.name for one in last}, (
        "the same is asked for once all is there"
    )


def test_an_open_study_goes_to_its_next_look_each_time_it_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = parse(seeds="open", arms={"open": {"model.mlp": "gelu"}})
    monkeypatch.setattr("paribus.study.settled.given_up", lambda *_: {})
    unclear = [0.05, -0.04, 0.0, 0.06, -0.05, 0.02, -0.03, 0.01]

    def called(done: int, looks: int = 1, values: list[float] = unclear) -> tuple[int, int]:
        """(seeds of the goal, runs wanted) where so many seeds are done."""
        study = Study(experiment, {"threads": 1, "steps": {}})
        study.__dict__["code"] = dict.fromkeys(experiment.names, "c")
        results = []
        for number in range(done):
            base, own = study.run("baseline", number), study.run("open", number)
            results.append(replace(result("baseline", base.seed, 1.0), key=base.key))
            results.append(replace(result("open", own.seed, 1 + values[number]), key=own.key))
        return study.aim(results, looks), len(study.wanted(results))

    assert called(0) == (3, 6)
    assert called(2) == (3, 6), "a look that was interrupted is the one to go on with"
    assert called(3) == (5, 10)
    assert called(3, looks=2) == (8, 10), "the second once the first has shown that it is needed"
    assert called(5) == (8, 16)
    assert called(3, values=[0.5, 0.501, 0.499])[1] == 6, "with a verdict nothing is run"


# ---------------------------------------------------------------- how it stands


def test_a_line_says_how_it_stands() -> None:
    standing = Standing(
        [
            Row("a", 7, "done"),
            Row("a", 8, "running", "pretrain", "3/9", 4.0),
            Row("b", 7, "waiting"),
        ],
        120.0,
    )
    assert standing.line().startswith(
        "3 runs: 1 done, 1 running, 1 waiting; a-s8 pretrain 3/9; finish about "
    )
