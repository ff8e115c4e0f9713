"""The engine of this machine: a pool of workers, each a process that computes one run at a time."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import paribus
from paribus.execute import processes, worker
from paribus.execute.engine import Event, Resources
from paribus.execute.run import Outcome, RunSpec, folder_of_run
from paribus.run_id import RunId

# Set by an experiment or a stage that started this process: its runs do not belong to that one.
_NOT_INHERITED = ("DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_ROOT", "PARIBUS_SAY")


@dataclass
class _Waiting:
    spec: RunSpec
    cards: int


@dataclass
class _Worker:
    """A worker's process, and the run that it has."""

    process: subprocess.Popen[bytes]
    run: RunId | None = None
    cards: list[str] = field(default_factory=list)
    unread: bytes = b""


@dataclass
class _Dying:
    """A worker that ended unasked: its stages may still save their state."""

    session: int
    status: int
    run: RunId
    cards: list[str]
    deadline: float


class Pool:
    """Computes runs side by side on this machine. Its workers end with it, however it ends.

    Args:
        root: the main checkout.
        state_root: its `.paribus`.
        slots: runs side by side.
        cards: GPUs to deal out; a GPU that several runs may share is listed once for each run.
    """

    def __init__(self, root: Path, state_root: Path, slots: int, cards: Sequence[str] = ()) -> None:
        self.root, self.state_root, self.slots = root, state_root, slots
        self._cards = tuple(cards)
        self._free_cards = list(cards)
        self._waiting: deque[_Waiting] = deque()
        self._workers: list[_Worker] = []
        self._dying: list[_Dying] = []
        self._events: list[Event] = []
        self._selector = selectors.DefaultSelector()
        (state_root / "execute").mkdir(parents=True, exist_ok=True)

    # ------------------------------------------------------------ the protocol

    def submit(self, spec: RunSpec, cards: int = 0, memory: int = 0) -> None:
        """Accept a run that needs `cards` GPUs for itself; `--workers` says how many fit this machine's memory."""
        folder = folder_of_run(self.state_root, spec.id)
        folder.mkdir(parents=True, exist_ok=True)
        self._waiting.append(_Waiting(spec, min(cards, len(set(self._cards)))))

    def poll(self, seconds: float) -> Sequence[Event]:
        """The events since the last call; waits up to `seconds` for one."""
        self._start_what_fits()
        deadline = time.monotonic() + seconds
        while not self._events:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            shortest = min(left, processes.LOOK_SECONDS) if self._dying else left
            for key, _ in self._selector.select(shortest):
                self._read(key.data)
            self._bury()
        self._start_what_fits()
        events, self._events = self._events, []
        return events

    def cancel(self, run: RunId) -> None:
        """Withdraw a waiting run; make a running one save its state and end."""
        for one in list(self._waiting):
            if one.spec.id == run:
                self._waiting.remove(one)
                self._events.append(Event(run, "ended", outcome=Outcome("paused")))
        for busy in self._workers:
            if busy.run == run:
                self._ask(busy, {"cancel": run.experiment_name()})

    def resources(self) -> Resources:
        """The resources of this engine."""
        return Resources(self.slots, self._cards)

    def close(self) -> None:
        """Make all runs save their state and end, then the workers. When interrupted, it kills them."""
        self._waiting.clear()
        sessions = [one.process.pid for one in self._workers]
        for one in self._workers:
            with contextlib.suppress(OSError):
                assert one.process.stdin
                one.process.stdin.close()  # the end of its input ends a worker
        try:
            for one in self._workers:
                one.process.wait()
            for session in sessions:
                processes.end_session(session)
        except KeyboardInterrupt:
            for session in sessions:
                processes.kill(processes.of_session(session))
            raise
        finally:
            for one in self._workers:
                self._forget(one)
            self._selector.close()

    # ------------------------------------------------------------ workers

    def _start_what_fits(self) -> None:
        """Give runs, in their order, to workers that are free and have enough GPUs."""
        while self._waiting and self._waiting[0].cards <= len(set(self._free_cards)):
            free = next((one for one in self._workers if one.run is None), None)
            if free is None:
                if len(self._workers) + len(self._dying) >= self.slots:
                    return
                free = self._new_worker()
            waiting = self._waiting.popleft()
            self._hand_over(waiting, free)

    def _hand_over(self, waiting: _Waiting, to: _Worker) -> None:
        spec = waiting.spec
        to.run = spec.id
        to.cards = list(dict.fromkeys(self._free_cards))[: waiting.cards]
        for card in to.cards:
            self._free_cards.remove(card)
        folder = folder_of_run(self.state_root, spec.id)
        known = replace(spec, cards=to.cards) if to.cards else spec
        known.write(folder / "run.json")
        self._ask(to, {"run": str(folder)})

    def _new_worker(self) -> _Worker:
        environment = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
        own_code = str(Path(paribus.__file__).resolve().parent.parent)
        paths = [own_code, environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        commands = [environment.get("PATH", os.defpath), str(Path(sys.executable).parent)]
        environment["PATH"] = os.pathsep.join(commands)
        environment["DVC_NO_ANALYTICS"] = "1"
        with (self.state_root / "execute" / "workers.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", worker.__name__, str(self.root)],
                cwd=self.root,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
        made = _Worker(process)
        self._workers.append(made)
        assert process.stdout
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ, made)
        return made

    def _ask(self, of: _Worker, what: Mapping[str, object]) -> None:
        assert of.process.stdin
        with contextlib.suppress(
            BrokenPipeError
        ):  # it has ended, which is noticed where it is read
            of.process.stdin.write(json.dumps(what).encode() + b"\n")
            of.process.stdin.flush()

    def _read(self, of: _Worker) -> None:
        """Handle a worker's reports; the end of the stream means that the worker has ended."""
        assert of.process.stdout
        told = of.process.stdout.read()
        if told is None:
            return
        if told == b"":
            self._worker_ended(of)
            return
        *lines, of.unread = (of.unread + told).split(b"\n")
        for line in lines:
            self._take(of, json.loads(line))

    def _take(self, of: _Worker, told: dict[str, Any]) -> None:
        if of.run is None:
            return
        run, kind = of.run, told["event"]
        outcome = Outcome(**told["outcome"]) if "outcome" in told else None
        self._events.append(Event(run, kind, told.get("stage", ""), outcome))
        if kind == "ended":
            of.run = None
            self._free_cards += of.cards
            of.cards = []

    def _worker_ended(self, ended: _Worker) -> None:
        status = ended.process.wait()
        if ended.run is not None:
            session = ended.process.pid
            processes.ask_to_end(processes.of_session(session))
            # Its guardian does the same, unless it was killed as well.
            deadline = time.monotonic() + processes.SAVE_SECONDS
            self._dying.append(_Dying(session, status, ended.run, ended.cards, deadline))
        self._forget(ended)

    def _bury(self) -> None:
        """Report the runs whose worker ended, as soon as all their processes are gone."""
        for one in list(self._dying):
            left = processes.of_session(one.session)
            if left and time.monotonic() > one.deadline:
                processes.kill(left)
            elif not left:
                self._dying.remove(one)
                self._free_cards += one.cards
                words = f"its worker ended with status {one.status}"
                self._events.append(Event(one.run, "lost", outcome=Outcome("failed", "", [words])))

    def _forget(self, one: _Worker) -> None:
        with contextlib.suppress(KeyError, ValueError):
            assert one.process.stdout
            self._selector.unregister(one.process.stdout)
            one.process.stdout.close()
        with contextlib.suppress(OSError):
            assert one.process.stdin
            one.process.stdin.close()
        if one in self._workers:
            self._workers.remove(one)
