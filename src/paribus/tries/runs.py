"""The runs of tries: found again by the fingerprint of what they compute, or computed on an engine.

    refs/exps/…/try.FINGERPRINT.sSEED    a finished run, as DVC keeps experiments

The name is the fingerprint, so that a run counts for every try that asks for the same code, parameters and seed: those of a
baseline serve all its tries, and those of a kept change serve as the next baseline's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from paribus.errors import EXIT_MACHINE, MachineError, UserError
from paribus.execute.engine import Engine, Event
from paribus.execute.repository import experiments_of, supersede
from paribus.execute.run import Outcome, RunSpec
from paribus.machine.interrupt import EXIT_PAUSED
from paribus.run_id import RunId
from paribus.study.committed import CommittedFiles, altered
from paribus.study.experiment import Metric
from paribus.study.finished import MEASURED, FinishedRun, at_commit
from paribus.study.results import value_in
from paribus.tries.sides import Side

STUDY = "try"  # of the runs' names
LETTERS = 20  # of a fingerprint in a name
TRIALS = 2  # of a run that a signal or a lost worker ended
POLL_SECONDS = 1.0
BUSY_SECONDS = 5.0
SLOWEST = 10.0  # times as long as the baseline, from which a run is given up
# Seconds; below it what else the machine does decides: runs of 12 s took 150 s each beside twenty other processes.
SHORTEST_LIMIT = 900.0


class Stopped(UserError):
    """The runs were asked to stop, and save their states."""

    exit_status = EXIT_PAUSED


@dataclass(frozen=True)
class Measured:
    """A finished run.

    Attributes:
        value: of the metric; None where it is missing or not finite.
        seconds: of its training stages.
    """

    value: float | None
    seconds: float


@dataclass(frozen=True)
class Failed:
    """A run without a result: where it ended, and its last words."""

    stage: str
    words: str

    def __str__(self) -> str:
        return f"{self.stage or 'its set-up'}: {self.words}"


Asked = tuple[Side, int]  # a side and a seed


def run_id(side: Side, seed: int) -> RunId:
    """The name of a side's run at a seed."""
    return RunId(STUDY, side.fingerprint[:LETTERS], seed)


def training_seconds(run: FinishedRun, stages: Sequence[str]) -> float | None:
    """Seconds of stages of a finished run, as far as they say how long they took; None where none does.

    Args:
        run: whose commit has the metrics of other stages too, as its baseline had them.
        stages: that it ran.
    """
    seconds = [run.numbers.get(f"{stage}.seconds") for stage in stages]
    known = [one for one in seconds if one is not None]
    return sum(known) if known else None


class Runs:
    """The runs of both sides, on one engine.

    Args:
        stages: of each run, in order.
        metric: that is read of them.
        engine: that computes what is missing.
        say: shows a line on what happens.
    """

    def __init__(
        self, stages: Sequence[str], metric: Metric, engine: Engine, say: Callable[[str], None]
    ) -> None:
        self.stages, self.metric, self.engine, self.say = list(stages), metric, engine, say
        self.computed: set[RunId] = set()
        self._longest = 0.0  # seconds that a run took here, from its clone to its results
        self._read: dict[str, Measured] = {}
        self._trials: dict[RunId, int] = {}
        self._failed: dict[RunId, Failed] = {}

    def measured(self, asked: Sequence[Asked]) -> dict[Asked, Measured]:
        """The runs that are there."""
        wanted = {run_id(side, seed): (side, seed) for side, seed in asked}
        found = {}
        for reference in experiments_of(STUDY):
            if reference.superseded or reference.run not in wanted:
                continue
            run = self._result(reference.commit, wanted[reference.run][0])
            if run is not None:
                found[wanted[reference.run]] = run
        return found

    def _result(self, commit: str, side: Side) -> Measured | None:
        """A finished run; None where its experiment was changed afterwards, or is of another question."""
        if commit not in self._read:
            files = CommittedFiles(commit)
            if files.trailer("Asked-For") != side.fingerprint or altered(files, self.stages):
                return None
            run = at_commit(commit[:10], "experiment", files, MEASURED)
            value, _ = value_in(self.metric, files, run.metrics)
            self._read[commit] = Measured(value, training_seconds(run, self.stages) or 0.0)
        return self._read[commit]

    # ------------------------------------------------------------ computing

    def compute(
        self, asked: Sequence[Asked], usual_seconds: float | None = None
    ) -> Mapping[Asked, Measured | Failed]:
        """The runs, computed where they are missing.

        Args:
            asked: sides and seeds.
            usual_seconds: of a run; one that takes SLOWEST times as long is given up. None: nothing is known.

        Raises:
            Stopped, MachineError: where the runs cannot go on here; called again, they do.
        """
        found: dict[Asked, Measured | Failed] = dict(self.measured(asked))
        missing = [one for one in asked if one not in found]
        by_run = {run_id(*one): one for one in missing}
        began: dict[RunId, float] = {}
        for one in missing:
            self._submit(*one)
        waiting = set(by_run)
        while waiting:
            for event in self.engine.poll(POLL_SECONDS):
                if event.run in waiting and self._is_over(event, by_run, began):
                    waiting.discard(event.run)
            self._give_up_slow(waiting, began, usual_seconds)
        there = self.measured(missing)
        for one in missing:
            failed = self._failed.get(run_id(*one))
            found[one] = failed or there.get(one) or Failed("", "its result cannot be read")
        return found

    def _submit(self, side: Side, seed: int) -> None:
        run = run_id(side, seed)
        supersede(run)
        overrides = side.overrides | {"seed": seed}
        spec = RunSpec(run, side.commit, overrides, self.stages, side.fingerprint)
        self.engine.submit(spec)

    def _is_over(
        self, event: Event, by_run: Mapping[RunId, Asked], began: dict[RunId, float]
    ) -> bool:
        """Take note of an event; whether its run has ended for good."""
        if event.kind == "started":
            began[event.run] = time.monotonic()
        if event.kind in ("started", "stage"):
            side, seed = by_run[event.run]
            self.say(f"{side.name} at seed {seed}: {event.stage or 'set-up'}")
        if event.kind not in ("ended", "lost"):
            return False
        start = began.pop(event.run, time.monotonic())
        outcome = event.outcome or Outcome("failed")
        if outcome.state == "done":
            self._longest = max(self._longest, time.monotonic() - start)
            self.computed.add(event.run)
            return True
        if event.run in self._failed:  # given up as too slow
            return True
        return self._ended_otherwise(event, outcome, by_run[event.run])

    def _ended_otherwise(self, event: Event, outcome: Outcome, asked: Asked) -> bool:
        words = " ".join(outcome.problems) or "no reason was given"
        if outcome.state == "busy":
            time.sleep(BUSY_SECONDS)
            self._submit(*asked)
            return False
        if outcome.state == "paused":
            raise Stopped("stopped; the same command goes on")
        if outcome.state == "machine":
            raise _MachineAtFault(f"{asked[0].name} at seed {asked[1]}, {outcome.stage}: {words}")
        self._trials[event.run] = self._trials.get(event.run, 0) + 1
        by_signal = event.kind == "lost" or words.startswith("was killed")
        if by_signal and self._trials[event.run] < TRIALS:
            self._submit(*asked)
            return False
        self._failed[event.run] = Failed(outcome.stage, words)
        return True

    def _give_up_slow(
        self, waiting: set[RunId], began: Mapping[RunId, float], usual_seconds: float | None
    ) -> None:
        if not usual_seconds:
            return
        limit = max(SLOWEST * max(usual_seconds, self._longest), SHORTEST_LIMIT)
        for run in waiting:
            if run in began and time.monotonic() - began[run] > limit and run not in self._failed:
                words = f"not done after {limit:.0f} s, {SLOWEST:.0f} times what the baseline took"
                self._failed[run] = Failed("", words)
                self.engine.cancel(run)


class _MachineAtFault(MachineError):
    """The machine failed; the same command goes on when that is put right."""

    exit_status = EXIT_MACHINE
