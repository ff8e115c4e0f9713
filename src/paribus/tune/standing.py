"""`paribus tune list` and `tune status`: how studies stand, read from Optuna's storage."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import click

from paribus.errors import UserError
from paribus.places import state_root
from paribus.text import duration, number
from paribus.tune.outcome import RETESTS, counted, is_skipped, ranked, values_words
from paribus.tune.search import open_study
from paribus.tune.space import STUDIES, Study, read_study

WIDTH, INDENT = 80, "    "


@dataclass(frozen=True)
class Standing:
    """How a study stands.

    Attributes:
        study: its name.
        done, of: trials that ran, and that its file asks for.
        states: Optuna's state -> trials in it, points that were never trained aside.
        running: trial -> seconds since it began.
        best: trial, val_bpb and params of the best so far; None: none is complete.
        retested: whether the best was trained again on fresh seeds.
    """

    study: str
    done: int
    of: int
    states: dict[str, int]
    running: dict[int, float]
    best: dict[str, Any] | None
    retested: bool


@dataclass(frozen=True)
class Listed:
    """A study, as `paribus tune list` shows it.

    Attributes:
        name: of its file.
        varies: the keys whose values it seeks.
        trials: that its file asks for.
        standing: None: it has not started in this checkout.
        problem: why its file cannot be read; "" where it can.
    """

    name: str
    varies: list[str]
    trials: int
    standing: Standing | None
    problem: str = ""


def list_studies(as_json: bool) -> None:
    """Print every tuning study, what it varies, and how it stands in this checkout.

    Args:
        as_json: for programs.
    """
    found = [_listed(path.stem) for path in sorted(STUDIES.glob("*.yaml"))]
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=1))
        return
    for one in found:
        said = f"not started here, {one.trials} trials"
        if one.standing:
            said = f"{one.standing.done} of {one.trials} trials done"
        about = ", ".join(one.varies)
        click.echo(click.wrap_text(f"{one.name}: {one.problem or said}", WIDTH, "", INDENT))
        if about:
            click.echo(click.wrap_text(about, WIDTH, INDENT, INDENT))
    if not found:
        click.echo(f"no study in {STUDIES}; `paribus tune new NAME` writes the first")


def _listed(name: str) -> Listed:
    try:
        study = read_study(name)
    except UserError as error:
        return Listed(name, [], 0, None, error.problems[0])
    begun = None
    if (state_root() / "tune.db").exists():
        try:
            begun = standing(study, open_study(study, None, create=False)[0])
        except UserError:  # the storage has other studies, and not this one
            begun = None
    return Listed(name, list(study.space), study.trials, begun)


def status(name: str, url: str | None, as_json: bool) -> None:
    """Print how a study stands.

    Args:
        name: of the study.
        url: of the storage; None: the sqlite file of this checkout.
        as_json: for programs.

    Raises:
        UserError: where the study has not begun.
    """
    study = read_study(name)
    found = standing(study, open_study(study, url, create=False)[0])
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1))
        return
    for line in lines(found):
        click.echo(line)


def standing(study: Study, optuna_study: Any) -> Standing:
    """How a study stands.

    Args:
        study: its file.
        optuna_study: Optuna's study.
    """
    trials = optuna_study.get_trials(deepcopy=False)
    trained = [trial for trial in trials if not is_skipped(trial)]
    running = {}
    for trial in trained:
        if trial.state.name == "RUNNING":
            running[trial.number] = time.time() - trial.datetime_start.timestamp()
    best = None
    for trial in ranked(optuna_study)[:1]:
        best = {"trial": trial.number, "val_bpb": trial.value, "params": dict(trial.params)}
    states = Counter(trial.state.name.lower() for trial in trained)
    return Standing(
        study=study.name,
        done=counted(optuna_study),
        of=study.trials,
        states=dict(states),
        running=running,
        best=best,
        retested=RETESTS in optuna_study.user_attrs,
    )


def lines(found: Standing) -> list[str]:
    """How a study stands, for people.

    Args:
        found: as `standing` gives it.
    """
    counts = ", ".join(f"{count} {state}" for state, count in sorted(found.states.items()))
    said = [
        f"{found.study}: {found.done} of {found.of} trials done"
        + (f" ({counts})" if counts else "")
    ]
    said += [
        f"trial {trial}: under way for {duration(seconds)}"
        for trial, seconds in found.running.items()
    ]
    if found.best:
        said.append(
            f"best so far: trial {found.best['trial']}, {number(found.best['val_bpb'], 4)} bits per byte"
        )
        said.append(f"    {values_words(found.best['params'])}")
    if found.retested:
        said.append(
            f"re-tested on fresh seeds: `paribus tune report {found.study}` shows how it held"
        )
    elif not found.running:
        said.append(f"`paribus tune run {found.study}` goes on")
    return said
