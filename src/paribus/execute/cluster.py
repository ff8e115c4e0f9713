"""The machines of a Ray cluster: connecting to it, and looking what each machine is and lacks."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paribus
from paribus.config import Train
from paribus.errors import UserError
from paribus.execute import elsewhere
from paribus.execute.elsewhere import Found, Home
from paribus.execute.settings import Settings
from paribus.git import filled_submodules, git
from paribus.optional import require

NODE = "ray.io/node-id"  # the label that Ray gives each machine
NOTE = Path("/tmp/ray/ray_current_cluster")  # in which `ray start` notes the head
KNOCK_SECONDS = 10.0
BEST_FIRST = ("cuda", "mps", "cpu")


def connect(address: str) -> Any:
    """Ray, connected to its cluster.

    Args:
        address: HOST:PORT of the cluster's head; "" for the one that this machine belongs to.

    Raises:
        UserError: the package ray is absent, or no cluster answers there.
    """
    require("ray", "--engine ray")
    import ray

    if ray.is_initialized():
        return ray
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    package = str(Path(paribus.__file__).resolve().parent)
    where = address or "this machine"
    try:
        _knock(address or _own_head())
        ray.init(
            address=address or "auto",
            runtime_env={"py_modules": [package]},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray raises its own, ConnectionError, RuntimeError, ValueError
        words = " ".join(str(error).split()) or type(error).__name__
        if not address and "Could not find any running Ray" in words:
            words = "no Ray runs here"
        begin = "`ray start --head` begins a cluster, `ray start --address=HOST:PORT` joins one"
        raise UserError(
            f"--engine ray: no cluster of {where} can be used: {words[:300]}; {begin} (this machine has to be part of "
            "it; docs/machines.md)"
        ) from None
    return ray


def _own_head() -> str:
    """HOST:PORT of the head that this machine's Ray was started with; "" where Ray has noted none."""
    named = os.environ.get("RAY_ADDRESS", "")
    if not named and NOTE.is_file():
        named = NOTE.read_text(encoding="utf-8").strip()
    return named


def _knock(head: str) -> None:
    """Raises OSError where nothing listens at HOST:PORT, for which Ray itself would wait minutes."""
    host, _, port = head.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()


def computing(ray: Any) -> dict[str, dict[str, Any]]:
    """Node -> what Ray says of it, of the machines that are there and compute."""
    found = {}
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU", 0) > 0:
            found[str(node["NodeID"])] = node
    return found


@dataclass(frozen=True)
class Needs:
    """What a run takes of its machine: CPU threads, GPUs, bytes of memory (0: not known)."""

    threads: int = 1
    cards: int = 0
    memory: int = 0


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


class Cluster:
    """The machines that can compute the runs of one study.

    Args:
        ray: connected to the cluster.
        root: the main checkout.
        settings: of execute.yaml.
        train: settings of the runs, by which the machines' hardware is chosen.
        commits: the code of the runs.

    Attributes:
        home: what other machines need to know of this one.
        home_node: Ray's name for this machine.
        shared: whether another machine may compute, so that inputs and outputs go through git and the DVC remote.
        machines: node -> the machine, of those that lacked nothing.

    Raises:
        UserError: with everything that any machine lacks.
    """

    def __init__(
        self, ray: Any, root: Path, settings: Settings, train: Train, commits: Sequence[str]
    ) -> None:
        self.ray, self.train, self._commits = ray, train, list(commits)
        self.home = _home(root, settings)
        self.home_node = str(ray.get_runtime_context().get_node_id())
        self.machines: dict[str, Machine] = {}
        self._refused: set[str] = set()  # nodes that lack something, or failed
        self._examined: dict[str, Any] = {}  # node -> the task that looks at it
        self.shared = self._has_others()
        self._begin()

    def _has_others(self) -> bool:
        alone = set(self.alive()) <= {self.home_node}
        if not alone and not self.home.origin:
            raise UserError(
                "--engine ray: other machines need a git repository to get the code from: `git remote add origin …`, or "
                "`git: ssh://HOST/FOLDER` in execute.yaml (docs/machines.md)"
            )
        return not alone

    def _begin(self) -> None:
        problems: list[str] = []
        for found in self._look_at(self.alive(), wait=True):
            problems += found.problems
            for warning in found.warnings:
                print(f"warning: {warning}", file=sys.stderr)
        if problems:
            raise UserError(problems)

    # ------------------------------------------------------------ which machines there are

    def alive(self) -> dict[str, dict[str, Any]]:
        """Node -> what Ray says of it, of the machines that are there and compute."""
        return computing(self.ray)

    def able(self) -> list[Machine]:
        """The machines that may be given a run now."""
        alive, device = self.alive(), self.device()
        return [
            machine
            for node, machine in self.machines.items()
            if node in alive and node not in self._refused and machine.found.device == device
        ]

    def device(self) -> str:
        """What runs train on: the best device that any machine has."""
        there = {machine.found.device for machine in self.machines.values()}
        return next((device for device in BEST_FIRST if device in there), "cpu")

    def cards(self) -> int:
        """GPUs of a run: one for each of its processes; none on a CPU."""
        return self.train.processes if self.device() == "cuda" else 0

    def is_home(self, name: str) -> bool:
        """Whether a machine, by its name, is this one."""
        machine = self.machines.get(self.home_node)
        return machine is not None and machine.found.name == name

    def refuse(self, name: str) -> None:
        """Give a machine, by its name, no more runs."""
        faulty = [node for node, known in self.machines.items() if known.found.name == name]
        self._refused.update(faulty)

    def look_for_new(self) -> None:
        """Look at machines that have joined, without waiting for their answer; the next call may have it."""
        known = self.machines.keys() | self._refused
        new = {node: about for node, about in self.alive().items() if node not in known}
        if new and not self.shared:
            print(
                "warning: a machine joined a study that began on one alone, without sharing data; it gets runs when the "
                "study is called again",
                file=sys.stderr,
            )
            self._refused.update(new)
            return
        for found in self._look_at(new, wait=False):
            for problem in found.problems:
                print(f"warning: {problem}; it gets no runs", file=sys.stderr)

    def _look_at(self, nodes: dict[str, dict[str, Any]], wait: bool) -> list[Found]:
        """What machines are, of those that have answered by now; those that lack nothing join the machines."""
        for node in nodes:
            if node not in self._examined:
                task = self.ray.remote(num_cpus=0, max_calls=1)(_examine)
                there = task.options(scheduling_strategy=self.only_on(node))
                self._examined[node] = there.remote(
                    self.home, self.train, self._commits, self.home_node, self.shared
                )
        answers = []
        for node, about in nodes.items():
            found = self._answer(node, about, wait)
            if found is None:
                continue
            answers.append(found)
            if found.problems:
                self._refused.add(node)
            else:
                self.machines[node] = Machine(node, found, dict(about["Resources"]))
        return answers

    def _answer(self, node: str, about: dict[str, Any], wait: bool) -> Found | None:
        """What a machine says of itself; None where it has not answered yet."""
        task = self._examined[node]
        ready, _ = self.ray.wait([task], timeout=None if wait else 0)
        if not ready:
            return None
        try:
            found: Found = self.ray.get(task)
            return found
        except Exception as error:  # Ray's own, with what the machine raised
            words = " ".join(str(error).split())[-300:]
            name = about.get("NodeName") or node[:8]
            return Found(name, problems=[f"{name}: cannot run paribus: {words}"])

    def only_on(self, node: str) -> Any:
        """Ray's strategy that places a task on one machine, or not at all."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node, soft=False)


def _home(root: Path, settings: Settings) -> Home:
    from paribus.tracking.address import is_server, public_uri, tracking_uri

    uri = tracking_uri()
    project = git("rev-parse", "--show-prefix", at=root)
    server = public_uri(uri) if is_server(uri) else ""
    top = Path(git("rev-parse", "--show-toplevel", at=root))
    submodules = tuple(filled_submodules(top))
    return Home(str(root), project, settings.git, server, settings.state_minutes, submodules)


def _examine(
    home: Home, train: Train, commits: Sequence[str], home_node: str, shared: bool
) -> Found:
    """A Ray task: look what this machine is and lacks."""
    return elsewhere.examine(home, train, commits, is_here(home_node), shared)


def heed_cancel() -> None:
    """In a task: let Ray cancel it. It does so by an interrupt, which is ignored below a `ray start` in a shell's background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def is_here(node: str) -> bool:
    """Whether this process, a task of Ray's, is on that machine."""
    import ray

    return str(ray.get_runtime_context().get_node_id()) == node
