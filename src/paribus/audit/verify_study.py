"""`paribus verify --study NAME`: every run that an ablation's verdicts rest on, certified one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from paribus.audit.lookup import find_experiment
from paribus.audit.proof import Certificate
from paribus.audit.verify import RESULTS, certificate, choose_stage
from paribus.errors import UserError
from paribus.execute.repository import experiments_of
from paribus.files import write_atomic
from paribus.pages.markdown import cell
from paribus.study.experiment import Experiment
from paribus.study.reading import read_experiment
from paribus.summary import write_json


@dataclass(frozen=True)
class Row:
    """The result for one training stage of one run; why: what is wrong, in words, "" for nothing."""

    run: str
    stage: str
    verdict: str
    reproduced: bool
    why: str


def verify_study(name: str, steps: int | None, out: Path | None) -> int:
    """Certify every finished run of a study.

    Args:
        name: of the study.
        steps: of each run, as for one; None: their records alone, nothing is run.
        out: the folder of the certificates; None: experiments/results.

    Returns:
        The exit status: 0 all are reproduced, 1 not.

    Raises:
        UserError: for a study that does not exist or has no finished run.
    """
    experiment = read_experiment(name)
    name = experiment.name
    runs = runs_of(experiment)
    if not runs:
        raise UserError(
            f"study {name}: no run of it is done; `paribus ablate run {name}` makes them"
        )
    rows: list[Row] = []
    certificates: list[Certificate] = []
    for run in runs:
        for row, proof in certify_run(run, experiment.stages, steps or 0):
            rows.append(row)
            certificates += [proof] if proof else []
            click.echo(
                f"{row.verdict:>14}  {row.run} {row.stage}" + (f": {row.why}" if row.why else "")
            )
    folder = out or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"verify-study-{name}.json"
    kept = [proof.as_json() for proof in certificates]
    write_json(place, {"study": name, "certificates": kept})
    write_atomic(place.with_suffix(".md"), page(name, rows))
    wrong = [row for row in rows if not row.reproduced]
    click.echo(f"{len(rows) - len(wrong)} of {len(rows)} agree with their records; kept in {place}")
    return int(bool(wrong))


def runs_of(experiment: Experiment) -> list[str]:
    """The DVC experiments that are a study's runs as its file has them, in order; superseded ones are left out."""
    references = experiments_of(experiment.name)
    return sorted(
        reference.name
        for reference in references
        if reference.run.arm in experiment.names and not reference.superseded
    )


def certify_run(
    run: str, stages: Sequence[str], steps: int
) -> list[tuple[Row, Certificate | None]]:
    """A row, and a certificate where one can be made, for each training stage of a run that its study needs.

    Args:
        run: name of its DVC experiment.
        stages: of the study. What the run's dvc.lock says of later ones is the checkout's, and no part of the run.
        steps: how many to run again; 0: records only.
    """
    record = find_experiment(run)
    assert record is not None, "it was listed"
    looked_at: list[tuple[Row, Certificate | None]] = []
    try:
        for stage in [one for one in record.stages if one in stages] or ["pretrain"]:
            proof = certificate(record, choose_stage(record, stage, steps), steps)
            why = "; ".join(one.what for one in proof.differences)
            looked_at.append((Row(run, stage, proof.verdict, proof.reproduced, why), proof))
    except (
        UserError
    ) as error:  # nothing of it is kept here: report that and go on with the other runs
        looked_at.append((Row(run, "", "not looked at", False, "; ".join(error.problems)), None))
    return looked_at


def page(name: str, rows: list[Row]) -> str:
    """All rows as Markdown.

    Args:
        name: of the study.
        rows: the result of each run.
    """
    lines = [
        f"# Runs of {name}, held against their records",
        "",
        "| run | stage | verdict | why |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {cell(row.run)} | {cell(row.stage)} | {row.verdict} | {cell(row.why)} |" for row in rows
    ]
    return "\n".join([*lines, ""])
