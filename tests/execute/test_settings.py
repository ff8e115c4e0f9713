"""execute.yaml: how runs are spread over machines."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from paribus.errors import UserError
from paribus.execute.settings import FILE, Settings, read_settings


def test_without_the_file_commits_come_from_the_remote_origin(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert read_settings(tmp_path) == Settings()
    address = "ssh://desk1/home/ann/paribus"
    subprocess.run(["git", "remote", "add", "origin", address], cwd=tmp_path, check=True)
    assert read_settings(tmp_path) == Settings(git=address)


def test_the_file_decides(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("git: /srv/paribus\nstate_minutes: 3\nmixed_hardware: true\n")
    assert read_settings(tmp_path) == Settings("/srv/paribus", 3.0, True)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(
        "git: 5\nstate_minuts: 3\nstate_minutes: 0\nmixed_hardware: perhaps\n"
    )
    with pytest.raises(UserError) as error:
        read_settings(tmp_path)
    assert [problem.split(": ")[1] for problem in error.value.problems] == [
        "'state_minuts'",
        "git",
        "state_minutes",
        "mixed_hardware",
    ]
    assert "did you mean state_minutes?" in error.value.problems[0]
