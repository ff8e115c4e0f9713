"""How strict the next test has to be, so that of everything that is kept few are noise: online false-discovery control.

The procedure is ADDIS (Tian & Ramdas 2019, "ADDIS: an adaptive discarding algorithm for online FDR control with
conservative nulls"), as PyPI's `online-fdr` has it. A stream of tries has an error budget. Every test that might be noise
uses some of it up, every kept change earns some back. A change that looks worse (its p-value is above DISCARDED) uses up
nothing, nor does one that looks promising (below CANDIDATE).

What it assumes: a p-value of a change that is no better is uniform or larger, and independent of the p-values before it.
Tries on one baseline share its runs, so they are not independent; `benchmarks/tries.py` measures what that does.
"""

from __future__ import annotations

import math

from online_fdr.p_values.investing.addis.addis import Addis

# Of the values tried in benchmarks/tries.py these find most at the same false keeps. A p-value over several looks has an
# atom just above DISCARDED (a change that never crossed half of its smallest boundary), which the paper's 0.5 would count.
DISCARDED = 0.25
CANDIDATE = 0.1
FIRST_SHARE = 0.5  # of the budget: what may be used up before the first change is kept


class ErrorBudget:
    """The budget of one stream of tries.

    Args:
        false_keeps: the share of noise among everything that is kept.
    """

    def __init__(self, false_keeps: float) -> None:
        self._addis = Addis(
            alpha=false_keeps,
            wealth=FIRST_SHARE * false_keeps,
            lambda_=CANDIDATE,
            tau=DISCARDED,
        )

    def level(self) -> float:
        """The level of the next test, one-sided: a change with a p-value up to it may be kept."""
        return float(self._addis.calc_alpha_t())

    def note(self, p: float | None, kept: bool) -> None:
        """Take note of a test, in the order in which the tests began.

        Args:
            p: its one-sided p-value; None while it is under way, which counts as the dearest outcome.
            kept: whether the change was kept.
        """
        if kept:
            self._addis.test_one(0.0)
            return
        dearest = DISCARDED  # neither discarded nor a candidate
        own = dearest if p is None else min(max(p, 0.0), 1.0)
        # The level may have risen since the test began; what was not kept then earns nothing now.
        above = math.nextafter(self.level(), 1.0)
        self._addis.test_one(max(own, above))
