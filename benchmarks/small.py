"""A small project of its own, with the default's model and batch, for the benchmarks of a whole checkout."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "src")]

from support.project import Project, senders  # noqa: E402
from support.tiny import TINY  # noqa: E402

from paribus.config import flatten, load_config  # noqa: E402

__all__ = ["Project", "make_project", "senders"]
DEFAULTS = (
    "model.",
    "tokenizer.",
    "tokens.",
    "train.",
    "pretrain.",
)  # sections taken as they are, not tiny


def make_project(folder: Path) -> Project:
    """Two megabytes of documents, their tokenizer and token shards written."""
    default = flatten(load_config(ROOT / "params.yaml"))
    kept = {key: default[key] for key in TINY if key.startswith(DEFAULTS)}
    project = Project(
        folder,
        ROOT,
        **kept
        | {
            "corpus.world.megabytes": 2,
            "pretrain.steps": 3,
            "pretrain.eval_every": 0,
            "tracking.system_metrics": True,
        },
    )
    script = "from paribus.cli.commands import run_stage\nfor name in ('corpus', 'tokenizer', 'tokens'): run_stage(name)"
    project.run(sys.executable, "-c", script, PYTHONPATH=str(folder / "src"), DVC_ROOT=str(folder))
    return project
