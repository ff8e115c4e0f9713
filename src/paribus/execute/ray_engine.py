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
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paribus.execute import elsewhere, processes
from paribus.execute.cluster import NODE, Cluster, Machine, Needs, heed_cancel, is_here
from paribus.execute.elsewhere import Home
from paribus.execute.engine import Event, Resources
from paribus.execute.live import Elsewhere, Live
from paribus.execute.machine import is_machines_fault
from paribus.execute.repository import experiments_of, reference_of
from paribus.execute.run import Outcome, RunSpec, folder_of_run
from paribus.execute.settings import Settings
from paribus.git import GitError, git, try_git
from paribus.journal import read_json, write_json
from paribus.run_id import RunId

RETRIES = 3  # of a run by Ray, each after the loss of a machine or of Ray's process there
NO_MACHINE_SECONDS = 600.0  # that a run waits for a machine that may compute it
LOOK_SECONDS = 0.2


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


class RayEngine:
    """Computes runs on the machines of a Ray cluster.

    Args:
        cluster: its machines.
        root: the main checkout.
        state_root: its `.paribus`.
        settings: of execute.yaml.
        workers: runs side by side at most; None: as many as fit the machines.
    """

    def __init__(
        self,
        cluster: Cluster,
        root: Path,
        state_root: Path,
        settings: Settings,
        workers: int | None = None,
    ) -> None:
        from ray.util.queue import Queue

        self.cluster, self.root, self.state_root = cluster, root, state_root
        self.settings, self._workers, self._ray = settings, workers, cluster.ray
        self._running: dict[RunId, _Running] = {}
        self._events: list[Event] = []
        self._needs = Needs(threads=cluster.train.threads or 1, cards=cluster.cards())
        here = {"num_cpus": 0, "scheduling_strategy": cluster.only_on(cluster.home_node)}
        self._told = Queue(actor_options=here)

    # ------------------------------------------------------------ the protocol

    def resources(self) -> Resources:
        """The resources of this engine, of the machines that are there now.

        Where seeds keep to a class of hardware, more runs are asked for than fit: those that wait for one class would leave
        the machines of another idle.
        """
        able = self.cluster.able()
        fit = sum(machine.slots(self._needs) for machine in able)
        if not self.settings.mixed_hardware:
            fit *= len({machine.found.hardware for machine in able})
        slots = fit if self._workers is None else min(fit, self._workers)
        return Resources(max(slots, 1), (), self.cluster.device())

    def submit(self, spec: RunSpec, cards: int = 0, memory: int = 0) -> None:
        """Accept a run that needs `cards` GPUs for itself, and `memory` bytes of its machine."""
        threads = spec.overrides.get("train.threads") or self._needs.threads
        self._needs = Needs(int(threads), max(cards, self._needs.cards), memory)
        known = dataclasses.replace(
            spec,
            origin=self.cluster.home.origin if self.cluster.shared else "",
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
        one.task = task.remote(self.cluster.home, one.spec, self.cluster.home_node, self._told)

    def _allowed(self, one: _Running) -> list[Machine]:
        """Machines of the class of hardware that the runs of this seed are on; the first of them chooses it."""
        able = self.cluster.able()
        if self.settings.mixed_hardware or not able:
            return able
        hardware = self._hardware_of(one.spec.id, able)
        return [machine for machine in able if machine.found.hardware == hardware]

    def _hardware_of(self, run: RunId, able: Sequence[Machine]) -> str:
        """The class of hardware of a seed's runs; chosen anew while none of them is done and no machine of it is there."""
        path = self.state_root / "execute" / run.study / "hardware.json"
        chosen = read_json(path) or {}
        seed = str(run.seed)
        is_there = any(machine.found.hardware == chosen.get(seed) for machine in able)
        if is_there or (seed in chosen and self._has_begun(run)):
            return str(chosen[seed])
        chosen[seed] = self._freest(able)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, chosen)
        return str(chosen[seed])

    def _has_begun(self, run: RunId) -> bool:
        """Whether a run of the same seed is done, or under way."""
        done = {one.run.seed for one in experiments_of(run.study, self.root)}
        under_way = {
            one.spec.id.seed for one in self._running.values() if one.task and one.spec.id != run
        }
        return run.seed in done | under_way

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
        if one.elsewhere:
            one.elsewhere.end()
        one.elsewhere = None
        if not self.cluster.is_home(machine):
            folder = folder_of_run(self.state_root, one.spec.id)
            folder.mkdir(parents=True, exist_ok=True)
            one.spec.write(folder / "run.json")
            one.elsewhere = Elsewhere(folder)

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
        self.cluster.refuse(name)
        if not self.cluster.able():
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
            git("fetch", "--quiet", "--", self.cluster.home.origin, f"+{name}:{name}", at=self.root)
        except GitError as error:
            words = [f"its results were not fetched from {self.cluster.home.origin}: {error}"]
            if is_machines_fault(error):  # of this machine: another run would meet it too
                return dataclasses.replace(event, outcome=Outcome("machine", "", words))
            return dataclasses.replace(event, kind="lost", outcome=Outcome("failed", "", words))
        return event

    def _look_after(self) -> None:
        """See to new machines, and to runs that no machine which is there may compute."""
        self.cluster.look_for_new()
        alive = self.cluster.alive()
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


def _compute(home: Home, spec: RunSpec, home_node: str, told: Any) -> Event:
    """A Ray task: compute a run on this machine."""
    import ray

    heed_cancel()
    at_home = is_here(home_node)
    origin = spec.origin
    if origin and at_home:
        origin = home.root
    cards = [str(card) for card in ray.get_gpu_ids()]
    own = dataclasses.replace(spec, origin=origin, cards=cards or spec.cards)

    def tell(what: Event | Live) -> None:
        told.put((spec.id, what))

    return elsewhere.compute(home, own, at_home, tell)
