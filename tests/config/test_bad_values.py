"""Thousands of bad values and broken files: each is refused in words, or is a value that the key takes; none is a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.bad_values import BROKEN_FILES, SCALARS, alias_bomb, at_key, check_explained, outcome
from support.checkout import ROOT

from paribus.config import (
    Config,
    describe,
    flatten,
    load_config,
    merge,
    parse_config,
    parse_yaml,
    read_yaml,
)
from paribus.config.reading import parse_leniently
from paribus.errors import UserError

KEYS = [path for path, *_ in describe()]
SECTIONS = list(dict.fromkeys(path.split(".")[0] for path in KEYS))
SHARE = 10  # each key meets a tenth of the values, each value a tenth of the keys; all of them with --soak


@pytest.fixture(scope="module")
def params(project_root: Path) -> dict[str, Any]:
    return read_yaml(project_root / "params.yaml")


def with_value(params: dict[str, Any], key: str, text: str) -> Config:
    """params.yaml with a value written at a key, read as the file is."""
    values, problems = parse_leniently(at_key(key, text), "params.yaml")
    node: Any = values
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return parse_config(merge(params, {key: node}), problems)


def faults(params: dict[str, Any], key: str, value: Any) -> list[str]:
    """What is wrong with how one bad value at one key is treated."""
    config, problems = outcome(with_value, params, key, value.text)
    if config is not None:
        return ["accepted"] if value.never else []
    found = check_explained(problems)
    if not any(key in problem for problem in problems):
        found.append(f"the key is not named: {problems[0]}")
    return found


def test_there_are_thousands_of_cases() -> None:
    assert len(KEYS) * len(SCALARS) / SHARE > 2_000


@pytest.mark.parametrize("share", [SHARE, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("section", SECTIONS)
def test_a_bad_value_is_explained_wherever_it_stands(
    params: dict[str, Any], section: str, share: int
) -> None:
    wrong: list[str] = []
    for number, key in enumerate(KEYS):
        if key.split(".")[0] != section:
            continue
        for value in SCALARS[number % share :: share]:
            wrong += [f"{key}, {value.name}: {fault}" for fault in faults(params, key, value)]
    assert not wrong


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file_is_explained(tmp_path: Path, name: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(BROKEN_FILES[name])
    config, problems = outcome(load_config, path)
    assert config is None
    assert not check_explained(problems)


def test_a_file_that_is_absent_or_a_folder_is_explained(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            read_yaml(path)


def test_aliases_that_stand_for_billions_of_values_are_refused_at_once() -> None:
    """Billions of values would take minutes and all of the memory."""
    with pytest.raises(UserError, match=r"a\d+.*aliases stand for more than 10,000 values"):
        parse_yaml(alias_bomb(), "params.yaml")


def test_aliases_within_reason_are_read() -> None:
    text = "a: &a {x: 1, y: [2, 3]}\nb: *a\nc: {<<: *a, x: 5}\n"
    values = parse_yaml(text, "a.yaml")
    assert values["b"] == values["a"]
    assert values["c"] == {"x": 5, "y": [2, 3]}


def test_types_and_combinations_are_told_together(params: dict[str, Any]) -> None:
    changes = {"model.depth": "abc", "sft.batch_tokens": None, "model.window_pattern": "X"}
    with pytest.raises(UserError) as caught:
        parse_config(merge(params, changes))
    starts = {problem.split(":")[0] for problem in caught.value.problems}
    assert starts == {"model.depth", "sft.batch_tokens", "model.window_pattern"}


def test_a_problem_of_the_text_does_not_hide_those_of_the_values(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text()
    text = text.replace("depth: 4\n", "depth: 2001-01-01\n").replace(
        "seed: 7\n", "seed: 7\nseed: -1\n"
    )
    text = text.replace("max_digits: 2", "max_digits: 20")
    path = tmp_path / "params.yaml"
    path.write_text(text)
    _, problems = outcome(load_config, path)
    assert len(problems) == 3
    assert "seed is there already, on line 3" in problems[0]
    assert "tokenizer.max_digits: 20 is out of range" in problems[1]
    assert problems[2].startswith("model.depth: 2001-01-01 (line ")
    assert "expected a whole number >= 1 and <= 256" in problems[2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"midtrain.mixture.factz": 1.0}, "midtrain.mixture.factz: no such source; did you mean facts?"),
        ({"sft.mixture.factz": 0.0}, "sft.mixture.factz: no such source; did you mean facts?"),
        ({"sft.epochs.problems_work": 2.0}, "sft.epochs.problems_work: no such source; did you mean problems_worked?"),
        ({"tracking.experiment": " "}, "tracking.experiment"),
        ({"tracking.experiment": "a" * 501}, "MLflow takes 500"),
        ({"optimizer.weight_decay": 1000.0}, "more than the whole of every weight"),
        ({"model.width": 65_520, "model.depth": 256}, "weights; at most 1e+12"),
        ({"model.softcap": 1e-30}, "0 (off) or a number >= 0.01"),
        ({"midtrain.eval_every": 5}, "no validation runs during this stage"),
        ({"seed": 2**64}, "torch takes seeds below 2^64"),
        ({"model.depth": 10**5000}, "a number of about 5,000 digits"),
        ({"model.depth": "x" * 10**5}, "x…'"),
        ({"\x1b[31m": 1}, "\\x1b[31m: unknown key"),
        ({"model.mlp": "swiglu\ud800"}, "\\ud800"),
        ({"train.processes": 10**6}, "train.processes: 1000000 is out of range"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value)[:40],
)  # fmt: skip
def test_what_cannot_work_is_refused_when_the_file_is_read(
    params: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    _, problems = outcome(parse_config, merge(params, changes))
    assert any(said in problem for problem in problems), problems
    assert not check_explained(problems)


def test_a_source_of_ones_own_may_be_mixed_in(params: dict[str, Any]) -> None:
    own = {"corpus.conversations.mine": "talk.jsonl", "sft.mixture.mine": 0.2}
    assert parse_config(merge(params, own)).sft.mixture["mine"] == 0.2


def test_a_dotted_key_is_not_answered_with_itself(params: dict[str, Any]) -> None:
    _, problems = outcome(parse_config, params | {"model.depth": 3})
    assert problems == [
        "model.depth: unknown key; a dotted name is for -S and for experiments; here write model: {depth: …}"
    ]


def test_every_number_has_an_upper_bound_with_a_reason() -> None:
    """Every switch that takes numbers; shares of a whole and decay rates need no reason for 1."""
    bare = {
        path
        for path, hint, meta in describe()
        if ("int" in str(hint) or "float" in str(hint))
        and "Literal" not in str(hint)
        and meta["le"] is None
    }
    unexplained = {
        path
        for path, _, meta in describe()
        if meta["le"] is not None and not meta["why"] and meta["le"] > 1
    }
    assert not bare
    assert not unexplained


def test_the_bounds_take_the_defaults_of_every_profile(project_root: Path) -> None:
    for path in sorted((project_root / "experiments/profiles").glob("*.yaml")):
        load_config(project_root / "params.yaml", flatten(read_yaml(path)))
