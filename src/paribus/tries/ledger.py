"""The ledger: every try from its beginning to its verdict, append-only, one for all worktrees of a repository.

    GIT/paribus/ledger.jsonl           a line when a try begins and one when it ends
    GIT/paribus/ledger.lock            held while a line is added
    refs/paribus/ideas/try-NUMBER      keeps the commit of the change

GIT is the folder that git's worktrees share, so that they spend one error budget, as they share experiments and commits. A
line is on the disk before anything follows from it: a killed try is found as begun, and goes on when it is tried again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paribus.errors import UserError
from paribus.files import NUMBER, Items, Optional, Shape, misfit, read_rows
from paribus.git import GitError, git
from paribus.journal import Journal, as_floats, keep_rows, locked, plain
from paribus.tries.online import ErrorBudget

# Tries take turns at so many sets of seeds. Were they all to use the same, a baseline with luck at these seeds would beat
# every change, and would be the baseline for ever (benchmarks/tries.py: a third fewer good changes are found so).
WINDOWS = 3


@dataclass(frozen=True)
class Begun:
    """What is settled when a try begins.

    Attributes:
        key: of the change, the baseline and the terms: the same try is begun once.
        message: of the change.
        change, baseline: commits.
        change_side, baseline_side: fingerprints of what they compute, the seed aside.
        files: that differ and decide results, each with its lines.
        stage, metric, unit, direction, smallest_effect: of the terms.
        first, last: seeds at the first look and the last.
        budget: as written. tokens: that each side trains on; None where no stage pretrains.
        false_keeps: of the stream.
        as_one: the reason for a change of evaluation or data.
    """

    key: str
    message: str
    change: str
    baseline: str
    change_side: str
    baseline_side: str
    files: list[str]
    stage: str
    metric: str
    unit: str
    direction: str
    smallest_effect: float
    first: int
    last: int
    budget: str | None
    tokens: int | None
    false_keeps: float
    as_one: str | None = None


@dataclass(frozen=True)
class Ended:
    """How a try ended.

    Attributes:
        verdict: keep, discard or undecided.
        why: in words; of a run that crashed, its last ones.
        seeds: those that both sides have.
        change, baseline: the metric at each of them.
        mean, low, high, p: of the differences; None where the change crashed before the first look.
        seconds: of training, of the runs that this try computed.
        computed, found: runs.
        seeds_to_know: of a new try that would decide.
    """

    verdict: str
    why: str
    seeds: list[int] = field(default_factory=list)
    change: list[float] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    seconds: float = 0.0
    computed: int = 0
    found: int = 0
    seeds_to_know: int | None = None


@dataclass(frozen=True)
class Entry:
    """A try.

    Attributes:
        number: from 1, in the order in which tries began.
        time: when it began, in seconds since 1970.
        level: one-sided, of its test: what the error budget gave it.
        window: number of its first seed, counted from the configuration's own seed.
        begun: what was settled then.
        ended: its verdict; None while it is under way, or was killed.
        ended_time: when it ended.
    """

    number: int
    time: float
    level: float
    window: int
    begun: Begun
    ended: Ended | None = None
    ended_time: float | None = None

    @property
    def kept(self) -> bool:
        """Whether the change was kept."""
        return self.ended is not None and self.ended.verdict == "keep"

    @property
    def reference(self) -> str:
        """The name under which the change's commit is kept."""
        return f"try-{self.number}"


class Ledger:
    """The ledger of the repository that the working folder is in.

    Args:
        folder: where it lies; by default in the folder that git's worktrees share.

    Raises:
        UserError: outside of a git repository.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = shared_folder() if folder is None else folder
        self.path = self.folder / "ledger.jsonl"

    # ------------------------------------------------------------ reading

    def entries(self) -> list[Entry]:
        """Every try, in the order in which they began."""
        if not self.path.exists():
            return []
        found: dict[int, Entry] = {}
        for row in read_rows(self.path):
            if misfit(row, _BEGUN) is None:
                found.setdefault(row["number"], _entry(row))
            elif misfit(row, _ENDED) is None:
                _add_end(found, row)
        return [found[number] for number in sorted(found)]

    def budget(self, false_keeps: float) -> ErrorBudget:
        """The error budget as the tries so far have left it.

        Args:
            false_keeps: the share of noise among everything that is kept.
        """
        budget = ErrorBudget(false_keeps)
        for entry in self.entries():
            ended = entry.ended
            budget.note(ended.p if ended and ended.p is not None else _p_of(ended), entry.kept)
        return budget

    # ------------------------------------------------------------ writing

    def begin(self, begun: Begun) -> Entry:
        """The entry of a try: a new one, or the one that it has already.

        Args:
            begun: what is settled.
        """
        with self._writing() as journal:
            entries = self.entries()
            known = [entry for entry in entries if entry.begun.key == begun.key]
            if known:
                return known[-1]
            level = self.budget(begun.false_keeps).level()
            number = entries[-1].number + 1 if entries else 1
            window = (number - 1) % WINDOWS * begun.last
            entry = Entry(number, time.time(), level, window, begun)
            row = {
                "event": "begun",
                "number": number,
                "time": entry.time,
                "level": level,
                "window": window,
                "begun": dataclasses.asdict(begun),
            }
            journal.append(row)
        return entry

    def end(self, number: int, ended: Ended) -> Entry:
        """Note the verdict of a try; the first one that is noted stays.

        Args:
            number: of the try.
            ended: its verdict.
        """
        with self._writing() as journal:
            before = self.entry(number)
            if before.ended is not None:
                return before
            row = {
                "event": "ended",
                "number": number,
                "time": time.time(),
                "ended": _written(ended),
            }
            journal.append(row)
        return self.entry(number)

    def entry(self, number: int) -> Entry:
        """The try of that number. Raises UserError where there is none."""
        for entry in self.entries():
            if entry.number == number:
                return entry
        raise UserError(f"no try {number} in {self.path}; `paribus ledger` shows them all")

    @contextlib.contextmanager
    def held(self, number: int) -> Iterator[bool]:
        """Hold a try while it runs; yields False where another process does."""
        with locked(self.folder / f"try-{number}.lock", wait=False) as mine:
            yield mine

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Journal]:
        """The file, for this process alone; what is appended is on the disk at the end."""
        with locked(self.folder / "ledger.lock"):
            if _is_torn(self.path):
                keep_rows(self.path)
            journal = Journal(self.path, _refuse)
            try:
                yield journal
                journal.sync()
            finally:
                journal.close()


def shared_folder() -> Path:
    """The folder for the ledger, which all worktrees of a repository share. Raises UserError outside of a repository."""
    try:
        common = git("rev-parse", "--path-format=absolute", "--git-common-dir")
    except GitError:
        raise UserError(
            f"{Path.cwd()}: is in no git repository, and a try compares commits: git init && git add -A && "
            "git commit -m start"
        ) from None
    folder = Path(common) / "paribus"
    folder.mkdir(exist_ok=True)
    return folder


def _refuse(text: str) -> None:
    """A row that the disk does not take: `sync` raises for it."""


def _is_torn(path: Path) -> bool:
    """Whether the last line of a file lacks its end, as a power cut leaves it."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _p_of(ended: Ended | None) -> float | None:
    """The p-value of a try without one: unknown while it is under way; of a crash, 1: it is no better."""
    return None if ended is None else 1.0


# ---------------------------------------------------------------- rows

_BEGUN: Shape = {
    "event": str,
    "number": int,
    "time": NUMBER,
    "level": NUMBER,
    "window": int,
    "begun": {
        "key": str,
        "message": str,
        "change": str,
        "baseline": str,
        "change_side": str,
        "baseline_side": str,
        "files": Items(str),
        "stage": str,
        "metric": str,
        "unit": str,
        "direction": str,
        "smallest_effect": NUMBER,
        "first": int,
        "last": int,
        "budget": Optional((str, type(None))),
        "tokens": Optional((int, type(None))),
        "false_keeps": NUMBER,
        "as_one": Optional((str, type(None))),
    },
}
_MAYBE: Shape = Optional((int, float, str, type(None)))
_ENDED: Shape = {
    "event": str,
    "number": int,
    "time": NUMBER,
    "ended": {
        "verdict": str,
        "why": str,
        "seeds": Items(int),
        "change": Items(NUMBER),
        "baseline": Items(NUMBER),
        "mean": _MAYBE,
        "low": _MAYBE,
        "high": _MAYBE,
        "p": _MAYBE,
        "seconds": NUMBER,
        "computed": int,
        "found": int,
        "seeds_to_know": Optional((int, type(None))),
    },
}


def _written(ended: Ended) -> dict[str, Any]:
    """A verdict as a row has it: the ends of an interval that are not finite as words."""
    values = dataclasses.asdict(ended)
    for name in ("low", "high"):
        values[name] = plain(values[name])
    return values


def _entry(row: dict[str, Any]) -> Entry:
    known = {name: row["begun"].get(name) for name in _names(Begun)}
    return Entry(row["number"], row["time"], row["level"], row["window"], Begun(**known))


def _add_end(found: dict[int, Entry], row: dict[str, Any]) -> None:
    before = found.get(row["number"])
    if before is None or before.ended is not None:
        return
    values = {name: row["ended"].get(name) for name in _names(Ended)}
    for name in ("mean", "low", "high", "p"):
        values[name] = _number(values[name])
    found[before.number] = dataclasses.replace(
        before, ended=Ended(**values), ended_time=row["time"]
    )


def _names(kind: type) -> list[str]:
    return [one.name for one in dataclasses.fields(kind)]


def _number(value: object) -> float | None:
    """A number as a row has it, "inf" and "-inf" among them."""
    if value is None:
        return None
    return as_floats({"value": value}).get("value")


def newest_kept(entries: Sequence[Entry]) -> Entry | None:
    """The last change that was kept."""
    kept = [entry for entry in entries if entry.kept]
    return kept[-1] if kept else None
