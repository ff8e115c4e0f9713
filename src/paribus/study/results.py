"""What the runs of an ablation came to: read from DVC's experiments, the one record.

An experiment `NAME.ARM.sSEED` counts as the run it is named after only if it computed that: the parameters of its chain of
stages, as its own params.yaml has them, and the code, as its own tree has it, are what the study asks for. Files are read
by their hashes, git's and DVC's, and what is not as its hash says is not believed.
"""

from __future__ import annotations

import csv
import functools
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paribus.config import fingerprint, flatten, parse_config, parse_yaml
from paribus.curriculum import CHECKPOINT_OF, TRAINING_STAGES
from paribus.errors import UserError
from paribus.execute.repository import Reference, experiments_of
from paribus.git import try_git
from paribus.study.committed import CommittedFiles, altered
from paribus.study.experiment import (
    Experiment,
    Metric,
    Run,
    all_params,
    chain_key,
    definitions,
)
from paribus.study.registration import committed_code, sources, tracking_notes

PROVENANCE = ("git", "versions", "hardware", "requirements_lock")  # kept of a checkpoint's
LOST = "unreadable"  # the key of an experiment whose params.yaml today's code does not take


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        name: of its DVC experiment.
        experiment: the commit of the DVC experiment; `baseline`: the commit it started from.
        file: the blob of the ablation's file that it ran under.
        key, code: what it computed; `asked`: the key it was asked for, "" where its experiment does not say.
        value: of the metric; None: not there, or not finite, which `diverged` tells apart.
        metrics: file -> values. curve: rows of plots/pretrain.csv. provenance: of the last checkpoint.
        fingerprints: training stage -> its fingerprint. weights: training stage -> a hash of its weights.
        model: a hash of the resolved model, "" where no training stage runs.
        common: a hash of the parameters that no arm changes, the seed aside; recipe: of all but the seed.
        altered: files of its experiment that were changed after it ran; such a run counts for nothing.
        outputs: dvc.lock's own hash.
    """

    name: str
    arm: str
    seed: int
    experiment: str
    baseline: str
    file: str | None
    key: str
    code: str
    value: float | None
    metrics: dict[str, dict[str, Any]]
    curve: list[dict[str, float | None]]
    provenance: dict[str, Any]
    fingerprints: dict[str, str]
    outputs: dict[str, str]
    asked: str = ""
    diverged: bool = False
    weights: dict[str, str] = field(default_factory=dict)
    model: str = ""
    common: str = ""
    recipe: str = ""
    altered: tuple[str, ...] = ()

    def number(self, stage: str, key: str) -> float | None:
        """A number of metrics/STAGE.json."""
        value = self.metrics.get(stage, {}).get(key)
        return float(value) if isinstance(value, (int, float)) else None

    @property
    def superseded(self) -> bool:
        """Whether a later run took its name."""
        return "-was-" in self.name


# ---------------------------------------------------------------- reading experiments


def collect(experiment: Experiment) -> list[Result]:
    """Every finished run of the ablation's arms, also of other code or parameters than today's."""
    references = [one for one in experiments_of(experiment.name) if one.run.arm in experiment.names]
    return [_result(experiment, one) for one in references]


def of_other_arms(experiment: Experiment) -> dict[str, int]:
    """Arm -> finished runs, of arms that the file does not name any more."""
    found: dict[str, int] = {}
    for one in experiments_of(experiment.name):
        if one.run.arm not in experiment.names:
            found[one.run.arm] = found.get(one.run.arm, 0) + 1
    return found


_READ: dict[tuple[str, str], Result] = {}  # what a commit holds never changes: read once a process


def _result(experiment: Experiment, reference: Reference) -> Result:
    key = (reference.commit, repr((experiment.file, experiment.metric, experiment.stages)))
    if key not in _READ:
        _READ[key] = _read(experiment, reference)
    return replace(_READ[key], name=reference.name)


def _read(experiment: Experiment, reference: Reference) -> Result:
    files = CommittedFiles(reference.commit)
    outs = [out for stage in experiment.stages for out in definitions()[stage].outs]
    metrics = {}
    for out in outs:
        if out.startswith("metrics/"):
            values = files.json(out)
            if values is not None:
                metrics[Path(out).stem] = values
    trained = [stage for stage in TRAINING_STAGES if stage in experiment.stages]
    provenance = {stage: files.json(_of_checkpoint(stage, "provenance.json")) for stage in trained}
    last = (provenance[trained[-1]] if trained else None) or {}
    fingerprints = {stage: one["fingerprint"] for stage, one in provenance.items() if one}
    weights = {stage: files.hash(_of_checkpoint(stage, "model.safetensors")) for stage in trained}
    curve = files.text("plots/pretrain.csv") if "pretrain" in experiment.stages else None
    value, diverged = value_in(experiment.metric, files, metrics)
    run = reference.run
    common, recipe = _recipes(experiment, files)
    return Result(
        name=reference.name,
        arm=run.arm,
        seed=run.seed,
        experiment=reference.commit,
        baseline=reference.started_from,
        file=files.blob(str(experiment.file)),
        key=asked_key(experiment, files),
        code=code_key(experiment, reference.commit),
        value=value,
        metrics=metrics,
        curve=_rows(curve) if curve else [],
        provenance={key: last[key] for key in PROVENANCE if key in last},
        fingerprints=fingerprints,
        outputs={"dvc.lock": files.blob("dvc.lock") or ""},
        asked=files.trailer("Asked-For"),
        diverged=diverged,
        weights={stage: mark for stage, mark in weights.items() if mark},
        model=files.hash(_of_checkpoint(trained[-1], "config.json")) or "" if trained else "",
        common=common,
        recipe=recipe,
        altered=tuple(altered(files, experiment.stages)),
    )


def _of_checkpoint(stage: str, name: str) -> str:
    return f"checkpoints/{CHECKPOINT_OF[stage]}/{name}"


def value_of(metric: Metric, commit: str, metrics: Mapping[str, dict[str, Any]]) -> float | None:
    """A metric of an experiment, `metrics` being its metrics files; None where it is not there, or not finite."""
    return value_in(metric, CommittedFiles(commit), metrics)[0]


def value_in(
    metric: Metric, files: CommittedFiles, metrics: Mapping[str, dict[str, Any]]
) -> tuple[float | None, bool]:
    """(the metric, whether it is there and not finite); CORE's partial mean where its bundle is partial."""
    file = Path(metric.path)
    in_metrics = file.parent == Path("metrics")
    flat = flatten((metrics.get(file.stem) if in_metrics else files.json(metric.path)) or {})
    if metric.name == "core" and flat.get("core") is None:
        value: Any = flat.get("core_partial")
        return (float(value), False) if _is_finite(value) else (None, False)
    if metric.key not in flat:
        return None, False
    value = flat[metric.key]
    return (float(value), False) if _is_finite(value) else (None, True)


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def asked_key(experiment: Experiment, files: CommittedFiles) -> str:
    """What a commit's own params.yaml makes of the chain of stages."""
    try:
        values = parse_yaml(files.text("params.yaml") or "", "params.yaml")
        return chain_key(experiment.stages, parse_config(values))
    except UserError:
        return LOST


def _recipes(experiment: Experiment, files: CommittedFiles) -> tuple[str, str]:
    """(a hash of the parameters of a commit's stages that no arm changes, a hash of them all); the seed is in neither."""
    try:
        config = parse_config(parse_yaml(files.text("params.yaml") or "", "params.yaml"))
    except UserError:
        return LOST, LOST
    everything: dict[str, Any] = {}
    for stage in experiment.stages:
        everything |= all_params(definitions()[stage], config)
    everything.pop("seed", None)
    changed_by_arms = {"pretrain.steps"}  # follows from an equal budget
    for arm in experiment.arms.values():
        changed_by_arms |= arm.overrides.keys()
    common = {key: value for key, value in everything.items() if key not in changed_by_arms}
    return fingerprint(params=common), fingerprint(params=everything)


def code_key(experiment: Experiment, commit: str = "HEAD") -> str:
    """Names all that a commit holds and that can decide the chain's outputs, parameters and DVC's data aside."""
    tree = try_git("rev-parse", "--verify", "--quiet", f"{commit}^{{tree}}")
    return _code_of_tree(tree or commit, commit, tuple(experiment.stages))


@functools.lru_cache(maxsize=256)
def _code_of_tree(_: str, commit: str, stages: tuple[str, ...]) -> str:
    try:
        code = committed_code(stages, commit)
    except UserError as error:  # of another age, or not Python: it is nobody else's code
        return fingerprint(unreadable=commit, why=error.problems)
    files = CommittedFiles(commit)
    others = {path: version_of(files, path) for path in sources(stages)}
    return fingerprint(code=code, others=others, commands=commands_of(files, stages))


def version_of(files: CommittedFiles, path: str) -> str | None:
    """Git's hash of a file or folder, or of the .dvc file by which `dvc add` tracks it; None where the commit has neither."""
    notes = [files.blob(note) for note in tracking_notes(path)]
    return next(filter(None, notes), None) or files.blob(path)


def commands_of(files: CommittedFiles, stages: Sequence[str]) -> dict[str, Any]:
    """Stage -> what a commit's dvc.yaml runs, and in which folder."""
    try:
        document = parse_yaml(files.text("dvc.yaml") or "", "dvc.yaml")
    except UserError as error:
        return {"unreadable": error.problems}
    entries = document.get("stages") or {}
    found: dict[str, Any] = {"vars": document.get("vars")}
    for stage in stages:
        entry = entries.get(stage) or entries.get(stage.partition("@")[0]) or {}
        body = entry.get("do", entry)
        found[stage] = [body.get("cmd"), body.get("wdir")]
    return found


# ---------------------------------------------------------------- which of them count


def done(results: Sequence[Result], runs: Sequence[Run], code: str) -> dict[str, Result]:
    """Name of each run that is done, as it is asked for today -> its result."""
    sound = [one for one in results if one.code == code and not one.altered]
    made = {(one.arm, one.seed, one.key): one for one in sound}
    found = {}
    for run in runs:
        result = made.get((run.arm, run.seed, run.key))
        if result is not None:
            found[run.name] = result
    return found


def check_not_otherwise(results: Sequence[Result], run: Run, code: str) -> None:
    """Raises UserError where the same run was computed before, by the same code, and came out as another.

    To compute it again would end the same way, for ever.
    """
    for one in results:
        if one.name != run.name or one.code != code or one.key == run.key:
            continue
        same_was_asked = one.asked == run.key or one.key == LOST
        if same_was_asked:
            how = (
                "its params.yaml cannot be read"
                if one.key == LOST
                else "its params.yaml says otherwise than it was asked for"
            )
            raise UserError(
                f"{run.name}: was computed before, by the same code, and {how}, so that to run it again would be no use; "
                f"`git show {one.experiment[:10]}:params.yaml` shows it, `dvc exp remove {run.name}` forgets it"
            )


def different_models(results: Sequence[Result]) -> list[str]:
    """Arms whose runs are not of one model, each in a sentence; their values are not comparable."""
    problems = []
    for arm in dict.fromkeys(one.arm for one in results):
        kinds: dict[tuple[str, float | None], list[int]] = {}
        for one in results:
            if one.arm == arm:
                kind = one.model, one.number("pretrain", "parameters")
                kinds.setdefault(kind, []).append(one.seed)
        if len(kinds) > 1:
            groups = [
                f"seeds {', '.join(map(str, sorted(seeds)))} have {parameters or 0:,.0f} parameters"
                f" (config.json {model[:10] or 'absent'})"
                for (model, parameters), seeds in kinds.items()
            ]
            problems.append(f"{arm}: its runs are of {len(kinds)} models: {'; '.join(groups)}")
    return problems


# ---------------------------------------------------------------- by item


def items_of(
    experiment: Experiment, result: Result
) -> tuple[NDArray[np.float64], NDArray[Any] | None] | None:
    """(outcome of every item, its task or None) where the metric is a mean over items; None elsewhere.

    CORE: correct above guessing, (correct - baseline) / (1 - baseline), whose mean over tasks is the metric.
    """
    core = experiment.metric.name == "core"
    if not core and not experiment.metric.name.startswith("gsm8k."):
        return None
    folder = Path("evals/core") if core else Path(experiment.metric.path).parent
    columns = _item_columns(result.experiment, str(folder / "items.parquet"), core)
    if columns is None:
        return None
    outcomes = np.asarray(columns["correct"], float)
    if not core:
        return outcomes, None
    tasks = np.asarray(columns["task"])
    guess = np.asarray([result.metrics["core"]["tasks"][task]["baseline"] for task in tasks])
    return (outcomes - guess) / (1 - guess), tasks


@functools.lru_cache(maxsize=1024)
def _item_columns(commit: str, path: str, core: bool) -> dict[str, Any] | None:
    import pyarrow.parquet

    data = CommittedFiles(commit).data(path)
    if data is None:
        return None
    columns = pyarrow.parquet.read_table(io.BytesIO(data)).to_pydict()
    return {name: columns[name] for name in (("correct", "task") if core else ("correct",))}


def _rows(text: str) -> list[dict[str, float | None]]:
    """A curve; what was not measured is None."""
    rows = []
    for row in csv.DictReader(io.StringIO(text)):
        rows.append({key: float(value) if value else None for key, value in row.items()})
    return rows
