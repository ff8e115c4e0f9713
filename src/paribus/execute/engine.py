"""The interface between a study and what computes its runs: submit, poll, cancel, resources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from paribus.execute.run import Outcome, RunSpec
from paribus.run_id import RunId


@dataclass(frozen=True)
class Event:
    """An event in the life of a run.

    kind: started; stage (it begins `stage`); computed (it has `stage`, and others find it in DVC's cache); ended
    (with its `outcome`); lost (its process vanished without a report).
    machine: where it happened, as a person calls that machine; "" for this one.
    """

    run: RunId
    kind: Literal["started", "stage", "computed", "ended", "lost"]
    stage: str = ""
    outcome: Outcome | None = None
    machine: str = ""


@dataclass(frozen=True)
class Resources:
    """The resources of an engine: runs side by side, and the GPUs it deals out.

    device: what its runs train on, where that is not this machine's to say: cpu, cuda or mps; "" for this machine.
    """

    slots: int
    cards: tuple[str, ...]
    device: str = ""


class Engine(Protocol):
    """Computes the submitted runs in their order, as its resources allow."""

    def submit(self, spec: RunSpec, cards: int = 0, memory: int = 0) -> None:
        """Accept a run that needs `cards` GPUs for itself, and `memory` bytes of its machine (0: not known)."""

    def poll(self, seconds: float) -> Sequence[Event]:
        """The events since the last call; waits up to `seconds` for one."""

    def cancel(self, run: RunId) -> None:
        """Withdraw a waiting run; make a running one save its state and end, which is its outcome."""

    def resources(self) -> Resources:
        """The resources of this engine."""

    def close(self) -> None:
        """Cancel all runs, and return when they have ended."""
