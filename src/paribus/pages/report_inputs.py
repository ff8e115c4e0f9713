"""The inputs of the report: the stage that writes each file, and its required content."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paribus import config
from paribus.curriculum import CHECKPOINT_NAMES
from paribus.data.sealed import check_sealed_files, read_sealed
from paribus.errors import UserError
from paribus.files import NUMBER, Items, Optional, Shape, Values, parse

Row = dict[str, float]

INPUTS = {  # file -> the stage of dvc.yaml that writes it
    "metrics/tokenizer.json": "tokenizer",
    "metrics/pretrain.json": "pretrain",
    "metrics/midtrain.json": "midtrain",
    "metrics/sft.json": "sft",
    "metrics/rl.json": "rl",
    "metrics/core.json": "core",
    "metrics/gsm8k.json": "gsm8k",
    "plots/pretrain.csv": "pretrain",
    "plots/rl.csv": "rl",
    "plots/gsm8k.csv": "gsm8k",
    "evals/core/summary.json": "core",
    **{f"evals/gsm8k/{stage}/summary.json": f"gsm8k_stage@{stage}" for stage in CHECKPOINT_NAMES},
    **{f"evals/gsm8k/{stage}/prompts.json": f"gsm8k_stage@{stage}" for stage in CHECKPOINT_NAMES},
    "evals/gsm8k/rl/samples.json": "gsm8k_stage@rl",
    "checkpoints/rl/provenance.json": "rl",
}

_NULLABLE = (*NUMBER, type(None))
_TRAINED: Shape = {"steps": NUMBER, "seconds": NUMBER, "train_tokens": NUMBER}
_ANSWERS: Shape = Items({"prompt": Optional(str), "answer": str})

_SHAPES: dict[str, Shape] = {
    "metrics/tokenizer.json": {"vocab_size": NUMBER, "bytes_per_token": NUMBER},
    "metrics/pretrain.json": {
        "val_bpb": NUMBER,
        "steps": NUMBER,
        "seconds": NUMBER,
        "train_tokens": NUMBER,
    },
    "metrics/midtrain.json": _TRAINED,
    "metrics/sft.json": _TRAINED,
    "metrics/rl.json": {"steps": NUMBER, "seconds": NUMBER, "samples": NUMBER},
    "metrics/core.json": {
        "core": _NULLABLE,
        "bundle": str,
        "tasks": Values({"accuracy": NUMBER, "centered": NUMBER, "stderr": NUMBER}),
    },
    "metrics/gsm8k.json": {"paired": Values({}), "dataset": object},
    "evals/core/summary.json": {"missing": (list, dict)},
    "evals/gsm8k/rl/samples.json": _ANSWERS,
    "checkpoints/rl/provenance.json": {"fingerprint": str, "git": {}, "hardware": {}},
}
_COLUMNS = {
    "plots/pretrain.csv": {"step", "tokens", "val_bpb", "train_loss"},
    "plots/rl.csv": {"step", "reward", "zero_gradient_groups"},
    "plots/gsm8k.csv": {"stage", "accuracy", "ci_low", "ci_high"},
}


def shape_of(name: str) -> Shape:
    """What a JSON file of INPUTS has to hold."""
    if name.endswith("/prompts.json"):
        return _ANSWERS
    if name.startswith("evals/gsm8k/") and name.endswith("/summary.json"):
        return {"accuracy": NUMBER, "by_steps": {}}
    return _SHAPES[name]


def columns_of(name: str) -> set[str]:
    """The columns that a curve of INPUTS has to have."""
    return _COLUMNS[name]


@dataclass(frozen=True)
class Results:
    """Everything the report is made from."""

    settings: config.Config
    files: dict[str, Any]  # by the names of INPUTS: JSON values, or the rows of a curve

    def metrics(self, stage: str) -> dict[str, Any]:
        """metrics/<stage>.json."""
        found: dict[str, object] = self.files[f"metrics/{stage}.json"]
        return found

    def curve(self, stage: str) -> list[Any]:
        """The rows of plots/<stage>.csv; a number that was not measured is nan."""
        rows: list[object] = self.files[f"plots/{stage}.csv"]
        return rows

    def answers(self, stage: str) -> dict[str, Any]:
        """evals/gsm8k/<stage>/summary.json."""
        found: dict[str, object] = self.files[f"evals/gsm8k/{stage}/summary.json"]
        return found


def read_results(root: Path) -> Results:
    """Read every input below a project folder. Raises UserError naming each missing or damaged one and its stage."""
    files: dict[str, object] = {}
    problems = []
    for name, stage in INPUTS.items():
        try:
            files[name] = _read(root / name, name)
        except FileNotFoundError:
            problems.append(f"{name}: missing; run `dvc repro {stage}`")
        except ValueError as error:
            problems.append(f"{name}: damaged ({error}); run `dvc repro --force {stage}`")
    if not problems:
        problems = _unequal_prompts(files) or _seal_problems(root)
    if problems:
        raise UserError(problems)
    return Results(config.load_config(root / "params.yaml"), files)


def _seal_problems(root: Path) -> list[str]:
    """What the summary.json of an evaluation says is not as it was written: itself, or a file beside it."""
    problems: list[str] = []
    for name, stage in INPUTS.items():
        path = root / name
        if path.name != "summary.json":
            continue
        advice = f"run `dvc repro --force {stage}`"
        try:
            check_sealed_files(path.parent, read_sealed(path, advice, required=True), advice)
        except UserError as error:
            problems += error.problems
    return problems


def _unequal_prompts(files: dict[str, Any]) -> list[str]:
    """Every stage answers the same prompts: a file of another length was written from others."""
    counts = {stage: len(files[f"evals/gsm8k/{stage}/prompts.json"]) for stage in CHECKPOINT_NAMES}
    return [
        f"evals/gsm8k/{stage}/prompts.json: {count} prompts, where rl's has {counts['rl']}; run "
        f"`dvc repro --force gsm8k_stage@{stage}`"
        for stage, count in counts.items()
        if count != counts["rl"]
    ]


def _read(path: Path, name: str) -> object:
    """The value of a JSON file, or the rows of a curve. Raises ValueError where it is not as its stage writes it."""
    content = path.read_bytes()
    if path.suffix == ".csv":
        return _rows(content.decode("utf-8"), columns_of(name))
    value, problem = parse(content, shape_of(name))
    if problem is not None:
        raise ValueError(problem)
    return value


def _rows(text: str, columns: set[str]) -> list[Any]:
    """The rows of a curve; an empty cell is nan, the column `stage` is text."""
    try:
        reader = csv.DictReader(io.StringIO(text), strict=True)
        missing = columns - set(reader.fieldnames or [])
        if missing:
            raise ValueError(f"no column {', '.join(sorted(missing))}")
        rows = [_cells(row) for row in reader]
    except csv.Error as error:
        raise ValueError(str(error)) from None
    if not rows:
        raise ValueError("no rows")
    return rows


def _cells(row: dict[str | Any, Any]) -> dict[str, object]:
    if None in row or None in row.values():
        raise ValueError("a row of more or fewer cells than there are columns")
    return {key: value if key == "stage" else float(value or "nan") for key, value in row.items()}


def pass_at(results: Results) -> int | None:
    """The largest k of the pass@k that every stage was measured at; None where no answers were sampled."""
    measured = [
        set(re.findall(r"\bpass_at_(\d+)\b", " ".join(results.answers(stage))))
        for stage in CHECKPOINT_NAMES
    ]
    return max(map(int, set.intersection(*measured)), default=None)


def mean_of_measured(values: Sequence[float]) -> float:
    """The mean of what was measured; nan if nothing was."""
    measured = [value for value in values if not math.isnan(value)]
    return sum(measured) / len(measured) if measured else math.nan
