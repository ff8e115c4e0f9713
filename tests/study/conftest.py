"""Projects in which the studies of these tests run."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.made_once import MadeOnce
from support.studied import LightProject


@pytest.fixture
def project(tmp_path: Path, light_project: LightProject) -> LightProject:
    """A project of the test's own."""
    return light_project.copy(tmp_path / "project")


@pytest.fixture(scope="session")
def with_tokens(made_once: MadeOnce, light_project: LightProject) -> LightProject:
    """To be copied: a project whose `tokens` are made."""

    def make(folder: Path) -> None:
        project = light_project.copy(folder)
        project.run("dvc", "repro", "-q", "tokens")
        project.commit("tokens")

    return LightProject.at(made_once("tokens", make))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, with_tokens: LightProject) -> LightProject:
    """One project for tests of studies of their own; its `tokens` are made."""
    return with_tokens.copy(tmp_path_factory.mktemp("studies") / "project")


@pytest.fixture(scope="session")
def after_a_study(made_once: MadeOnce, with_tokens: LightProject) -> LightProject:
    """To be copied: a project in which the study `ended` has run to its end."""

    def make(folder: Path) -> None:
        project = with_tokens.copy(folder)
        project.behave()
        project.study("ended")
        project.execute("ended")

    return LightProject.at(made_once("ended", make))


@pytest.fixture
def ended(after_a_study: LightProject, tmp_path: Path) -> LightProject:
    """A project whose study `ended` has run, to be damaged."""
    return after_a_study.copy(tmp_path / "project")
