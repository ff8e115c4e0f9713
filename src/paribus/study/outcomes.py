"""How the runs of a study ended: with a value, without a finite one (diverged), or not at all (given up)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from paribus.study.divergence import Diverged, diverged_seeds
from paribus.study.events import GivenUp
from paribus.study.experiment import Run
from paribus.study.results import Result


@dataclass(frozen=True)
class Outcomes:
    """How the runs of a study ended.

    Attributes:
        results: of the runs that ended and count.
        diverged: arm -> seeds that ended without a finite value.
        lost: arm -> seeds that were given up for another reason.
    """

    results: Sequence[Result]
    diverged: Diverged = field(default_factory=dict)
    lost: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, results: Sequence[Result], runs: Sequence[Run], failures: Mapping[str, GivenUp]
    ) -> Outcomes:
        """The outcomes of a study.

        Args:
            results: of the runs that count.
            runs: that the study asks for.
            failures: why runs were given up, by the run's name.
        """
        diverged = diverged_seeds(results, runs, failures)
        lost: dict[str, list[int]] = {}
        for run in runs:
            if run.name in failures and run.seed not in diverged.get(run.arm, ()):
                lost.setdefault(run.arm, []).append(run.seed)
        return cls(results, diverged, lost)

    def ended(self, arm: str) -> set[int]:
        """The seeds at which an arm needs no further run."""
        with_result = {result.seed for result in self.results if result.arm == arm}
        return with_result | set(self.diverged.get(arm, ())) | set(self.lost.get(arm, ()))

    def upto(self, seed: int) -> Outcomes:
        """Those of the seeds up to and with `seed`."""
        results = [result for result in self.results if result.seed <= seed]
        return replace(
            self,
            results=results,
            diverged=_upto(self.diverged, seed),
            lost=_upto(self.lost, seed),
        )


def _upto(seeds_of: Mapping[str, Sequence[int]], seed: int) -> dict[str, list[int]]:
    """Arm -> those of its seeds that are at most `seed`; arms without one are left out."""
    kept = {}
    for arm, seeds in seeds_of.items():
        early = [one for one in seeds if one <= seed]
        if early:
            kept[arm] = early
    return kept
