"""A verdict on anybody's table of results: `paribus judge`, and the same as a function.

    import paribus

    judgement = paribus.judge(frame, arm="recipe", metric="val_loss", baseline="adamw", pair_by="seed")
    for one in judgement.comparisons:
        print(one.arm, one.verdict, one.difference, one.low, one.high, one.p_adjusted)

The package can be called because that is all that most users want of it; `from paribus.judge import judge` names the same
function.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Unpack

from paribus.judge.options import Asked, Options
from paribus.judge.runs import read_runs
from paribus.judge.table import Table, opened
from paribus.judge.verdicts import Comparison, Judgement, judge_runs
from paribus.judge.words import as_json, sentence, summary

__all__ = ["Comparison", "Judgement", "Options", "as_json", "judge", "sentence", "summary"]


def judge(table: Table, **options: Unpack[Asked]) -> Judgement:
    """The verdict on every arm of a table of results.

    Args:
        table: a pandas or polars frame, a mapping of columns to values, the path of a CSV, TSV, JSON lines or parquet file,
            or "mlflow:EXPERIMENT".
        options: by the names of `Options`: arm, metric, baseline, pair_by, block, smallest_effect, …

    Returns:
        The judgement: its comparisons in the order of the arms, its arms, its notes. `as_json`, `summary` and `sentence`
        word it.

    Raises:
        paribus.errors.UserError: with everything that is wrong with the options, the columns or the rows.
    """
    asked = Options.of(**options)
    source = opened(table)
    return judge_runs(read_runs(source, asked), asked, source.name)


class _CallableModule(ModuleType):
    """Makes `paribus.judge(frame, …)` the function, and leaves `paribus.judge` the package."""

    def __call__(self, table: Table, **options: Unpack[Asked]) -> Judgement:
        return judge(table, **options)


sys.modules[__name__].__class__ = _CallableModule
