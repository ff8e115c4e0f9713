"""What git has of a commit: dvc.lock as DVC wrote it, and the key of code that many commits share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from paribus.config import dump_yaml, parse_yaml
from paribus.git import git
from paribus.study.committed import CommittedFiles
from paribus.study.results import code_of_chain

VALUES = {
    "schema": "2.0",
    "params": {"on": True, "no": "no", "rate": 1e-3, "whole": 1000.0, "none": None, "text": "1e3"},
    "outs": [{"md5": "0123456789" * 3 + "01", "size": 12}, {"md5": "1e10" * 8, "size": 0}],
    "odd": ["12:30", "2020-01-01", "<<", "~", "1_000", "08", "", "true", float("inf")],
}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    git("init", "-q", ".")
    for key, value in {"user.name": "t", "user.email": "t@t"}.items():
        git("config", key, value)
    return tmp_path


def commit() -> str:
    git("add", "-A")
    git("commit", "-q", "--allow-empty", "-m", "one")
    return git("rev-parse", "HEAD")


def test_a_lock_is_read_as_the_reader_of_parameters_reads_it(repository: Path) -> None:
    (repository / "dvc.lock").write_text(dump_yaml(VALUES))
    lock = CommittedFiles(commit()).lock
    assert lock == VALUES
    assert repr(lock) == repr(parse_yaml(dump_yaml(VALUES), "dvc.lock"))


def test_a_damaged_lock_is_explained_by_the_reader_of_parameters(repository: Path) -> None:
    (repository / "dvc.lock").write_text("stages: [\n")
    files = CommittedFiles(commit())
    assert files.lock == {}
    with pytest.raises(Exception, match=r"dvc\.lock at .*: line"):
        files.mapping("dvc.lock")


def test_links_of_a_commit_are_known(repository: Path) -> None:
    (repository / "src").mkdir()
    (repository / "src/there.py").symlink_to("../other.py")
    assert CommittedFiles(commit()).links == ["src/there.py"]


def test_commits_that_differ_in_parameters_alone_share_the_key_of_their_code(
    repository: Path, project_root: Path
) -> None:
    shutil.copytree(project_root / "src", "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(project_root / name, name)
    before = code_of_chain(["tokenizer"], commit())
    (repository / "params.yaml").write_text((repository / "params.yaml").read_text() + "\n")
    assert code_of_chain(["tokenizer"], commit()) == before
    edited = repository / "src/paribus/data/tokenizer.py"
    edited.write_text(edited.read_text() + "\nMORE = 1\n")
    assert code_of_chain(["tokenizer"], commit()) != before
