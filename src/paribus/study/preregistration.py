"""Whether a study was asked before it was answered, and what it shares with other studies."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paribus.files import Optional, Shape, read_json
from paribus.git import try_git
from paribus.places import state_root
from paribus.study.experiment import BASELINE, Experiment
from paribus.study.record import PUBLISHED
from paribus.study.results import Result

RUN: Shape = {"created": Optional((int, float))}
_RUN_NAME = re.compile(r"\b([a-z0-9][a-z0-9_-]*)\.([a-z0-9][a-z0-9_-]*)\.s(\d+)\b")


@dataclass(frozen=True)
class Registration:
    """When a study was asked, and which of its results are older.

    Attributes:
        asked: when the file that the results ran under was first committed, in seconds since 1970; None: not known.
        older: runs whose training began before that.
        runs: that there are.
        arms: whether an arm's run is among the older, and not the baseline's alone.
    """

    asked: float | None
    older: tuple[str, ...]
    runs: int
    arms: bool

    @property
    def exploratory(self) -> bool:
        """Whether the answer may have been known when the question was written."""
        return self.arms

    def sentence(self) -> str:
        """What is older than the question; "" where nothing is."""
        if not self.older or self.asked is None:
            return ""
        day = time.strftime("%Y-%m-%d %H:%M", time.gmtime(self.asked))
        share = f"{len(self.older)} of {self.runs} runs began before this study's file was committed ({day} UTC)"
        if not self.exploratory:
            return f"{share}; all of them are of the baseline"
        return f"exploratory: {share}, so that its hypothesis may have been written after its results were seen"


def registration(
    results: Sequence[Result], path: Path, baselines: Collection[str] = (BASELINE,)
) -> Registration:
    """When a study was asked, and which of its results are older.

    Args:
        results: that its report rests on.
        path: of its file.
        baselines: names of the baseline's groups of runs.
    """
    older: list[str] = []
    asked: float | None = None
    arms = False
    for result in results:
        committed = _committed(result.file, path)
        began = _began(result)
        if committed is None or began is None or began >= committed:
            continue
        asked = committed if asked is None else min(asked, committed)
        older.append(result.name)
        arms = arms or result.arm not in baselines
    return Registration(asked, tuple(older), len(results), arms)


def _committed(blob: str | None, path: Path) -> float | None:
    """When a version of a file was first committed; None where git does not know."""
    if not blob:
        return None
    times = try_git("log", "--all", "--format=%ct", f"--find-object={blob}", "--", str(path))
    return float(times.split()[-1]) if times else None


def _began(result: Result) -> float | None:
    """When the training of a run began: the earliest of its stages, as the state that trained it says; None: it is not here."""
    times = []
    for stage, mark in result.fingerprints.items():
        kept = read_json(state_root() / "runs" / f"{stage}-{mark}" / "run.json", RUN, move=False)
        if kept and kept.get("created"):
            times.append(float(kept["created"]))
    return min(times, default=None)


# ---------------------------------------------------------------- other studies


def shared_with(experiment: Experiment, results: Sequence[Result]) -> list[str]:
    """Other published studies that rest on the same runs or on the same seeds, in sentences.

    Args:
        experiment: the study.
        results: that its report rests on.
    """
    marks = {mark for result in results for mark in result.fingerprints.values()}
    seeds = {result.seed for result in results}
    same_runs: dict[str, int] = {}
    same_seeds: dict[str, list[int]] = {}
    for path in sorted(PUBLISHED.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        of_study = {int(seed) for study, _, seed in _RUN_NAME.findall(text) if study == path.stem}
        if path.stem == experiment.name or not of_study:
            continue
        shared = sum(mark in text for mark in marks)
        if shared:
            same_runs[path.stem] = shared
        elif of_study & seeds:
            same_seeds[path.stem] = sorted(of_study & seeds)
    return _shared_notes(same_runs, same_seeds)


def _shared_notes(
    same_runs: Mapping[str, int], same_seeds: Mapping[str, Sequence[int]]
) -> list[str]:
    """Study -> stages, or seeds, that it has in common, in sentences."""
    notes = []
    if same_runs:
        listed = ", ".join(f"{study} ({count})" for study, count in same_runs.items())
        notes.append(
            f"shares computed stages with {listed}: their verdicts are not independent of this one's, and are wrong together "
            "more often than apart"
        )
    if same_seeds:
        notes.append(
            f"uses seeds that {', '.join(same_seeds)} used: what a seed does to the data is the same there (`fresh_seeds: true` "
            "gives a study seeds of its own)"
        )
    return notes
