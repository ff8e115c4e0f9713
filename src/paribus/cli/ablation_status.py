"""`paribus ablate status` and `stop`: how the runs of a study stand, and having them save and end."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import Any

from paribus.cli.ablation import altered_runs, changes
from paribus.execute.leftovers import remove_leftovers, under_way
from paribus.execute.repository import experiments_of
from paribus.journal import locked
from paribus.pages.verdict_sentences import say
from paribus.places import state_root
from paribus.study.divergence import diverged_seeds
from paribus.study.events import events_of, folder_of, given_up
from paribus.study.experiment import Experiment
from paribus.study.published import published_sentences
from paribus.study.reading import read_experiment
from paribus.study.record import PUBLISHED
from paribus.study.results import collect, done
from paribus.study.settled import Study
from paribus.study.status import Display, Standing, table
from paribus.study.tuned import names_of_parts, parts

WATCH_SECONDS = 3.0


def stop(name: str) -> None:
    """Have what runs save its state and end, and begin nothing more."""
    experiment = read_experiment(name)
    for part in names_of_parts(experiment):
        _stop(part)
    print(
        f"{experiment.name}: stopped; `paribus ablate run {experiment.name}` goes on",
        file=sys.stderr,
    )


def _stop(name: str) -> None:
    """Stop a study, or a part of one."""
    folder = folder_of(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stop").touch()
    for run_id, stage in under_way(state_root(), name).items():
        print(f"{run_id}: asked to save and stop{f' ({stage})' if stage else ''}", file=sys.stderr)
    with locked(
        folder / "lock"
    ):  # the process that drives the study releases it when all runs have ended
        (folder / "stop").unlink(missing_ok=True)
        for found in remove_leftovers(state_root()):
            print(found, file=sys.stderr)


def status(name: str, watch: bool = False, as_json: bool = False) -> None:
    """Print the table of every run.

    Args:
        name: of the ablation's file.
        watch: until all are done.
        as_json: for programs, once.
    """
    whole = read_experiment(name)
    for warning in changes(whole) + altered_runs(whole):
        print(f"warning: {warning}", file=sys.stderr)
    if as_json:
        document = []
        for study in parts(whole):
            part: dict[str, Any] = asdict(_standing(study))
            document.append({"study": study.experiment.name, **part})
        print(json.dumps(document, indent=1))
        return
    published = published_sentences(whole.name)
    if published and not watch and not _began_here(whole):
        print(f"{whole.name}: not started here; the committed report says:")
        for sentence in published:
            say(sentence)
        print(f"the page: {PUBLISHED / whole.name}.html")
        print(f"`paribus ablate run {name}` computes its runs here")
        return
    for study in parts(whole):
        _status(study, watch)


def _began_here(experiment: Experiment) -> bool:
    """Whether a run of a study, or of a part of it, has begun or ended in this repository."""
    names = names_of_parts(experiment)
    return any(events_of(part) or experiments_of(part) for part in names)


def _status(study: Study, watch: bool) -> None:
    """Print the table of a study, or of a part of one."""
    with Display(study.experiment.name, live=watch) as display:
        while True:
            standing = _standing(study)
            if not watch:
                display.print(standing)
                return
            display.show(lambda: standing)  # noqa: B023
            if all(row.state in ("done", "diverged", "failed") for row in standing.rows):
                return
            time.sleep(WATCH_SECONDS)


def _standing(study: Study) -> Standing:
    """How the runs of a study, or of a part of one, stand."""
    name = study.experiment.name
    results = collect(study.experiment)
    runs = study.wanted(results)
    have, failures = done(results, runs, study.code), given_up(name, runs)
    running = under_way(state_root(), name)
    stages = {one.experiment_name(): stage for one, stage in running.items()}
    diverged = diverged_seeds(list(have.values()), runs, failures)
    return table(study, runs, have, stages, failures, diverged, max(len(running), 1))
