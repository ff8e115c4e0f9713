"""One dial at equal compute: the metric as a parabola in the logarithm of parameters, and the size at which it is best.

Source: Hoffmann et al. (2022), arXiv:2203.15556, approach 2 (profiles at equal FLOPs). Each seed has a parabola of its own,
as seeds are matched over the sizes; the interval of the best size is Student's t over the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from paribus.study.experiment import BASELINE, Experiment
from paribus.study.results import Result
from paribus.study.verdict import ArmVerdict, costs
from paribus.text import quantity


@dataclass(frozen=True)
class Scaling:
    """sizes: parameters, rising; dial: its value at each; values (seeds, sizes) of the metric.

    coefficients: of the mean parabola in log2(parameters), highest power first. scatter: root mean square distance of values
    from their own seed's parabola, for the degrees of freedom left (None: three sizes leave none). best: (parameters, low,
    high), or None: an end of the sizes tried is the best of them, or a seed's parabola opens the wrong way.
    """

    key: str
    sizes: list[float]
    dial: list[float]
    values: NDArray[np.float64]
    coefficients: NDArray[np.float64]
    scatter: float | None
    best: tuple[float, float, float] | None

    def at(self, parameters: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean parabola."""
        return np.asarray(np.polyval(self.coefficients, np.log2(parameters)))

    def sentence(self, unit: str) -> str:
        shape = f"a parabola in the logarithm of parameters, {self.key} {' / '.join(f'{value:g}' for value in self.dial)}"
        scatter = f"; values lie {self.scatter:.4f} from it" if self.scatter is not None else ""
        if self.best is None:
            seen = zip(self.sizes, self.values.mean(axis=0), strict=True)
            means = ", ".join(f"{quantity(size)} {mean:.4f}" for size, mean in seen)
            return f"No best size is bracketed at this compute; {unit} by parameters: {means} ({shape}{scatter})."
        best, low, high = self.best
        return (
            f"The best size at this compute is {quantity(best)} parameters (95 % interval over seeds {quantity(low)} to "
            f"{quantity(high)}), at {float(self.at(best)):.4f} {unit} ({shape}{scatter})."
        )


def scaling(
    experiment: Experiment, found: Sequence[ArmVerdict], results: Sequence[Result]
) -> Scaling | None:
    """None unless FLOPs were held equal, every arm turns the same one number, and two seeds have three sizes or more."""
    keys = {key for arm in found for key in arm.changed}
    if experiment.equal != "flops" or len(keys) != 1 or len(found) < 2:
        return None
    key = keys.pop()
    changes = [arm.changed[key] for arm in found]
    dial = dict(
        zip(
            [BASELINE, *(arm.name for arm in found)],
            [changes[0][0], *(own for _, own in changes)],
            strict=True,
        )
    )
    if not all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in dial.values()
    ):
        return None
    values = {(one.arm, one.seed): one.value for one in results if one.value is not None}
    seeds = [
        seed
        for seed in sorted({one.seed for one in results})
        if all((arm, seed) in values for arm in dial)
    ]
    if len(seeds) < 2:
        return None
    sizes = {arm: size for arm in dial if (size := costs(experiment, results, arm)["parameters"])}
    if len(set(sizes.values())) < len(
        dial
    ):  # parabolas need the size of every arm, and sizes that differ
        return None
    order = sorted(dial, key=lambda arm: sizes[arm])
    return fit(
        key,
        [sizes[arm] for arm in order],
        [float(dial[arm]) for arm in order],
        np.array([[values[arm, seed] for arm in order] for seed in seeds], float),
        experiment.direction,
    )


def fit(
    key: str,
    sizes: Sequence[float],
    dial: Sequence[float],
    values: NDArray[np.float64],
    direction: str,
) -> Scaling:
    """values (seeds, sizes), at least two seeds and three different sizes."""
    x = np.log2(np.asarray(sizes))
    own = np.array([np.polyfit(x, row, 2) for row in values])
    left = len(sizes) - 3
    off = values - np.array([np.polyval(one, x) for one in own])
    scatter = math.sqrt(float((off**2).sum()) / (left * len(values))) if left else None
    return Scaling(
        key,
        list(sizes),
        list(dial),
        values,
        own.mean(axis=0),
        scatter,
        _best(own, x, values, direction),
    )


def _best(
    own: NDArray[np.float64], x: NDArray[np.float64], values: NDArray[np.float64], direction: str
) -> tuple[float, float, float] | None:
    sign = 1 if direction == "lower" else -1
    if (sign * own[:, 0] <= 0).any() or (sign * values.mean(axis=0)).argmin() in (0, len(x) - 1):
        return None
    places = -own[:, 1] / (2 * own[:, 0])
    if not x.min() <= places.mean() <= x.max():
        return None
    half = float(stats.t.isf(0.025, len(places) - 1) * places.std(ddof=1) / math.sqrt(len(places)))
    middle = float(places.mean())
    return 2.0**middle, 2.0 ** (middle - half), 2.0 ** (middle + half)
