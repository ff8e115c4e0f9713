"""`paribus verify RUN`: a certificate that a run can be rebuilt from its record alone, or where the two part and why.

It compares the repository's own records (git's tree at the commit, dvc.lock, DVC's cache) with the run's record of itself
(provenance.json), and rebuilds the run in a clean clone as the repository describes it. docs/verify.md explains each
verdict.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path

import click

from paribus import config, graph
from paribus.audit import rebuild
from paribus.audit.agreement import (
    ABSENT,
    Difference,
    asked,
    code,
    data,
    data_in_place,
    lock,
    machine,
    params,
)
from paribus.audit.band import measured_band
from paribus.audit.certificate import file_name, page
from paribus.audit.lookup import find
from paribus.audit.proof import About, Certificate, Outcome, Parting, Verdict
from paribus.errors import UserError
from paribus.files import write_atomic
from paribus.study.finished import CHECKPOINTS, PIPELINE, FinishedRun, in_mlflow
from paribus.study.lasting import MACHINE_FIGURES, TIMES
from paribus.summary import write_json
from paribus.tracking.lookup import Runs

RESULTS = Path("experiments/results")


def verify(name: str, stage: str | None, steps: int | None, out: Path | None) -> int:
    """Certify a run.

    Args:
        name: by which it is found.
        stage: a training stage; None: the run's own, or pretraining.
        steps: how many to run again; None: all; 0: compare the records alone.
        out: the folder of the certificate; None: experiments/results.

    Returns:
        The exit status: 0 reproduced, 1 not.

    Raises:
        UserError: for a run that cannot be examined.
    """
    record = find(name)
    chosen = choose_stage(record, stage, steps)
    proof = certificate(record, chosen, steps)
    folder = out or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / file_name(chosen, proof.record.fingerprint, kind) for kind in ("json", "md")]
    write_json(files[0], proof.as_json())
    write_atomic(files[1], page(proof))
    try:
        noted = note(proof, files)
    except UserError as error:  # the certificate is made; only MLflow's copy of it is missing
        noted = None
        click.echo(f"not attached to MLflow's run: {error}", err=True)
    click.echo(page(proof))
    click.echo(
        f"kept in {files[0]} and {files[1].name}"
        + (f", and with MLflow's run {noted}" if noted else "")
    )
    return int(not proof.reproduced)


def choose_stage(record: FinishedRun, stage: str | None, steps: int | None) -> str:
    """The training stage to certify.

    Args:
        record: of the run.
        stage: the requested one; None: the run's own, or pretraining.
        steps: that are to be compared; None or 0: no curve is needed.

    Raises:
        UserError: where its record does not hold enough.
    """
    if stage is not None and record.scope not in (stage, PIPELINE):
        raise UserError(f"--stage {stage}: {record.name} is a run of {record.scope}")
    if record.scope not in (*CHECKPOINTS, PIPELINE):
        raise UserError(
            f"{record.name} is a run of {record.scope}; a certificate is for {', '.join(CHECKPOINTS)}"
        )
    own = record.scope if record.scope in CHECKPOINTS else "pretrain"
    chosen = stage or own
    written = record.provenance(chosen)
    if written is None:
        others = f" ({', '.join(record.stages)})" if record.stages else ""
        raise UserError(
            f"{record.name}: no {CHECKPOINTS[chosen]}/provenance.json is kept here; `dvc fetch` brings what a remote "
            f"has, --stage names another stage{others}"
        )
    if written.lacking:
        raise UserError(
            f"{record.name}: its provenance lacks {', '.join(written.lacking)}, so it was made by an earlier paribus; "
            "`dvc repro -f` makes one with a whole record"
        )
    if steps and not record.curve(chosen):
        raise UserError(
            f"--steps {steps}: plots/{chosen}.csv of {record.name} is not kept here: there are no steps to compare"
        )
    return chosen


def certificate(record: FinishedRun, stage: str, steps: int | None) -> Certificate:
    """Rebuild a run and compare.

    Args:
        record: of the run.
        stage: a training stage.
        steps: only the first so many; None: all; 0: records only.
    """
    began = time.time()
    written = rebuild.written_provenance(record, stage)
    with rebuild.workplace() as folder:
        root, absent = prepare(record, stage, folder / "clone")
        differences = [
            *code(written, root),
            *data(record, stage, root, absent),
            *data_in_place(record, stage),
            *lock(record, stage),
            *params(record, stage),
            *machine(written, rebuild.asked_params(record, stage)),
            *asked(record, stage, root),
            *as_logged(record, stage),
        ]
        outcome = None
        if steps != 0 and not any(difference.stops for difference in differences):
            outcome = run(record, stage, root, steps, differences)
        if outcome and judge(differences, outcome) == "not reproduced" and not differences:
            outcome = run_again(record, stage, folder, outcome, differences)
    verdict = judge(differences, outcome)
    about = About(
        name=record.name,
        kind=record.kind,
        stage=stage,
        commit=record.commit,
        mlflow_run=record.logged.id if record.logged else None,
        experiment=config.load_config().tracking.experiment,
        fingerprint=written.fingerprint,
        data=written.data,
        hardware=written.hardware,
        requirements_lock=written.requirements_lock,
        git=written.git,
    )
    return Certificate(
        verdict=verdict,
        causes=causes(differences, verdict),
        record=about,
        differences=differences,
        outcome=outcome,
        asked_steps=steps,
        made=time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(began)),
        seconds=round(time.time() - began, 1),
    )


def prepare(record: FinishedRun, stage: str, folder: Path) -> tuple[Path, list[str]]:
    """(a clean clone with the data and params of a run, the outputs it reads that were found nowhere).

    Args:
        record: of the run.
        stage: a training stage.
        folder: of the clone.
    """
    root = rebuild.clone(record.commit, folder)
    read = rebuild.written_provenance(record, stage).data
    versions = graph.locked_outs(record.lock) or read
    absent = rebuild.bring_data(root, {out: versions[out] for out in read if out in versions})
    rebuild.write_params(root, rebuild.asked_params(record, stage))
    return root, absent


# ---------------------------------------------------------------- running it again


def run(
    record: FinishedRun, stage: str, root: Path, steps: int | None, found: list[Difference]
) -> Outcome | None:
    """Run the stage in the clone and compare curves, weights and metrics.

    Args:
        record: of the run.
        stage: a training stage.
        root: the project in the clone.
        steps: only the first so many; None: to its end.
        found: the differences so far. A stage that fails, and a metric that the very same weights do not measure, are
            added to it.

    Returns:
        The outcome; None where the stage failed.
    """
    status = rebuild.run_stage(root, stage, steps)
    if status:
        what = f"the stage ended with exit status {status}"
        found.append(Difference("failure", what, 0, status, True, stops=True))
        return None
    ours = _first_steps(record.curve(stage), steps)
    theirs = _first_steps(rebuild.rebuilt_curve(root, stage), steps)
    outcome = _compared(record, stage, root, ours, theirs)
    if outcome.equal:
        return outcome
    same_machine = all(difference.contradiction for difference in found)
    if outcome.same_training and same_machine:
        # The very same weights measure other values than the file has.
        for key, (recorded, rebuilt) in outcome.metrics.items():
            what = f"{key} in metrics/{stage}.json"
            found.append(Difference("metrics", what, recorded, rebuilt, True))
    try:
        band = measured_band(record, stage, ours, theirs, outcome.metrics)
    except UserError as error:
        # Twins are in MLflow, which the rest of a certificate does without.
        band = None
        click.echo(f"no band of noise: {error}", err=True)
    return dataclasses.replace(outcome, band=band)


def _first_steps(curve: list[dict[str, str]], steps: int | None) -> list[dict[str, str]]:
    """The rows of a curve up to a step; None: all."""
    return curve if steps is None else [row for row in curve if int(row["step"]) <= steps]


def _compared(
    record: FinishedRun,
    stage: str,
    root: Path,
    ours: list[dict[str, str]],
    theirs: list[dict[str, str]],
) -> Outcome:
    """The rebuilt run in a clone beside the recorded one. ours, theirs: their curves."""
    weights = rebuild.rebuilt_weights(root, stage)
    finished = weights is not None
    recorded = record.measured(stage) if finished else {}
    rebuilt = rebuild.rebuilt_metrics(root, stage) if finished else {}
    shared_steps = {row["step"] for row in ours} & {row["step"] for row in theirs}
    return Outcome(
        steps=len(shared_steps),
        finished=finished,
        parted=parted(ours, theirs, whole=finished and bool(ours)),
        weights=(record.weights(stage), weights),
        band=None,
        measured=len(recorded.keys() - MACHINE_FIGURES),
        metrics=differing_metrics(recorded, rebuilt, whole=record.logged is None),
    )


def as_logged(record: FinishedRun, stage: str) -> list[Difference]:
    """Compare the metrics file with what the run sent to MLflow, where it has a finished run of this fingerprint.

    Args:
        record: of the run.
        stage: a training stage.
    """
    measured = record.measured(stage)
    fingerprint = rebuild.written_provenance(record, stage).fingerprint
    same = {"fingerprint": fingerprint, "stage": stage}
    try:
        runs = Runs(config.load_config().tracking.experiment)
        found = runs.search(same, finished=True)
        logged = [in_mlflow(run.id, run, runs).measured(stage) for run in found]
    except UserError as error:
        click.echo(f"not held against MLflow: {error}", err=True)
        return []
    differing = [differing_metrics(metrics, measured, whole=False) for metrics in logged]
    if not measured or not differing or not all(differing):
        return []  # the run may have been made more than once: one that agrees is enough
    return [
        Difference(
            "metrics", f"{key} in metrics/{stage}.json, and as the run logged it", *pair, True
        )
        for key, pair in differing[0].items()
    ]


def run_again(
    record: FinishedRun, stage: str, folder: Path, first: Outcome, found: list[Difference]
) -> Outcome:
    """Rebuild once more, to the step where the first rebuild parted, as nothing recorded explains the difference.

    Only two rebuilds that differ show that the computation is not deterministic.

    Args:
        record: of the run.
        stage: a training stage.
        folder: where the clones are.
        first: the outcome of the first rebuild.
        found: the differences so far; the difference of the two rebuilds is added.

    Returns:
        `first`, and whether the second rebuild was the same.
    """
    steps = first.parted.step if first.parted else None
    root, _ = prepare(record, stage, folder / "again")
    if rebuild.run_stage(root, stage, steps):
        return first
    roots = (folder / "clone", root)
    curves = [_first_steps(rebuild.rebuilt_curve(each, stage), steps) for each in roots]
    before, now = (rebuild.rebuilt_weights(each, stage) for each in roots)
    part = parted(curves[0], curves[1])
    if part is not None:
        what = f"two rebuilds here part at step {part.step}: {part.column}"
        found.append(Difference("determinism", what, part.recorded, part.rebuilt, False))
    elif before is not None and now is not None and before != now:
        found.append(Difference("determinism", "weights of two rebuilds here", before, now, False))
    different = bool(found)
    return dataclasses.replace(first, again="different" if different else "same")


def differing_metrics(
    recorded: Mapping[str, object], rebuilt: Mapping[str, object], whole: bool
) -> dict[str, tuple[object, object]]:
    """Key -> (recorded, rebuilt) of two metrics files, times and the machine's figures left out.

    whole: the record is the file itself, so a key that is missing on one side differs too; MLflow keeps numbers only.
    """
    if not recorded:
        return {}
    keys = recorded.keys() | rebuilt.keys() if whole else recorded.keys() & rebuilt.keys()
    pairs = {}
    for key in sorted(keys - MACHINE_FIGURES):
        one, other = recorded.get(key, ABSENT), rebuilt.get(key, ABSENT)
        # In a file 6 differs from 6.0; MLflow turns every number into a float.
        same = json.dumps(one) == json.dumps(other) if whole else one == other
        if not same:
            pairs[key] = (one, other)
    return pairs


def parted(
    ours: list[dict[str, str]], theirs: list[dict[str, str]], whole: bool = False
) -> Parting | None:
    """The first step at which two curves differ in anything but time, to the bit.

    Args:
        ours: the recorded curve.
        theirs: the rebuilt one.
        whole: both runs finished, so a step that is missing on one side differs too.

    Returns:
        None where nothing differs.
    """
    other_rows = {row["step"]: row for row in theirs}
    own_rows = {row["step"]: row for row in ours}
    for step in sorted(own_rows | other_rows, key=int):
        row, other = own_rows.get(step), other_rows.get(step)
        if row is None or other is None:
            if whole:
                has = [ABSENT if one is None else step for one in (row, other)]
                return Parting(int(step), "step", *has)
            continue
        for column in sorted(row.keys() | other.keys()):
            if column not in TIMES and row.get(column, "") != other.get(column, ""):
                return Parting(int(step), column, row.get(column, ""), other.get(column, ""))
    return None


def judge(found: list[Difference], outcome: Outcome | None) -> Verdict:
    """A contradiction in the records is never reproduced, equal bits or not: anyone who follows the repository gets another run.

    Args:
        found: the differences.
        outcome: of running it again; None: it did not run, or failed.
    """
    contradicted = any(difference.contradiction for difference in found)
    if outcome is None:
        if any(difference.stops for difference in found):
            return "not reproduced"
        return "contradicted" if contradicted else "consistent"
    if outcome.equal:
        return "contradicted" if contradicted else "bit-exact"
    in_band = outcome.band is not None and outcome.band.within
    return "within noise" if in_band and not contradicted else "not reproduced"


def causes(found: list[Difference], verdict: Verdict) -> list[str]:
    """The possible causes: contradictions if there are any, else what differs about this machine.

    Args:
        found: the differences.
        verdict: on the run.
    """
    if verdict in ("bit-exact", "consistent"):
        return []
    serious = [difference for difference in found if difference.contradiction] or found
    return list(dict.fromkeys(difference.cause for difference in serious))


# ---------------------------------------------------------------- the certificate


def note(made: Certificate, files: list[Path]) -> str | None:
    """Attach the certificate to the run in MLflow.

    Args:
        made: the certificate.
        files: that hold it.

    Returns:
        The run's id; None if MLflow does not know it.
    """
    about = made.record
    runs = Runs(about.experiment)
    same = {"fingerprint": about.fingerprint, "stage": about.stage}
    ids = [run.id for run in runs.search(same)]
    if not ids:
        return None
    run_id = about.mlflow_run if about.mlflow_run in ids else ids[0]
    tags = {
        "verify.verdict": made.verdict,
        "verify.made": made.made,
        "verify.causes": ", ".join(made.causes) or "none",
    }
    runs.attach(run_id, files, "verify", tags)
    return str(run_id)
