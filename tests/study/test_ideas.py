"""Ideas become commits without a trace in the user's checkout, and what they change is found by what the stages run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.ideas import append, git, own_code

from paribus.errors import UserError
from paribus.study.changes import change_between
from paribus.study.ideas import commit_of_changes, commit_of_patch, keep
from paribus.study.registration import check_sources

STAGES = ["corpus", "tokenizer", "tokens", "pretrain"]
LAYERS = Path("src/paribus/model/layers.py")


def state() -> tuple[str, ...]:
    """What a user sees of a checkout: files, index, branches."""
    status = git("status", "--porcelain", "--branch")
    return status, git("diff"), git("diff", "--cached"), git("for-each-ref", "refs/heads")


@pytest.fixture
def checkout(tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of paribus's own code, which is the working folder."""
    root = own_code(tmp_path / "project", project_root)
    monkeypatch.chdir(root)
    return root


def test_an_uncommitted_change_becomes_a_commit_and_the_checkout_stays(checkout: Path) -> None:
    append(LAYERS, "\nSTAGED = 1\n")
    git("add", str(LAYERS))
    append(LAYERS, "\nCHANGED = 1\n")
    Path("new.txt").write_text("new")
    Path(".paribus").mkdir()
    Path(".paribus/ignored").write_text("ignored")
    before = state()
    commit = commit_of_changes("an idea")
    assert commit == commit_of_changes("an idea"), "the same change is the same commit"
    assert git("rev-parse", f"{commit}^") == git("rev-parse", "HEAD")
    assert "CHANGED = 1" in git("show", f"{commit}:{LAYERS}")
    assert git("show", f"{commit}:new.txt") == "new"
    assert ".paribus" not in git("ls-tree", "--name-only", commit).splitlines()
    assert state() == before
    keep(commit, "tries/1")
    assert git("rev-parse", "refs/paribus/ideas/tries/1") == commit
    assert state() == before


def test_without_a_change_the_commit_is_head(checkout: Path) -> None:
    assert commit_of_changes("nothing") == git("rev-parse", "HEAD")


def test_a_new_module_is_named_in_dvc_yaml(checkout: Path) -> None:
    Path("src/paribus/model/idea.py").write_text("VALUE = 1\n")
    append(LAYERS, "\nfrom paribus.model.idea import VALUE  # noqa\n")
    commit = commit_of_changes("a module")
    written = git("show", f"{commit}:dvc.yaml")
    assert "src/paribus/model/idea.py" in written
    assert "src/paribus/model/idea.py" not in Path("dvc.yaml").read_text()
    change = change_between(STAGES, "HEAD", commit)
    assert [file.path for file in change.files] == [
        "src/paribus/model/idea.py",
        "src/paribus/model/layers.py",
    ]
    assert change.summary() == "2 files, +3 −0"
    assert "+VALUE = 1" in change.diff


def test_a_patch_becomes_a_commit_on_any_base_that_takes_it(checkout: Path) -> None:
    text = LAYERS.read_text()
    append(LAYERS, "\nIDEA = 1\n")
    patch = Path("idea.patch")
    patch.write_text("Subject: [PATCH] An idea\n\n" + git("diff") + "\n")
    LAYERS.write_text(text)
    before = state()
    commit = commit_of_patch(patch, "HEAD")
    assert state() == before
    assert git("log", "-1", "--format=%s", commit) == "An idea"
    assert [file.path for file in change_between(STAGES, "HEAD", commit).files] == [str(LAYERS)]
    LAYERS.write_text("pass\n")
    git("commit", "-qam", "other layers")
    with pytest.raises(UserError, match=r"idea.patch: does not apply to .*layers.py"):
        commit_of_patch(patch, git("rev-parse", "HEAD"))


def test_prose_and_files_that_no_stage_reaches_are_no_change(checkout: Path) -> None:
    append(LAYERS, "\n# a comment\n")
    append(Path("src/paribus/cli/deps.py"), "\nELSEWHERE = 1\n")
    change = change_between(STAGES, "HEAD", commit_of_changes("prose"))
    assert change.files == ()
    assert change.diff == ""


def test_a_dirty_submodule_and_large_new_files_are_refused_at_once(
    checkout: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    run = ["git", "-c", "protocol.file.allow=always", "-C", str(other)]
    subprocess.run([*run, "init", "-q"], check=True)
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    (other / "file").write_text("1")
    subprocess.run([*run, "add", "file"], check=True)
    subprocess.run([*run, *identity, "commit", "-qm", "one"], check=True)
    git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other), "third")
    git("commit", "-qam", "a submodule")
    Path("third/file").write_text("2")
    with Path("data.bin").open("wb") as file:
        file.truncate(60_000_000)
    with pytest.raises(UserError) as found:
        commit_of_changes("an idea")
    assert [problem.split(":")[0] for problem in found.value.problems] == ["third", "data.bin"]
    assert "git -C third commit" in found.value.problems[0]
    with pytest.raises(UserError, match="third: a submodule with changes"):
        check_sources(STAGES)
