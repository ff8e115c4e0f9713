"""What the runs of an ablation came to: read from DVC's experiments, the one record, and kept as JSON by their commit.

An experiment `NAME-ARM-sSEED` counts as the run it is named after only if it computed that: the parameters of its chain of
stages, as its own params.yaml has them, and the code, as its own tree has it, are what the study asks for.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paribus import runtime
from paribus.config import fingerprint, flatten, parse_config, parse_yaml
from paribus.errors import UserError
from paribus.journal import read_json, read_rows, write_json
from paribus.runtime import write_atomic
from paribus.study.experiment import Experiment, Metric, Run, chain_key, definitions, sources
from paribus.study.queue import read_output

TARGETS = {
    "pretrain": "base",
    "midtrain": "mid",
    "sft": "sft",
    "rl": "rl",
}  # stage -> its checkpoint
PROVENANCE = ("git", "versions", "hardware", "requirements_lock")  # kept of a checkpoint's
LOST = "unreadable"  # the key of an experiment whose params.yaml today's code does not take


@dataclass(frozen=True)
class Result:
    """One finished run. key and code: what it computed; file: the blob of the ablation's file that it ran under."""

    name: str
    arm: str
    seed: int
    experiment: str  # commit of the DVC experiment
    baseline: str  # commit it started from
    file: str | None
    key: str
    code: str
    value: float | None  # of the metric; None: not there, or not finite
    metrics: dict[str, dict[str, Any]]  # file -> values
    curve: list[dict[str, float | None]]
    provenance: dict[str, Any]  # of the last checkpoint
    fingerprints: dict[str, str]  # training stage -> its fingerprint
    outputs: dict[str, str]  # dvc.lock's and requirements.lock's own hashes

    def number(self, stage: str, key: str) -> float | None:
        """A number of metrics/STAGE.json."""
        value = self.metrics.get(stage, {}).get(key)
        return float(value) if isinstance(value, (int, float)) else None


def folder_of(name: str) -> Path:
    """Where an ablation keeps what can be made again: .paribus/ablations/NAME."""
    return runtime.state_root() / "ablations" / name


def events_of(name: str) -> list[dict[str, Any]]:
    """The journal of an ablation: {time, run, event, …}: queued, started, done, paused, interrupted, failed, refused."""
    path = folder_of(name) / "journal.jsonl"
    return read_rows(path) if path.exists() else []


def references(experiment: Experiment) -> dict[str, tuple[str, str]]:
    """Name of each DVC experiment of this ablation, superseded ones too -> (its commit, the commit it started from)."""
    listed = _git("for-each-ref", "--format=%(refname) %(objectname)", "refs/exps/") or ""
    arms = "|".join(map(re.escape, experiment.names))
    wanted = re.compile(
        rf"refs/exps/(\w\w)/(\w+)/({re.escape(experiment.name)}-(?:{arms})-s\d+(?:-was-\w+)?)$"
    )
    found = {}
    for line in listed.splitlines():
        reference, commit = line.split()
        if match := wanted.match(reference):
            found[match[3]] = (commit, match[1] + match[2])
    return found


def collect(experiment: Experiment) -> list[Result]:
    """Every finished run of the ablation, also of other code or parameters than today's."""
    folder = folder_of(experiment.name) / "results"
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, (commit, baseline) in references(experiment).items():
        path = (
            folder
            / f"{commit}-{fingerprint(metric=asdict(experiment.metric), stages=experiment.stages)}.json"
        )
        kept = read_json(path)
        if kept is None:
            kept = asdict(_read(experiment, name, commit, baseline))
            write_json(path, kept)
        found.append(Result(**kept | {"name": name}))
    return found


def done(results: Sequence[Result], runs: Sequence[Run], code: str) -> dict[str, Result]:
    """Name of each run that is done, as it is asked for today -> its result."""
    keys = {run.key for run in runs}
    made = {
        (result.arm, result.seed): result
        for result in results
        if result.code == code and result.key in keys
    }
    return {
        run.name: made[run.arm, run.seed]
        for run in runs
        if (run.arm, run.seed) in made and made[run.arm, run.seed].key == run.key
    }


def supersede(name: str) -> None:
    """Give an experiment that computed something else another name, NAME-was-COMMIT, so that its own is free."""
    listed = _git("for-each-ref", "--format=%(refname) %(objectname)", "refs/exps/") or ""
    for reference, commit in (line.split() for line in listed.splitlines()):
        if reference.rpartition("/")[2] == name:
            _git("update-ref", f"{reference}-was-{commit[:7]}", commit)
            _git("update-ref", "-d", reference)


def _read(experiment: Experiment, name: str, commit: str, baseline: str) -> Result:
    match = re.fullmatch(rf"{re.escape(experiment.name)}-(.+)-s(\d+)(?:-was-\w+)?", name)
    assert match, name
    outs = [out for stage in experiment.stages for out in definitions()[stage].outs]
    metrics = {
        Path(out).stem: json.loads(text)
        for out in outs
        if out.startswith("metrics/") and (text := _show(commit, out)) is not None
    }
    checkpoints = {stage: target for stage, target in TARGETS.items() if stage in experiment.stages}
    provenance = {
        stage: _json(commit, f"checkpoints/{target}/provenance.json") or {}
        for stage, target in checkpoints.items()
    }
    last = provenance[list(provenance)[-1]] if provenance else {}
    curve = _show(commit, "plots/pretrain.csv") if "pretrain" in experiment.stages else None
    return Result(
        name,
        match[1],
        int(match[2]),
        commit,
        baseline,
        _git("rev-parse", "--quiet", "--verify", f"{commit}:{_here(experiment.file)}"),
        asked_key(experiment, commit),
        code_key(experiment, commit),
        value_of(experiment.metric, commit, metrics),
        metrics,
        _rows(curve) if curve else [],
        {key: last[key] for key in PROVENANCE if key in last},
        {stage: one["fingerprint"] for stage, one in provenance.items() if "fingerprint" in one},
        {"dvc.lock": _git("rev-parse", f"{commit}:{_here('dvc.lock')}") or ""},
    )


def value_of(metric: Metric, commit: str, metrics: Mapping[str, dict[str, Any]]) -> float | None:
    """A metric of an experiment, `metrics` being its metrics files; CORE's partial mean where its bundle is partial."""
    file = Path(metric.path)
    values = (
        metrics.get(file.stem) if file.parent == Path("metrics") else _json(commit, metric.path)
    )
    flat = flatten(values or {})
    value = flat.get(metric.key)
    if value is None and metric.name == "core":
        value = flat.get("core_partial")
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def asked_key(experiment: Experiment, commit: str) -> str:
    """What a commit's own params.yaml makes of the chain of stages."""
    try:
        values = parse_yaml(_show(commit, "params.yaml") or "", "params.yaml")
        return chain_key(experiment.stages, parse_config(values))
    except UserError:
        return LOST


def code_key(experiment: Experiment, commit: str = "HEAD") -> str:
    """Names the code and the data in git that the chain's stages declare."""
    return fingerprint(tree=_git("ls-tree", "-r", commit, "--", *sources(experiment.stages)))


def items_of(
    experiment: Experiment, result: Result
) -> tuple[NDArray[np.float64], NDArray[Any] | None] | None:
    """(outcome of every item, its task or None) where the metric is a mean over items; None elsewhere.

    CORE: correct above guessing, (correct - baseline) / (1 - baseline), whose mean over tasks is the metric.
    """
    core = experiment.metric.name == "core"
    if not core and not experiment.metric.name.startswith("gsm8k."):
        return None
    name = f"{Path('evals/core') if core else Path(experiment.metric.path).parent}/items.parquet"
    cached = (
        folder_of(experiment.name) / "items" / f"{result.experiment}-{experiment.metric.name}.json"
    )
    kept = read_json(cached)
    if kept is None:
        data = read_output(runtime.main_checkout(), result.experiment, name)
        if data is None:
            return None
        kept = _item_columns(data, core)
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(cached, json.dumps(kept))
    outcomes = np.asarray(kept["correct"], float)
    if not core:
        return outcomes, None
    tasks = np.asarray(kept["task"])
    guess = np.asarray([result.metrics["core"]["tasks"][task]["baseline"] for task in tasks])
    return (outcomes - guess) / (1 - guess), tasks


def _item_columns(data: bytes, core: bool) -> dict[str, Any]:
    import pyarrow.parquet

    columns = pyarrow.parquet.read_table(io.BytesIO(data)).to_pydict()
    return {name: columns[name] for name in (("correct", "task") if core else ("correct",))}


def _rows(text: str) -> list[dict[str, float | None]]:
    """A curve; what was not measured is None."""
    return [
        {key: float(value) if value else None for key, value in row.items()}
        for row in csv.DictReader(io.StringIO(text))
    ]


def _json(commit: str, path: str) -> dict[str, Any] | None:
    data = read_output(runtime.main_checkout(), commit, path)
    return dict(json.loads(data)) if data is not None else None


def _show(commit: str, path: str) -> str | None:
    return _git("show", f"{commit}:{_here(path)}")


def _here(path: str | Path) -> str:
    """A path of the project as git names it in a commit; the project may be a folder of the repository."""
    prefix = _git("rev-parse", "--show-prefix") or ""
    return f"{prefix.strip()}{path}"


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
