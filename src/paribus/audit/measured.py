"""The metrics of two runs, or sets of seeds, with an interval wherever items or seeds give one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from paribus.journal import plain
from paribus.study.finished import CHECKPOINTS, FinishedRun

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from paribus.study.items import ItemEffect

ALPHA = 0.05
ITEMS = {"core.core": "evals/core/items.parquet"} | {
    f"gsm8k.{path.removeprefix('checkpoints/')}.accuracy": f"evals/gsm8k/{path.removeprefix('checkpoints/')}/items.parquet"
    for path in CHECKPOINTS.values()
}
_HELPERS = re.compile(
    r"\.(ci_low|ci_high|n|stderr|\w+_stderr|baseline|population)$|\.tasks\.|\.by_steps\.|\.paired\.|\.seconds$"
)
RunPair = tuple[FinishedRun, FinishedRun]
Item = tuple[str, int]  # task, index


@dataclass(frozen=True)
class Measured:
    """A metric of both sides: their means, B - A with its 95 % interval and p where there is one, and where it comes from.

    low, high and p are of this metric alone; p_adjusted is p after Holm over all metrics of the comparison that have one.
    """

    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    how: str
    p_adjusted: float | None = None

    def as_json(self) -> dict[str, object]:
        """Its fields; infinite bounds as JSON has them."""
        return {key: plain(value) for key, value in vars(self).items()}

    @property
    def equal(self) -> bool:
        """Whether it is the same in A and B, item by item where there are items."""
        return not self.difference and self.low == self.high


def measured(a: Sequence[FinishedRun], b: Sequence[FinishedRun]) -> dict[str, Measured]:
    """Every metric that all runs have: name -> what it is in A and in B.

    Items decide where both sides answered the same ones, otherwise matched seeds.

    Args:
        a: one run, or several seeds of it.
        b: the same.
    """
    shared = set.intersection(*[set(run.numbers) for run in [*a, *b]])
    pairs = _matched(a, b)
    metrics = {}
    for name in sorted(shared):
        if _HELPERS.search(name):
            continue
        by_items = _by_items(name, pairs) if name in ITEMS else None
        metrics[name] = by_items or _by_seeds(name, a, b, pairs)
    return adjusted(metrics)


def adjusted(metrics: Mapping[str, Measured]) -> dict[str, Measured]:
    """The metrics with p after Holm over those that have one: that any falsely is at most ALPHA has a chance of ALPHA.

    Args:
        metrics: name -> what it is in A and in B.
    """
    p_values = {name: metric.p for name, metric in metrics.items() if metric.p is not None}
    if not p_values:
        return dict(metrics)
    from paribus.study.statistics import holm

    over_metrics = holm(p_values)
    return {
        name: replace(metric, p_adjusted=over_metrics.get(name)) for name, metric in metrics.items()
    }


def _matched(a: Sequence[FinishedRun], b: Sequence[FinishedRun]) -> list[RunPair]:
    """Pairs of runs with the same seed; a single run on each side makes a pair whatever their seeds."""
    if len(a) == 1 and len(b) == 1:
        return [(a[0], b[0])]
    of_b = {run.params.get("seed"): run for run in b}
    pairs = []
    for run in a:
        seed = run.params.get("seed")
        if seed in of_b:
            pairs.append((run, of_b[seed]))
    return pairs


def _mean(name: str, runs: Sequence[FinishedRun]) -> float:
    return sum(run.numbers[name] for run in runs) / len(runs)


def _by_seeds(
    name: str, a: Sequence[FinishedRun], b: Sequence[FinishedRun], pairs: Sequence[RunPair]
) -> Measured:
    of_a, of_b = _mean(name, a), _mean(name, b)
    if len(pairs) < 2:
        one_seed = len(a) == 1 and len(b) == 1
        how = "no interval: " + ("one seed" if one_seed else "fewer than two matched seeds")
        return Measured(of_a, of_b, of_b - of_a, None, None, None, how)
    from paribus.study.statistics import effects

    differences = [y.numbers[name] - x.numbers[name] for x, y in pairs]
    # Only mean, interval and p are used: without a smallest effect of interest there is no verdict.
    effect = effects({name: differences}, direction="lower", smallest_effect=1.0, alpha=ALPHA)[name]
    if effect.stdev == 0:
        how = f"no interval: the same difference at {effect.n} matched seeds"
        return Measured(of_a, of_b, effect.mean, None, None, None, how)
    how = f"{effect.n} matched seeds, paired t"
    return Measured(of_a, of_b, effect.mean, effect.low, effect.high, effect.p, how)


def _by_items(name: str, pairs: Sequence[RunPair]) -> Measured | None:
    """Compare by item; None where items are not kept, or are not the same ones."""
    if not pairs or _other_questions(pairs):
        return None
    of_a = [_outcomes(name, x) for x, _ in pairs]
    of_b = [_outcomes(name, y) for _, y in pairs]
    items = of_a[0].keys()
    if not items or any(outcomes.keys() != items for outcomes in [*of_a, *of_b]):
        return None
    import numpy

    from paribus.study.items import item_effect

    keys = sorted(items)
    in_tasks = name.startswith("core")
    effect = item_effect(
        [_in_order(outcomes, keys) for outcomes in of_a],
        [_in_order(outcomes, keys) for outcomes in of_b],
        numpy.array([task for task, _ in keys]) if in_tasks else None,
        alpha=ALPHA,
        equal_clusters=in_tasks,
    )
    runs_a, runs_b = zip(*pairs, strict=True)
    return Measured(
        _mean(name, runs_a),
        _mean(name, runs_b),
        effect.mean,
        effect.low,
        effect.high,
        effect.p if effect.mcnemar_p is None else effect.mcnemar_p,
        _how_of_items(effect, in_tasks),
    )


def _in_order(outcomes: Mapping[Item, float], keys: Sequence[Item]) -> NDArray[np.float64]:
    import numpy

    return numpy.array([outcomes[key] for key in keys], dtype=float)


def _how_of_items(effect: ItemEffect, in_tasks: bool) -> str:
    """The origin of an interval by items, in words."""
    how = f"{effect.items} items"
    if effect.mcnemar_p is not None:
        how = f"McNemar, {how}"
    if in_tasks:
        how += f" in {effect.units} tasks"
    if effect.seeds > 1:
        return f"{how}, {effect.seeds} matched seeds"
    return f"{how}; one seed, so the noise of seeds is not in it"


def _other_questions(pairs: Sequence[RunPair]) -> bool:
    """Whether the runs read different data, in which the same names belong to other questions."""
    versions = set()
    for pair in pairs:
        versions |= {run.data["data/corpus"] for run in pair if "data/corpus" in run.data}
    return len(versions) > 1


def _outcomes(name: str, run: FinishedRun) -> dict[Item, float]:
    """(task, index) -> outcome. CORE's are over 1 - the task's baseline, so that their mean over tasks differs as CORE does."""
    path = run.files.place(ITEMS[name])
    if path is None:
        return {}
    import pyarrow.parquet

    outcomes = {}
    for row in pyarrow.parquet.read_table(path).to_pylist():
        if name.startswith("core"):
            task = row["task"]
            above_guessing = 1 - run.numbers.get(f"core.tasks.{task}.baseline", 0.0)
            outcomes[(task, row["index"])] = row["correct"] / above_guessing
        else:
            outcomes[("", row["index"])] = float(row["correct"])
    return outcomes
