"""The ideas of examples/research-loop fit the code as it is today."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from paribus.config import read_yaml

IDEAS = "examples/research-loop/ideas.yaml"
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("idea", read_yaml(ROOT / IDEAS)["ideas"], ids=lambda idea: idea["message"])
def test_an_idea_edits_lines_that_exist_and_leaves_code_that_parses(
    project_root: Path, idea: dict[str, Any]
) -> None:
    for edit in idea["edits"]:
        source = (project_root / edit["file"]).read_text(encoding="utf-8")
        assert source.count(edit["old"]) == 1
        edited = source.replace(edit["old"], edit["new"])
        assert ast.dump(ast.parse(edited)) != ast.dump(ast.parse(source))
