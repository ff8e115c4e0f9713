"""experiments/try.yaml is read strictly, and a budget as people write it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.stages import make_stages

from paribus.errors import UserError
from paribus.tries.terms import FILE, parse_budget, read_terms


@pytest.fixture
def project(tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_stages(tmp_path, project_root)
    (tmp_path / "experiments").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "amount", "measure"),
    [
        ("5min", 300, "seconds"),
        ("90 s", 90, "seconds"),
        ("1.5h", 5400, "seconds"),
        ("200ktokens", 2e5, "tokens"),
        ("2Mtokens", 2e6, "tokens"),
        ("3e12flops", 3e12, "flops"),
        ("1e15FLOPs", 1e15, "flops"),
    ],
)
def test_a_budget_is_read_as_people_write_it(text: str, amount: float, measure: str) -> None:
    budget = parse_budget(text)
    assert (budget.amount, budget.measure) == (amount, measure)


@pytest.mark.parametrize(
    "text", ["", "5", "min", "0min", "-5min", "1e40tokens", "nanmin", "5 mins", "1.2.3h", 5, None]
)
def test_a_budget_that_is_none_is_refused_with_what_is_allowed(text: object) -> None:
    with pytest.raises(UserError, match=r"expected|did you mean|allowed"):
        parse_budget(text)


def test_without_a_file_the_defaults_hold(project: Path) -> None:
    terms = read_terms()
    assert (terms.baseline, terms.seeds, terms.metric.name) == ("main", (3, 16), "val_bpb")
    assert terms.stages == ("tokens", "pretrain")


def test_the_command_line_goes_before_the_file(project: Path) -> None:
    FILE.write_text("smallest_effect: 0.02\nseeds: {from: 4, to: 6}\n")
    terms = read_terms({"seeds": "3..5", "budget": "10ktokens", "metric": None})
    assert (terms.seeds, terms.smallest_effect) == ((3, 5), 0.02)
    assert terms.budget is not None


def test_every_problem_of_the_file_is_named_at_once(project: Path) -> None:
    FILE.write_text(
        "baselin: main\nstack: maybe\nstage: pretrian\nmetric: val_bp\nsmallest_effect: 0\nseeds: 2\nbudget: 5 parsecs\n"
        "set: {seed: 3}\nfalse_keeps: 0.9\n"
    )
    with pytest.raises(UserError) as refused:
        read_terms()
    text = str(refused.value)
    for word in ("'baselin'", "stack:", "pretrain", "val_bpb", "smallest_effect:", "seeds:"):
        assert word in text
    for word in ("budget:", "set: seed", "false_keeps:"):
        assert word in text
    assert all(problem.startswith(str(FILE)) for problem in refused.value.problems)


def test_the_projects_own_file_is_valid(
    project_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project_root)
    assert read_terms().metric.unit == "bits per byte"
