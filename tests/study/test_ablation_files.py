"""Bad ablation files, by the hundred: each is refused when it is read, in words, with status 2 and without a traceback."""

from __future__ import annotations

import datetime
import random
import re
from typing import Any

import pytest
from support.ablation_file import FILE

from paribus.errors import UserError
from paribus.study.reading import noise_experiment, parse_experiment, read_experiment

pytestmark = pytest.mark.usefixtures("in_checkout")
INF, NAN = float("inf"), float("nan")
LONG = "x" * 300
# What YAML can put in the place of any value.
ANYTHING: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    10**400,
    -(10**30),
    1e30,
    INF,
    -INF,
    NAN,
    "",
    " ",
    "nothing",
    LONG,
    "a\x00b",
    "a\nb",
    "\ud800",
    [],
    [1],
    [[]],
    ["pretrain", ["sft"]],
    [{"a": 1}],
    {},
    {"a": 1},
    {1: 2},
    {None: None},
    {"set": 5},
    {"profile": ["default"]},
    {"from": 3},
    {"tokens": INF},
    datetime.date(2026, 1, 2),
    datetime.datetime(2026, 1, 2),
    b"bytes",
    {1, 2},
]
# Values that are right for a key, although they are in the list.
RIGHT_PAIRS = [
    ("seeds", {"from": 3}),
    ("expects", {}),
    *(("question", value) for value in ("nothing", LONG, "a\x00b", "a\nb", "\ud800")),
    ("baseline", {}),
    ("smallest_effect", 1.5),
    ("smallest_effect", 1e30),
    ("direction", None),
]


def refused(name: str, raw: dict[Any, Any]) -> list[str]:
    """The problems of a file. Fails where it is taken, or where anything but words comes out."""
    with pytest.raises(UserError) as caught:
        parse_experiment(name, raw)
    problems = caught.value.problems
    assert problems
    for problem in problems:
        assert problem.startswith(f"experiments/{name}.yaml: ")
        assert len(problem) > 30
        assert "Traceback" not in problem, problem
        assert len(problem) < 1200, problem
    return problems


def is_right(key: str, value: Any) -> bool:
    kind = "question" if key == "hypothesis" else key
    return any(kind == known and repr(value) == repr(right) for known, right in RIGHT_PAIRS)


@pytest.mark.parametrize("key", [*FILE, "direction", "alpha", "workers"])
def test_every_wrong_value_of_every_key_is_refused_by_its_name(key: str) -> None:
    for value in ANYTHING:
        if not is_right(key, value):
            problems = refused("tiny", FILE | {key: value})
            assert any(f": {key}" in problem for problem in problems), (value, problems)


WRONG_NAMES = [
    "a..b", "a.b", "A", "ä", "a b", "a/b", "../a", "-a", ".a", "_a", "a\n", "a\x07", "a~", "a:b",
    "a@{b", "a*", "[", "a\\b", "a.lock", LONG, "", " ", 1, 1.5, True, None,
    datetime.date(2026, 1, 2), b"a", "baseline",
]  # fmt: skip


@pytest.mark.parametrize("name", WRONG_NAMES, ids=lambda name: repr(name)[:20])
def test_a_name_that_no_experiment_can_have_is_refused_when_the_file_is_read(name: Any) -> None:
    problems = refused("tiny", FILE | {"arms": {name: {"optimizer.kind": "adamw"}}})
    said = r"taken" if name == "baseline" else r"arms.*expected"
    assert any(re.search(said, problem, re.DOTALL) for problem in problems), problems


def test_every_wrong_form_of_an_arm_and_of_overrides_is_refused() -> None:
    for value in ANYTHING:
        refused("tiny", FILE | {"arms": {"a": value}})
        refused("tiny", FILE | {"arms": {"a": {"set": value, "as_one": "one thing"}}})
        refused("tiny", FILE | {"arms": {"a": {"optimizer.kind": value}}})
        refused("tiny", FILE | {"arms": {"a": {"set": {"optimizer.kind": "adamw"}, "as_one": 3}}})
        if value not in (None, {}):
            refused("tiny", FILE | {"baseline": {"set": value}})
        if value is not None:
            refused("tiny", FILE | {"baseline": {"profile": value}})
        refused("tiny", FILE | {"stages": [value]})
        refused("tiny", FILE | {"equal": {"tokens": value}})
        refused("tiny", FILE | {"seeds": {"from": 3, "to": value}})
        refused("tiny", FILE | {"seeds": {"from": value, "to": 12}})


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"smallest_effect": NAN},
            "smallest_effect: nan is not allowed; expected a number above 0",
        ),
        ({"smallest_effect": INF}, "smallest_effect: inf is not allowed"),
        ({"alpha": NAN}, "alpha: nan is not allowed; expected a number above 0 and below 0.5"),
        ({"seeds": 1e30}, "seeds: 1e+30 is not allowed"),
        ({"seeds": 10**30}, "at most 1000"),
        ({"workers": 10**9}, "workers: 1000000000 is not allowed"),
        ({"equal": {"tokens": INF}}, "equal: {'tokens': inf} is not allowed"),
        ({"equal": {"tokens": 1e300}}, "equal: {'tokens': 1e+300} is not allowed"),
        ({"stages": [["pretrain"]]}, "no such stage"),
        ({"stages": ["pretrian"]}, "did you mean pretrain?"),
        ({"baseline": {"set": [1]}}, "baseline.set: [1]; expected {dotted.key: value}"),
        ({"baseline": {"profile": "defalt"}}, "did you mean default?"),
        ({"arms": {"a": {1: 2}}}, "the key 1 is not text"),
        ({"metrics": "val_bpb"}, "did you mean metric?"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said(changes: dict[str, Any], said: str) -> None:
    problems = refused("tiny", FILE | changes)
    assert any(said in problem for problem in problems), problems


def test_every_problem_of_a_file_is_told_at_once() -> None:
    """Of up to six keys made wrong together, each is named."""
    chance = random.Random(7)
    for _ in range(60):
        keys = chance.sample([*FILE, "alpha", "workers"], chance.randint(2, 6))
        wrong = {key: chance.choice([NAN, [1], {"a": 1}, b"x", -3]) for key in keys}
        problems = refused("tiny", FILE | wrong)
        for key in keys:
            assert any(f".yaml: {key}" in problem for problem in problems), (wrong, problems)


@pytest.mark.parametrize(
    "name", ["", ".", "../params", "profiles/default", "a\x00", LONG * 10, "muon_vs_adamw"]
)
def test_an_ablation_that_is_not_there_is_refused_with_the_nearest(name: str) -> None:
    with pytest.raises(UserError, match="`paribus ablate list` names all") as caught:
        read_experiment(name)
    if name == "muon_vs_adamw":
        assert "did you mean muon-vs-adamw?" in str(caught.value)


@pytest.mark.parametrize("profile", ["../profiles/default", "", "a" * 300, "a\x00", "defualt"])
def test_a_noise_floor_of_no_profile_is_refused(profile: str) -> None:
    with pytest.raises(UserError, match="no profile"):
        noise_experiment(profile, 5, ["val_bpb"])


@pytest.mark.parametrize("seeds", [10**9, 10**30])
def test_a_noise_floor_over_too_many_seeds_is_refused(seeds: int) -> None:
    with pytest.raises(UserError, match="from 3 to 1000"):
        noise_experiment("default", seeds, ["val_bpb"])
