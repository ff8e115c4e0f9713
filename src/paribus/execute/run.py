"""A run's name, its specification and its outcome."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from paribus.journal import read_json, write_json

NAME = r"[a-z0-9][a-z0-9_-]*"  # of a study and of an arm: without the dot, which parts them
LONGEST_NAME = 60  # letters; study, arm, seed and "-was-COMMIT" make one file name below refs/exps

State = Literal["done", "paused", "refused", "failed", "machine", "busy"]

# Lines `Name: value` at the end of an experiment's message.
ASKED_FOR = "Asked-For"  # the key of the specification
RAN_ON = "Ran-On"  # the machine's name
COMPARED_WITH = "Compared-With"  # the baseline's commit, where the run's arm has code of its own
STUDY_FILE = "Study-File"  # git's hash of the study's file, where the run's commit may lack it

ASKED_TO_SAY = (
    "PARIBUS_SAY"  # the environment variable with the file in which a stage writes why it ended
)


# ---------------------------------------------------------------- its name


@dataclass(frozen=True, order=True)
class RunId:
    """One arm of one study at one seed."""

    study: str
    arm: str
    seed: int

    def experiment_name(self) -> str:
        """The name of its DVC experiment: `STUDY.ARM.sSEED`. `parse_experiment_name` is the inverse."""
        return f"{self.study}.{self.arm}.s{self.seed}"

    def __str__(self) -> str:
        return self.experiment_name()


_EXPERIMENT = re.compile(rf"({NAME})\.({NAME})\.s(\d+)(-was-[0-9a-f]+)?")


def parse_experiment_name(name: str) -> tuple[RunId, bool] | None:
    """The run that a DVC experiment is named after, and whether it was superseded (`…-was-COMMIT`); None for others."""
    match = _EXPERIMENT.fullmatch(name)
    if match is None:
        return None
    study, arm, seed, superseded = match.groups()
    return RunId(study, arm, int(seed)), superseded is not None


# ---------------------------------------------------------------- its specification


@dataclass(frozen=True)
class RunSpec:
    """Everything that a worker needs to compute a run.

    Attributes:
        id: study, arm and seed of the run.
        commit: the code and params.yaml it starts from.
        overrides: dotted keys of params.yaml and their values.
        stages: the chain of dvc.yaml to reproduce, in order.
        key: names what the parameters make of the chain; kept in the experiment's message, so that a result can be
            compared with what was requested.
        cards: GPUs it may use; None: leave the environment as it is.
        origin: the git repository that several machines share, by its address. Inputs then come from the DVC remote, and
            outputs and training states go there; "": everything is on this machine.
        state_minutes: between two copies of the training state in the DVC remote.
        notes: further lines of the experiment's message, name -> value.
        kept: whether the results become an experiment; a trial start leaves none.
    """

    id: RunId
    commit: str
    overrides: dict[str, Any]
    stages: list[str]
    key: str
    cards: list[str] | None = None
    origin: str = ""
    state_minutes: float = 10.0
    notes: dict[str, str] = field(default_factory=dict)
    kept: bool = True

    def write(self, path: Path) -> None:
        """Write the specification to `path` as JSON."""
        write_json(path, dataclasses.asdict(self))

    @staticmethod
    def read(path: Path) -> RunSpec:
        """Read a specification that `write` left at `path`.

        Raises OSError where there is none.
        """
        raw = json.loads(path.read_text(encoding="utf-8"))
        return RunSpec(**raw | {"id": RunId(**raw["id"])})


def folder_of_run(state_root: Path, run: RunId) -> Path:
    """Where a run's specification, log, outcome and clone are: `.paribus/execute/STUDY/ARM-sSEED`."""
    return state_root / "execute" / run.study / f"{run.arm}-s{run.seed}"


# ---------------------------------------------------------------- its outcome


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        state: done; paused (it was asked to stop and can resume from its state); refused (its values are wrong, or it
            diverged: a retry would end the same); failed (another reason); machine (no space, no access: not the run's fault);
            busy (another process computes the same at this moment).
        stage: the stage in which it ended.
        problems: messages, one for each problem.
        diverged: whether it was refused for values that are not finite.
        experiment: the commit of its DVC experiment, where it is done.
    """

    state: State
    stage: str = ""
    problems: list[str] = field(default_factory=list)
    diverged: bool = False
    experiment: str | None = None

    def write(self, path: Path) -> None:
        """Write the outcome to `path` as JSON."""
        write_json(path, dataclasses.asdict(self))

    @staticmethod
    def read(path: Path) -> Outcome | None:
        """The outcome in a file; None where the file is missing, or torn by a power cut."""
        try:
            raw = read_json(path)
            return None if raw is None else Outcome(**raw)
        except (ValueError, TypeError):
            return None


# ---------------------------------------------------------------- a stage's own report


def say_why(error: Exception) -> None:
    """Report the error that ends this command to the run it belongs to, if any."""
    place = os.environ.get(ASKED_TO_SAY)
    if place:
        problems = getattr(error, "problems", [str(error)])
        write_json(Path(place), {"kind": type(error).__name__, "problems": list(problems)})


def said(place: Path) -> tuple[str, list[str]]:
    """(kind of error, problems) that a stage reported; ("", []) without a report."""
    try:
        raw = read_json(place)
        if raw is None:
            return "", []
        return str(raw["kind"]), [str(problem) for problem in raw["problems"]]
    except (ValueError, KeyError, TypeError):
        return "", []
