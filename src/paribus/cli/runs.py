"""`paribus runs`: the headline figures of the workspace and of DVC's experiments, beside each other."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import click

from paribus.curriculum import CHECKPOINT_NAMES, HEADLINE, TRAINING_STAGES
from paribus.errors import UserError, did_you_mean, shown
from paribus.execute.repository import all_experiments
from paribus.graph import assignments
from paribus.study.committed import CommittedFiles
from paribus.study.finished import FinishedRun, at_commit, in_workspace
from paribus.text import number, percent

# Column -> the metric that it shows, as a finished run names it. 80 columns have no room for the other headlines.
FIGURES = {
    figure.checkpoint or figure.name: f"{figure.metrics}.{figure.path}"
    for figure in HEADLINE
    if figure.name not in ("pretrain_min", "reward")
}
NAME_WIDTH, WIDTH = 24, 80


@dataclass(frozen=True)
class Row:
    """A run, as `paribus runs` shows it.

    Attributes:
        name: of the experiment, or "workspace".
        commit: that holds it; of the workspace, what it stands on.
        figures: column of FIGURES -> value; None where the run has none.
        minutes: that its training stages took; None: none was run.
        changed: dotted key -> value, where its params differ from params.yaml here.
    """

    name: str
    commit: str | None
    figures: dict[str, float | None]
    minutes: float | None
    changed: dict[str, object]


def show_runs(patterns: Sequence[str], as_json: bool) -> None:
    """Print a line for the workspace and each experiment, and what it changes.

    Args:
        patterns: of names, with * ? [; none: all.
        as_json: for programs.

    Raises:
        UserError: for a pattern that no run fits.
    """
    here = in_workspace()
    experiments = all_experiments()
    names = ["workspace", *sorted(experiments)]
    wanted = _fitting(names, patterns) if patterns else names
    rows = []
    for name in wanted:
        run = here
        if name != "workspace":
            run = at_commit(name, "experiment", CommittedFiles(experiments[name]))
        rows.append(_row(run, here.params))
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
        return
    click.echo(_line("run", [*FIGURES, "minutes"]))
    for row in rows:
        cells = [_cell(column, value) for column, value in row.figures.items()]
        minutes = "–" if row.minutes is None else f"{row.minutes:.1f}"
        click.echo(_line(row.name, [*cells, minutes]))
        if row.changed:
            words = " ".join(assignments(row.changed))
            click.echo(click.wrap_text(words, WIDTH, " " * 4, " " * 4))


def _fitting(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    problems = []
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            hint = did_you_mean(pattern, names)
            problems.append(f"no run fits {shown(pattern)}{'; ' + hint if hint else ''}")
    if problems:
        raise UserError(problems)
    return [name for name in names if any(fnmatch.fnmatch(name, one) for one in patterns)]


def _row(run: FinishedRun, params: Mapping[str, object]) -> Row:
    figures = {column: run.numbers.get(key) for column, key in FIGURES.items()}
    took = [run.numbers.get(f"{stage}.seconds") for stage in TRAINING_STAGES]
    seconds = [one for one in took if one is not None]
    changed = {key: value for key, value in run.params.items() if params.get(key) != value}
    minutes = sum(seconds) / 60 if seconds else None
    return Row(run.name, run.commit, figures, minutes, changed)


def _cell(column: str, value: float | None) -> str:
    return percent(value) if column in CHECKPOINT_NAMES else number(value)


def _line(name: str, cells: Sequence[str]) -> str:
    if len(name) > NAME_WIDTH:
        name = f"{name[: NAME_WIDTH - 1]}…"
    return f"{name:{NAME_WIDTH}}" + "".join(f"{cell:>8}" for cell in cells)
