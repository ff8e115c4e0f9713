"""tools/measure.py counts a small sample right."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SAMPLE = '''"""A module.

Of two paragraphs.
"""

from typing import Any  # a comment


def public(rows, width):
    """The rows."""
    import json

    return [json.dumps(row) for row in rows if row and width]


def plain(value: Any) -> Any:
    return value


class Shown:
    def method(self, a, b):
        """a and b."""
        with open(a) as file:
            text = file.read() if b else ""
        return [x for y in text for x in y]


def _private(a, b):
    def inner():
        import os

        return os

    for x in a:
        assert x
    return inner, [[y for y in x] for x in b], lambda: a
'''


@pytest.fixture
def tool(request: pytest.FixtureRequest) -> ModuleType:
    place = request.config.rootpath / "tools/measure.py"
    spec = importlib.util.spec_from_file_location("measure", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["measure"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    (tmp_path / "package/world").mkdir(parents=True)
    (tmp_path / "package/sample.py").write_text(SAMPLE, encoding="utf-8")
    (tmp_path / "package/world/other.py").write_text("x = [1]\n", encoding="utf-8")
    return tmp_path


def test_a_small_sample_is_counted_right(tool: ModuleType, sample: Path) -> None:
    counts = tool.measure(sample, without=["world"])
    assert counts.files == 1
    assert counts.lines == len(SAMPLE.splitlines())
    assert counts.code_lines == 18, "no docstring, comment or blank line"
    assert counts.comprehensions == 4
    assert counts.nested_comprehensions == 2, "one that holds another, and one with two `for`"
    assert counts.conditional_expressions == 1
    # `for` and `if` and `and`; conditional; two `for`; `for`, `assert`, two `for`: 10 branches. 4 comprehensions, lambda, with.
    assert counts.decision_points == 16
    assert counts.functions == 5
    assert counts.dense_functions == 3, "3 branches in 3 lines, 3 in 4, and 4 in 7"
    assert counts.uses_of_any == 3
    assert counts.inner_imports == 2
    assert (counts.public_names_with_docstring, counts.public_names) == (2, 4)
    assert (counts.parameters_named, counts.parameters) == (3, 4), "rows, a and b, and not width"


def test_tokens_are_those_of_code(tool: ModuleType, tmp_path: Path) -> None:
    text = '"""Docstring."""\n\n# comment\nif x:\n    y = [1, "two"]\n'
    (tmp_path / "tokens.py").write_text(text, encoding="utf-8")
    assert tool.measure(tmp_path).tokens == len(["if", "x", ":", "y", "=", "[", 1, ",", "two", "]"])


def test_the_table_has_a_column_for_each_folder(tool: ModuleType, sample: Path) -> None:
    folder = str(sample)
    counts = tool.measure(sample)
    lines = tool.table([folder, folder], [counts, counts]).splitlines()
    assert lines[0].count(folder) == 2
    assert "| files | 2 | 2 |" in lines
    assert any(line.startswith("| tokens a code line |") for line in lines)
