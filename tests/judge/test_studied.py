"""Runs of this project's own studies as a table: tokens, FLOPs and seconds to a target."""

from __future__ import annotations

import pytest
from support.ablation_file import FILE, parse
from support.results import result

from paribus.errors import UserError
from paribus.judge import Options
from paribus.judge.runs import read_runs
from paribus.judge.studied import Studied
from paribus.judge.verdicts import Judgement, judge_runs

pytestmark = pytest.mark.usefixtures("in_checkout")
ARM = next(iter(FILE["arms"]))


def judged(metric: str, target_of_arm: float) -> Judgement:
    runs = [result("baseline", seed, 1.0 + seed / 100) for seed in range(4)]
    runs += [result(ARM, seed, target_of_arm + seed / 90) for seed in range(4)]
    source = Studied(parse(), runs)
    options = Options.of(
        arm="arm",
        pair_by="seed",
        baseline="baseline",
        metric=metric,
        curve="val_bpb",
        step=metric.split("_")[0],
    )
    return judge_runs(read_runs(source, options), options)


@pytest.mark.parametrize("axis", ["tokens", "seconds", "flops"])
def test_compute_to_a_target_is_judged_on_the_runs_of_a_study(axis: str) -> None:
    found = judged(f"{axis}_to:1.4", 0.9).comparisons[0]
    assert (found.verdict, found.estimate.pairs) == ("better", 4)
    assert found.difference < 0


def test_runs_of_a_study_that_miss_the_target_are_censored() -> None:
    found = judged("tokens_to:1.3", 1.5)
    assert found.arm(ARM).reached == 0
    assert found.comparisons[0].estimate.design.startswith("censored")


def test_a_study_without_results_is_explained() -> None:
    with pytest.raises(UserError, match="no finished run"):
        Studied(parse(), [])
