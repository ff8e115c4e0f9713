"""`expects:` of an ablation's file: read strictly, and held or refuted by the verdicts."""

from __future__ import annotations

import pytest
from support.ablation_file import parse

from paribus.errors import UserError
from paribus.study.expected import outcome, outcome_of_all

pytestmark = pytest.mark.usefixtures("in_checkout")


def test_an_expectation_is_of_an_arm() -> None:
    assert parse(expects={"adamw": "not better"}).expects == {"adamw": "not better"}
    assert parse().expects == {}
    with pytest.raises(UserError, match="did you mean adamw"):
        parse(expects={"adam": "worse"})
    with pytest.raises(UserError, match="did you mean worse"):
        parse(expects={"adamw": "worst"})


def test_a_ladder_expects_what_becomes_of_an_effect() -> None:
    ladder = {"model.depth": [1, 2, 3, 4], "predict": 6}
    study = {"arms": {"adamw": {"optimizer.kind": "adamw"}}, "ladder": ladder, "equal": "flops"}
    assert parse(**study, expects={"adamw": "shrinks"}).expects == {"adamw": "shrinks"}
    with pytest.raises(UserError, match="holds, shrinks, vanishes"):
        parse(**study, expects={"adamw": "better"})


@pytest.mark.parametrize(
    "expected, verdict, came",
    [
        ("worse", "worse", "held"),
        ("worse", "better", "refuted"),
        ("worse", "equivalent", "refuted"),
        ("worse", "undecided", "open"),
        ("not better", "worse", "held"),
        ("not better", "equivalent", "held"),
        ("not better", "better", "refuted"),
        ("not better", "not yet", "open"),
        ("equivalent", "changed nothing", "held"),
        ("holds", "vanishes", "refuted"),
        ("holds", "unknown", "open"),
    ],
)
def test_an_expectation_holds_by_the_verdict(expected: str, verdict: str, came: str) -> None:
    assert outcome(expected, verdict) == came


def test_one_refuted_part_refutes_a_hypothesis() -> None:
    assert outcome_of_all(["held", "refuted", "open"]) == "refuted"
    assert outcome_of_all(["held", "open"]) == "open"
    assert outcome_of_all(["held", "held"]) == "held"
