"""A run's name, its specification and its outcome."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from paribus.journal import read_json, write_json
from paribus.run_id import RunId

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
