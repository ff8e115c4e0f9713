"""Which machine computed which run, and what an arm does where its runs and the baseline's are on different hardware.

Machines of one class of hardware compute the same bytes, so that only the class is a block: a kind of machine that may
shift every value measured on it. A matched pair on one class needs nothing; the shift cancels in its difference. Where pairs
are spread over classes (`mixed_hardware: true`), the arm's effect is taken within classes, by the additive model
value = arm + class + noise (a randomised block design, Fisher 1935).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from paribus.config import fingerprint
from paribus.study.experiment import BASELINE
from paribus.study.results import Result

_NOT_OF_A_CLASS = ("processes", "process_threads")  # a run may go on with another number of them


def block_of(result: Result) -> str:
    """A hash of the class of hardware that computed a run; "" where its provenance does not say."""
    hardware = result.provenance.hardware
    if not hardware:
        return ""
    deciding = {key: value for key, value in hardware.items() if key not in _NOT_OF_A_CLASS}
    return str(fingerprint(**deciding))


def ran_on(results: Iterable[Result]) -> str:
    """Each machine and the runs that it computed, in a line; "" where no run says."""
    runs: dict[str, list[str]] = {}
    for result in sorted(results, key=lambda result: (result.seed, result.arm)):
        if result.machine:
            runs.setdefault(result.machine, []).append(f"{result.arm}-s{result.seed}")
    return "; ".join(f"{machine}: {', '.join(names)}" for machine, names in sorted(runs.items()))


def straddling(results: Sequence[Result]) -> dict[str, list[int]]:
    """Arm -> seeds at which it and the baseline were computed on different classes of hardware."""
    baseline = {result.seed: block_of(result) for result in results if result.arm == BASELINE}
    found: dict[str, list[int]] = {}
    for result in results:
        other = baseline.get(result.seed)
        if other is not None and block_of(result) != other:
            found.setdefault(result.arm, []).append(result.seed)
    return found


@dataclass(frozen=True)
class Blocked:
    """The effect of an arm within blocks: arm - baseline, its interval, and the blocks that it rests on."""

    mean: float
    low: float
    high: float
    blocks: int


def within_blocks(
    arm: Mapping[str, Sequence[float]], baseline: Mapping[str, Sequence[float]], alpha: float = 0.05
) -> Blocked | None:
    """The least-squares effect of an arm in the additive model of arm and block.

    A block counts by how well both arms are there: n * m / (n + m) of n and m runs; one that has runs of one arm alone says
    nothing about the effect.

    Args:
        arm: block -> the values of its runs.
        baseline: the same of the baseline's.
        alpha: 1 - the level of the interval.

    Returns:
        The effect; None where no block has runs of both, or nothing is left to judge the spread by.
    """
    both = [block for block in arm if arm[block] and baseline.get(block)]
    count = sum(len(arm[block]) + len(baseline[block]) for block in both)
    degrees = count - len(both) - 1
    if not both or degrees < 1:
        return None
    weights, differences = [], []
    for block in both:
        n, m = len(arm[block]), len(baseline[block])
        weights.append(n * m / (n + m))
        differences.append(float(np.mean(arm[block]) - np.mean(baseline[block])))
    total = sum(weights)
    mean = float(np.dot(weights, differences)) / total
    spread = math.sqrt(_residual(arm, baseline, both, mean) / degrees)
    reach = float(stats.t.ppf(1 - alpha / 2, degrees)) * spread / math.sqrt(total)
    return Blocked(mean, mean - reach, mean + reach, len(both))


def _residual(
    arm: Mapping[str, Sequence[float]],
    baseline: Mapping[str, Sequence[float]],
    blocks: Sequence[str],
    effect: float,
) -> float:
    """The sum of squares that arm and block leave unexplained."""
    left = 0.0
    for block in blocks:
        without_effect = np.concatenate(
            [np.asarray(arm[block]) - effect, np.asarray(baseline[block])]
        )
        left += float(np.sum((without_effect - without_effect.mean()) ** 2))
    return left


def notes(results: Sequence[Result], smallest_effect: float) -> list[str]:
    """A sentence for each arm whose pairs are spread over classes of hardware, with its effect within classes."""
    sentences = []
    for arm, seeds in straddling(results).items():
        effect = within_blocks(_by_block(results, arm), _by_block(results, BASELINE))
        within = "no class has runs of both, so that nothing tells the two apart"
        if effect is not None:
            within = (
                f"within classes the effect is {effect.mean:+.{_digits(smallest_effect)}f} "
                f"(95% interval {effect.low:+.{_digits(smallest_effect)}f} to {effect.high:+.{_digits(smallest_effect)}f})"
            )
        sentences.append(
            f"{arm}: at {len(seeds)} of its seeds it and the baseline were computed on different classes of hardware, whose "
            f"difference adds to that of the arms; {within}"
        )
    return sentences


def _by_block(results: Sequence[Result], arm: str) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for result in results:
        if result.arm == arm and result.value is not None:
            values.setdefault(block_of(result), []).append(result.value)
    return values


def _digits(smallest_effect: float) -> int:
    """Digits that show a tenth of the smallest effect that matters."""
    return max(1 - math.floor(math.log10(smallest_effect)), 1)
