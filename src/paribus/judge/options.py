"""What is asked of a table: its columns, the comparisons, the tests. One dataclass, checked as a whole."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, Unpack

from paribus.errors import UserError, did_you_mean, shown

CORRECTIONS = ("holm", "hierarchical", "none")
MISSING = ("refuse", "absent", "diverged")
TARGET_METRIC = re.compile(r"(?P<axis>\w+)_to:(?P<target>.+)")
NUMBERS_ABOVE_0 = ("smallest_effect", "noise", "fixed_sigma", "fixed_bound", "slope", "slope_error")
NUMBERS = ("target", "margin")

Columns = str | Sequence[str] | None


class Asked(TypedDict, total=False):
    """The same by name, for whoever calls `judge`: each of these is described in `Options`."""

    arm: Columns
    metric: str
    baseline: str | None
    chain: bool
    order_by: str | None
    descending: bool
    pair_by: Columns
    block: str | None
    runs_in: Columns
    arms_in: Columns
    run: str | None
    step: str | None
    rows_are_runs: bool
    curve: str | None
    horizon: str | None
    slope: float | None
    slope_error: float | None
    where: Columns
    higher_is_better: bool
    alpha: float
    smallest_effect: float | None
    margin: float | None
    correction: Literal["holm", "hierarchical", "none"]
    pooled: bool
    noise: float | None
    fixed_sigma: float | None
    fixed_bound: float | None
    target: float | None
    missing: Literal["refuse", "absent", "diverged"]
    duplicates: Literal["refuse", "mean"]


@dataclass(frozen=True)
class Options:
    """What `judge` is asked.

    Attributes:
        arm: columns that name the arm; several are joined.
        metric: column of the result; `steps_to:3.28` for the steps a curve takes to a target.
        baseline: the arm that the others are compared with.
        chain: compare each arm with the one before it.
        order_by: column by whose value the arms are ordered; () in order of appearance.
        descending: order from the largest value down.
        pair_by: columns that say which runs of two arms are matched.
        block: column of blocks, as machines, whose level is taken out.
        runs_in: columns of a wide table, one run each; their names are the pairs.
        arms_in: columns of a wide table, one arm each.
        run: column that identifies a run within its arm, where rows are points of its curve.
        step: column of the position on the curve; the last row is the run's result.
        rows_are_runs: every row is a run of its own, also where they look like points of curves.
        curve: column of the curve, for a target metric.
        horizon: column of the compute that a run took (steps, tokens, FLOPs, seconds).
        slope: by how much one more unit of the horizon improves the metric, where it is known.
        slope_error: its standard error.
        where: "column=value" or "column!=value": the rows that count.
        higher_is_better: direction.
        alpha: level of the verdicts.
        smallest_effect: below which a difference does not matter; enables *equivalent*.
        margin: "better by at least this much".
        correction: over the comparisons: one of CORRECTIONS.
        pooled: one spread for all arms.
        noise: standard deviation of a run over seeds, stated for planning where none is measured.
        fixed_sigma: the spread that a published rule takes as known.
        fixed_bound: what such a rule asks of (difference) x sqrt(runs); by default the one-sided .001 of fixed_sigma.
        target: value of the metric that an arm has to reach.
        missing: what a row without a finite result is: one of MISSING.
        duplicates: "refuse" runs of one arm with the same pair, or take their "mean".
    """

    arm: Sequence[str] = ()
    metric: str = ""
    baseline: str | None = None
    chain: bool = False
    order_by: str | None = None
    descending: bool = False
    pair_by: Sequence[str] = ()
    block: str | None = None
    runs_in: Sequence[str] = ()
    arms_in: Sequence[str] = ()
    run: str | None = None
    step: str | None = None
    rows_are_runs: bool = False
    curve: str | None = None
    horizon: str | None = None
    slope: float | None = None
    slope_error: float | None = None
    where: Sequence[str] = ()
    higher_is_better: bool = False
    alpha: float = 0.05
    smallest_effect: float | None = None
    margin: float | None = None
    correction: str = "holm"
    pooled: bool = False
    noise: float | None = None
    fixed_sigma: float | None = None
    fixed_bound: float | None = None
    target: float | None = None
    missing: str = "refuse"
    duplicates: str = "refuse"

    @classmethod
    def of(cls, **asked: Unpack[Asked]) -> Options:
        """Options by name; a column may be given as text, or several as a list.

        Raises:
            UserError: with everything that is wrong.
        """
        named: dict[str, Any] = dict(asked)
        known = {field.name for field in fields(cls)}
        unknown = [
            f"{name}: no option; {did_you_mean(name, known) or 'see docs/judge.md'}"
            for name in named
            if name not in known
        ]
        if unknown:
            raise UserError(unknown)
        for name in ("arm", "pair_by", "runs_in", "arms_in", "where"):
            value = named.get(name)
            if isinstance(value, str):
                named[name] = (value,)
            elif value is None:
                named[name] = ()
        options = cls(**named)
        problems = options.problems()
        if problems:
            raise UserError(problems)
        return options

    @property
    def sign(self) -> int:
        """+1 where a higher value is better, else -1: the sign of an improvement."""
        return 1 if self.higher_is_better else -1

    @property
    def direction(self) -> str:
        """Which is better: "lower" or "higher"."""
        return "higher" if self.higher_is_better else "lower"

    @property
    def result_sign(self) -> int:
        """The sign of an improvement of the result: of a target metric, which is a cost, always -1."""
        return -1 if self.reach else self.sign

    @property
    def result_direction(self) -> str:
        """Which result is better: "lower" or "higher"."""
        return "higher" if self.result_sign > 0 else "lower"

    @property
    def reach(self) -> tuple[str, float] | None:
        """(axis, target) of a metric such as steps_to:3.28."""
        found = TARGET_METRIC.fullmatch(self.metric)
        if found is None:
            return None
        try:
            return found["axis"], float(found["target"])
        except ValueError:
            return None

    def problems(self) -> list[str]:
        """What is wrong with the options by themselves, before any table is read."""
        return [
            *self._columns(),
            *self._rows(),
            *self._comparisons(),
            *self._numbers(),
            *self._rules(),
        ]

    def _columns(self) -> list[str]:
        return [*self._arms(), *self._metric()]

    def _arms(self) -> list[str]:
        problems = []
        if not self.arm and not self.arms_in:
            problems.append("--arm: name the column that says which arm a run is of")
        if self.arms_in and (self.arm or self.runs_in):
            problems.append("--arms-in: its columns are the arms; leave --arm and --runs-in out")
        if self.runs_in and (self.pair_by or self.step or self.run):
            problems.append(
                "--runs-in: its columns are the runs; leave --pair-by, --run and --step out"
            )
        return problems

    def _metric(self) -> list[str]:
        problems = []
        if not self.metric and not self.runs_in and not self.arms_in:
            problems.append("--metric: name the column of results")
        if self.reach is None and TARGET_METRIC.fullmatch(self.metric):
            problems.append(f"--metric: {shown(self.metric)}: the target is no number")
        if self.reach and not self.curve:
            problems.append(f"--metric {self.metric}: needs --curve, the column of the curve")
        if self.curve and not self.reach:
            problems.append("--curve: only with a metric such as steps_to:3.28")
        for condition in self.where:
            if "=" not in condition:
                problems.append(f"--where: {shown(condition)}: expected COLUMN=VALUE")
        return problems

    def _rows(self) -> list[str]:
        problems = []
        if self.step and not (self.run or self.pair_by):
            problems.append("--step: needs --run, the column that identifies a run within its arm")
        if self.rows_are_runs and (self.step or self.run or self.reach):
            problems.append("--rows-are-runs: contradicts --run, --step and a metric of curves")
        return problems

    def _comparisons(self) -> list[str]:
        problems = []
        if self.chain and self.baseline:
            problems.append(
                "--chain compares each arm with the one before it; leave --baseline out"
            )
        if not self.chain and not self.baseline:
            problems.append(
                "--baseline: name the arm to compare with, or --chain for each with the one before it"
            )
        if self.descending and not self.order_by:
            problems.append("--descending: needs --order-by")
        choices = {
            "correction": (self.correction, CORRECTIONS),
            "missing": (self.missing, MISSING),
            "duplicates": (self.duplicates, ("refuse", "mean")),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                problems.append(
                    f"--{name}: {shown(value)} is not allowed; expected one of {', '.join(allowed)}"
                )
        return problems

    def _numbers(self) -> list[str]:
        problems = []
        for name in (*NUMBERS_ABOVE_0, *NUMBERS):
            value = getattr(self, name)
            if value is None:
                continue
            option = f"--{name.replace('_', '-')}"
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                problems.append(f"{option}: {shown(value)} is no finite number")
            elif name in NUMBERS_ABOVE_0 and value <= 0:
                problems.append(f"{option}: {value:g} is not above 0")
        if not 0 < self.alpha < 0.5:
            problems.append(f"--alpha: {self.alpha:g} is not between 0 and 0.5")
        return problems

    def _rules(self) -> list[str]:
        problems = []
        if self.fixed_bound is not None and self.fixed_sigma is None:
            problems.append("--fixed-bound: needs --fixed-sigma")
        if self.slope_error is not None and self.slope is None:
            problems.append("--slope-error: needs --slope")
        if self.slope is not None and not (self.horizon or self.step):
            problems.append("--slope: needs --horizon, the column of each run's compute")
        if self.reach and self.target is not None:
            problems.append("--target: a metric such as steps_to:3.28 names its own")
        return problems
