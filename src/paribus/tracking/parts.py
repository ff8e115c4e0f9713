"""What MLflow has of a run, whole or in part, and which runs are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paribus.tracking.labels import GROUP

FINISHED = "FINISHED"
NAME = "mlflow.runName"  # the tag by which MLflow finds a name
PARENT = "mlflow.parentRunId"
NAMING_TAGS = ("stage", GROUP, "dvc.experiment")  # that the properties of a run read


@dataclass(frozen=True, kw_only=True)
class RunPart:
    """A run, with some of its tags and metrics."""

    id: str
    name: str
    status: str
    tags: dict[str, str]
    metrics: dict[str, float]  # the last value of each

    @property
    def stage(self) -> str | None:
        """The stage that the run stands for; None for a run of another kind."""
        return self.tags.get("stage")

    @property
    def is_execution(self) -> bool:
        """Whether it stands above the runs of stages: it is no stage's, and no study's, which stands above many."""
        return self.stage is None and GROUP not in self.tags

    @property
    def names(self) -> list[str]:
        """By which it is found: its own, and that of its DVC experiment."""
        experiment = self.tags.get("dvc.experiment")
        return [self.name, experiment] if experiment else [self.name]


@dataclass(frozen=True, kw_only=True)
class StoredRun(RunPart):
    """A run as MLflow has it, with all its tags and metrics."""

    params: dict[str, str]
    datasets: dict[str, str]  # name -> digest, as DVC has it
    artifacts: str  # the address of its files


@dataclass(frozen=True, kw_only=True)
class Question:
    """Which runs of an experiment: those that have every one of these tags, each with its value."""

    tags: Mapping[str, str] = field(default_factory=dict)
    finished: bool = False  # leaves out runs that failed or go on

    def as_filter(self) -> str:
        """The same for MLflow's search, whose texts hold one kind of quotation mark at most."""
        terms = [f"attributes.status = '{FINISHED}'"] if self.finished else []
        for key, value in self.tags.items():
            mark = '"' if "'" in value else "'"
            terms.append(f"tags.`{key}` = {mark}{value.replace(mark, '')}{mark}")
        return " and ".join(terms)
