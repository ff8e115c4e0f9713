"""The results of an ablation's runs, read from DVC's experiments, the one record.

An experiment `NAME.ARM.sSEED` counts as the run it is named after only if it computed that: the parameters of its chain of
stages, as its own params.yaml has them, and the code, as its own tree has it, are what the study asks for. Files are read
by their hashes, git's and DVC's, and a file that does not match its hash is not used.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paribus.config import Config, fingerprint, flatten, parse_config
from paribus.curriculum import TRAINING_STAGES
from paribus.errors import UserError
from paribus.execute.repository import Reference, experiments_of
from paribus.execute.run import ASKED_FOR, COMPARED_WITH, RAN_ON, STUDY_FILE
from paribus.graph import ALL_SOURCES
from paribus.study.censored import Reach
from paribus.study.committed import CommittedFiles, altered
from paribus.study.experiment import Experiment, Metric, Run
from paribus.study.finished import FinishedRun, Provenance, at_commit, of_checkpoint
from paribus.study.identity import (
    all_params,
    chain_key,
    definitions,
    key_with_code,
    settings,
    split_params,
)
from paribus.study.registration import committed_code, sources, tracking_notes
from paribus.study.targets import MEASURE, reach_of

LOST = "unreadable"  # the key of an experiment whose params.yaml today's code refuses


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        name: of its DVC experiment.
        experiment: the commit of the DVC experiment; `baseline`: the commit it started from.
        file: the blob of the ablation's file that it ran under.
        key, code: what it computed; `asked`: the key of its specification, "" where its experiment does not record it.
        against: the commit of the baseline that it is compared with; that it started from, unless its arm is code.
        value: of the metric; None: missing, or not finite, which `diverged` distinguishes.
        metrics: stage -> the values of its metrics file. curve: rows of plots/pretrain.csv.
        provenance: of the last checkpoint.
        fingerprints: training stage -> its fingerprint. weights: training stage -> a hash of its weights.
        model: a hash of the resolved model, "" where no training stage runs.
        common: a hash of the parameters that no arm changes, the seed aside; recipe: of all but the seed.
        altered: files of its experiment that were changed after it ran; such a run counts for nothing.
        outputs: dvc.lock's own hash.
        machine: that computed it, "" where its experiment does not say.
        reach: of a metric with a target, whether and when the curve got there; `value` is that time, or what bounds it.
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
    metrics: Mapping[str, Mapping[str, Any]]
    curve: list[dict[str, float | None]]
    provenance: Provenance
    fingerprints: dict[str, str]
    outputs: dict[str, str]
    asked: str = ""
    against: str = ""
    diverged: bool = False
    weights: dict[str, str] = field(default_factory=dict)
    model: str = ""
    common: str = ""
    recipe: str = ""
    altered: tuple[str, ...] = ()
    machine: str = ""
    reach: Reach | None = None

    def number(self, stage: str, key: str) -> float | None:
        """A number of metrics/STAGE.json; None where it is missing.

        Args:
            stage: whose file it is.
            key: of the number.
        """
        value = self.metrics.get(stage, {}).get(key)
        return float(value) if isinstance(value, (int, float)) else None

    @property
    def superseded(self) -> bool:
        """Whether a later run took its name."""
        return "-was-" in self.name


# ---------------------------------------------------------------- reading experiments


def collect(experiment: Experiment) -> list[Result]:
    """Every finished run of the ablation's arms, also of other code or parameters than today's."""
    results = []
    for reference in experiments_of(experiment.name):
        if reference.run.arm in experiment.groups:
            results.append(_result(experiment, reference))
    return results


def of_other_arms(experiment: Experiment) -> dict[str, int]:
    """Arm -> finished runs, of arms that the file does not name any more."""
    arms = [reference.run.arm for reference in experiments_of(experiment.name)]
    return dict(Counter(arm for arm in arms if arm not in experiment.groups))


_READ: dict[tuple[str, str], Result] = {}  # what a commit holds never changes: read once a process


def _result(experiment: Experiment, reference: Reference) -> Result:
    key = (reference.commit, repr((experiment.file, experiment.metric, experiment.stages)))
    if key not in _READ:
        _READ[key] = _read(experiment, reference)
    return replace(_READ[key], name=reference.name)


def _read(experiment: Experiment, reference: Reference) -> Result:
    files = CommittedFiles(reference.commit)
    run = at_commit(reference.name, "experiment", files, _measured_stages(experiment))
    trained = [stage for stage in TRAINING_STAGES if stage in experiment.stages]
    provenances = _provenances(run, trained)
    curve = _numbers(run.curve("pretrain")) if "pretrain" in experiment.stages else []
    reach = None
    if experiment.metric.target is None:
        value, diverged = value_in(experiment.metric, files, run.metrics)
    else:
        reach = reach_of(experiment.metric, curve, experiment.config(reference.run.arm))
        diverged = _diverged(run.metrics, reach)
        value = None if reach is None or diverged else reach.time
    common, recipe = _recipes(experiment, reference.run.arm, files)
    return Result(
        name=reference.name,
        arm=reference.run.arm,
        seed=reference.run.seed,
        experiment=reference.commit,
        baseline=reference.started_from,
        file=files.trailer(STUDY_FILE) or files.blob(str(experiment.file)),
        key=asked_key(experiment, reference.run.arm, files),
        code=_code_in(files, experiment.stages),
        value=value,
        metrics=run.metrics,
        curve=curve,
        reach=reach,
        provenance=provenances.get(trained[-1], Provenance()) if trained else Provenance(),
        fingerprints={stage: written.fingerprint for stage, written in provenances.items()},
        outputs={"dvc.lock": files.blob("dvc.lock") or ""},
        asked=files.trailer(ASKED_FOR),
        machine=files.trailer(RAN_ON),
        against=files.trailer(COMPARED_WITH) or reference.started_from,
        diverged=diverged,
        weights=_hashes_of_weights(files, trained),
        model=_hash_of_model(files, trained),
        common=common,
        recipe=recipe,
        altered=tuple(altered(files, experiment.stages)),
    )


def _diverged(metrics: Mapping[str, Mapping[str, object]], reach: Reach | None) -> bool:
    """Whether a run ended without a finite loss before its curve got to the target."""
    final = metrics.get("pretrain", {}).get(MEASURE)
    got_there = reach is not None and reach.known != "not reached"
    return not got_there and final is not None and not _is_finite(final)


def _measured_stages(experiment: Experiment) -> list[str]:
    """Those for which the experiment's stages write a metrics/<stage>.json."""
    measured = []
    for stage in experiment.stages:
        for out in definitions()[stage].outs:
            if out.startswith("metrics/"):
                measured.append(Path(out).stem)
    return measured


def _provenances(run: FinishedRun, stages: Sequence[str]) -> dict[str, Provenance]:
    """Stage -> its provenance; a damaged one is left out."""
    provenances = {}
    for stage in stages:
        try:
            written = run.provenance(stage)
        except UserError:
            continue
        if written is not None:
            provenances[stage] = written
    return provenances


def _hashes_of_weights(files: CommittedFiles, stages: Sequence[str]) -> dict[str, str]:
    """Training stage -> DVC's hash of its weights, where it has one."""
    hashes = {stage: files.hash(of_checkpoint(stage, "model.safetensors")) for stage in stages}
    return {stage: mark for stage, mark in hashes.items() if mark}


def _hash_of_model(files: CommittedFiles, stages: Sequence[str]) -> str:
    """DVC's hash of the last model's config.json; "" where there is none."""
    if not stages:
        return ""
    return files.hash(of_checkpoint(stages[-1], "config.json")) or ""


def value_of(
    metric: Metric, commit: str, metrics: Mapping[str, Mapping[str, object]]
) -> float | None:
    """A metric of an experiment; None where it is not there, or not finite.

    Args:
        metric: which.
        commit: of the experiment.
        metrics: stage -> the values of its metrics file.
    """
    return value_in(metric, CommittedFiles(commit), metrics)[0]


def value_in(
    metric: Metric, files: CommittedFiles, metrics: Mapping[str, Mapping[str, object]]
) -> tuple[float | None, bool]:
    """(the metric, whether it is there and not finite); CORE's partial mean where its bundle is partial.

    Args:
        metric: which.
        files: of the experiment's commit.
        metrics: stage -> the values of its metrics file.
    """
    file = Path(metric.path)
    in_metrics = file.parent == Path("metrics")
    values = metrics.get(file.stem) if in_metrics else files.json(metric.path)
    flat = flatten(dict(values or {}))
    if metric.name == "core" and flat.get("core") is None:
        partial: Any = flat.get("core_partial")
        return (float(partial), False) if _is_finite(partial) else (None, False)
    if metric.key not in flat:
        return None, False
    value = flat[metric.key]
    return (float(value), False) if _is_finite(value) else (None, True)


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def asked_key(experiment: Experiment, arm: str, files: CommittedFiles) -> str:
    """The key of the chain of stages with a commit's own params.yaml; LOST where it cannot be read.

    Args:
        experiment: the study.
        arm: whose run the commit is.
        files: of the commit.
    """
    try:
        config, added = _params_of(experiment, arm, files)
    except UserError:
        return LOST
    key = chain_key(experiment.stages, config)
    return key if added is None else key_with_code(key, added)


def _params_of(
    experiment: Experiment, arm: str, files: CommittedFiles
) -> tuple[Config, dict[str, object] | None]:
    """(a commit's parameters, the values of the keys that only the code of an arm has; None for the baseline's code)."""
    values = files.mapping("params.yaml")
    if experiment.code(arm) is None:
        return parse_config(values), None
    known, added = split_params(flatten(values))
    return settings(known), added


def _recipes(experiment: Experiment, arm: str, files: CommittedFiles) -> tuple[str, str]:
    """(a hash of the parameters of a commit's stages that no arm changes, a hash of them all); the seed is in neither."""
    try:
        config, added = _params_of(experiment, arm, files)
    except UserError:
        return LOST, LOST
    everything: dict[str, object] = {}
    for stage in experiment.stages:
        everything |= all_params(definitions()[stage], config)
    everything.pop("seed", None)
    changed_by_arms = {"pretrain.steps"}  # follows from an equal budget
    for group in experiment.groups.values():
        changed_by_arms |= group.overrides.keys()
    for one in experiment.arms.values():
        changed_by_arms |= one.overrides.keys()
    common = {key: value for key, value in everything.items() if key not in changed_by_arms}
    return fingerprint(params=common), fingerprint(params=everything | (added or {}))


def code_key(experiment: Experiment, commit: str = "HEAD") -> str:
    """A key for all that a commit holds and that can decide the chain's outputs, parameters and DVC's data aside.

    Args:
        experiment: whose chain it is.
        commit: by any of its names.
    """
    return code_of_chain(experiment.stages, commit)


def code_of_chain(stages: Sequence[str], commit: str = "HEAD") -> str:
    """As `code_key`, of any chain of stages.

    Args:
        stages: of the chain, or a part of it.
        commit: by any of its names.
    """
    return _code_in(CommittedFiles(commit), stages)


def _code_in(files: CommittedFiles, stages: Sequence[str]) -> str:
    """The key of the code of a commit whose files are listed already."""
    # Links in the sources may lead anywhere in the commit, so such a commit is known by its name.
    if not files.tree or any(path.startswith(f"{ALL_SOURCES}/") for path in files.links):
        versions = [files.commit]
    else:
        read = [ALL_SOURCES, "dvc.yaml", *sources(stages)]
        versions = [version_of(files, path) or "" for path in read]
    return _code_of_versions(tuple(versions), files.commit, tuple(stages))


Codes = Mapping[str, str]  # arm -> the key of its code


def codes_of(experiment: Experiment) -> Codes:
    """The key of today's code of every arm, in each of its groups of runs."""
    today = code_key(experiment)
    codes = {}
    for arm in {*experiment.names, *experiment.groups}:
        code = experiment.code(arm)
        codes[arm] = today if code is None else code_key(experiment, code.commit)
    return codes


@functools.lru_cache(maxsize=256)
def _code_of_versions(_: tuple[str, ...], commit: str, stages: tuple[str, ...]) -> str:
    """The key of a commit's code; computed once for all commits whose sources git knows by the same hashes."""
    try:
        code = committed_code(stages, commit)
    except (
        UserError
    ) as error:  # of an older layout, or not Python: no other commit has the same code
        return fingerprint(unreadable=commit, why=error.problems)
    files = CommittedFiles(commit)
    others = {path: version_of(files, path) for path in sources(stages)}
    return fingerprint(code=code, others=others, commands=commands_of(files, stages))


def version_of(files: CommittedFiles, path: str) -> str | None:
    """Git's hash of a file or folder, or of the .dvc file by which `dvc add` tracks it; None where the commit has neither.

    Args:
        files: of the commit.
        path: of the file or folder.
    """
    notes = [files.blob(note) for note in tracking_notes(path)]
    return next(filter(None, notes), None) or files.blob(path)


def commands_of(files: CommittedFiles, stages: Sequence[str]) -> dict[str, object]:
    """Stage -> what a commit's dvc.yaml runs, and in which folder.

    Args:
        files: of the commit.
        stages: the requested ones.
    """
    try:
        document = files.mapping("dvc.yaml")
    except UserError as error:
        return {"unreadable": error.problems}
    entries = document.get("stages") or {}
    commands: dict[str, object] = {"vars": document.get("vars")}
    for stage in stages:
        entry = entries.get(stage) or entries.get(stage.partition("@")[0]) or {}
        body = entry.get("do", entry)
        commands[stage] = [body.get("cmd"), body.get("wdir")]
    return commands


# ---------------------------------------------------------------- which of them count


def done(results: Sequence[Result], runs: Sequence[Run], codes: Codes) -> dict[str, Result]:
    """Name of each run that is done with today's specification -> its result.

    Args:
        results: of all finished runs.
        runs: that are asked for.
        codes: the key of today's code of every arm.
    """
    sound = []
    for result in results:
        if result.code == codes.get(result.arm) and not result.altered:
            sound.append(result)
    by_what_it_computed = {(result.arm, result.seed, result.key): result for result in sound}
    finished = {}
    for run in runs:
        found = by_what_it_computed.get((run.arm, run.seed, run.key))
        if found is not None:
            finished[run.name] = found
    return finished


def check_not_otherwise(results: Sequence[Result], run: Run, codes: Codes) -> None:
    """Refuse a run that the same code computed before as a different run: a repetition would end the same way.

    Args:
        results: of all finished runs.
        run: the requested one.
        codes: the key of today's code of every arm.

    Raises:
        UserError: with what is wrong with the finished run, and how to forget it.
    """
    for result in results:
        same_code = result.code == codes.get(run.arm)
        if result.name != run.name or not same_code or result.key == run.key:
            continue
        same_was_asked = result.asked == run.key or result.key == LOST
        if not same_was_asked:
            continue
        how = "its params.yaml says otherwise than it was asked for"
        if result.key == LOST:
            how = "its params.yaml cannot be read"
        raise UserError(
            f"{run.name}: was computed before, by the same code, and {how}, so that to run it again would be no use; "
            f"`git show {result.experiment[:10]}:params.yaml` shows it, `dvc exp remove {run.name}` forgets it"
        )


def check_not_altered(results: Sequence[Result], run: Run) -> None:
    """Refuse a run whose figures differ from those that its stage left before: a repetition would count for nothing too.

    Args:
        results: of all finished runs.
        run: that has just ended.

    Raises:
        UserError: with the files that differ, and how to forget what was before.
    """
    for result in results:
        if result.name == run.name and result.altered:
            raise UserError(
                f"{run.name}: was computed, and {', '.join(result.altered)} of its experiment {result.experiment[:10]} "
                "differs from what DVC's run-cache has of the same code, values and inputs, so that it counts for nothing: "
                "a stage has to leave the same figures each time. `dvc exp remove "
                f"{run.name}` forgets these, and removing .dvc/cache/runs the others"
            )


def different_models(results: Sequence[Result]) -> list[str]:
    """Arms whose runs are not of one model, each in a sentence; their values are not comparable."""
    problems = []
    for arm in dict.fromkeys(result.arm for result in results):
        seeds_of: dict[tuple[str, float | None], list[int]] = {}
        for result in results:
            if result.arm == arm:
                model = result.model, result.number("pretrain", "parameters")
                seeds_of.setdefault(model, []).append(result.seed)
        if len(seeds_of) > 1:
            groups = [_seeds_of_model(*model, seeds) for model, seeds in seeds_of.items()]
            problems.append(f"{arm}: its runs are of {len(groups)} models: {'; '.join(groups)}")
    return problems


def _seeds_of_model(model: str, parameters: float | None, seeds: Sequence[int]) -> str:
    names = ", ".join(map(str, sorted(seeds)))
    config = f"config.json {model[:10] or 'absent'}"
    return f"seeds {names} have {parameters or 0:,.0f} parameters ({config})"


def _numbers(rows: Sequence[Mapping[str, str]]) -> list[dict[str, float | None]]:
    """The rows of a curve as numbers; what was not measured is None."""
    return [{key: _number(text) for key, text in row.items()} for row in rows]


def _number(text: str) -> float | None:
    return float(text) if text else None
