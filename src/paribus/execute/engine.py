"""What a study asks of whatever runs it: submit, poll, cancel, resources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from paribus.execute.run import Outcome, RunId, RunSpec


@dataclass(frozen=True)
class Event:
    """Something that happened to a run.

    kind: started; stage (it begins `stage`); computed (it has `stage`, and others find it in DVC's cache); ended
    (`outcome` says how); lost (its process vanished without a word).
    """

    run: RunId
    kind: Literal["started", "stage", "computed", "ended", "lost"]
    stage: str = ""
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Resources:
    """What an engine has: runs side by side, and the GPUs it deals out."""

    slots: int
    cards: tuple[str, ...]


class Engine(Protocol):
    """Runs what is submitted, as its resources allow, in the order it was submitted."""

    def submit(self, spec: RunSpec, cards: int = 0) -> None:
        """Take a run, which needs that many GPUs for itself."""

    def poll(self, seconds: float) -> Sequence[Event]:
        """What happened since the last call; waits up to `seconds` for something to happen."""

    def cancel(self, run: RunId) -> None:
        """Take a waiting run back; have a running one save its state and end, which is its outcome."""

    def resources(self) -> Resources:
        """What there is."""

    def close(self) -> None:
        """Cancel everything, and return when all has ended."""
