"""Files that a killed process was writing go; those that a living one writes stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from paribus.files import remove_leftovers


def test_what_dead_processes_were_writing_goes_and_what_living_ones_write_stays(
    tmp_path: Path,
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    inner = tmp_path / "state"
    inner.mkdir()
    for folder in (tmp_path, inner):
        for name in (f".run.json.{dead.pid}", f".run.json.{os.getpid()}", ".gitignore", "a.1"):
            (folder / name).write_text("x")
    remove_leftovers(tmp_path)
    assert not (tmp_path / f".run.json.{dead.pid}").exists()
    assert len(list(tmp_path.iterdir())) == 4
    assert len(list(inner.iterdir())) == 4
    remove_leftovers(tmp_path, recursive=True)
    assert len(list(inner.iterdir())) == 3
    remove_leftovers(tmp_path / "absent")
