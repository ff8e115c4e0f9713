"""An effect in compute on a page: what arm and baseline take and need, in tokens, FLOPs and seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from paribus.study.compute import UNIT_WORDS, InCompute
from paribus.study.saved import Amount
from paribus.text import percent, quantity


def worth_rows(worth: Mapping[str, InCompute]) -> list[list[str]]:
    """A row for each arm and unit: what the arm took, what the baseline needs, what the arm needs, and the share saved.

    Args:
        worth: arm -> its effect in compute.
    """
    rows = []
    for arm, one in worth.items():
        for each in one.worth:
            rows.append(
                [
                    arm,
                    UNIT_WORDS[each.unit],
                    quantity(each.arm_took),
                    _interval(each.baseline_needs, quantity),
                    quantity(each.baseline_took),
                    _interval(each.arm_needs, quantity),
                    _interval(each.saved, percent),
                ]
            )
    return rows


def _interval(amount: Amount, write: Callable[[float], str]) -> str:
    if amount.estimate is None:
        return "not known"
    ends = ["no bound" if end is None else write(end) for end in (amount.low, amount.high)]
    return f"{write(amount.estimate)} ({ends[0]} to {ends[1]})"
