"""Finished runs whose files are given, for tests of what is said of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from paribus.study.finished import FinishedRun


@dataclass(frozen=True)
class Kept:
    """Files that are given."""

    texts: dict[str, bytes]
    places: dict[str, Path]

    def content(self, path: str) -> bytes | None:
        return self.texts.get(path)

    def place(self, path: str) -> Path | None:
        return self.places.get(path)


def run(
    name: str,
    *,
    params: dict[str, Any] | None = None,
    metrics: dict[str, float] | None = None,
    kept: dict[str, Path] | None = None,
    **written: Any,
) -> FinishedRun:
    """A run of pretraining with this provenance."""
    provenance = {
        "stage": "pretrain",
        "code": {"src/paribus/train/loop.py": "a" * 64},
        "deps": {},
        "git": {"diff": None},
        "versions": {"torch": "2.13.0"},
        "hardware": {"threads": 2},
    } | written
    texts = {"checkpoints/base/provenance.json": json.dumps(provenance).encode()}
    stages: dict[str, dict[str, float]] = {}
    for key, value in (metrics or {}).items():
        stage, _, rest = key.partition(".")
        stages.setdefault(stage, {})[rest] = value
    return FinishedRun(
        name=name,
        kind="revision",
        scope="pipeline",
        commit=None,
        params=params or {},
        metrics=stages,
        data=written.get("data", {}),
        files=Kept(texts, kept or {}),
    )


def parquet(path: Path, correct: list[bool], tasks: list[str] | None = None) -> Path:
    columns: dict[str, list[Any]] = {"index": list(range(len(correct))), "correct": correct}
    pyarrow.parquet.write_table(pyarrow.table(columns | ({"task": tasks} if tasks else {})), path)
    return path
