"""The journal of an ablation: the events of its runs that DVC's experiments do not record.

    .paribus/ablations/NAME/journal.jsonl    {time, run, event, key, …}, a line an event:
        started, done, paused, interrupted, failed, refused, machine, retry

It may be deleted, at the price of forgetting what failed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paribus.files import Items, Optional, Shape, misfit
from paribus.journal import keep_rows
from paribus.places import state_root
from paribus.study.experiment import Run

MAX_FAILURES = 3  # of a run for reasons outside it, before it is given up


def folder_of(name: str) -> Path:
    """The folder of an ablation for files that can be rebuilt: .paribus/ablations/NAME."""
    return state_root() / "ablations" / name


@dataclass(frozen=True)
class Event:
    """An event of a run.

    Attributes:
        time: seconds since 1970.
        run: its name.
        event: its kind, in a word.
        key: of the run's specification.
        stage: in which it happened.
        words: the reasons.
        diverged: whether it is a failure that is an outcome.
    """

    time: float
    run: str
    event: str
    key: str | None = None
    stage: str | None = None
    words: tuple[str, ...] = ()
    diverged: bool = False


def events_of(name: str) -> list[Event]:
    """The events of an ablation's journal; lines that are damaged are left out."""
    rows, _ = _read(folder_of(name) / "journal.jsonl")
    return [_event(row) for row in rows]


def _event(row: dict[str, Any]) -> Event:
    return Event(
        row["time"],
        row["run"],
        row["event"],
        row.get("key"),
        row.get("stage"),
        tuple(row.get("words") or ()),
        bool(row.get("diverged")),
    )


def repair_journal(name: str) -> str | None:
    """Put a damaged journal aside and keep its sound rows; returns a message, or None where the journal is sound."""
    path = folder_of(name) / "journal.jsonl"
    _, damaged = _read(path)
    if not damaged:
        return None
    aside = path.with_name("journal.jsonl.damaged")
    shutil.copyfile(path, aside)
    keep_rows(path, _is_event)
    return (
        f"{path}: {damaged} damaged line(s) left out; the file as it was is {aside.name} beside it"
    )


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(sound rows, damaged lines); a line that is still being written, or was torn by a kill, is neither."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return [], 0
    rows, damaged = [], 0
    for line in text.splitlines(keepends=True):
        row = _parsed(line)
        if row is not None and _is_event(row):
            rows.append(row)
        elif line.endswith("\n"):
            damaged += 1
    return rows, damaged


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


_EVENT: Shape = {
    "time": (int, float),
    "run": str,
    "event": str,
    "key": Optional(str),
    "stage": Optional(str),
    "words": Optional(Items(str)),
    "diverged": Optional(bool),
}


def _is_event(row: object) -> bool:
    return misfit(row, _EVENT) is None


# ---------------------------------------------------------------- what was given up


@dataclass(frozen=True)
class GivenUp:
    """Why a run is not tried again, in words, and whether the reason is divergence, which is an outcome."""

    words: str
    diverged: bool


def given_up(name: str, runs: Sequence[Run]) -> dict[str, GivenUp]:
    """Run -> why, of those that will not be tried again: refused once, or failed MAX_FAILURES times.

    Args:
        name: of the ablation.
        runs: that are asked for.
    """
    by_run: dict[str, list[Event]] = {}
    for event in events_of(name):
        by_run.setdefault(event.run, []).append(event)
    reasons = {}
    for run in runs:
        asked = [event for event in by_run.get(run.name, []) if event.key == run.key]
        last = _last_straw(_since_retry(asked))
        if last is not None:
            words = " ".join(last.words) or "no reason was given"
            where = last.stage or "its set-up"
            reasons[run.name] = GivenUp(f"{last.event} in {where}: {words}", last.diverged)
    return reasons


def _last_straw(events: Sequence[Event]) -> Event | None:
    """The event for which a run is given up; None while it may be tried."""
    refused = [event for event in events if event.event == "refused"]
    failed = [event for event in events if event.event == "failed"]
    if refused:
        return refused[-1]
    return failed[-1] if len(failed) >= MAX_FAILURES else None


def _since_retry(events: list[Event]) -> list[Event]:
    """The events after the last request to try the run again."""
    since: list[Event] = []
    for event in events:
        if event.event == "retry":
            since = []
        else:
            since.append(event)
    return since
