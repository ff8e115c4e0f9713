"""Brings the runs of a study through an engine, until every run is done or every arm has a verdict.

Nothing is known only here: what is done is read from DVC's experiments, what went wrong from the journal. So this process
may be killed at any instant and called again.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from paribus.errors import EXIT_MACHINE, UserError
from paribus.execute.engine import Engine, Event
from paribus.execute.finished_states import remove_states_of
from paribus.execute.repository import supersede
from paribus.execute.run import Outcome
from paribus.journal import Journal
from paribus.machine.interrupt import EXIT_PAUSED
from paribus.places import main_checkout, state_root
from paribus.study.divergence import diverged_seeds
from paribus.study.events import MAX_FAILURES, GivenUp, folder_of, given_up, repair_journal
from paribus.study.experiment import Run
from paribus.study.gpus import cards_of, memory_of
from paribus.study.results import (
    Result,
    check_not_altered,
    check_not_otherwise,
    collect,
    done,
)
from paribus.study.settled import Study
from paribus.study.specs import pieces_of, spec_of
from paribus.study.status import Display, Standing, table

POLL_SECONDS = 1.0
BUSY_SECONDS = 5.0  # until the next try of a run that another process computes at this moment


@dataclass(frozen=True)
class _Look:
    """The state of a study at a moment."""

    runs: Sequence[Run]
    have: dict[str, Result]
    failures: dict[str, GivenUp]
    diverged: dict[str, list[int]]


class Driver:
    """The runs of one study, on one engine.

    Args:
        study: its runs.
        engine: computes the runs.
        commit: the code and params.yaml that its runs start from.
    """

    def __init__(self, study: Study, engine: Engine, commit: str) -> None:
        self.study, self.engine, self.commit = study, engine, commit
        self.experiment, self.folder = study.experiment, folder_of(study.experiment.name)
        repaired = repair_journal(self.experiment.name)
        if repaired:
            print(f"warning: {repaired}", file=sys.stderr)
        self.journal = Journal(
            self.folder / "journal.jsonl", lambda text: print(text, file=sys.stderr)
        )
        self.display = Display(self.experiment.name)
        self._under_way: dict[str, tuple[Run, str]] = {}  # name -> the run, and the stage it is in
        self._lost: Counter[str] = Counter()  # run -> how often its worker vanished, in this call
        self._not_before: dict[str, float] = {}
        self._pieces: dict[str, dict[str, str]] = {}  # run -> stage -> name of what it computes
        self._computed: set[str] = set()  # pieces that DVC's cache already has
        self._just_done: set[str] = set()

    # ------------------------------------------------------------ until nothing is left

    def drive(self) -> list[Result]:
        """Run until nothing is left, and return the results. Exits where it is stopped, or the machine is at fault.

        A run may be among the results before its worker reports it: the driver waits for the end, and notes it.
        """
        with self.display:
            while True:
                results = collect(self.experiment)
                runs = self.study.wanted(results)
                have = done(results, runs, self.study.code)
                self._check_that_done_is_done(have, runs, results)
                failures = given_up(self.experiment.name, runs)
                left = [run for run in runs if run.name not in have and run.name not in failures]
                diverged = diverged_seeds(list(have.values()), runs, failures)
                look = _Look(runs, have, failures, diverged)
                if not left and not self._under_way:
                    self.display.show(lambda: self._standing(look))  # noqa: B023 -- called at once
                    return [have[run.name] for run in runs if run.name in have]
                self._release(left, results)
                self._wait_for_an_end(look)

    def _wait_for_an_end(self, look: _Look) -> None:
        """Handle events until a run has ended, or one that had to wait may go on."""
        while True:
            if (self.folder / "stop").exists():
                name = self.experiment.name
                self.display.say(f"{name}: stopped; `paribus ablate run {name}` goes on")
                raise SystemExit(EXIT_PAUSED)
            self.display.show(lambda: self._standing(look))
            events = self.engine.poll(POLL_SECONDS)
            for event in events:
                self._take(event)
            waited_enough = any(when <= time.monotonic() for when in self._not_before.values())
            worth_a_look = {event.kind for event in events} & {"ended", "lost", "computed"}
            if worth_a_look or waited_enough:
                return

    def _standing(self, look: _Look) -> Standing:
        stages = {name: stage for name, (_, stage) in self._under_way.items()}
        return table(
            self.study, look.runs, look.have, stages, look.failures, look.diverged, self._slots
        )

    @property
    def _slots(self) -> int:
        return self.engine.resources().slots

    def _check_that_done_is_done(
        self, have: dict[str, Result], runs: Sequence[Run], results: Sequence[Result]
    ) -> None:
        """Raises UserError where a run that has just ended well is not among the results: it would be repeated for ever."""
        for run in runs:
            if run.name in self._just_done and run.name not in have:
                check_not_otherwise(results, run, self.study.code)
                check_not_altered(results, run)
                raise UserError(
                    f"{run.name}: was computed, and is not among DVC's experiments as what was asked for; "
                    "`dvc exp list` shows them"
                )
        self._just_done.clear()

    # ------------------------------------------------------------ what may run beside what

    def _release(self, left: Sequence[Run], results: Sequence[Result]) -> None:
        """Submit what may run now.

        Of runs that share a stage which is not computed yet, one goes first: the others find it in DVC's run-cache.
        """
        busy: set[str] = set()
        for run, _ in self._under_way.values():
            busy |= self._to_compute(run)
        now = time.monotonic()
        for run in left:
            if len(self._under_way) >= self._slots:
                return
            waits = self._not_before.get(run.name, 0.0) > now
            pieces = self._to_compute(run)
            if run.name in self._under_way or waits or pieces & busy:
                continue
            check_not_otherwise(results, run, self.study.code)
            self._submit(run)
            busy |= pieces

    def _submit(self, run: Run) -> None:
        supersede(run.id)
        self._not_before.pop(run.name, None)
        self._under_way[run.name] = (run, "")
        device = self.engine.resources().device
        config = self.experiment.config_of(run)
        memory = memory_of(config, self.experiment.stages) if device == "cpu" else 0
        spec = spec_of(self.experiment, run, self.commit)
        self.engine.submit(spec, cards_of(config.train, device), memory)

    def _to_compute(self, run: Run) -> set[str]:
        """A name for each stage of a run that is not computed yet, which covers everything that determines its outputs."""
        if run.name not in self._pieces:
            self._pieces[run.name] = pieces_of(self.experiment, run)
        return set(self._pieces[run.name].values()) - self._computed

    # ------------------------------------------------------------ what happened

    def _take(self, event: Event) -> None:
        name = event.run.experiment_name()
        if name not in self._under_way:
            return
        run, _ = self._under_way[name]
        if event.kind == "started":
            self._event(run, "started", machine=event.machine)
        elif event.kind == "stage":
            self._under_way[name] = (run, event.stage)
        elif event.kind == "computed":
            self._to_compute(run)
            self._computed.add(self._pieces[name][event.stage])
        else:
            assert event.outcome
            del self._under_way[name]
            if event.kind == "lost":
                self._take_lost(run, event.outcome)
            else:
                self._take_outcome(run, event.outcome, event.machine)

    def _take_lost(self, run: Run, outcome: Outcome) -> None:
        self._lost[run.name] += 1
        if self._lost[run.name] >= MAX_FAILURES:
            self._event(run, "failed", words=outcome.problems)
            self.display.say(f"{run.name}: given up: {' '.join(outcome.problems)}")
            return
        self._event(run, "interrupted", words=outcome.problems)
        self.display.say(f"{run.name}: {' '.join(outcome.problems)}; it is run again")

    def _take_outcome(self, run: Run, outcome: Outcome, machine: str) -> None:
        where = outcome.stage or "its set-up"
        words = " ".join(outcome.problems) or "no reason was given"
        facts: dict[str, object] = {"stage": outcome.stage, "words": outcome.problems}
        if outcome.state == "done":
            self._just_done.add(run.name)
            # Its checkpoints are in DVC's cache: a study of large models would else fill the disk with states.
            remove_states_of(run.name, main_checkout(), state_root())
            self._event(run, "done")
        elif outcome.state == "busy":
            self._not_before[run.name] = time.monotonic() + BUSY_SECONDS
        elif outcome.state == "paused":
            self._event(run, "paused", **facts)
        elif outcome.state == "machine":
            self._event(run, "machine", **facts)
            self._stop_for_the_machine(run, machine or "this machine", f"{where}: {words}")
        else:
            self._event(run, outcome.state, **facts, diverged=outcome.diverged)
            self.display.say(f"{run.name}: {outcome.state} in {where}: {words}")

    def _stop_for_the_machine(self, run: Run, machine: str, words: str) -> None:
        name = self.experiment.name
        self.display.say(
            f"{name}: stopped, as {machine} has a fault that no run is to blame for; no seed is lost\n"
            f"{run.name}, {words}\n"
            f"when that is put right, `paribus ablate run {name}` goes on"
        )
        raise SystemExit(EXIT_MACHINE)

    def _event(self, run: Run, event: str, **facts: object) -> None:
        row = {"time": time.time(), "run": run.name, "event": event, "key": run.key, **facts}
        self.journal.append(row)
