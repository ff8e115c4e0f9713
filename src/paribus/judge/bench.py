"""Runs laid out for comparisons: at equal compute, matched where they are, with the estimate that their design asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from paribus.judge.estimates import (
    Estimate,
    Layout,
    censored,
    layout,
    matched,
    partly_matched,
    pooled,
    pooled_spread,
    unmatched,
)
from paribus.judge.options import Options
from paribus.judge.runs import Run, Runs
from paribus.study.censored import CensoredDifference, Times, logrank_p, paired_times
from paribus.study.power import Floats
from paribus.study.saved import SAME_HORIZON, Saved, Trained, compute_saved, saved_by_slope

MIN_PAIRS = 3  # beside single runs: two pairs say nothing of their correlation, and Welch's test holds where it is not negative


@dataclass(frozen=True)
class Compared:
    """Two arms' runs, at one horizon.

    Attributes:
        arm: runs of the arm.
        reference: runs of its reference.
        note: what is particular about them; "" for nothing.
    """

    arm: list[Run]
    reference: list[Run]
    note: str = ""


class Bench:
    """The runs of a table, and the estimate of any two arms."""

    def __init__(self, runs: Runs, options: Options) -> None:
        self.runs = runs
        self.options = options
        self._of = {arm: runs.of(arm) for arm in runs.arms}
        self._middle = _mean_horizon(runs.runs)
        levels = [self._adjusted(group) for group in self._groups()]
        self.spread, self.df = pooled_spread(levels)
        self._layout = self._linear_model()

    # ---- runs

    def compared(self, arm: str, reference: str) -> Compared:
        """The runs of two arms that are compared: where there are several horizons, those at one that both have."""
        own, other = self._of[arm], self._of[reference]
        if not self.options.horizon or self.options.slope is not None:
            return Compared(own, other)
        of_arm, of_reference = _by_horizon(own), _by_horizon(other)
        shared = [at for at in of_arm if _near(at, of_reference) is not None]
        if shared:
            at = max(shared, key=lambda one: len(of_arm[one]))
            return Compared(of_arm[at], of_reference[_near(at, of_reference) or at])
        at = max(of_arm, key=lambda one: len(of_arm[one]))
        nearest = min(of_reference, key=lambda one: abs(one - at))
        note = f"at unequal compute: {self.options.horizon} {at:g} against {nearest:g}"
        return Compared(of_arm[at], of_reference[nearest], note)

    def _groups(self) -> list[list[Run]]:
        """Runs that differ in the seed alone: of one arm at one horizon."""
        groups = []
        for runs in self._of.values():
            apart = self.options.horizon and self.options.slope is None
            groups += list(_by_horizon(runs).values()) if apart else [runs]
        return groups

    def _adjusted(self, runs: Sequence[Run]) -> Floats:
        """Results as they would be at one horizon for all, by the stated slope."""
        slope = self.options.slope
        if slope is None or self._middle is None:
            return np.array([run.value for run in runs])
        values = []
        for run in runs:
            more = self._middle - (run.horizon or self._middle)
            values.append(run.value + self.options.sign * slope * more)
        return np.array(values)

    # ---- estimates

    def estimate(self, compared: Compared) -> Estimate:
        """The estimate of a difference, by the design that was asked for and that the runs have.

        Args:
            compared: runs of both arms.
        """
        if self.options.reach and _is_censored(compared):
            return self._of_times(compared)
        if self._layout is not None:
            return self._layout.contrast(compared.arm[0].arm, compared.reference[0].arm)
        reference, arm = self._adjusted(compared.reference), self._adjusted(compared.arm)
        shared = self._pairs(compared)
        singles = len(arm) + len(reference) - 2 * len(shared)
        if shared and not singles:
            return matched(*self._matched(compared, shared))
        if len(shared) >= MIN_PAIRS:
            return partly_matched(
                *self._matched(compared, shared),
                self._adjusted([run for run in compared.reference if run.pair not in shared]),
                self._adjusted([run for run in compared.arm if run.pair not in shared]),
            )
        if self.options.pooled:
            return pooled(reference, arm, self.spread, self.df)
        return unmatched(reference, arm)

    def _of_times(self, compared: Compared) -> Estimate:
        """The difference of target times of which some are only bounded."""
        if self._pairs(compared):
            of_reference = {run.pair: run.reach for run in compared.reference if run.reach}
            both = [run for run in compared.arm if run.pair in of_reference and run.reach]
            reference = [of_reference[run.pair] for run in both]
            differences = paired_times(reference, [run.reach for run in both if run.reach])
            if differences.known > 1:
                return censored(CensoredDifference((differences,)), len(differences.values))
        times = (_times(compared.reference), _times(compared.arm))
        estimate = censored(CensoredDifference(times))
        fewest = min(len(compared.reference), len(compared.arm))
        if fewest < 2 and not self.options.pooled:
            why = "one run of an arm has no spread"
            return Estimate("no spread", estimate.difference, why=why)
        return estimate

    def _pairs(self, compared: Compared) -> list[str]:
        """The pairs that both arms have, in the order of the arm's runs."""
        if not (self.options.pair_by or self.options.runs_in):
            return []
        known = {run.pair for run in compared.reference}
        return [run.pair for run in compared.arm if run.pair in known]

    def _matched(self, compared: Compared, shared: Sequence[str]) -> tuple[Floats, Floats]:
        of_reference = {run.pair: run for run in compared.reference}
        of_arm = {run.pair: run for run in compared.arm}
        return (
            self._adjusted([of_reference[pair] for pair in shared]),
            self._adjusted([of_arm[pair] for pair in shared]),
        )

    def _linear_model(self) -> Layout | None:
        """The model of all runs for blocks, and for matched runs with one spread for all arms."""
        options = self.options
        has_pairs = bool(options.pair_by or options.runs_in)
        if not options.block and not (options.pooled and has_pairs):
            return None
        runs = self.runs.runs
        factors = []
        if options.block:
            factors.append({number: run.block for number, run in enumerate(runs)})
        if has_pairs:
            factors.append({number: run.pair for number, run in enumerate(runs)})
        if options.horizon and options.slope is None:
            factors.append({number: f"{run.horizon:g}" for number, run in enumerate(runs)})
        return layout([run.arm for run in runs], list(self._adjusted(runs)), factors)

    def remark(self, compared: Compared, estimate: Estimate) -> str:
        """What the reader should know of how two arms were matched; "" for nothing.

        Args:
            compared: runs of both arms.
            estimate: of their difference.
        """
        if compared.note:
            return compared.note
        if not self.options.pair_by or self._layout is not None:
            return ""
        shared = self._pairs(compared)
        if estimate.pairs or len(shared) == len(compared.arm) == len(compared.reference):
            return ""
        if not shared:
            return f"compared unmatched, as no {' '.join(self.options.pair_by)} is in common"
        pairs = "one pair" if len(shared) == 1 else f"{len(shared)} pairs"
        return f"compared unmatched, as {pairs} beside single runs say too little of what matching gains"

    def at_equal_compute(self, compared: Compared, estimate: Estimate) -> Estimate:
        """The estimate with the error of the stated slope, by which different amounts of compute were made equal.

        Args:
            compared: runs of both arms.
            estimate: of their difference.
        """
        error = self.options.slope_error
        of_arm, of_reference = _mean_horizon(compared.arm), _mean_horizon(compared.reference)
        if error is None or estimate.error is None or of_arm is None or of_reference is None:
            return estimate
        return replace(estimate, error=math.hypot(estimate.error, (of_reference - of_arm) * error))

    def saved(self, compared: Compared, estimate: Estimate) -> Saved | None:
        """The effect in compute; None where nothing is known of what compute gains.

        Args:
            compared: runs of both arms.
            estimate: of their difference, without the error of a stated slope.
        """
        options = self.options
        of_arm, of_reference = _mean_horizon(compared.arm), _mean_horizon(compared.reference)
        if options.reach or of_arm is None or of_reference is None:
            return None
        if options.slope is not None:
            if estimate.error is None:
                return None
            at_equal = options.sign * estimate.difference
            gain = at_equal - options.slope * (of_reference - of_arm)
            slope = (options.slope, options.slope_error or 0.0)
            return saved_by_slope(
                (gain, estimate.error), estimate.df, (of_arm, of_reference), slope, options.alpha
            )
        if not options.horizon:
            return None
        arm, reference = compared.arm[0].arm, compared.reference[0].arm
        return compute_saved(
            _trained(self._of[reference], bool(options.pair_by)),
            _trained(self._of[arm], bool(options.pair_by)),
            options.direction,
            options.alpha,
        )

    def logrank(self, compared: Compared) -> float | None:
        """The p of the log-rank test, for target times; None for other results."""
        if self.options.reach is None:
            return None
        return logrank_p(_times(compared.reference), _times(compared.arm))


def _mean_horizon(runs: Sequence[Run]) -> float | None:
    known = [run.horizon for run in runs if run.horizon is not None]
    return sum(known) / len(known) if known else None


def _by_horizon(runs: Sequence[Run]) -> dict[float, list[Run]]:
    """Runs by their compute; amounts within SAME_HORIZON of the smallest of them count as one, under their mean."""
    groups: list[list[Run]] = []
    for run in sorted(runs, key=lambda one: one.horizon or 0.0):
        first = groups[-1][0].horizon if groups else None
        if first is not None and (run.horizon or 0.0) <= first * SAME_HORIZON:
            groups[-1].append(run)
        else:
            groups.append([run])
    return {_mean_horizon(group) or 0.0: group for group in groups}


def _near(horizon: float, groups: dict[float, list[Run]]) -> float | None:
    for known in groups:
        if max(known, horizon) <= SAME_HORIZON * min(known, horizon):
            return known
    return None


def _trained(runs: Sequence[Run], is_matched: bool) -> list[Trained]:
    return [Trained(run.horizon or 0.0, run.value, run.pair if is_matched else "") for run in runs]


def _is_censored(compared: Compared) -> bool:
    runs = [*compared.arm, *compared.reference]
    return any(run.reach is not None and run.reach.known != "reached" for run in runs)


def _times(runs: Sequence[Run]) -> Times:
    return Times.of([run.reach for run in runs if run.reach is not None])
