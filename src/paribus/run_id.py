"""The name of a run of a study, which its DVC experiment bears."""

from __future__ import annotations

import re
from dataclasses import dataclass

NAME = r"[a-z0-9][a-z0-9_-]*"  # of a study and of an arm: without the dot, which parts them


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
