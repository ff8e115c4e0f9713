"""The report of an ablation as a run in MLflow, with a link to every run that it rests on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from paribus import tracking
from paribus.config import fingerprint, flatten
from paribus.journal import read_json
from paribus.pages.code_arms import code_tags, write_diffs
from paribus.pages.markdown import line, paragraph
from paribus.places import state_root
from paribus.study.experiment import Experiment
from paribus.study.record import PUBLISHED as RESULTS


def to_mlflow(experiment: Experiment, values: dict[str, Any]) -> None:
    """A run of its own, under a parent named after the ablation: pages, verdicts, a link to every run it rests on.

    The same report again changes nothing there.

    Args:
        experiment: the study.
        values: what the page shows, as `page_values` gives it.
    """
    folder = state_root() / "runs" / f"ablation-{experiment.name}"
    mark = fingerprint(
        sentences=[verdict["sentence"] for verdict in values["verdicts"]],
        runs=values["runs"],
        notes=values["notes"],
    )
    before = read_json(folder / "run.json")
    if before and before["status"] == "FINISHED" and before["tags"]["fingerprint"] == mark:
        return
    config = experiment.config()
    overrides = {f"arms.{name}": arm.overrides for name, arm in experiment.arms.items()}
    links = _links(values["runs"])
    note = _note(experiment, values["verdicts"], links)
    with tracking.RunLog.open(
        "ablation",
        folder=folder,
        config=config,
        params=flatten(config) | flatten(overrides),
        fingerprint=mark,
        tags={
            "ablation": experiment.name,
            "study": experiment.name,
            "report": "true",
            "mlflow.note.content": note,
            **links,
        }
        | code_tags(values["code"]),
        group=tracking.study_group(experiment.name),
        name=f"verdict {experiment.name}",
    ) as log:
        for suffix in (
            ".html",
            ".md",
            ".png",
            "-curve.png",
            "-scaling.png",
            "-ladder.png",
            "-halfnormal.png",
            "-interactions.png",
        ):
            path = RESULTS / f"{experiment.name}{suffix}"
            if path.is_file():
                log.artifact(path, "report")
        if experiment.file.is_file():
            log.artifact(experiment.file)
        for path in write_diffs(values["code"], folder / "code"):
            log.artifact(path, "code")
        log.summary(_effects(values["verdicts"]))


def _links(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """`run.ARM-sSEED.STAGE` -> the id of the run in MLflow. rows: of the page's table of runs."""
    links = {}
    for row in rows:
        for stage, run_id in row["mlflow"].items():
            links[f"run.{row['arm']}-s{row['seed']}.{stage}"] = run_id
    return links


def _note(
    experiment: Experiment, verdicts: Sequence[Mapping[str, object]], links: Mapping[str, str]
) -> str:
    """The question, every verdict, and a link to every run, as Markdown."""
    lines = [f"**{line(experiment.question)}**", ""]
    lines += [paragraph(verdict["sentence"]) for verdict in verdicts]
    lines.append("")
    lines += [f"- [{name.removeprefix('run.')}](#/runs/{run})" for name, run in links.items()]
    return "\n".join(lines)


def _effects(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every effect that there is: ARM -> its mean first, as a page has room for few, then `ARM.FIELD` -> value."""
    means = {}
    effects = {}
    for verdict in verdicts:
        effect = verdict["effect"]
        if effect:
            fields = dataclasses.asdict(effect) | {"spent": effect.spent}
            del fields["looks"]
            means[verdict["name"]] = fields.pop("mean")
            effects[verdict["name"]] = fields
    known = {key: value for key, value in flatten(effects).items() if value is not None}
    return means | known
