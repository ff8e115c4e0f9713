"""A checkout in which commands read their configuration, without data or git."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from support.warm import warm

FORKED = ("paribus", "dvc")
ROOT = Path(__file__).resolve().parents[2]


def paribus(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command, forked from a process that has loaded what it imports."""
    return warm().run(["-m", "paribus", *arguments], cwd)


def run_checked(
    command: tuple[str, ...], cwd: Path, environment: dict[str, str], check: bool
) -> subprocess.CompletedProcess[str]:
    """A command from its start to its end; with `check` it has to succeed, and what it said is shown where it does not.

    paribus and dvc are forked from a process that has loaded them, and so are the stages that dvc runs.
    """
    if command[0] in FORKED:
        warmly = environment | {"PATH": f"{warm().programs}{os.pathsep}{environment['PATH']}"}
        done = warm().run(["-m", *command], cwd, warmly)
    else:
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 or not check, (
        f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done


def make_checkout(folder: Path, project_root: Path) -> Path:
    """A folder with params.yaml, dvc.yaml and the profiles."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(project_root / name, folder / name)
    shutil.copytree(project_root / "experiments/profiles", folder / "experiments/profiles")
    return folder
