"""A checkout in which commands read their configuration, without data or git."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from support.warm import warm

ROOT = Path(__file__).resolve().parents[2]


def paribus(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command, forked from a process that has loaded what it imports."""
    return warm().run(["-m", "paribus", *arguments], cwd)


def make_checkout(folder: Path, project_root: Path) -> Path:
    """A folder with params.yaml, dvc.yaml and the profiles."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(project_root / name, folder / name)
    shutil.copytree(project_root / "experiments/profiles", folder / "experiments/profiles")
    return folder
