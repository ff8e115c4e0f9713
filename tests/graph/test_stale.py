"""A stage says when dvc.yaml does not name the code that it runs, for DVC would take older results for its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.project import Project

from paribus import graph
from paribus.stages.context import say_if_stale

REACHED = "src/paribus/files.py"
OTHER = "src/paribus/cli/tools.py"


@pytest.fixture
def project(tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder whose dvc.yaml names the code of every stage; the working folder."""
    root = tmp_path / "project"
    root.mkdir()
    Project(root, project_root)
    monkeypatch.chdir(root)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    current = graph.generated_deps(graph.working_sources())
    path = root / "dvc.yaml"
    path.write_text(graph.with_generated_deps(path.read_text(), current))
    return root


def change_deps(project: Path, stage: str, change: Callable[[list[str]], object]) -> None:
    values = yaml.safe_load((project / "dvc.yaml").read_text())
    change(values["stages"][stage]["deps"])
    (project / "dvc.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def said(stage: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    say_if_stale(stage, graph.stage_files(stage, graph.working_sources()))
    return capsys.readouterr().err.splitlines()


def test_code_that_dvc_yaml_does_not_name_is_told_in_a_line(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said("pretrain", capsys) == []
    change_deps(project, "pretrain", lambda deps: deps.remove(REACHED))
    [line] = said("pretrain", capsys)
    assert line.startswith(f"paribus pretrain: dvc.yaml is stale: pretrain does not name {REACHED}")
    assert "`paribus deps`" in line
    assert said("rl", capsys) == []


def test_code_that_dvc_yaml_names_without_need_is_told(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_deps(project, "pretrain", lambda deps: deps.append(OTHER))
    [line] = said("pretrain", capsys)
    assert f"names {OTHER}, which it does not run" in line


def test_an_installed_paribus_has_no_code_to_name(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    definition = graph.StageDefinition([], [], [])
    assert graph.stale_note("pretrain", definition, [REACHED]) is None


def test_a_stage_of_the_data_says_it_too(project: Path) -> None:
    change_deps(project, "corpus", lambda deps: deps.remove(REACHED))
    made = Project.__new__(Project)
    made.root = project
    command = [sys.executable, "-m", "paribus", "corpus"]
    lines = made.run(*command, PYTHONPATH=str(project / "src")).stderr.splitlines()
    assert len([line for line in lines if "dvc.yaml is stale: corpus does not name" in line]) == 1
