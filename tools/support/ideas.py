"""A repository of paribus's own code, in which tests make branches and patches."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def git(*arguments: str) -> str:
    """What git prints in the working folder."""
    done = subprocess.run(["git", *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def append(path: Path | str, text: str) -> None:
    """Write text to the end of a file."""
    path = Path(path)
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def own_code(root: Path, source: Path) -> Path:
    """A repository at `root` with the code, the pipeline and the parameters of the project at `source`."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(source / "src", root / "src", ignore=ignored)
    for name in ("dvc.yaml", "params.yaml", "requirements.lock", ".gitignore"):
        shutil.copy(source / name, root / name)
    (root / "experiments").mkdir()
    at_root = ["git", "-C", str(root)]
    for command in (
        ["init", "-q", "-b", "main"],
        ["config", "user.email", "a@example.org"],
        ["config", "user.name", "A"],
        ["add", "-A"],
        ["commit", "-qm", "start"],
    ):
        subprocess.run([*at_root, *command], check=True)
    return root


def branch(name: str, *files: tuple[str, str], start: str = "main") -> str:
    """A branch whose one commit appends text to files, and its commit; `main` is checked out again."""
    git("checkout", "-q", "-b", name, start)
    for path, text in files:
        append(path, text)
    git("add", "-A")
    git("commit", "-qm", name)
    git("checkout", "-q", "main")
    return git("rev-parse", name)
