"""`paribus doctor`: one line a check, and a broken set-up is found, named and given its cure."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from paribus import doctor


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Path:
    root = tmp_path_factory.mktemp("template")
    for name in ("params.yaml", "dvc.yaml", "requirements.lock"):
        shutil.copy(project_root / name, root / name)
    for command in (
        "git init -q -b main",
        "git config user.email a@example.org",
        "git config user.name A",
        f"{sys.executable} -m dvc init -q",
        "git add -A",
        "git commit -qm start",
    ):
        subprocess.run(
            command.split(), check=True, cwd=root, env=os.environ | {"DVC_NO_ANALYTICS": "1"}
        )
    return root


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed checkout with DVC, which is the working folder."""
    shutil.copytree(template, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "project"


def found(name: str) -> doctor.Finding:
    return doctor.CHECKS[name]()


def test_every_check_has_its_line_and_the_exit_status_tells(project: Path) -> None:
    (project / "mlflow.db").write_text("no database at all, and longer than a header" * 9)
    done = subprocess.run(
        [sys.executable, "-m", "paribus", "doctor"], capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines] == list(doctor.CHECKS)
    assert done.returncode == 1 and any(
        line.startswith("broken store ") and "move it away" in line for line in lines
    )
    assert all(line.split()[0] in ("ok", "note", "broken") for line in lines)


def test_another_version_than_the_locks_is_named(project: Path) -> None:
    lock = (project / "requirements.lock").read_text()
    (project / "requirements.lock").write_text(
        lock.replace("click==", "click==0.") + "no-such-thing==1.0\n"
    )
    text = found("versions").text
    assert (
        found("versions").state == "broken"
        and "click is" in text
        and "no-such-thing 1.0 is missing" in text
    )


def test_a_gpu_that_is_asked_for_and_absent_is_broken(project: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    params = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(params.replace("device: auto", "device: cuda"))
    assert found("gpu").state == "broken" and "set it to auto" in found("gpu").text


def test_a_full_disk_is_broken(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(project)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**9))
    assert found("disk").state == "broken" and "dvc gc" in found("disk").text


def test_a_clock_behind_the_last_commit_is_broken(project: Path) -> None:
    late = {"GIT_COMMITTER_DATE": "2099-01-01T00:00:00Z"}
    subprocess.run(
        ["git", "commit", "-q", "--allow-empty", "-m", "later"], check=True, env=os.environ | late
    )
    assert found("clock").state == "broken"


def test_git_without_a_name_and_without_commits_is_broken(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found("git").state == "ok"
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    subprocess.run(["git", "config", "--unset", "user.email"], check=True)
    assert "git config user.email" in found("git").text
    shutil.rmtree(project / ".git")
    assert "git init" in found("git").text


def test_a_wrong_key_is_told_as_everywhere(project: Path) -> None:
    (project / "params.yaml").write_text(
        (project / "params.yaml").read_text().replace("  depth:", "  dept:")
    )
    findings = dict(doctor.examine())
    assert (
        findings["params"].state == "broken"
        and "did you mean model.depth?" in findings["params"].text
    )


def test_outputs_that_are_nowhere_are_named(project: Path) -> None:
    assert "nothing has run yet" in found("outputs").text
    (project / "dvc.lock").write_text(
        f"stages: {{corpus: {{outs: [{{path: data/corpus, md5: {'ab' * 16}.dir}}]}}}}"
    )
    assert (
        found("outputs").state == "note"
        and "data/corpus" in found("outputs").text
        and "dvc pull" in found("outputs").text
    )


@pytest.mark.parametrize(
    "end", ["    deps:\n    - ", "    cmd: x\n    deps:\n    - path: a\n      md", "    cmd: 'x"]
)
def test_a_torn_lock_file_is_broken(project: Path, end: str) -> None:
    (project / "dvc.lock").write_text(f"schema: '2.0'\nstages:\n  corpus:\n{end}")
    assert found("outputs").state == "broken" and "rm dvc.lock" in found("outputs").text


def test_a_server_that_does_not_answer_is_broken(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert found("store").state == "broken" and "does not answer" in found("store").text


def test_a_sound_database_is_counted(project: Path) -> None:
    assert "made by the first run" in found("store").text
    with sqlite3.connect(project / "mlflow.db") as connection:
        connection.execute("CREATE TABLE runs (id)")
    assert found("store") == doctor.Finding("ok", f"{project / 'mlflow.db'}: 0 runs")


def test_a_remote_is_there_writable_and_chosen(project: Path) -> None:
    assert found("remote").state == "note" and "dvc remote add" in found("remote").text
    config = project / ".dvc/config"
    config.write_text("['remote \"nas\"']\n    url = /no/such/disk/cache\n")
    assert "dvc remote default nas" in found("remote").text
    config.write_text("[core]\n    remote = nas\n" + config.read_text())
    assert found("remote").state == "broken" and "mount its disk" in found("remote").text
    config.write_text(config.read_text().replace("/no/such/disk/cache", str(project / "remote")))
    assert found("remote").state == "ok"
