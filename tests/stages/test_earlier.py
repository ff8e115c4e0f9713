"""A stage that begins at its first step although there are states of it says what differs from theirs."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from paribus.stages.earlier import remember_parts, why_anew
from paribus.train.checkpoint import StateStore

PARTS: dict[str, Any] = {
    "stage": "pretrain",
    "params": {"pretrain.steps": 6, "pretrain.eval_every": 25, "model.depth": 2},
    "deps": {"data/tokens": "a"},
    "code": {"src/paribus/train/loop.py": "1", "src/paribus/runtime.py": "2"},
    "hardware": {"isa": "avx2", "libraries": {"numpy": "2.0"}},
}


def run_with_state(root: Path, name: str, parts: dict[str, Any], step: int, age: float = 0) -> None:
    folder = root / f"pretrain-{name}"
    store = StateStore(folder / "state", 1)
    store.save(step, {"w": torch.ones(1)}, {})
    store.wait()
    remember_parts(folder, parts)
    for path in (folder / "state").iterdir():
        when = path.stat().st_mtime - age
        os.utime(path, (when, when))


def changed(section: str, **values: Any) -> dict[str, Any]:
    parts = copy.deepcopy(PARTS)
    parts[section] |= values
    return parts


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (changed("params", **{"pretrain.eval_every": 50}), "pretrain.eval_every: 50, was 25"),
        (changed("params", **{"pretrain.steps": 9}), "pretrain.steps: 9, was 6"),
        (changed("deps", **{"data/tokens": "b"}), "data/tokens has other contents"),
        (changed("hardware", isa="avx512"), 'isa: "avx512", was "avx2"'),
        (
            changed("hardware", libraries={"numpy": "2.1"}),
            'libraries.numpy: "2.1", was "2.0"',
        ),
        (changed("code", **{"src/paribus/train/loop.py": "9"}), "other code in 1 files (loop.py)"),
    ],
)
def test_what_differs_is_named_with_both_values(
    tmp_path: Path, parts: dict[str, Any], words: str
) -> None:
    run_with_state(tmp_path, "old", PARTS, 6)
    said = why_anew(tmp_path / "pretrain-new", "pretrain", parts)
    assert said is not None
    assert said.endswith(words)
    assert "step 6" in said


def test_the_newest_state_is_compared_with(tmp_path: Path) -> None:
    run_with_state(tmp_path, "old", changed("params", **{"model.depth": 8}), 6, age=100)
    run_with_state(tmp_path, "newer", changed("params", **{"model.depth": 4}), 3)
    said = why_anew(tmp_path / "pretrain-new", "pretrain", PARTS)
    assert said is not None
    assert "model.depth: 2, was 4" in said
    assert "step 3" in said


def test_nothing_is_said_without_a_state_to_go_on_from(tmp_path: Path) -> None:
    assert why_anew(tmp_path / "pretrain-new", "pretrain", PARTS) is None
    run_with_state(tmp_path, "begun", changed("params", **{"model.depth": 4}), 0)
    run_with_state(tmp_path, "new", PARTS, 5)
    assert why_anew(tmp_path / "pretrain-new", "pretrain", PARTS) is None


def test_a_damaged_note_says_nothing_and_stops_nothing(tmp_path: Path) -> None:
    run_with_state(tmp_path, "old", PARTS, 6)
    (tmp_path / "pretrain-old/made_of.json").write_text("{")
    assert why_anew(tmp_path / "pretrain-new", "pretrain", PARTS) is None
    (tmp_path / "pretrain-old/made_of.json").write_text(json.dumps([1]))
    assert why_anew(tmp_path / "pretrain-new", "pretrain", PARTS) is None


def test_many_differences_are_counted(tmp_path: Path) -> None:
    run_with_state(tmp_path, "old", PARTS, 6)
    many = changed("params", **{f"model.{letter}": 1 for letter in "abcdefg"})
    said = why_anew(tmp_path / "pretrain-new", "pretrain", many)
    assert said is not None
    assert said.endswith("and 3 more")
    assert "not there" in said
