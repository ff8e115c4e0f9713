"""What the tests of tuning share: a project with tokens, a study's file, a look at a trial under way."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from paribus.config import merge, read_yaml
from support.tiny import TINY
from support.waiting import PATIENCE, wait_for
from support.warm import feed_mlflow, warm

STUDY: dict[str, Any] = {
    "trials": 3,
    "budget": {"tokens": 1536},
    "memory": "3GiB",
    "overrides": {"eval": {"bpb_tokens": 512}},
    "space": {
        "optimizer.matrix_lr": {"low": 0.005, "high": 0.08, "log": True},
        "model.depth": {"low": 1, "high": 3},
    },
    "retest": {"top": 1, "seeds": 2},
}


def prepare(root: Path, project_root: Path, data: Path) -> Path:
    """A project of TINY's size with its tokens; its source is the one under test."""
    (root / "src").symlink_to(project_root / "src")
    for name in ("dvc.yaml", "requirements.lock"):
        shutil.copy(project_root / name, root / name)
    params = merge(read_yaml(project_root / "params.yaml"), TINY)
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (root / "experiments/tune").mkdir(parents=True)
    shutil.copytree(data, root / "data")
    return root


def write(root: Path, name: str, **changes: Any) -> None:
    """A study's file: STUDY with changes; `overrides` may be dotted."""
    values = STUDY | changes
    values["overrides"] = merge({}, values["overrides"])
    (root / f"experiments/tune/{name}.yaml").write_text(yaml.safe_dump(values))


def tune(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`paribus tune ARGUMENTS`."""
    feed_mlflow(root / ".paribus", dict(os.environ))
    return warm().run(["-m", "paribus", "tune", *arguments], root)


class Tuning:
    """`paribus tune ARGUMENTS` under way; what it says goes to a file."""

    def __init__(self, root: Path, *arguments: str) -> None:
        feed_mlflow(root / ".paribus", dict(os.environ))
        with tempfile.TemporaryFile("w") as output:
            self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
            self.process = warm().begin(
                ["-m", "paribus", "tune", *arguments],
                root,
                dict(os.environ),
                output.fileno(),
                self._said.fileno(),
            )

    def wait(self) -> tuple[int, str]:
        """Exit status and standard error."""
        status = self.process.wait(PATIENCE)
        self._said.seek(0)
        with self._said:
            return status, self._said.read()


class Curve:
    """A trial's folder, watched from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def newest_state(self) -> int:
        """The step of its newest training state; 0: none."""
        return max(
            (
                int(path.stem.removeprefix("step-"))
                for path in (self.folder / "state").glob("step-*.json")
            ),
            default=0,
        )

    def under_way(self) -> bool:
        """Whether it has a training state and an evaluation behind it, and no end yet."""
        curve = self.folder / "curve.jsonl"
        return (
            bool(self.newest_state() and curve.exists() and curve.read_text())
            and not (self.folder / "result.json").exists()
        )

    def wait_for_state(self) -> None:
        """Until it is under way."""
        wait_for(self.under_way)
