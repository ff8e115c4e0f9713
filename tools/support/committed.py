"""A commit that holds a finished run, for tests of what is read of one."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import yaml


def committed_run(
    provenance: Mapping[str, object], metrics: Mapping[str, object], curve: str
) -> str:
    """Commit the outputs of pretraining in the current folder: metrics and a curve in git, a checkpoint in DVC's cache.

    Args:
        provenance: of the checkpoint.
        metrics: of metrics/pretrain.json.
        curve: the text of plots/pretrain.csv.

    Returns:
        The commit.
    """
    for folder in (".dvc", "metrics", "plots", "checkpoints/base"):
        Path(folder).mkdir(parents=True)
    Path(".dvc/config").touch()
    Path(".gitignore").write_text("/checkpoints\n/.dvc\n")
    Path("params.yaml").write_text("seed: 7\nmodel:\n  depth: 2\n")
    Path("metrics/pretrain.json").write_text(json.dumps(metrics))
    Path("plots/pretrain.csv").write_text(curve)
    written = json.dumps(provenance).encode()
    Path("checkpoints/base/provenance.json").write_bytes(written)
    listing = [{"md5": _cached(written), "relpath": "provenance.json"}]
    folder = _cached(json.dumps(listing).encode(), ".dir")
    outs = [
        {"path": "checkpoints/base", "md5": folder},
        {"path": "metrics/pretrain.json", "md5": _md5(Path("metrics/pretrain.json").read_bytes())},
    ]
    lock = {"schema": "2.0", "stages": {"pretrain": {"cmd": "x", "outs": outs}}}
    Path("dvc.lock").write_text(yaml.safe_dump(lock))
    return commit_all()


def commit_all() -> str:
    """Commit everything in the current folder, a repository or not yet one; the commit."""
    options = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*options, "commit", "-qm", "run"]):
        subprocess.run(["git", *command], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return head.stdout.strip()


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _cached(content: bytes, suffix: str = "") -> str:
    """Put an object into DVC's cache; its name."""
    mark = _md5(content)
    path = Path(".dvc/cache/files/md5") / mark[:2] / f"{mark[2:]}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return mark + suffix
