"""`paribus ablate check`: is an ablation fit to run, and what do its arms change?"""

from __future__ import annotations

import json
from typing import Any

import click

from paribus.git import git
from paribus.pages.foresight import conditions
from paribus.study.code_checks import change_of, check_code, code_lines, notes_of
from paribus.study.experiment import Experiment, changed_keys
from paribus.study.fields import as_written
from paribus.study.ladder import sizes_of
from paribus.study.matching import matching
from paribus.study.reading import read_experiment
from paribus.study.registration import check_sources, registered


def check(name: str, as_json: bool) -> None:
    """Print what the arms of an ablation change.

    Args:
        name: of the ablation's file.
        as_json: for programs, with the diffs.

    Raises:
        UserError: with everything for which `paribus ablate run` would refuse it.
    """
    experiment = read_experiment(name, to_run=True)
    registered(experiment.file)
    check_sources(experiment.stages)
    check_code(experiment)
    arms = {arm: _facts(experiment, arm) for arm in experiment.arms}
    if as_json:
        document = {
            "study": name,
            "baseline": git("rev-parse", "HEAD"),
            "stages": experiment.stages,
            "design": design_lines(experiment),
            "warnings": experiment.warnings,
            "arms": arms,
            "ladder": None if experiment.ladder is None else sizes_of(experiment.ladder),
            "groups": list(experiment.groups),
        }
        click.echo(json.dumps(document, indent=1))
        return
    for warning in experiment.warnings:
        click.echo(f"warning: {warning}", err=True)
    for line in design_lines(experiment):
        click.echo(line)
    for arm, facts in arms.items():
        for key, (before, after) in facts["set"].items():
            click.echo(f"{arm}: {key}: {as_written(before)} → {as_written(after)}")
    for line in code_lines(experiment):
        click.echo(line)
    for facts in arms.values():
        if facts["code"] is not None:
            click.echo("\n".join([facts["code"]["seeds"], *facts["code"]["notes"]]))
    for line in conditions(experiment):
        click.echo(line)
    click.echo(f"{name}: `paribus ablate run {name}` may begin")


def design_lines(experiment: Experiment) -> list[str]:
    """What a study does besides comparing arms, in sentences: its cells and aliases, its tuning."""
    lines = []
    if experiment.factorial is not None:
        lines.append(f"design: {experiment.factorial.words()}")
    if experiment.tune is not None:
        for arm in experiment.names:
            keys = ", ".join(experiment.tune.space_of(experiment, arm))
            lines.append(f"{arm}: tuned in {experiment.tune.runs} runs: {keys}")
    return lines


def _facts(experiment: Experiment, arm: str) -> dict[str, Any]:
    """What an arm changes, as plain values."""
    base, own = experiment.values(), experiment.values(arm)
    changed = {key: [base.get(key), own.get(key)] for key in sorted(changed_keys(experiment, arm))}
    return {
        "set": changed,
        "as_one": experiment.arms[arm].as_one,
        "code": _facts_of_code(experiment, arm),
    }


def _facts_of_code(experiment: Experiment, arm: str) -> dict[str, Any] | None:
    code = experiment.code(arm)
    if code is None:
        return None
    change = change_of(experiment, code)
    shared = matching(experiment.stages, change.base, change.commit)
    files = []
    for file in change.files:
        files.append(
            {
                "path": file.path,
                "kind": file.kind,
                "added": file.added,
                "removed": file.removed,
            }
        )
    return {
        "asked": code.asked,
        "commit": code.commit,
        "files": files,
        "new_keys": code.added(experiment.overrides(arm)),
        "matched": shared.holds,
        "seeds": shared.sentence(arm),
        "notes": notes_of(experiment, arm, code, change.base),
        "diff": change.diff,
    }
