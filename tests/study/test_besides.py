"""Questions besides the metric: each kind keeps one error rate, and answers what was planted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.ablation_file import parse
from support.results import result
from support.tiny import TINY

from paribus.errors import UserError
from paribus.pages.verdict_besides import best_sentence, sentence_of
from paribus.study.besides import Answer, Besides
from paribus.study.experiment import Experiment
from paribus.study.outcomes import Outcomes
from paribus.study.results import Result
from paribus.study.sequence import judge

pytestmark = pytest.mark.usefixtures("in_checkout")
SECONDARY = [{"metric": "pretrain:train_loss", "direction": "lower"}]
WIDE = [0.0, 0.01, -0.01, 0.02, -0.02]  # noise of differences


def study(arms: str = "abc", **changes: Any) -> Experiment:
    named = {name: {"optimizer.eps": 10.0**-power} for power, name in enumerate(arms, 5)}
    return parse(baseline={"set": TINY | {"seed": 0}}, arms=named, **({"seeds": 5} | changes))


def runs(
    values: Mapping[str, Sequence[float]], losses: Mapping[str, Sequence[float]] | None = None
) -> list[Result]:
    """Runs of a baseline at 1 and of arms that differ by so much; with another metric that differs by `losses`."""
    found = []
    for arm, own in ({"baseline": [0.0] * len(next(iter(values.values())))} | dict(values)).items():
        for seed, value in enumerate(own):
            one = result(arm, seed, 1.0 + value)
            loss = (losses or {}).get(arm, own)[seed]
            measured = dict(one.metrics["pretrain"]) | {"train_loss": 3.0 + loss}
            found.append(replace(one, metrics={"pretrain": measured}))
    return found


def asked(experiment: Experiment, results: list[Result], **lost: Any) -> Besides:
    outcomes = Outcomes(results, **lost)
    return Besides(experiment, outcomes, judge(experiment, outcomes))


def shifted(by: float) -> list[float]:
    return [by + noise for noise in WIDE]


def by_subject(answers: Sequence[Answer]) -> dict[str, Answer]:
    return {answer.about: answer for answer in answers}


def test_a_secondary_metric_is_tested_only_where_the_primary_speaks() -> None:
    losses = {"a": shifted(-0.5), "b": shifted(-0.5), "c": shifted(0.5)}
    values = {"a": shifted(-0.3), "b": shifted(0.001), "c": shifted(-0.3)}
    experiment = study(secondary=SECONDARY, smallest_effect=0.0001)
    found = by_subject(asked(experiment, runs(values, losses)).answers())
    answers = {about[0]: answer.answer for about, answer in found.items()}
    assert answers == {
        "a": "better",
        "b": "an estimate: the primary verdict is undecided",
        "c": "worse",
    }
    assert found["b: pretrain:train_loss"].p_adjusted is None


def test_contrasts_compare_arms_and_are_corrected_over_all_of_them() -> None:
    values = {
        "a": shifted(-0.3),
        "b": [-0.1, -0.08, -0.11, -0.1, -0.09],
        "c": [0.01, 0.03, 0, 0.02, 0],
    }
    found = by_subject(asked(study(contrasts="all"), runs(values)).answers())
    assert list(found) == ["b against a", "c against a", "c against b"]
    assert found["b against a"].answer == "worse"
    assert found["b against a"].mean == pytest.approx(-0.096 + 0.3)
    alone = asked(study(contrasts=[["b", "a"]]), runs(values)).answers()[0]
    assert alone.p_adjusted is not None
    assert found["b against a"].p_adjusted > alone.p_adjusted  # type: ignore[operator]


def test_arms_of_which_none_is_shown_to_be_worse_may_be_best() -> None:
    values = {"a": shifted(-0.3), "b": [-0.31, -0.27, -0.3, -0.33, -0.28], "c": shifted(0.3)}
    found = asked(study(), runs(values)).may_be_best()
    assert found == ["a", "b"]
    assert "one of a, b" in best_sentence(study(), found)[0]


def test_one_arm_has_no_set_of_the_best() -> None:
    assert asked(study("a"), runs({"a": shifted(-0.3)})).may_be_best() == []


@pytest.mark.parametrize(
    ("shift", "speed", "answer"),
    [(0.001, 200, "shown"), (0.2, 200, "not shown"), (0.001, 100, "not shown")],
)
def test_not_worse_and_cheaper_takes_both(shift: float, speed: float, answer: str) -> None:
    experiment = study("a", margin={"worse_by": 0.05, "cheaper": "seconds"})
    own = [result("a", seed, 1 + value, speed) for seed, value in enumerate(shifted(shift))]
    base = [result("baseline", seed, 1.0) for seed in range(5)]
    assert asked(experiment, [*base, *own]).answers()[0].answer == answer


def test_nothing_rests_on_seeds_that_survived() -> None:
    values = {"a": shifted(-0.3), "b": shifted(0.3), "c": shifted(0.0)}
    experiment = study(contrasts="all", margin=0.05, secondary=SECONDARY)
    survived = [one for one in runs(values) if (one.arm, one.seed) != ("a", 0)]
    found = asked(experiment, survived, diverged={"a": [0]})
    words = [answer.answer for answer in found.answers() if answer.about.split()[0].startswith("a")]
    assert words
    assert all(word.startswith("an estimate") for word in words)
    assert found.may_be_best() == ["baseline", "a", "c"]


def test_before_a_look_everything_is_an_estimate() -> None:
    experiment = study(contrasts="all", margin=0.05, secondary=SECONDARY)
    found = asked(experiment, runs({arm: shifted(-0.3)[:4] for arm in "abc"}))
    assert {answer.p_adjusted for answer in found.answers()} == {None}
    assert found.may_be_best() == []


@pytest.mark.soak
def test_no_kind_of_question_errs_more_often_than_alpha_where_nothing_differs() -> None:
    rng = np.random.default_rng(3)
    false = {"secondary": 0, "contrast": 0, "margin": 0, "best": 0}
    experiment = study(
        secondary=SECONDARY, contrasts="all", margin=0.1, smallest_effect=0.001, seeds=3
    )
    studies = 300
    for _ in range(studies):
        values = {arm: list(rng.normal(0, 0.1, 3)) for arm in "abc"}
        at_margin = {arm: [value + 0.1 for value in own] for arm, own in values.items()}
        losses = {arm: list(rng.normal(0, 0.1, 3)) for arm in "abc"}
        found = asked(experiment, runs(values, losses))
        kinds = {"best": len(found.may_be_best()) == 0}
        for answer in found.answers():
            if answer.kind != "margin" and answer.answer in ("better", "worse"):
                kinds[answer.kind] = True
        for answer in asked(experiment, runs(at_margin)).margin():
            kinds["margin"] = kinds.get("margin", False) | (answer.answer == "shown")
        for kind, hit in kinds.items():
            false[kind] += hit
    most = 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)
    assert {kind: count / studies <= most for kind, count in false.items()} == dict.fromkeys(
        false, True
    )


def test_an_answer_is_a_sentence() -> None:
    answer = Answer("contrast", "b against a", "bits per byte", -0.1, -0.2, -0.02, 0.01, "better")
    assert sentence_of(answer, 0.05) == (
        "b against a: better: −0.1000 bits per byte (95% interval −0.2000 to −0.0200, p = 0.0100)."
    )


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("secondary", "core", "expected a list of metrics"),
        ("secondary", ["val_bpb"], "stands there already"),
        ("secondary", ["cor"], "did you mean core"),
        ("secondary", ["pretrain:train_loss"], "direction: missing"),
        ("secondary", ["core"], "add core to stages"),
        ("contrasts", "every", "expected all, or a list"),
        ("contrasts", [["a"]], "expected two arms"),
        ("contrasts", [["a", "a"]], "compared with itself"),
        ("contrasts", [["a", "baseline"]], "compared with the baseline already"),
        ("contrasts", [["a", "bb"]], "is no arm"),
        ("contrasts", [["a", "b"], ["b", "a"]], "stand there twice"),
        ("margin", -1, "is not above 0"),
        ("margin", "low", "expected a number above 0"),
        ("margin", {"worse_by": 0.1, "cheaper": "second"}, "did you mean seconds"),
        ("skewed", "yes", "expected true or false"),
    ],
)
def test_a_wrong_question_is_explained(key: str, value: object, said: str) -> None:
    with pytest.raises(UserError) as caught:
        study("abc", **{key: value})
    assert said in "\n".join(caught.value.problems)
    assert key in "\n".join(caught.value.problems)
