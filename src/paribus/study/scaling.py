"""One dial at equal compute: the metric as a parabola in the logarithm of parameters, and the size at which it is best.

Source: Hoffmann et al. (2022), arXiv:2203.15556, approach 2 (profiles at equal FLOPs). Each seed has a parabola of its own,
as seeds are matched over the sizes; the interval of the best size is Student's t over the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
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
    """The metric as a parabola in log2(parameters).

    Attributes:
        key: that the arms change.
        sizes: parameters, rising.
        dial: the key's value at each size.
        values: (seeds, sizes), of the metric.
        coefficients: of the mean parabola, highest power first.
        scatter: root mean square distance of values from their own seed's parabola, for the degrees of freedom left; None:
            three sizes leave none.
        best: (parameters, low, high); None: an end of the sizes tried is the best of them, or a seed's parabola opens the
            wrong way.
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
        """The best size with its interval, or that there is none, in words; unit: of the metric."""
        dial = " / ".join(f"{value:g}" for value in self.dial)
        shape = f"a parabola in the logarithm of parameters, {self.key} {dial}"
        if self.scatter is not None:
            shape += f"; values lie {self.scatter:.4f} from it"
        if self.best is None:
            means = zip(self.sizes, self.values.mean(axis=0), strict=True)
            listed = ", ".join(f"{quantity(size)} {mean:.4f}" for size, mean in means)
            return f"No best size is bracketed at this compute; {unit} by parameters: {listed} ({shape})."
        best, low, high = self.best
        return (
            f"The best size at this compute is {quantity(best)} parameters (95 % interval over seeds {quantity(low)} to "
            f"{quantity(high)}), at {float(self.at(best)):.4f} {unit} ({shape})."
        )


def scaling(
    experiment: Experiment, arms: Sequence[ArmVerdict], results: Sequence[Result]
) -> Scaling | None:
    """Fit the parabola of a study.

    Args:
        experiment: the study.
        arms: their verdicts, the baseline left out.
        results: of all its runs that count.

    Returns:
        The fit; None unless FLOPs were held equal, every arm changes the same one number, and two seeds or more have values
        at three sizes or more.
    """
    if experiment.equal != "flops" or len(arms) < 2:
        return None
    keys = set[str]().union(*(arm.changed for arm in arms))
    if len(keys) != 1:
        return None
    key = keys.pop()
    dial = _dial(arms, key)
    sizes = _sizes(experiment, results, list(dial)) if dial else None
    if not dial or not sizes:
        return None
    values = {
        (result.arm, result.seed): result.value for result in results if result.value is not None
    }
    seeds = _whole_seeds(values, list(dial))
    if len(seeds) < 2:
        return None
    order = sorted(dial, key=lambda arm: sizes[arm])
    rows = [[values[arm, seed] for arm in order] for seed in seeds]
    return fit(
        key,
        [sizes[arm] for arm in order],
        [dial[arm] for arm in order],
        np.array(rows, float),
        experiment.direction,
    )


def _dial(arms: Sequence[ArmVerdict], key: str) -> dict[str, float] | None:
    """Arm, the baseline first -> its value of the key; None where one is not a number."""
    of_baseline, _ = arms[0].changed[key]
    settings = {BASELINE: of_baseline} | {arm.name: arm.changed[key][1] for arm in arms}
    dial = {}
    for arm, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        dial[arm] = float(value)
    return dial


def _whole_seeds(values: Collection[tuple[str, int]], arms: Sequence[str]) -> list[int]:
    """Seeds at which every arm has a value, in order. values: (arm, seed) of each value."""
    seeds = sorted({seed for _, seed in values})
    return [seed for seed in seeds if all((arm, seed) in values for arm in arms)]


def _sizes(
    experiment: Experiment, results: Sequence[Result], arms: Sequence[str]
) -> dict[str, float] | None:
    """Arm -> its parameters; None where one is not known, or two are of one size, through which no parabola goes."""
    sizes = {}
    for arm in arms:
        size = costs(experiment, results, arm)["parameters"]
        if not size:
            return None
        sizes[arm] = size
    return sizes if len(set(sizes.values())) == len(sizes) else None


def fit(
    key: str,
    sizes: Sequence[float],
    dial: Sequence[float],
    values: NDArray[np.float64],
    direction: str,
) -> Scaling:
    """A parabola for each seed, and their mean.

    Args:
        key: that the arms change.
        sizes: parameters of each arm; at least three that differ.
        dial: the key's value in each.
        values: (seeds, sizes), of at least two seeds.
        direction: "lower" or "higher" is better.
    """
    x = np.log2(np.asarray(sizes))
    parabolas = np.array([np.polyfit(x, row, 2) for row in values])
    fitted = np.array([np.polyval(parabola, x) for parabola in parabolas])
    degrees_of_freedom = (len(sizes) - 3) * len(values)
    scatter = None
    if degrees_of_freedom:
        scatter = math.sqrt(float(((values - fitted) ** 2).sum()) / degrees_of_freedom)
    return Scaling(
        key,
        list(sizes),
        list(dial),
        values,
        parabolas.mean(axis=0),
        scatter,
        _best(parabolas, x, values, direction),
    )


def _best(
    parabolas: NDArray[np.float64],
    x: NDArray[np.float64],
    values: NDArray[np.float64],
    direction: str,
) -> tuple[float, float, float] | None:
    """(parameters, low, high) of the best size; None where none is bracketed. x: log2 of the parameters, rising."""
    sign = 1 if direction == "lower" else -1
    if (sign * parabolas[:, 0] <= 0).any():
        return None
    best_tried = (sign * values.mean(axis=0)).argmin()
    if best_tried in (0, len(x) - 1):
        return None
    vertices = -parabolas[:, 1] / (2 * parabolas[:, 0])
    middle = float(vertices.mean())
    if not x.min() <= middle <= x.max():
        return None
    error = vertices.std(ddof=1) / math.sqrt(len(vertices))
    half = float(stats.t.isf(0.025, len(vertices) - 1) * error)
    return 2.0**middle, 2.0 ** (middle - half), 2.0 ** (middle + half)
