"""The journal of an ablation: what happened to its runs, as far as DVC's experiments do not tell.

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
    """Where an ablation keeps what can be made again: .paribus/ablations/NAME."""
    return state_root() / "ablations" / name


def events_of(name: str) -> list[dict[str, Any]]:
    """The rows of the journal; lines that are damaged are left out."""
    path = folder_of(name) / "journal.jsonl"
    rows, _ = _read(path)
    return rows


def repair_journal(name: str) -> str | None:
    """Put a damaged journal aside and keep its sound rows; what was done, in words, or None where it is sound."""
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


def _is_event(row: Any) -> bool:
    return misfit(row, _EVENT) is None


# ---------------------------------------------------------------- what was given up


@dataclass(frozen=True)
class GivenUp:
    """Why a run is not tried again: in words; and whether it is since it diverged, which is an outcome."""

    words: str
    diverged: bool


def given_up(name: str, runs: Sequence[Run]) -> dict[str, GivenUp]:
    """Run -> why, of those that will not be tried again: refused once, or failed MAX_FAILURES times."""
    by_run: dict[str, list[dict[str, Any]]] = {}
    for row in events_of(name):
        by_run.setdefault(row["run"], []).append(row)
    found = {}
    for run in runs:
        rows = _since_retry([row for row in by_run.get(run.name, []) if row.get("key") == run.key])
        failed = [row for row in rows if row["event"] == "failed"]
        refused = [row for row in rows if row["event"] == "refused"]
        if refused or len(failed) >= MAX_FAILURES:
            last = (refused or failed)[-1]
            words = f"{last['event']} in {last.get('stage') or 'its set-up'}: {_sentence(last)}"
            found[run.name] = GivenUp(words, bool(last.get("diverged")))
    return found


def _since_retry(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows after the last time that the run was asked to be tried again."""
    marks = [place for place, row in enumerate(rows) if row["event"] == "retry"]
    return rows[marks[-1] + 1 :] if marks else rows


def _sentence(row: dict[str, Any]) -> str:
    return " ".join(map(str, row.get("words") or [])) or "no reason was given"
