"""Divergence is an outcome: runs without a finite value are counted, and no verdict rests on the survivors alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from paribus.study.events import GivenUp
from paribus.study.experiment import BASELINE, Run
from paribus.study.results import Result
from paribus.study.statistics import Effect

Diverged = Mapping[str, Sequence[int]]  # arm -> the seeds at which it diverged


@dataclass(frozen=True)
class Survivors:
    """Counts for an arm's comparison: runs of the arm and of the baseline that diverged, and that ended."""

    arm: int
    arm_of: int
    baseline: int
    baseline_of: int

    def sentence(self, name: str) -> str:
        """`a diverged 2 of 5`; "" where nothing did."""
        parts = []
        if self.arm:
            parts.append(f"{name} diverged {self.arm} of {self.arm_of}")
        if self.baseline:
            parts.append(f"the baseline diverged {self.baseline} of {self.baseline_of}")
        return " and ".join(parts)


def diverged_seeds(
    results: Sequence[Result], runs: Sequence[Run], failures: Mapping[str, GivenUp]
) -> dict[str, list[int]]:
    """Arm -> seeds that ended without a finite value: refused on the way, or with a metric that is not finite.

    Args:
        results: of the runs that ended.
        runs: the requested ones.
        failures: why runs were given up, by the run's name.
    """
    seeds_of: dict[str, set[int]] = {}
    for result in results:
        if result.diverged:
            seeds_of.setdefault(result.arm, set()).add(result.seed)
    for run in runs:
        if run.name in failures and failures[run.name].diverged:
            seeds_of.setdefault(run.arm, set()).add(run.seed)
    return {arm: sorted(seeds) for arm, seeds in seeds_of.items()}


def survivors(results: Sequence[Result], diverged: Diverged, arm: str) -> Survivors:
    """How many seeds diverged, of an arm and of the baseline it is compared with.

    Args:
        results: of the runs that ended.
        diverged: arm -> seeds that diverged.
        arm: its name.
    """

    def of(name: str) -> tuple[int, int]:
        lost = set(diverged.get(name, ()))
        ended = {result.seed for result in results if result.arm == name} | lost
        return len(lost), len(ended)

    return Survivors(*of(arm), *of(BASELINE))


def withheld(effect: Effect, counts: Survivors) -> Effect:
    """Return the effect, undecided where its verdict would rest on the surviving seeds.

    The remaining seeds do not make an arm that lost seeds better, nor an arm beside a baseline that lost seeds worse;
    neither arm is equivalent. A verdict in the other direction holds: the lost seeds could only strengthen it.

    Args:
        effect: over the seeds that survived.
        counts: of the seeds that did and did not.
    """
    doubtful = set()
    if counts.arm:
        doubtful |= {"better", "equivalent"}
    if counts.baseline:
        doubtful |= {"worse", "equivalent"}
    return replace(effect, verdict="undecided") if effect.verdict in doubtful else effect
