"""The engine of several machines: a Ray task for each run.

Ray places tasks, notices that a machine is gone, starts the task again on another one, and transports what it says. What a
task does on its machine is in elsewhere.py; the harness's own code goes with it (`py_modules`), so that all machines
run the same, and a machine needs the libraries alone.

Runs of one seed, which are compared with each other, go to machines of one class of hardware, unless execute.yaml allows
otherwise: a difference between classes would pass for one between arms.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paribus
from paribus.config import Train
from paribus.errors import UserError
from paribus.execute import elsewhere, processes
from paribus.execute.elsewhere import Found, Home
from paribus.execute.engine import Event, Resources
from paribus.execute.live import Elsewhere, Live
from paribus.execute.repository import reference_of
from paribus.execute.run import Outcome, RunId, RunSpec, folder_of_run
from paribus.execute.settings import Settings
from paribus.git import GitError, git, try_git
from paribus.journal import read_json, write_json

RETRIES = 3  # of a run by Ray, each after the loss of a machine or of Ray's process there
NODE = "ray.io/node-id"  # the label that Ray gives each machine
NO_MACHINE_SECONDS = 600.0  # that a run waits for a machine that may compute it
LOOK_SECONDS = 0.2
INSTALL = "pip install -r requirements-ray.lock"
BEST_FIRST = ("cuda", "mps", "cpu")


# ---------------------------------------------------------------- the cluster


def connect(address: str) -> Any:
    """Ray, connected to its cluster.

    Args:
        address: HOST:PORT of the cluster's head; "" for the one that this machine belongs to.

    Raises:
        UserError: Ray is not installed, or no cluster answers there.
    """
    try:
        import ray
    except ImportError:
        raise UserError(f"--engine ray: Ray is not installed; {INSTALL}") from None
    if ray.is_initialized():
        return ray
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    package = str(Path(paribus.__file__).resolve().parent)
    where = address or "this machine"
    try:
        ray.init(
            address=address or "auto",
            runtime_env={"py_modules": [package]},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray raises its own, ConnectionError, RuntimeError, ValueError
        words = " ".join(str(error).split()) or type(error).__name__
        begin = "`ray start --head` begins a cluster, `ray start --address=HOST:PORT` joins one"
        raise UserError(
            f"--engine ray: no cluster of {where} can be used: {words[:300]}; {begin} (this machine has to be part of "
            "it; docs/machines.md)"
        ) from None
    return ray


def machines_in(ray: Any) -> int:
    """How many machines of the cluster compute; 1 at least."""
    return max(len(_computing(ray)), 1)


def _computing(ray: Any) -> dict[str, dict[str, Any]]:
    """Node -> what Ray says of it, of the machines that are there and compute."""
    found = {}
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU", 0) > 0:
            found[str(node["NodeID"])] = node
    return found


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster that can compute.

    Attributes:
        node: Ray's name for it.
        found: what it is.
        resources: CPUs, GPUs and bytes of memory that Ray deals out there.
    """

    node: str
    found: Found
    resources: dict[str, float]

    def slots(self, needs: Needs) -> int:
        """Runs that fit side by side."""
        most = self.resources.get("CPU", 0.0) // needs.threads
        if needs.cards:
            most = min(most, self.resources.get("GPU", 0.0) // needs.cards)
        if needs.memory:
            most = min(most, self.resources.get("memory", 0.0) // needs.memory)
        return int(most)


@dataclass(frozen=True)
class Needs:
    """What a run takes of its machine: CPU threads, GPUs, bytes of memory (0: not known)."""

    threads: int = 1
    cards: int = 0
    memory: int = 0


@dataclass
class _Running:
    """A run that Ray has, and where it is, as far as is known."""

    spec: RunSpec
    needs: Needs
    nodes: list[str]
    task: Any = None
    machine: str = ""
    elsewhere: Elsewhere | None = None
    since: float = dataclasses.field(default_factory=time.monotonic)


# ---------------------------------------------------------------- the engine


class RayEngine:
    """Computes runs on the machines of a Ray cluster.

    Args:
        ray: connected to its cluster.
        root: the main checkout.
        state_root: its `.paribus`.
        settings: of execute.yaml.
        train: settings of the runs, by which the machines' hardware is chosen.
        commits: the code of the runs.
        workers: runs side by side at most; None: as many as fit the machines.

    Raises:
        UserError: with everything that any machine of the cluster lacks.
    """

    def __init__(
        self,
        ray: Any,
        root: Path,
        state_root: Path,
        settings: Settings,
        train: Train,
        commits: Sequence[str],
        workers: int | None = None,
    ) -> None:
        from ray.util.queue import Queue

        self._ray, self.root, self.state_root, self.settings = ray, root, state_root, settings
        self._train, self._commits, self._workers = train, list(commits), workers
        self._home = _home(root, settings)
        self._home_node = str(ray.get_runtime_context().get_node_id())
        self._machines: dict[str, Machine] = {}
        self._refused: set[str] = set()  # nodes that lack something, or failed
        self._examined: dict[str, Any] = {}  # node -> the task that looks at it
        self._running: dict[RunId, _Running] = {}
        self._events: list[Event] = []
        self._needs = Needs(threads=train.threads or 1)
        self._shared = self._has_others()
        self._begin()
        here = {"num_cpus": 0, "scheduling_strategy": self._only_on(self._home_node)}
        self._told = Queue(actor_options=here)

    # ------------------------------------------------------------ the machines

    def _begin(self) -> None:
        """Look at every machine of the cluster. Raises UserError with what any of them lacks."""
        problems: list[str] = []
        for found in self._look_at(self._alive(), wait=True).values():
            problems += found.problems
            for warning in found.warnings:
                print(f"warning: {warning}", file=sys.stderr)
        if problems:
            raise UserError(problems)
        self._needs = dataclasses.replace(self._needs, cards=self._cards())

    def _alive(self) -> dict[str, dict[str, Any]]:
        return _computing(self._ray)

    def _look_at(self, nodes: dict[str, dict[str, Any]], wait: bool) -> dict[str, Found]:
        """Node -> what it is, of those that have answered by now; those that can compute join the machines."""
        for node in nodes:
            if node not in self._examined:
                task = self._ray.remote(num_cpus=0, max_calls=1)(_examine)
                only_there = task.options(scheduling_strategy=self._only_on(node))
                self._examined[node] = only_there.remote(
                    self._home, self._train, self._commits, self._home_node, self._shared
                )
        answers = {}
        for node in nodes:
            found = self._answer(node, nodes[node], wait)
            if found is None:
                continue
            answers[node] = found
            if found.problems:
                self._refused.add(node)
            else:
                self._machines[node] = Machine(node, found, dict(nodes[node]["Resources"]))
        return answers

    def _answer(self, node: str, about: dict[str, Any], wait: bool) -> Found | None:
        """What a machine says of itself; None where it has not answered yet."""
        task = self._examined[node]
        ready, _ = self._ray.wait([task], timeout=None if wait else 0)
        if not ready:
            return None
        try:
            found: Found = self._ray.get(task)
            return found
        except Exception as error:  # Ray's own, with what the machine raised
            words = " ".join(str(error).split())[-300:]
            name = about.get("NodeName") or node[:8]
            return Found(name, problems=[f"{name}: cannot run paribus: {words}"])

    def _has_others(self) -> bool:
        """Whether another machine may compute, so that inputs and outputs go through git and the DVC remote."""
        alone = set(self._alive()) <= {self._home_node}
        if not alone and not self._home.origin:
            raise UserError(
                "--engine ray: other machines need a git repository to get the code from: `git remote add origin …`, or "
                "`git: ssh://HOST/FOLDER` in execute.yaml (docs/machines.md)"
            )
        return not alone

    def _only_on(self, node: str) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node, soft=False)

    def _device(self) -> str:
        """What runs train on: the best device that any machine has."""
        there = {machine.found.device for machine in self._machines.values()}
        return next((device for device in BEST_FIRST if device in there), "cpu")

    def _cards(self) -> int:
        return self._train.processes if self._device() == "cuda" else 0

    def _able(self) -> list[Machine]:
        """The machines that may be given a run now."""
        alive, device = self._alive(), self._device()
        return [
            machine
            for node, machine in self._machines.items()
            if node in alive and node not in self._refused and machine.found.device == device
        ]

    # ------------------------------------------------------------ the protocol

    def resources(self) -> Resources:
        """The resources of this engine, of the machines that are there now."""
        fit = sum(machine.slots(self._needs) for machine in self._able())
        slots = fit if self._workers is None else min(fit, self._workers)
        return Resources(max(slots, 1), (), self._device())

    def submit(self, spec: RunSpec, cards: int = 0, memory: int = 0) -> None:
        """Accept a run that needs `cards` GPUs for itself, and `memory` bytes of its machine."""
        threads = spec.overrides.get("train.threads") or self._needs.threads
        self._needs = Needs(int(threads), max(cards, self._needs.cards), memory)
        known = dataclasses.replace(
            spec,
            origin=self._home.origin if self._shared else "",
            state_minutes=self.settings.state_minutes,
        )
        self._running[spec.id] = _Running(known, Needs(int(threads), cards, memory), [])
        self._place(self._running[spec.id])

    def _place(self, one: _Running) -> None:
        """Hand a run to Ray, with the machines that may have it."""
        one.nodes = [machine.node for machine in self._allowed(one)]
        if not one.nodes:
            return  # `_look_after` tries again
        task = self._ray.remote(_compute).options(
            name=one.spec.id.experiment_name(),
            num_cpus=one.needs.threads,
            num_gpus=one.needs.cards,
            memory=one.needs.memory or None,
            max_retries=RETRIES,
            label_selector={NODE: f"in({','.join(one.nodes)})"},
        )
        one.task = task.remote(self._home, one.spec, self._home_node, self._told)

    def _allowed(self, one: _Running) -> list[Machine]:
        """Machines of the class of hardware that the runs of this seed are on; the first of them chooses it."""
        able = self._able()
        if self.settings.mixed_hardware or not able:
            return able
        path = self.state_root / "execute" / one.spec.id.study / "hardware.json"
        chosen = read_json(path) or {}
        seed = str(one.spec.id.seed)
        if seed not in chosen:
            chosen[seed] = self._freest(able)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, chosen)
        return [machine for machine in able if machine.found.hardware == chosen[seed]]

    def _freest(self, able: Sequence[Machine]) -> str:
        """The class of hardware with the most room: that of its machines less the runs that are there already."""
        room: dict[str, int] = {}
        for machine in able:
            hardware = machine.found.hardware
            room[hardware] = room.get(hardware, 0) + machine.slots(self._needs)
        for one in self._running.values():
            for machine in able:
                if machine.node in one.nodes[:1]:
                    room[machine.found.hardware] -= 1
        return max(room, key=lambda hardware: room[hardware])

    def poll(self, seconds: float) -> Sequence[Event]:
        """The events since the last call; waits up to `seconds` for one."""
        deadline = time.monotonic() + seconds
        while True:
            self._listen()
            self._gather(0.0)
            if self._events or time.monotonic() > deadline:
                break
            self._gather(min(LOOK_SECONDS, seconds))
        self._look_after()
        events, self._events = self._events, []
        return events

    def cancel(self, run: RunId) -> None:
        """Withdraw a waiting run; make a running one save its state and end."""
        one = self._running.get(run)
        if one is not None and one.task is not None:
            self._ray.cancel(one.task, force=False)
        elif one is not None:
            self._end(one, Event(run, "ended", outcome=Outcome("paused")))

    def close(self) -> None:
        """Make all runs save their state and end, and leave the cluster; the machines stay in it."""
        for run in list(self._running):
            self.cancel(run)
        deadline = time.monotonic() + processes.SAVE_SECONDS
        while self._running and time.monotonic() < deadline:
            self.poll(1.0)
        for one in self._running.values():
            if one.elsewhere:
                one.elsewhere.end()
        self._ray.shutdown()

    # ------------------------------------------------------------ what happened

    def _listen(self) -> None:
        """Take what the tasks have said."""
        from ray.util.queue import Empty

        with contextlib.suppress(Empty):
            while True:
                run, said = self._told.get_nowait()
                one = self._running.get(run)
                if one is not None:
                    self._hear(one, said)

    def _hear(self, one: _Running, said: Event | Live) -> None:
        if said.machine != one.machine:
            self._has_moved(one, said.machine)
        if isinstance(said, Live):
            if one.elsewhere:
                one.elsewhere.note(said)
            return
        if said.kind == "stage" and one.elsewhere:
            folder = folder_of_run(self.state_root, one.spec.id)
            one.elsewhere.note(Live(said.stage, 0, None, None, said.machine))
            (folder / "stage.txt").write_text(said.stage, encoding="utf-8")
        self._events.append(said)

    def _has_moved(self, one: _Running, machine: str) -> None:
        """Note where a run is; Ray moves it where it loses a machine."""
        if one.machine:
            print(f"{one.spec.id}: {one.machine} is lost; goes on on {machine}", file=sys.stderr)
        one.machine = machine
        at_home = self._name_of(self._home_node) == machine
        if one.elsewhere:
            one.elsewhere.end()
        one.elsewhere = None
        if not at_home:
            folder = folder_of_run(self.state_root, one.spec.id)
            folder.mkdir(parents=True, exist_ok=True)
            one.spec.write(folder / "run.json")
            one.elsewhere = Elsewhere(folder)

    def _name_of(self, node: str) -> str:
        machine = self._machines.get(node)
        return machine.found.name if machine else ""

    def _gather(self, seconds: float) -> None:
        """Take the outcomes of the tasks that have ended; waits up to `seconds` for one."""
        by_task = {one.task: one for one in self._running.values() if one.task is not None}
        if not by_task:
            time.sleep(seconds)
            return
        ended, _ = self._ray.wait(list(by_task), num_returns=len(by_task), timeout=seconds)
        if ended:
            self._listen()  # what they said before
        for task in ended:
            self._take(by_task[task], self._last_event(task, by_task[task].spec.id))

    def _last_event(self, task: Any, run: RunId) -> Event:
        from ray import exceptions

        try:
            event: Event = self._ray.get(task)
            return event
        except exceptions.TaskCancelledError:
            return Event(run, "ended", outcome=Outcome("paused"))
        except exceptions.RayTaskError as error:  # raised by our code there
            words = " ".join(str(error).split())[-500:]
            return Event(run, "ended", outcome=Outcome("failed", "", [words]))
        except exceptions.RayError as error:  # its machine, or Ray's process there, is gone
            words = " ".join(str(error).split())[:300]
            return Event(run, "lost", outcome=Outcome("failed", "", [words]))

    def _take(self, one: _Running, event: Event) -> None:
        outcome = event.outcome
        assert outcome is not None
        if outcome.state == "machine" and self._goes_elsewhere(one, event.machine, outcome):
            return
        if outcome.state == "done" and outcome.experiment:
            event = self._brought_home(one, event, outcome.experiment)
        self._end(one, event)

    def _end(self, one: _Running, event: Event) -> None:
        del self._running[one.spec.id]
        if one.elsewhere:
            one.elsewhere.end()
        self._events.append(event)

    def _goes_elsewhere(self, one: _Running, name: str, outcome: Outcome) -> bool:
        """Give a run whose machine has a fault to another one, and that machine none any more; False without another."""
        faulty = [node for node, known in self._machines.items() if known.found.name == name]
        self._refused.update(faulty)
        if not self._able():
            return False
        words = " ".join(outcome.problems)
        print(f"warning: {name} gets no more runs: {words}", file=sys.stderr)
        one.task = None
        self._place(one)
        return True

    def _brought_home(self, one: _Running, event: Event, commit: str) -> Event:
        """Fetch the experiment of a run into the main checkout, where it was pushed to another repository."""
        if try_git("cat-file", "-e", f"{commit}^{{commit}}", at=self.root) is not None:
            return event
        name = reference_of(one.spec.commit, one.spec.id.experiment_name())
        try:
            git("fetch", "--quiet", "--", self._home.origin, f"+{name}:{name}", at=self.root)
        except GitError as error:
            words = [f"its results were not fetched from {self._home.origin}: {error}"]
            return dataclasses.replace(event, kind="lost", outcome=Outcome("failed", "", words))
        return event

    def _look_after(self) -> None:
        """See to new machines, and to runs that no machine which is there may compute."""
        alive = self._alive()
        known = self._machines.keys() | self._refused
        new = {node: about for node, about in alive.items() if node not in known}
        if new and not self._shared:
            print(
                "warning: a machine joined a study that began on one alone, without sharing data; it gets runs when the "
                "study is called again",
                file=sys.stderr,
            )
            self._refused.update(new)
            new = {}
        for found in self._look_at(new, wait=False).values():
            for problem in found.problems:
                print(f"warning: {problem}; it gets no runs", file=sys.stderr)
        for one in list(self._running.values()):
            if any(node in alive for node in one.nodes):
                one.since = time.monotonic()
                continue
            if one.task is not None and one.nodes:
                self._ray.cancel(one.task, force=True)
                one.task = None
            self._place(one)
            if not one.nodes and time.monotonic() - one.since > NO_MACHINE_SECONDS:
                words = (
                    f"no machine of the class of hardware that the runs of seed {one.spec.id.seed} are on has been there "
                    f"for {NO_MACHINE_SECONDS / 60:g} minutes; add one, or set mixed_hardware: true in execute.yaml"
                )
                self._end(one, Event(one.spec.id, "ended", outcome=Outcome("machine", "", [words])))


def _home(root: Path, settings: Settings) -> Home:
    from paribus.tracking.address import is_server, public_uri, tracking_uri

    uri = tracking_uri()
    project = git("rev-parse", "--show-prefix", at=root)
    server = public_uri(uri) if is_server(uri) else ""
    return Home(str(root), project, settings.git, server, settings.state_minutes)


# ---------------------------------------------------------------- on a machine


def _examine(
    home: Home, train: Train, commits: Sequence[str], home_node: str, shared: bool
) -> Found:
    """A Ray task: look what this machine is and lacks."""
    return elsewhere.examine(home, train, commits, _is_here(home_node), shared)


def _compute(home: Home, spec: RunSpec, home_node: str, told: Any) -> Event:
    """A Ray task: compute a run on this machine."""
    import ray

    at_home = _is_here(home_node)
    origin = spec.origin
    if origin and at_home:
        origin = home.root
    cards = [str(card) for card in ray.get_gpu_ids()]
    own = dataclasses.replace(spec, origin=origin, cards=cards or spec.cards)

    def tell(what: Event | Live) -> None:
        told.put((spec.id, what))

    return elsewhere.compute(home, own, at_home, tell)


def _is_here(node: str) -> bool:
    import ray

    return str(ray.get_runtime_context().get_node_id()) == node
