"""What the tests of tuning share: a project with tokens, a study's file, a look at a trial under way."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from paribus.config import merge, read_yaml
from support.tiny import TINY

STUDY = {
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


def prepare(root: Path, project_root: Path) -> Path:
    """A project of TINY's size with its tokens made; its source is the one under test."""
    (root / "src").symlink_to(project_root / "src")
    for name in ("dvc.yaml", "requirements.lock"):
        shutil.copy(project_root / name, root / name)
    (root / "params.yaml").write_text(
        yaml.safe_dump(merge(read_yaml(project_root / "params.yaml"), TINY), sort_keys=False)
    )
    (root / "experiments/tune").mkdir(parents=True)
    code = (
        "from paribus.stages.data import corpus, tokenizer, tokens; corpus(); tokenizer(); tokens()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True)
    return root


def write(root: Path, name: str, **changes: Any) -> None:
    """A study's file: STUDY with changes; `overrides` may be dotted."""
    values = STUDY | changes
    values["overrides"] = merge({}, values["overrides"])
    (root / f"experiments/tune/{name}.yaml").write_text(yaml.safe_dump(values))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "paribus", "tune", *arguments]


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

    def wait_for_state(self, seconds: float) -> None:
        """Until it is under way."""
        until = time.monotonic() + seconds
        while not self.under_way():
            assert time.monotonic() < until, f"{self.folder}: no training state in {seconds} s"
            time.sleep(0.02)
