"""The looks of a study: verdicts stand, seeds between looks decide nothing, what was spent is not spent again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from support.ablation_file import parse
from support.results import result
from support.tiny import TINY

from paribus.study.advice import next_look
from paribus.study.experiment import Experiment
from paribus.study.outcomes import Outcomes
from paribus.study.results import Result
from paribus.study.sequence import Step, added_arms, judge, next_step, steps

pytestmark = pytest.mark.usefixtures("in_checkout")
CLEAR = [-0.5, -0.501, -0.499, -0.5, -0.5, -0.501, -0.499, -0.5]
UNCLEAR = [0.05, -0.04, 0.0, 0.06, -0.05, 0.02, -0.03, 0.01]


def study(arms: int = 1, **changes: Any) -> Experiment:
    """A study whose first seed is 0, with arms a, b, …."""
    named = {name: {"optimizer.eps": 10.0**-power} for power, name in enumerate("abcde"[:arms], 5)}
    return parse(baseline={"set": TINY | {"seed": 0}}, arms=named, **changes)


def results_of(differences: Mapping[str, Sequence[float]]) -> list[Result]:
    """The runs of a baseline at 1 and of arms that differ from it by so much."""
    longest = max(len(values) for values in differences.values())
    found = [result("baseline", seed, 1.0) for seed in range(longest)]
    for arm, values in differences.items():
        found += [result(arm, seed, 1.0 + value) for seed, value in enumerate(values)]
    return found


def verdicts(experiment: Experiment, record: Sequence[Step] = (), **differences: Any) -> list[str]:
    found = judge(experiment, Outcomes(results_of(differences)), record)
    return [effect.verdict for effect in found.effects.values()]


def test_there_is_a_verdict_at_looks_and_none_between_them() -> None:
    experiment = study(seeds="open")
    seen = [verdicts(experiment, a=CLEAR[:n])[0] for n in range(1, 6)]
    assert seen[:2] == ["not yet", "not yet"]
    assert set(seen[2:]) == {"better"}
    seen = [verdicts(experiment, a=UNCLEAR[:n])[0] for n in range(1, 9)]
    looks = [number for number, verdict in enumerate(seen, 1) if verdict == "undecided"]
    assert looks == [3, 5, 8]
    assert seen.count("not yet") == 5


def test_a_verdict_stands_whatever_comes_after_it() -> None:
    late = [*CLEAR[:3], 0.5, 0.9, 0.7, 0.8, 0.9]
    found = judge(study(seeds="open"), Outcomes(results_of({"a": late})))
    assert found.effects["a"].verdict == "better"
    assert found.effects["a"].n == 3
    assert [step.seeds for step in found.taken] == [3]


def test_a_fixed_study_says_nothing_before_its_end() -> None:
    experiment = study(seeds=5)
    assert verdicts(experiment, a=CLEAR[:4]) == ["not yet"]
    assert verdicts(experiment, a=CLEAR[:5]) == ["better"]
    assert next_step(experiment, 5) is None
    assert next_look(experiment, Outcomes([]), judge(experiment, Outcomes([]))) is not None


def test_a_run_that_is_awaited_keeps_its_arm_from_a_look_and_a_lost_one_does_not() -> None:
    runs = [one for one in results_of({"a": CLEAR[:3]}) if (one.arm, one.seed) != ("a", 1)]
    experiment = study(seeds="open")
    assert judge(experiment, Outcomes(runs)).effects["a"].verdict == "not yet"
    found = judge(experiment, Outcomes(runs, lost={"a": [1]})).effects["a"]
    assert found.verdict == "better"
    assert found.n == 2


def test_arms_without_a_result_yet_count_among_the_arms() -> None:
    values = [-0.010, -0.011, -0.009, -0.012, -0.008]
    alone = judge(study(1, seeds=5, smallest_effect=0.001), Outcomes(results_of({"a": values})))
    third = judge(study(3, seeds=5, smallest_effect=0.001), Outcomes(results_of({"a": values})))
    assert third.effects["a"].p_adjusted == pytest.approx(3 * alone.effects["a"].p_adjusted)


def test_a_study_whose_file_changes_may_spend_only_what_is_left() -> None:
    fixed, opened = study(seeds=5), study(seeds="open")
    taken = judge(fixed, Outcomes(results_of({"a": UNCLEAR[:5]}))).taken
    assert taken == (Step(5, 1.0, ("a",)),)
    assert verdicts(opened, taken, a=[*UNCLEAR[:5], -0.5, -0.5, -0.5]) == ["undecided"]
    half = (Step(5, 0.5, ("a",)),)
    shares = {
        step.seeds: step.share for step, _ in zip(steps(opened, half), range(3), strict=False)
    }
    assert shares == pytest.approx({5: 0.5, 8: 0.75, 12: 0.5 + 0.5 * 2 / 3})
    same = judge(opened, Outcomes(results_of({"a": UNCLEAR[:5]}))).taken
    assert [step.share for step in same] == pytest.approx([1 / 2, 2 / 3])
    assert next(iter(steps(opened, same))) == same[0], "its own looks are no history"


def test_an_arm_that_comes_later_pays_with_what_is_left() -> None:
    taken = judge(study(1, seeds="open"), Outcomes(results_of({"a": UNCLEAR[:3]}))).taken
    later = study(2, seeds="open")
    assert added_arms(later, taken) == {"b": 0.5}
    at_three = {"a": UNCLEAR[:3], "b": CLEAR[:3]}
    assert verdicts(later, taken, **at_three) == ["undecided", "not yet"], "that look is over"
    found = judge(later, Outcomes(results_of({"a": UNCLEAR[:5], "b": CLEAR[:5]})), taken)
    assert found.effects["b"].verdict == "better"
    assert found.effects["b"].n == 5
    together = judge(later, Outcomes(results_of({"a": UNCLEAR[:5], "b": CLEAR[:5]})))
    assert together.effects["b"].n == 3, "an arm of the beginning was looked at three seeds"
    assert [look.share for look in found.effects["b"].looks] == pytest.approx([0.25])


@pytest.mark.parametrize("arms", [1, pytest.param(4, marks=pytest.mark.soak)])
def test_calling_again_and_again_errs_no_more_than_alpha(arms: int) -> None:
    """Arms that do not differ; every look until one has a verdict, through the whole function."""
    rng = np.random.default_rng(arms)
    experiment = study(arms, seeds="open", smallest_effect=1e-6)
    false = 0
    studies = 80
    for _ in range(studies):
        noise = rng.normal(size=(arms + 1, 12))
        drawn = {name: list(noise[i + 1] - noise[0]) for i, name in enumerate("abcde"[:arms])}
        found = judge(experiment, Outcomes(results_of(drawn))).effects
        false += any(effect.verdict in ("better", "worse") for effect in found.values())
    assert false / studies <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / studies)
