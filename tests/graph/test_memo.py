"""The code of stages is remembered for each state of the sources, and no longer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from paribus import graph
from paribus.graph import memo


@pytest.fixture
def project(tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the sources, the working one."""
    shutil.copytree(
        project_root / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__")
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_code_is_worked_out_once_for_each_state_of_the_sources(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = graph.remembered_code("corpus", project)
    assert first == graph.stage_code("corpus", graph.working_sources())
    later = graph.remembered_code("core@base", project)
    assert later == graph.stage_code("core@base", graph.working_sources())
    with monkeypatch.context() as patched:
        patched.setattr(memo, "stage_code", lambda *_: pytest.fail("worked out again"))
        assert graph.remembered_code("corpus", project) == first
        assert graph.remembered_code("core@base", project) == later
    source = project / "src/paribus/files.py"
    source.write_text(source.read_text() + "\nfrom paribus.chat import web\n")
    assert "src/paribus/chat/web.py" in graph.remembered_code("corpus", project)


def test_a_file_that_is_no_python_concerns_the_stages_that_reach_it(project: Path) -> None:
    from paribus.errors import UserError

    (project / "src/paribus/stages/evaluation.py").write_text("def core(:\n")
    assert graph.remembered_code("corpus", project)
    with pytest.raises(UserError, match="evaluation.py: not Python"):
        graph.remembered_code("core", project)
