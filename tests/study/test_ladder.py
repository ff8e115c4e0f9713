"""A ladder's looks: answers from results on every rung, rungs that came later, and runs that diverged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.ablation_file import parse
from support.results import result

from paribus.pages.ladder import sentence
from paribus.study.advice import again
from paribus.study.experiment import Experiment
from paribus.study.ladder import LadderJudged, judge
from paribus.study.outcomes import Outcomes
from paribus.study.results import Result
from paribus.study.sequence import Judged, Step, next_step

pytestmark = pytest.mark.usefixtures("in_checkout")


def study(sizes: list[int], **changes: Any) -> Experiment:
    return parse(ladder={"model.depth": sizes}, **changes)


def results(sizes: list[int], seeds: int, effect: float = -0.2) -> list[Result]:
    """The arm differs by `effect` on every rung, by a little more or less at each seed."""
    found = []
    for depth in sizes:
        for seed in range(7, 7 + seeds):
            noise = 0.001 * ((seed * 7 + depth * 5) % 11 - 5)
            found.append(result(f"baseline-depth-{depth}", seed, 2.0))
            found.append(result(f"adamw-depth-{depth}", seed, 2.0 + effect + noise))
    return found


def climbs(judged: Judged) -> LadderJudged:
    assert isinstance(judged, LadderJudged)
    return judged


def test_an_equal_effect_on_every_rung_holds() -> None:
    experiment = study([2, 3, 4, 5], seeds=3)
    judged = climbs(judge(experiment, Outcomes(results([2, 3, 4, 5], 3))))
    climb = judged.climbs["adamw"]
    assert climb.answer == "holds"
    assert climb.predicted is not None
    assert climb.predicted.low < -0.2 < climb.predicted.high
    assert judged.is_decided("adamw")
    assert sentence(experiment, "adamw", climb).startswith("adamw holds: ")


def test_no_look_is_taken_before_every_rung_is_done() -> None:
    experiment = study([2, 3, 4, 5], seeds=3)
    judged = climbs(judge(experiment, Outcomes(results([2, 3, 4, 5], 3)[:-1])))
    assert judged.taken == ()
    assert judged.climbs["adamw"].answer == "unknown"
    assert "no look with an error rate" in sentence(experiment, "adamw", judged.climbs["adamw"])


def test_a_rung_added_later_is_looked_at_with_what_the_looks_before_left() -> None:
    record = climbs(
        judge(study([2, 3, 4, 5], seeds="open"), Outcomes(results([2, 3, 4, 5], 3)))
    ).taken
    assert [(step.seeds, step.share) for step in record] == [(3, 0.5)]
    experiment = study([2, 3, 4, 5, 6], seeds="open")
    sizes = [2, 3, 4, 5, 6]
    between = climbs(judge(experiment, Outcomes(results(sizes, 3)), record))
    assert between.climbs["adamw"].answer == "unknown"
    assert next_step(experiment, 3, record) == Step(5, 0.75, experiment.looked_at)
    after = climbs(judge(experiment, Outcomes(results(sizes, 5)), record))
    climb = after.climbs["adamw"]
    assert climb.answer == "holds"
    assert climb.level == pytest.approx(0.05 * 0.25)


def test_a_closed_ladder_has_nothing_left_for_a_rung_that_comes_later() -> None:
    closed = study([2, 3, 4, 5], seeds=3)
    record = climbs(judge(closed, Outcomes(results([2, 3, 4, 5], 3)))).taken
    grown = study([2, 3, 4, 5, 6], seeds=3)
    judged = climbs(judge(grown, Outcomes(results([2, 3, 4, 5, 6], 3)), record))
    assert judged.climbs["adamw"].answer == "unknown"
    assert judged.climbs["adamw"].predicted is not None, "an estimate all the same"


def test_no_answer_rests_on_the_rungs_that_survived() -> None:
    experiment = study([2, 3, 4, 5], seeds=3)
    found = [one for one in results([2, 3, 4, 5], 3) if one.name != "tiny.adamw-depth-5.s9"]
    outcomes = Outcomes(found, {"adamw-depth-5": [9]})
    climb = climbs(judge(experiment, outcomes)).climbs["adamw"]
    assert climb.answer == "unknown"
    assert climb.lost == "adamw diverged 1 of 3 at model.depth 5"


@pytest.mark.parametrize(
    "passed, said",
    [
        (True, "a new study with fresh seeds and open looks may tell: "),
        (False, "more seeds do not make it a line, other rungs may: set them in a new study: "),
    ],
)
def test_an_unknown_effect_names_a_new_study_and_what_it_costs(passed: bool, said: str) -> None:
    """Where the rung that was kept out fits the others' line, and where it does not."""
    experiment = study([2, 3, 4, 5], seeds=3)
    outcomes = Outcomes(results([2, 3, 4, 5], 3))
    climb = climbs(judge(experiment, outcomes)).climbs["adamw"]
    assert climb.check is not None
    measured = climb.check.predicted.mean if passed else 9.0
    unknown = replace(climb, answer="unknown", check=replace(climb.check, measured=measured))
    asked_again = again(experiment, outcomes)
    words = sentence(experiment, "adamw", unknown, None, asked_again)
    assert said + f"`paribus ablate new {asked_again.name} --like" in words
    assert "(8 runs a seed" in words
