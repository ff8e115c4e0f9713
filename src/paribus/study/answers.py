"""The outcomes of single items (GSM8K's problems, CORE's questions) of finished runs, arm beside baseline."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paribus.study.committed import CommittedFiles
from paribus.study.experiment import Metric
from paribus.study.power import Floats
from paribus.study.results import Result


@dataclass(frozen=True)
class Answers:
    """Outcomes of the same I items at each matched seed.

    Attributes:
        baseline, arm: a seed's outcomes (I,).
        tasks: (I,), the task of each item, where each task counts the same; None where every item does.
    """

    baseline: list[Floats]
    arm: list[Floats]
    tasks: NDArray[Any] | None

    @property
    def equal_clusters(self) -> bool:
        """Whether each task counts the same."""
        return self.tasks is not None


def answers_of(metric: Metric, pairs: Sequence[tuple[Result, Result]]) -> Answers | None:
    """The outcomes of arm and baseline; None where the metric is no mean over items, or a run did not keep the same ones.

    Args:
        metric: of the study.
        pairs: (baseline, arm) at each seed.
    """
    of_base: list[Floats] = []
    of_arm: list[Floats] = []
    tasks = None
    for base, own in pairs:
        base_items, own_items = items_of(metric, base), items_of(metric, own)
        if base_items is None or own_items is None:
            return None
        tasks = base_items[1]
        of_base.append(base_items[0])
        of_arm.append(own_items[0])
    lengths = {len(outcomes) for outcomes in [*of_base, *of_arm]}
    if len(lengths) != 1 or lengths <= {0, 1}:
        return None
    return Answers(of_base, of_arm, tasks)


def items_of(metric: Metric, result: Result) -> tuple[Floats, NDArray[Any] | None] | None:
    """The outcome of every item, where the metric is a mean over items.

    CORE: correct above guessing, (correct - baseline) / (1 - baseline), whose mean over tasks is the metric.

    Args:
        metric: of the study.
        result: of one of its runs.

    Returns:
        (outcomes (I,), the task of each or None); None for other metrics, and where the items are not kept.
    """
    core = metric.name == "core"
    if not core and not metric.name.startswith("gsm8k."):
        return None
    folder = Path("evals/core") if core else Path(metric.path).parent
    columns = _item_columns(result.experiment, str(folder / "items.parquet"), core)
    if columns is None:
        return None
    outcomes = np.asarray(columns["correct"], float)
    if not core:
        return outcomes, None
    tasks = np.asarray(columns["task"])
    guess = np.asarray([result.metrics["core"]["tasks"][task]["baseline"] for task in tasks])
    return (outcomes - guess) / (1 - guess), tasks


@functools.lru_cache(maxsize=1024)
def _item_columns(commit: str, path: str, core: bool) -> dict[str, object] | None:
    import pyarrow.parquet

    data = CommittedFiles(commit).data(path)
    if data is None:
        return None
    columns = pyarrow.parquet.read_table(io.BytesIO(data)).to_pydict()
    return {name: columns[name] for name in (("correct", "task") if core else ("correct",))}
