"""`paribus verify RUN`: a certificate that a run can be made again from its record alone, or where it parts and why.

The repository's own records (git's tree at the commit, dvc.lock, DVC's cache) are held against what the run wrote down of
itself (provenance.json), and the run is made again in a clean clone as the repository says. docs/verify.md says what
each verdict means.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import click

from paribus import config, graph, runtime
from paribus.errors import UserError
from paribus.study import rebuild
from paribus.study.band import Band, measured_band
from paribus.study.record import CHECKPOINTS, NEEDED, Record, find
from paribus.summary import write_json

Cause = Literal[
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
Verdict = Literal["bit-exact", "within noise", "consistent", "contradicted", "not reproduced"]
REPRODUCED = ("bit-exact", "within noise", "consistent")
RESULTS = Path("experiments/results")
TIMES = {"seconds"}  # columns of a curve that no two runs share
SHOWN = 8  # differences on the page


@dataclass(frozen=True)
class Difference:
    """One thing that is not as the run wrote it down. contradiction: the repository itself says otherwise, so that nobody
    who goes by it gets the same run; else it is this machine that is another one."""

    cause: Cause
    what: str
    recorded: Any
    found: Any
    contradiction: bool
    stops: bool = False  # the stage cannot be run, or not to its end


@dataclass(frozen=True)
class Outcome:
    """What came of running it again. parted: the first step whose curves differ, its column and both values."""

    steps: int
    finished: bool
    parted: dict[str, Any] | None
    weights: tuple[str | None, str | None]  # recorded, rebuilt
    band: Band | None

    @property
    def equal(self) -> bool:
        """Every bit that could be compared is the same."""
        return self.parted is None and (
            not self.finished or None in self.weights or self.weights[0] == self.weights[1]
        )


def verify(name: str, stage: str | None, steps: int | None, out: Path | None) -> int:
    """Certify a run; the exit status: 0 reproduced, 1 not. Raises UserError for what cannot be looked at."""
    record = find(name)
    chosen = choose_stage(record, stage, steps)
    made = certificate(record, chosen, steps)
    folder = out or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    files = [
        folder / f"verify-{chosen}-{made['record']['fingerprint'][:8]}.{kind}"
        for kind in ("json", "md")
    ]
    write_json(files[0], made)
    files[1].write_text(page(made), encoding="utf-8")
    noted = note(made, files)
    click.echo(page(made))
    click.echo(
        f"kept in {files[0]} and {files[1].name}"
        + (f", and with MLflow's run {noted}" if noted else "")
    )
    return int(not made["reproduced"])


def choose_stage(record: Record, stage: str | None, steps: int | None) -> str:
    """The training stage to certify. Raises UserError where its record does not hold enough."""
    if stage is not None and record.scope not in (stage, "pipeline"):
        raise UserError(f"--stage {stage}: {record.name} is a run of {record.scope}")
    chosen = stage or (record.scope if record.scope in CHECKPOINTS else "pretrain")
    if record.scope not in (*CHECKPOINTS, "pipeline"):
        raise UserError(
            f"{record.name} is a run of {record.scope}; a certificate is for {', '.join(CHECKPOINTS)}"
        )
    written = record.provenance(chosen)
    if not written:
        raise UserError(
            f"{record.name}: no {CHECKPOINTS[chosen]}/provenance.json is kept here; `dvc fetch` brings what a remote "
            f"has, --stage names another stage"
            + (f" ({', '.join(record.stages)})" if record.stages else "")
        )
    if lacking := [key for key in NEEDED if not written.get(key)]:
        raise UserError(
            f"{record.name}: its provenance lacks {', '.join(lacking)}, so it was made by an earlier paribus; "
            "`dvc repro -f` makes one with a whole record"
        )
    if steps and not record.curve(chosen):
        raise UserError(
            f"--steps {steps}: plots/{chosen}.csv of {record.name} is not kept here: there are no steps to compare"
        )
    return chosen


def certificate(record: Record, stage: str, steps: int | None) -> dict[str, Any]:
    """Rebuild a run and compare; steps: only the first so many (0: records only)."""
    began = time.time()
    written = record.provenance(stage)
    with rebuild.workplace() as folder:
        root = rebuild.clone(record.commit, folder / "clone")
        versions = graph.locked_outs(record.lock) or written["data"]
        absent = rebuild.bring_data(
            root, {out: versions[out] for out in written["data"] if out in versions}
        )
        rebuild.write_params(root, rebuild.asked_params(record, stage))
        found = [
            *code(written, root),
            *data(record, stage, root, absent),
            *lock(record, stage),
            *params(record, stage),
            *machine(written, rebuild.asked_params(record, stage)),
        ]
        outcome = None
        if steps != 0 and not any(one.stops for one in found):
            outcome = run(record, stage, root, steps, found)
    verdict = judge(found, outcome)
    return {
        "verdict": verdict,
        "reproduced": verdict in REPRODUCED,
        "causes": causes(found, verdict),
        "record": {
            "name": record.name,
            "kind": record.kind,
            "stage": stage,
            "commit": record.commit,
            "mlflow_run": record.run.id if record.run else None,
            "experiment": config.load_config().tracking.experiment,
            **{
                key: written[key]
                for key in ("fingerprint", "data", "hardware", "requirements_lock", "git")
            },
        },
        "differences": [asdict(one) for one in found],
        "outcome": asdict(outcome) if outcome else None,
        "asked_steps": steps,
        "made": time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(began)),
        "seconds": round(time.time() - began, 1),
    }


# ---------------------------------------------------------------- the record against git, DVC and this machine


def code(written: dict[str, Any], root: Path) -> Iterator[Difference]:
    """Source files and requirements.lock: the commit's against those of the run."""
    there = graph.stage_code(written["stage"], graph.working_sources(root))
    dirty = " (the run had uncommitted changes)" if written["git"].get("dirty") else ""
    for path in sorted({*there, *written["code"]}):
        if there.get(path) != written["code"].get(path):
            yield Difference("code", path + dirty, written["code"].get(path), there.get(path), True)
    pins = root / "requirements.lock"
    if (now := graph.file_digest(pins) if pins.is_file() else None) != written.get(
        "requirements_lock"
    ):
        yield Difference(
            "requirements", "requirements.lock", written.get("requirements_lock"), now, True
        )
    installed = runtime.provenance()["versions"]
    for package, version in written["versions"].items():
        if installed.get(package) != version:
            yield Difference(
                "requirements",
                f"{package} as installed here",
                version,
                installed.get(package),
                False,
            )


def data(record: Record, stage: str, root: Path, absent: list[str]) -> Iterator[Difference]:
    """Data in the clone against the run's; the file, where DVC's cache holds something else than its name says."""
    written = record.provenance(stage)
    for out in absent:
        yield Difference(
            "data",
            f"{out} is not to be had",
            written["data"][out],
            "neither in the cache nor in a remote",
            True,
            stops=True,
        )
    for dep, digest in written["deps"].items():
        if graph.is_code(dep) or not (root / dep).exists():
            continue
        if (now := graph.tree_digest([root / dep])) != digest:
            yield Difference("data", dep + _damaged(root / dep), digest, now, True)


def _damaged(place: Path) -> str:
    """Which files are not what their objects in DVC's cache are called by: ": x, y are damaged or swapped"."""
    files = graph.files_below(place) if place.is_dir() else [(place.name, place)]
    wrong = []
    for name, path in files:
        if not path.is_symlink():  # pulled: DVC looked
            continue
        object_ = path.resolve()
        with object_.open("rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if md5 != object_.parent.name + object_.name:
            wrong.append(name)
    return f": {', '.join(wrong)} in DVC's cache is not what its name says" if wrong else ""


def lock(record: Record, stage: str) -> Iterator[Difference]:
    """dvc.lock, where one speaks of this run: against the run's record, against itself, and against the files there are."""
    entry, written = rebuild.locked_stage(record, stage), record.provenance(stage)
    if not entry:
        return
    outs = graph.locked_outs(record.lock)
    for out, md5 in written["data"].items():
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
    for out in entry.get("outs", []):
        if (now := _hash_there(record, out["path"])) not in (None, out["md5"]):
            yield Difference(
                "dvc.lock", f"{out['path']} as it is, and as dvc.lock has it", now, out["md5"], True
            )


def _hash_there(record: Record, out: str) -> str | None:
    """DVC's name for an output as it is here; None for what is only in git or in the cache under that very name."""
    if record.kind in ("checkpoint", "workspace"):
        place = (
            Path(record.name)
            if record.kind == "checkpoint" and out == CHECKPOINTS[record.scope]
            else Path(out)
        )
        return graph.computed_hash(place) if place.exists() else None
    text = record.read(out)
    return hashlib.md5(text, usedforsecurity=False).hexdigest() if text is not None else None


def params(record: Record, stage: str) -> Iterator[Difference]:
    """dvc.lock's params against the record's; and the record against its own fingerprint, which is a hash of it."""
    written, locked = record.provenance(stage), rebuild.locked_params(record, stage)
    for key in sorted({*locked, *written["params"]}) if locked else ():
        if not key.startswith("train.") and locked.get(key) != written["params"].get(key):
            yield Difference(
                "params", f"{key} in dvc.lock", written["params"].get(key), locked.get(key), True
            )
    fields = {
        field.name: written["hardware"].get(field.name)
        for field in dataclasses.fields(runtime.Hardware)
    }
    hardware = runtime.Hardware(**fields).hardware_class()
    name = config.fingerprint(
        stage=stage,
        params=written["params"],
        deps=written["deps"],
        code=written["code"],
        hardware=hardware,
    )
    if name != written["fingerprint"]:
        yield Difference(
            "params",
            "fingerprint of provenance.json, which hashes its params, inputs and hardware",
            written["fingerprint"],
            name,
            True,
        )


_CAUSES: dict[str, Cause] = {
    "process_threads": "threads",
    "dtype": "determinism",
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


def machine(written: dict[str, Any], asked: dict[str, Any]) -> Iterator[Difference]:
    """What the stage will compute on against what it computed on: `train.*` as asked for, and this machine."""
    keys = {field: key for key, field in rebuild.TRAIN.items()}
    recorded = written["hardware"]
    train = {key: asked[f"train.{key}"] for key in rebuild.TRAIN if f"train.{key}" in asked}
    try:
        here = asdict(runtime.detect(dataclasses.replace(config.load_config().train, **train)))
    except UserError as error:
        yield Difference(
            "hardware",
            f"{recorded['device']} is not to be had",
            recorded["device_name"],
            str(error),
            False,
            stops=True,
        )
        return
    here["processes"] = train.get("processes", 1)
    for field, cause in _CAUSES.items():
        if field in recorded and here[field] != recorded[field]:
            ours = field in keys and f"train.{keys[field]}" in asked
            yield Difference(
                cause, f"train.{keys[field]}" if ours else field, recorded[field], here[field], ours
            )


# ---------------------------------------------------------------- running it again


def run(
    record: Record, stage: str, root: Path, steps: int | None, found: list[Difference]
) -> Outcome | None:
    """Run the stage in the clone and compare; a stage that fails is a difference of its own."""
    status = rebuild.run_stage(root, stage, steps)
    if status:
        found.append(
            Difference(
                "failure", f"the stage ended with exit status {status}", 0, status, True, stops=True
            )
        )
        return None
    ours, theirs = record.curve(stage), rebuild.rebuilt_curve(root, stage)
    if steps is not None:
        ours, theirs = (
            [row for row in rows if int(row["step"]) <= steps] for rows in (ours, theirs)
        )
    weights = rebuild.rebuilt_weights(root, stage)
    both = len({row["step"] for row in ours} & {row["step"] for row in theirs})
    outcome = Outcome(
        both, weights is not None, parted(ours, theirs), (record.weights(stage), weights), None
    )
    return (
        outcome
        if outcome.equal
        else dataclasses.replace(outcome, band=measured_band(record, stage, ours, theirs))
    )


def parted(ours: list[dict[str, str]], theirs: list[dict[str, str]]) -> dict[str, Any] | None:
    """The first step at which two curves differ in anything but time, to the bit: {step, column, recorded, rebuilt}."""
    by_step = {row["step"]: row for row in theirs}
    for row in ours:
        other = by_step.get(row["step"], row)
        for column in row.keys() & other.keys() - TIMES:
            if row[column] != other[column]:
                return {
                    "step": int(row["step"]),
                    "column": column,
                    "recorded": row[column],
                    "rebuilt": other[column],
                }
    return None


def judge(found: list[Difference], outcome: Outcome | None) -> Verdict:
    """A contradiction in the records is never reproduced, equal bits or not: who goes by the repository gets another run."""
    contradicted = any(one.contradiction for one in found)
    if outcome is None:
        stopped = any(one.stops for one in found)
        return "not reproduced" if stopped else "contradicted" if contradicted else "consistent"
    if outcome.equal:
        return "contradicted" if contradicted else "bit-exact"
    return (
        "within noise"
        if not contradicted and outcome.band and outcome.band.within
        else "not reproduced"
    )


def causes(found: list[Difference], verdict: Verdict) -> list[str]:
    """What it may be put down to: contradictions if there are any, else what is other about this machine."""
    if verdict in ("bit-exact", "consistent"):
        return []
    serious = [one for one in found if one.contradiction] or found
    return list(dict.fromkeys(one.cause for one in serious))


# ---------------------------------------------------------------- the certificate


def note(made: dict[str, Any], files: list[Path]) -> str | None:
    """Attach the certificate to the run in MLflow; the run's id, None if MLflow does not know it."""
    from paribus.tracking.lookup import Runs

    about = made["record"]
    runs = Runs(about["experiment"])
    found = runs.search(
        f"tags.fingerprint = '{about['fingerprint']}' and tags.stage = '{about['stage']}'"
    )
    run_id = (
        about["mlflow_run"]
        if about["mlflow_run"] in {run.id for run in found}
        else next((run.id for run in found), None)
    )
    if run_id:
        runs.attach(
            run_id,
            files,
            "verify",
            {
                "verify.verdict": made["verdict"],
                "verify.made": made["made"],
                "verify.causes": ", ".join(made["causes"]) or "none",
            },
        )
    return run_id


def page(made: dict[str, Any]) -> str:
    """The certificate as Markdown."""
    about, outcome = made["record"], made["outcome"]
    lines = [
        f"# {made['verdict']}: {about['stage']} of {about['name']}",
        "",
        *_sentences(made),
        "",
        f"- run: {about['kind']} {about['name']}, stage {about['stage']}, fingerprint {about['fingerprint']}",
        f"- code: commit {about['commit']}"
        + (", with uncommitted changes" if about["git"]["dirty"] else ""),
        f"- hardware then: {about['hardware']['device_name']}, {about['hardware']['isa']}, {about['hardware']['dtype']}, "
        f"{about['hardware']['process_threads']} threads, torch {about['hardware']['torch_version']}",
        *(f"- data: {out} {md5}" for out, md5 in about["data"].items()),
    ]
    if outcome:
        lines += [
            f"- steps compared: {outcome['steps']}"
            + ("" if outcome["finished"] else " (not run to the end)"),
            *(
                f"- weights {when}: {digest}"
                for when, digest in zip(("recorded", "rebuilt"), outcome["weights"], strict=True)
                if digest
            ),
        ]
    if made["differences"]:
        shown = made["differences"][:SHOWN]
        lines += [
            "",
            "| cause | what | as recorded | as found |  |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {one['cause']} | {one['what']} | {_short(one['recorded'])} | {_short(one['found'])} | "
            f"{'contradiction' if one['contradiction'] else 'this machine'} |"
            for one in shown
        ]
        lines += [f"| | and {len(made['differences']) - SHOWN} more (in the JSON) | | | |"] * (
            len(made["differences"]) > SHOWN
        )
    return "\n".join([*lines, "", f"Made {made['made']} in {made['seconds']} s.", ""])


def _sentences(made: dict[str, Any]) -> Iterator[str]:
    """What was found, in words."""
    outcome, verdict = made["outcome"], made["verdict"]
    if verdict == "bit-exact":
        yield (
            "Rebuilt from its record alone, it comes to the same weights, bit for bit."
            if outcome["finished"]
            else f"Rebuilt from its record alone, its first {outcome['steps']} steps are the same, bit for bit."
        )
    elif verdict == "consistent":
        yield "git, DVC and the run's own record agree. Nothing was run (--steps 0)."
    elif verdict == "contradicted":
        yield "The repository and the run's own record contradict each other" + (
            ", though the bits that were compared are the same."
            if outcome
            else "; nothing was run."
        )
    if outcome and outcome["parted"]:
        first = outcome["parted"]
        yield f"They part at step {first['step']}: {first['column']} {first['recorded']} then, {first['rebuilt']} now."
    elif outcome and verdict in ("within noise", "not reproduced"):
        yield f"The {outcome['steps']} logged steps are the same and the weights are not: they part after the last one."
    if outcome and not outcome_equal(outcome):
        yield (
            outcome["band"]["text"]
            if outcome["band"]
            else "How far seeds differ was not measured (fewer than three runs that differ in the seed alone): there is no band."
        )
    if made["causes"]:
        first = {
            cause: next(one["what"] for one in made["differences"] if one["cause"] == cause)
            for cause in made["causes"]
        }
        yield "Why: " + "; ".join(f"{cause} ({what})" for cause, what in first.items()) + "."
    elif verdict == "not reproduced":
        yield "Why: nothing that was recorded differs; the computation itself is not deterministic."


def outcome_equal(outcome: dict[str, Any]) -> bool:
    """`Outcome.equal` of one that was written down."""
    return Outcome(**{**outcome, "weights": tuple(outcome["weights"]), "band": None}).equal


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:10]}…" if len(text) >= 32 and " " not in text else text
