"""What another machine gets of a project before it computes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.studied import LightProject

from paribus.config import load_config
from paribus.errors import UserError
from paribus.execute import elsewhere
from paribus.execute.cluster import connect
from paribus.execute.repository import clone
from paribus.git import filled_submodules, git

ALLOWED = ("-c", "protocol.file.allow=always")
IDENTITY = ("-c", "user.name=A", "-c", "user.email=a@example.org")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A repository to be a submodule."""
    root = tmp_path / "library"
    git("init", "--quiet", str(root))
    (root / "helper.py").write_text("X = 1\n")
    git("add", "--all", at=root)
    git(*IDENTITY, "commit", "--quiet", "--message", "one", at=root)
    return root


@pytest.fixture
def home(light_project: LightProject, library: Path, tmp_path: Path) -> elsewhere.Home:
    """A project with a submodule that is checked out and one that is not, and a repository that all machines reach."""
    project = light_project.copy(tmp_path / "project")
    for name in ("ext", "empty"):
        git(*ALLOWED, "submodule", "--quiet", "add", str(library), name, at=project.root)
    project.commit("submodules")
    git("submodule", "--quiet", "deinit", "--force", "empty", at=project.root)
    shared = tmp_path / "shared.git"
    git("clone", "--quiet", "--bare", str(project.root), str(shared))
    filled = tuple(filled_submodules(project.root))
    return elsewhere.Home(str(project.root), "", str(shared), "", 10.0, filled)


def test_another_machine_has_the_submodules_that_home_has(
    home: elsewhere.Home,
    project_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = load_config(project_root / "params.yaml").train
    commit = git("rev-parse", "HEAD", at=Path(home.root))
    checkout = tmp_path / "desk2"
    monkeypatch.setenv(elsewhere.CHECKOUT, str(checkout))
    refused = elsewhere.examine(home, train, [commit], at_home=False, shared=False)
    assert "the submodule ext cannot be checked out" in " ".join(refused.problems)

    for key, value in (("COUNT", "1"), ("KEY_0", "protocol.file.allow"), ("VALUE_0", "always")):
        monkeypatch.setenv(f"GIT_CONFIG_{key}", value)  # a folder stands for a server here
    found = elsewhere.examine(home, train, [commit], at_home=False, shared=False)
    assert found.problems == []
    made = clone(checkout, commit, tmp_path / "run")
    assert (made.project / "ext/helper.py").read_text() == "X = 1\n"
    assert list((made.project / "empty").iterdir()) == []


def test_ray_that_is_not_installed_is_told_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="pip install --no-deps -r requirements-ray.lock"):
        connect("")
