"""Machines as blocks: what an arm does where its runs and the baseline's are on different hardware."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.formula.api as formula
from pandas import DataFrame

from paribus.study.machines import within_blocks


def test_the_effect_within_blocks_is_that_of_an_additive_model() -> None:
    """Against statsmodels' least squares, with unequal numbers in each block and a block of one arm alone."""
    random = np.random.default_rng(3)
    counts = {"a": (3, 1), "b": (2, 4), "c": (1, 1), "alone": (2, 0)}
    arm, baseline, rows = {}, {}, []
    for shift, (block, (n, m)) in enumerate(counts.items()):
        arm[block] = list(0.3 + shift + random.normal(size=n))
        baseline[block] = list(shift + random.normal(size=m))
        rows += [{"y": value, "arm": 1, "block": block} for value in arm[block]]
        rows += [{"y": value, "arm": 0, "block": block} for value in baseline[block]]
    shared = DataFrame([row for row in rows if row["block"] != "alone"])
    fitted = formula.ols("y ~ arm + C(block)", shared).fit()
    found = within_blocks(arm, baseline)
    assert found is not None
    low, high = fitted.conf_int().loc["arm"]
    assert (found.mean, found.low, found.high) == pytest.approx((fitted.params["arm"], low, high))
    assert found.blocks == 3


def test_a_shift_between_machines_is_no_effect() -> None:
    """Of values that only the machine changes, however unevenly the arms are spread."""
    found = within_blocks(
        {"a": [1.0, 1.1, 1.0], "b": [5.0]}, {"a": [1.0, 1.1], "b": [5.0, 5.1, 4.9]}
    )
    assert found is not None
    assert found.low < 0 < found.high
    assert abs(found.mean) < 0.1


def test_blocks_without_both_say_nothing() -> None:
    assert within_blocks({"a": [1.0, 2.0]}, {"b": [1.0, 2.0]}) is None
    assert within_blocks({"a": [1.0]}, {"a": [1.0]}) is None
