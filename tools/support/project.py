"""A tiny project of its own, for the tests and benchmarks that run the real DVC, git and MLflow as a user does."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import yaml

from paribus.config import merge, read_yaml
from paribus.tracking import sender
from support.checkout import run_checked
from support.tiny import TINY
from support.warm import feed_mlflow, warm

STAGES = ("base", "mid", "sft", "rl")


def senders(root: Path) -> list[psutil.Process]:
    """The processes that feed MLflow of the project at `root`."""
    command = [sender.__name__, str(root / ".paribus")]
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or [])[-2:] == command
    ]


def make_data(root: Path, source: Path) -> Path:
    """ROOT/data of a project with tiny params: corpus, tokenizer and tokens."""
    root.mkdir()
    for name in ("dvc.yaml", "requirements.lock"):
        shutil.copy(source / name, root / name)
    params = merge(read_yaml(source / "params.yaml"), TINY)
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    program = (
        "from paribus.cli.commands import run_stage\n"
        "for name in ('corpus', 'tokenizer', 'tokens'): run_stage(name)"
    )
    done = warm().run(["-c", program], root, os.environ | {"DVC_ROOT": str(root)})
    assert done.returncode == 0, done.stderr
    return root / "data"


class Project:
    """A checkout of paribus with tiny params, its own git and DVC."""

    def __init__(self, root: Path, source: Path, **changes: Any) -> None:
        self.root = root
        ignore = shutil.ignore_patterns("*.egg-info")
        shutil.copytree(source / "src", root / "src", ignore=ignore)
        for name in ("dvc.yaml", ".gitignore", ".dvcignore", "requirements.lock"):
            shutil.copy(source / name, root / name)
        params = merge(read_yaml(source / "params.yaml"), TINY | changes)
        (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def start(self) -> Project:
        self.run("git", "init", "-q", "-b", "main")
        self.run("git", "config", "user.email", "a@example.org")
        self.run("git", "config", "user.name", "A")
        self.run("dvc", "init", "-q")
        self.run("dvc", "config", "core.autostage", "true")
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "start")
        return self

    def environment(self) -> dict[str, str]:
        """A user's, with this Python's commands and none of the caller's settings of DVC, MLflow and bytecode."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        settings = ("DVC_", "MLFLOW_", "PYTHONDONTWRITEBYTECODE")
        clean = {key: value for key, value in os.environ.items() if not key.startswith(settings)}
        return clean | {"PATH": path, "DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def feed_mlflow(self) -> None:
        """Start the process that feeds MLflow, with MLflow loaded already."""
        feed_mlflow(self.root / ".paribus", self.environment())

    def run(
        self, *command: str, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return run_checked(command, self.root, self.environment() | environment, check)

    def python(self, program: str) -> None:
        """A program of this paribus, in the project as DVC starts its stages."""
        environment = self.environment() | {"DVC_ROOT": str(self.root)}
        done = warm().run(["-c", program], self.root, environment)
        assert done.returncode == 0, done.stderr

    def metrics(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / f"metrics/{name}.json").read_text())
        return found

    def digests(self) -> dict[str, str]:
        files = {stage: self.root / f"checkpoints/{stage}/model.safetensors" for stage in STAGES}
        return {
            stage: hashlib.sha256(path.read_bytes()).hexdigest() for stage, path in files.items()
        }
