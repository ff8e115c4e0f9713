"""Whether the records of a run agree: its own (provenance.json) with git's tree, dvc.lock, DVC's cache and this machine."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from paribus import config, graph
from paribus.audit import rebuild
from paribus.errors import UserError
from paribus.machine.hardware import Hardware, detect_hardware
from paribus.machine.provenance import collect_provenance
from paribus.study.committed import CommittedFiles, altered, edited_in_lock
from paribus.study.finished import CHECKPOINTS, PIPELINE, FinishedRun, Provenance
from paribus.study.identity import is_declared
from paribus.study.lasting import FIGURES

Cause = Literal[
    "metrics",
    "code",
    "data",
    "dvc.lock",
    "params",
    "requirements",
    "hardware",
    "determinism",
    "threads",
    "failure",
]
ABSENT = "absent"
SHOWN_FILES = 4


@dataclass(frozen=True)
class Difference:
    """One deviation from what the run recorded.

    contradiction: the repository itself says otherwise, so that nobody who follows it gets the same run; otherwise this
    machine differs from the run's.
    """

    cause: Cause
    what: str
    recorded: Any
    found: Any
    contradiction: bool
    stops: bool = False  # the stage cannot run, or cannot finish


# ---------------------------------------------------------------- the record against git, DVC and this machine


def code(written: Provenance, root: Path) -> Iterator[Difference]:
    """Compare source files and requirements.lock of the commit with those of the run.

    Args:
        written: what the run wrote down of itself.
        root: the project in a clean clone of the run's commit.
    """
    there = graph.stage_code(written.stage, graph.working_sources(root))
    dirty = " (the run had uncommitted changes)" if written.git.get("dirty") else ""
    for path in sorted({*there, *written.code}):
        if there.get(path) != written.code.get(path):
            yield Difference("code", path + dirty, written.code.get(path), there.get(path), True)
    pins = root / "requirements.lock"
    now = graph.file_digest(pins) if pins.is_file() else None
    if now != written.requirements_lock:
        yield Difference("requirements", "requirements.lock", written.requirements_lock, now, True)
    installed = collect_provenance()["versions"]
    for package, version in written.versions.items():
        if installed.get(package) != version:
            yield Difference(
                "requirements",
                f"{package} as installed here",
                version,
                installed.get(package),
                False,
            )


def data(record: FinishedRun, stage: str, root: Path, absent: list[str]) -> Iterator[Difference]:
    """Compare the data in the clone with the run's; name the file where DVC's cache does not hold what its name says.

    Args:
        record: of the run.
        stage: a training stage.
        root: the project in the clone.
        absent: outputs that neither the cache nor a remote has.
    """
    written = rebuild.written_provenance(record, stage)
    for out in absent:
        yield Difference(
            "data",
            f"{out} is unavailable",
            written.data[out],
            "neither in the cache nor in a remote",
            True,
            stops=True,
        )
    for dep, digest in written.deps.items():
        if graph.is_code(dep) or not (root / dep).exists():
            continue
        now = graph.tree_digest([root / dep])
        if now != digest:
            yield Difference("data", dep + _damaged(root / dep), digest, now, True)


def data_in_place(record: FinishedRun, stage: str) -> Iterator[Difference]:
    """Compare the stage's inputs in the working folder with the run's; the clone has its own from DVC's cache.

    Args:
        record: of the run.
        stage: a training stage.
    """
    if not record.in_place:
        return
    for dep, digest in rebuild.written_provenance(record, stage).deps.items():
        place = Path(dep)
        if graph.is_code(dep) or not place.exists():
            continue
        now = graph.tree_digest([place])
        if now != digest:
            changed = _changed_files(record, dep)
            names = f": {', '.join(changed[:SHOWN_FILES])}" if changed else ""
            yield Difference("data", f"{dep} in the working folder{names}", digest, now, True)


def _changed_files(record: FinishedRun, dep: str) -> list[str]:
    """Files of an input that differ from what dvc.lock's version of it holds, as far as DVC's cache lists that."""
    outs = graph.locked_outs(record.lock)
    holder = next((out for out in outs if dep == out or dep.startswith(out + "/")), None)
    if holder is None:
        return []
    listed = graph.cached_files(outs[holder], graph.cache_folder(Path.cwd())) or {}
    changed = []
    for name, stored in listed.items():
        path = Path(holder) / name if name else Path(holder)
        belongs = path == Path(dep) or Path(dep) in path.parents
        if belongs and not _is_stored_as(path, stored):
            changed.append(name or holder)
    return changed


def _is_stored_as(path: Path, stored: Path) -> bool:
    """Whether a file's content matches the hash that names an object of DVC's cache."""
    return path.is_file() and _md5_of(path) == stored.parent.name + stored.name


def _md5_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _damaged(place: Path) -> str:
    """The files that do not match the names of their objects in DVC's cache: ": x, y are damaged or swapped"."""
    files = graph.files_below(place) if place.is_dir() else [(place.name, place)]
    wrong = []
    for name, path in files:
        if not path.is_symlink():  # pulled: DVC looked
            continue
        object_ = path.resolve()
        if _md5_of(object_) != object_.parent.name + object_.name:
            wrong.append(name)
    return f": {', '.join(wrong)} in DVC's cache is not what its name says" if wrong else ""


def lock(record: FinishedRun, stage: str) -> Iterator[Difference]:
    """Compare a dvc.lock that covers this run with the run's record, itself, the files that exist, and DVC's run-cache.

    Args:
        record: of the run.
        stage: a training stage.
    """
    entry = rebuild.locked_stage(record, stage)
    written = rebuild.written_provenance(record, stage)
    if not entry:
        return
    outs = graph.locked_outs(record.lock)
    for out, md5 in written.data.items():
        if outs.get(out) != md5:
            yield Difference("dvc.lock", out, md5, outs.get(out), True)
    for dep in entry.get("deps", []):
        if dep["path"] in outs and dep["md5"] != outs[dep["path"]]:
            yield Difference(
                "dvc.lock",
                f"{dep['path']} as {stage} read it, and as it was made",
                dep["md5"],
                outs[dep["path"]],
                True,
            )
    for out in [*entry.get("outs", []), *_figures_of_others(record, stage)]:
        now = _hash_there(record, out["path"])
        if now not in (None, out["md5"]):
            yield Difference(
                "metrics" if _is_figure(out["path"]) else "dvc.lock",
                f"{out['path']} as it is, and as dvc.lock has it",
                now,
                out["md5"],
                True,
            )
    for name, mark in _edited_in_lock(record, stage):
        yield Difference(
            "metrics" if _is_figure(name) else "dvc.lock",
            f"{name} in dvc.lock, and as the run left it (DVC's run-cache)",
            "another hash",
            mark,
            True,
        )


def _edited_in_lock(record: FinishedRun, stage: str) -> Iterator[tuple[str, str]]:
    """(output, its hash in dvc.lock) of outputs that DVC's run-cache has otherwise: of the stage, and figures of the others."""
    outs = graph.locked_outs(record.lock)
    for path in edited_in_lock(rebuild.locked_stage(record, stage)):
        yield path, outs[path]
    if record.scope != PIPELINE:
        return
    for name, entry in record.lock.get("stages", {}).items():
        figures = [path for path in edited_in_lock(entry) if _is_figure(path)]
        if name != stage:
            for path in figures:
                yield path, outs[path]


def _is_figure(path: str) -> bool:
    return path.startswith(FIGURES)


def _figures_of_others(record: FinishedRun, stage: str) -> list[dict[str, Any]]:
    """Metrics and curves of the other stages in dvc.lock: small files that git holds and anyone can edit.

    A checkpoint belongs to one stage, so those of the others are not its own.
    """
    if record.scope != PIPELINE:
        return []
    figures = []
    for name, entry in record.lock.get("stages", {}).items():
        if name != stage:
            figures += [out for out in entry.get("outs", []) if _is_figure(out["path"])]
    return figures


def _hash_there(record: FinishedRun, out: str) -> str | None:
    """DVC's name for an output as it is here; None for an output that only git has, or the cache under that very name."""
    if record.kind in ("checkpoint", "workspace"):
        place = (
            Path(record.name)
            if record.kind == "checkpoint" and out == CHECKPOINTS[record.scope]
            else Path(out)
        )
        return graph.computed_hash(place) if place.exists() else None
    text = record.files.content(out)
    return graph.md5_of(text) if text is not None else None


def edited_outputs(record: FinishedRun) -> list[str]:
    """Outputs of a run that changed after DVC noted them at its end, sorted: of a commit, or of the working folder.

    A checkpoint's folder alone and a run in MLflow have no entry in a dvc.lock.
    """
    outs = graph.locked_outs(record.lock)
    stages = record.lock.get("stages", {})
    if record.kind in ("experiment", "revision") and record.commit:
        changed = altered(CommittedFiles(record.commit), stages)
        return [path for path in changed if path in outs]
    edited = set()
    for entry in stages.values():
        edited.update(edited_in_lock(entry))
    for path, mark in outs.items():
        there = _is_figure(path) and record.in_place and Path(path).is_file()
        if there and graph.computed_hash(Path(path)) != mark:
            edited.add(path)
    return sorted(edited)


def params(record: FinishedRun, stage: str) -> Iterator[Difference]:
    """Compare dvc.lock's params with the record's, and the record with its own fingerprint, which is a hash of it.

    Args:
        record: of the run.
        stage: a training stage.
    """
    written = rebuild.written_provenance(record, stage)
    locked = rebuild.locked_params(record, stage)
    for key in sorted({*locked, *written.params}) if locked else ():
        if not key.startswith("train.") and locked.get(key) != written.params.get(key):
            yield Difference(
                "params", f"{key} in dvc.lock", written.params.get(key), locked.get(key), True
            )
    names = [field.name for field in dataclasses.fields(Hardware)]
    fields: dict[str, Any] = {name: written.hardware.get(name) for name in names}
    hardware = Hardware(**fields).hardware_class()
    name = config.fingerprint(
        stage=stage,
        params=written.params,
        deps=written.deps,
        code=written.code,
        hardware=hardware,
    )
    if name != written.fingerprint:
        yield Difference(
            "params",
            "fingerprint of provenance.json, which hashes its params, inputs and hardware",
            written.fingerprint,
            name,
            True,
        )


def asked(record: FinishedRun, stage: str, root: Path) -> Iterator[Difference]:
    """Compare the run's params.yaml with the values that the stage ran with: a later edit describes another run.

    Args:
        record: of the run.
        stage: a training stage.
        root: the project in a clean clone of the run's commit.
    """
    now = record.asked(stage)
    if not now:
        return
    declared = graph.stage_definition(stage, root / "dvc.yaml").params
    keys = {key for key in now if is_declared(key, declared)}
    locked = rebuild.locked_params(record, stage)
    ran: Mapping[str, Any] = locked
    if not locked:
        keys = {key for key in keys if not key.startswith("train.")}  # a provenance has none
        ran = rebuild.written_provenance(record, stage).params
    for key in sorted(keys | set(ran)):
        if now.get(key) != ran.get(key):
            what = f"{key} in params.yaml"
            yield Difference(_cause_of(key), what, ran.get(key, ABSENT), now.get(key, ABSENT), True)


def _cause_of(key: str) -> Cause:
    """The cause that a difference of a key in params.yaml is attributed to."""
    if "train." not in key:
        return "params"
    return _CAUSES.get(rebuild.TRAIN.get(key.removeprefix("train."), ""), "params")


_CAUSES: dict[str, Cause] = {
    "process_threads": "threads",
    "dtype": "determinism",
    "tf32": "determinism",
    "fp8": "determinism",
    "decode_graphs": "determinism",
    "compile": "determinism",
    "deterministic": "determinism",
    "activation_checkpointing": "determinism",
    "device": "hardware",
    "device_name": "hardware",
    "isa": "hardware",
    "cpu_capability": "hardware",
    "environment": "hardware",
    "libraries": "requirements",
    "processes": "hardware",
}


def machine(written: Provenance, asked: dict[str, Any]) -> Iterator[Difference]:
    """Compare what the stage will compute on with what it computed on: `train.*` as requested, and this machine.

    Args:
        written: what the run wrote down of itself.
        asked: dotted key -> value, of the params that the stage will run with.
    """
    keys = {field: key for key, field in rebuild.TRAIN.items()}
    recorded = written.hardware
    train = {key: asked[f"train.{key}"] for key in rebuild.TRAIN if f"train.{key}" in asked}
    try:
        here = asdict(detect_hardware(dataclasses.replace(config.load_config().train, **train)))
    except UserError as error:
        yield Difference(
            "hardware",
            f"{recorded['device']} is unavailable",
            recorded["device_name"],
            str(error),
            False,
            stops=True,
        )
        return
    here["processes"] = train.get("processes", 1)
    for field, cause in _CAUSES.items():
        if field in recorded and here.get(field) != recorded[field]:
            ours = field in keys and f"train.{keys[field]}" in asked
            yield Difference(
                cause,
                f"train.{keys[field]}" if ours else field,
                recorded[field],
                here.get(field),
                ours,
            )
