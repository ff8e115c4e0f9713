"""What `paribus verify` found out about a run: the certificate's facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from paribus.audit.agreement import Difference
from paribus.audit.band import Band

Verdict = Literal["bit-exact", "within noise", "consistent", "contradicted", "not reproduced"]
REPRODUCED = ("bit-exact", "within noise", "consistent")


@dataclass(frozen=True)
class Parting:
    """The first step at which two curves differ, and both values of the column."""

    step: int
    column: str
    recorded: object
    rebuilt: object


@dataclass(frozen=True)
class Outcome:
    """The outcome of running a stage again.

    measured: how many values of metrics/<stage>.json were compared. metrics: those that differ, key ->
    (recorded, rebuilt). again: where nothing recorded explains a difference, whether a second rebuild here is the same
    as the first.
    """

    steps: int
    finished: bool
    parted: Parting | None
    weights: tuple[str | None, str | None]  # recorded, rebuilt
    band: Band | None
    measured: int = 0
    metrics: Mapping[str, tuple[object, object]] = field(default_factory=dict)
    again: Literal["same", "different"] | None = None

    @property
    def same_weights(self) -> bool:
        """The weights are the same, as far as both are there."""
        recorded, rebuilt = self.weights
        return not self.finished or recorded is None or recorded == rebuilt

    @property
    def same_training(self) -> bool:
        """The curves and the weights are the same, as far as they could be compared."""
        return self.parted is None and self.same_weights

    @property
    def equal(self) -> bool:
        """Every bit that could be compared is the same."""
        return self.same_training and not self.metrics


@dataclass(frozen=True)
class About:
    """The run that is certified, by its own record."""

    name: str
    kind: str  # of name
    stage: str
    commit: str | None
    mlflow_run: str | None
    experiment: str  # MLflow's
    fingerprint: str
    data: Mapping[str, str]  # output -> DVC's name for it
    hardware: Mapping[str, object]
    requirements_lock: str | None
    git: Mapping[str, object]


@dataclass(frozen=True)
class Certificate:
    """A verdict on a run, and what it rests on."""

    verdict: Verdict
    causes: list[str]
    record: About
    differences: list[Difference]
    outcome: Outcome | None
    asked_steps: int | None  # None: all; 0: records only
    made: str
    seconds: float

    @property
    def reproduced(self) -> bool:
        """Whether the verdict is a good one."""
        return self.verdict in REPRODUCED

    def as_json(self) -> dict[str, Any]:
        """What the certificate's file holds."""
        return {"verdict": self.verdict, "reproduced": self.reproduced} | asdict(self)
