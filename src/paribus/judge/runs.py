"""From the rows of a table to runs: one result each, its arm, its pair, its block, its compute.

All that is wrong with the rows is collected and named in one UserError: text in the metric, results that are not finite,
runs that appear twice, names that are missing.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import fmean, pstdev
from typing import Any

from scipy import stats

from paribus.errors import UserError, shown
from paribus.judge.cells import Value, name_of, value_of
from paribus.judge.options import Options
from paribus.judge.rows import (
    Faults,
    Row,
    asked_columns,
    check_no_curves,
    matching,
    more_of,
    notes_on,
    of_where,
    rows_of,
)
from paribus.judge.table import Source, column_problems, listed_rows
from paribus.study.censored import Reach, crossing

RARE = 0.001  # chance of as many equal results below which they look like one run listed twice


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one arm.

    Attributes:
        arm: its name.
        value: the result; at least this much where `reach` says that the target was not reached.
        pair: what matches it to runs of other arms; "" for none.
        block: its block; "" for none.
        horizon: its compute, where asked for.
        order: what its arm is ordered by.
        row: where it is in the table; of a curve its last row.
        reach: for a target metric, whether and where the curve got there.
    """

    arm: str
    value: float
    pair: str = ""
    block: str = ""
    horizon: float | None = None
    order: Any = None
    row: int = 0
    reach: Reach | None = None


@dataclass(frozen=True)
class Runs:
    """All runs of a table.

    Attributes:
        runs: in the order of the table.
        diverged: arm -> runs that ended without a finite result, where these count as diverged.
        notes: what the reader should know of how the table was read.
    """

    runs: list[Run]
    diverged: Mapping[str, int]
    notes: list[str]

    @functools.cached_property
    def by_arm(self) -> dict[str, list[Run]]:
        """Arm -> its runs; arms in order of appearance."""
        groups: dict[str, list[Run]] = {}
        for run in self.runs:
            groups.setdefault(run.arm, []).append(run)
        return groups

    @property
    def arms(self) -> list[str]:
        """Names of the arms, in order of appearance."""
        return list(self.by_arm)

    def of(self, arm: str) -> list[Run]:
        """The runs of an arm."""
        return self.by_arm[arm]


def read_runs(source: Source, options: Options) -> Runs:
    """The runs of a table.

    Args:
        source: the table.
        options: which columns to read, and how.

    Raises:
        UserError: with every problem of columns or rows.
    """
    others = [*options.arm, *options.pair_by, options.block or "", options.horizon or ""]
    options = replace(
        options,
        arms_in=matching(source, "--arms-in", options.arms_in, others),
        runs_in=matching(source, "--runs-in", options.runs_in, others),
    )
    problems = column_problems(source, asked_columns(source, options))
    if problems:
        raise UserError(problems)
    faults = Faults(source.unit)
    rows = rows_of(source, options, faults)
    check_no_curves(source, options, rows)
    notes = notes_on(options)
    outcome = _Outcome(options, faults)
    measured = outcome.sound(rows)
    read = _of_curves if options.step or options.reach else _of_rows
    runs = read(measured, outcome)
    _check_names(runs, options, faults)
    found = faults.listed()
    if found:
        raise UserError(f"{source.name}: {problem}" for problem in found)
    if not runs:
        raise UserError(f"{source.name}: no rows with results{of_where(options)}")
    merged = _merged(runs, options, notes)
    notes += [*outcome.notes(), *_repeated(merged)]
    return Runs(merged, outcome.diverged, notes)


# ---------------------------------------------------------------- results


@dataclass
class _Outcome:
    """What becomes of runs without a finite result, as --missing says."""

    options: Options
    faults: Faults
    diverged: dict[str, int] = field(default_factory=dict)
    absent: int = 0

    @property
    def metric(self) -> str:
        return self.options.curve or self.options.metric or "the result"

    def sound(self, rows: Sequence[Row]) -> list[Row]:
        """The rows whose result is a number or nothing; other text is a fault. Empty cells of a wide table are no runs."""
        kept = []
        for row in rows:
            if row.metric.problem:
                self.faults.misread(self.metric, row.metric, row.number)
            elif row.blank:
                self.absent += 1
            else:
                kept.append(row)
        return kept

    def lost(self, row: Row) -> None:
        """A run ended at this row without a finite result."""
        if self.options.missing == "diverged":
            self.diverged[row.arm] = self.diverged.get(row.arm, 0) + 1
        elif self.options.missing == "absent":
            self.absent += 1
        else:
            what = "is infinite" if row.metric.infinite else "is missing or not a number"
            self.faults.note(
                f"{self.metric} {what}; a run without a result is not left out silently: say --missing diverged or "
                "--missing absent",
                row.number,
            )

    def notes(self) -> list[str]:
        """A note on what was left out."""
        if not self.absent:
            return []
        plural = "s" if self.absent > 1 else ""
        return [f"{self.absent} empty result{plural} left out as never measured"]


def _of_rows(rows: Sequence[Row], outcome: _Outcome) -> list[Run]:
    """Runs of a table with a row for each."""
    faults = outcome.faults
    runs = []
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        if outcome.options.run:
            first = seen.setdefault((row.arm, row.run), row.number)
            if first != row.number:
                faults.note(
                    f"{shown(row.arm)} has a run {shown(row.run)} already ({faults.unit} {first}); if rows are points of "
                    "a curve, say --step",
                    row.number,
                )
        if row.metric.number is None:
            outcome.lost(row)
        else:
            runs.append(_run(row, row.metric.number, outcome))
    return runs


def _run(row: Row, value: float, outcome: _Outcome) -> Run:
    options, faults = outcome.options, outcome.faults
    horizon = row.horizon.number if row.horizon else None
    if row.horizon and horizon is None:
        _no_number("--horizon", row.horizon, row.number, faults)
    elif horizon is not None and horizon <= 0:
        faults.note(f"--horizon: {horizon:g} is not above 0", row.number)
    if options.pair_by and not row.pair:
        faults.note(f"--pair-by: no {' and '.join(options.pair_by)}", row.number)
    if options.block and not row.block:
        faults.note(f"--block: no {options.block}", row.number)
    return Run(row.arm, value, row.pair, row.block, horizon, row.order, row.number)


def _no_number(option: str, value: Value, row: int, faults: Faults) -> None:
    if value.problem:
        faults.misread(f"the column of {option}", value, row)
    else:
        faults.note(f"the column of {option} is missing or not finite", row)


def _of_curves(rows: Sequence[Row], outcome: _Outcome) -> list[Run]:
    """Runs from the points of their curves."""
    curves: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        name = row.run or row.pair
        if not name:
            outcome.faults.note("--run: the run has no name", row.number)
        curves.setdefault((row.arm, name), []).append(row)
    runs = []
    for (arm, name), points in curves.items():
        who = f"run {shown(name)} of {shown(arm)}"
        in_order = _in_order(who, points, outcome.faults)
        run = _of_curve(in_order, outcome) if in_order else None
        if run is not None:
            runs.append(run)
    return runs


def _in_order(who: str, points: list[Row], faults: Faults) -> list[Row]:
    """The points of a curve along its steps; none, and a fault, where they contradict each other."""
    for row in points:
        if row.step is None or row.step.number is None:
            _no_number("--step", row.step or Value(None), row.number, faults)
            return []
    for what in ("pair", "block"):
        if len({getattr(row, what) for row in points}) > 1:
            faults.note(f"{who} changes its {what} along its curve", points[0].number)
            return []
    in_order = sorted(points, key=_step)
    measured = [row for row in in_order if not row.metric.blank]
    for before, after in pairwise(measured):
        if _step(before) == _step(after) and before.metric != after.metric:
            faults.note(
                f"{who} has two results at step {_step(after):g}; two runs under one name?",
                after.number,
            )
            return []
    return measured or in_order[-1:]


def _step(row: Row) -> float:
    assert row.step is not None and row.step.number is not None
    return row.step.number


def _of_curve(points: list[Row], outcome: _Outcome) -> Run | None:
    """A run from its points in order: its last result, or where it reaches the target. None where it has none."""
    options = outcome.options
    last = points[-1]
    finite = [row for row in points if row.metric.number is not None]
    if not finite or (last.metric.number is None and options.reach is None):
        outcome.lost(last)
        return None
    run = _run(last, last.metric.number or 0.0, outcome)
    if run.horizon is None:
        run = replace(run, horizon=_step(last))
    if options.reach is None:
        return run
    values = [row.metric.number or 0.0 for row in finite]
    steps = [_step(row) for row in finite]
    reach = crossing(steps, values, options.reach[1], options.direction)
    return replace(run, value=reach.time, reach=reach)


# ---------------------------------------------------------------- runs as a whole


def _check_names(runs: Sequence[Run], options: Options, faults: Faults) -> None:
    if options.duplicates == "mean" or not (options.pair_by or options.runs_in):
        return
    seen: dict[tuple[str, ...], list[int]] = {}
    for run in runs:
        if run.pair:
            seen.setdefault(_place(run, options), []).append(run.row)
    words = " ".join(options.pair_by) or "column"
    for place, rows in seen.items():
        if len(rows) > 1:
            faults.others.append(
                f"{listed_rows(faults.unit, rows)}: {shown(place[0])} has {words} {shown(place[1])} {len(rows)} times; "
                "leave all but one out, or say --duplicates mean"
            )
    faults.others[:] = [*faults.others[:12], *more_of(faults.others[12:])]


def _place(run: Run, options: Options) -> tuple[str, ...]:
    horizon = f"{run.horizon:g}" if options.horizon and run.horizon is not None else ""
    return run.arm, run.pair, run.block, horizon


def _merged(runs: list[Run], options: Options, notes: list[str]) -> list[Run]:
    """Runs that share arm and pair as one with their mean, where that is asked for."""
    if options.duplicates != "mean" or not (options.pair_by or options.runs_in):
        return runs
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(_place(run, options), []).append(run)
    merged = [
        replace(group[0], value=fmean(run.value for run in group)) for group in groups.values()
    ]
    if len(merged) < len(runs):
        notes.append(
            f"{len(runs) - len(merged)} further runs of the same arm and pair count through their mean"
        )
    return merged


def _repeated(runs: Sequence[Run]) -> list[str]:
    """A note on runs of one arm with the very same result, where that is no chance at the digits of the results."""
    groups: dict[tuple[str, float | None], list[float]] = {}
    for run in runs:
        if run.reach is None:
            groups.setdefault((run.arm, run.horizon), []).append(run.value)
    again: dict[str, int] = {}
    for (arm, _), values in groups.items():
        pairs = sum(count * (count - 1) // 2 for count in Counter(values).values())
        if pairs and stats.poisson.sf(pairs - 1, _expected_pairs(values)) < RARE:
            again[arm] = again.get(arm, 0) + len(values) - len(set(values))
    if not again:
        return []
    listed = ", ".join(f"{arm} ({count})" for arm, count in list(again.items())[:5])
    return [
        f"runs with the very result of another run of their arm, which may be one run listed twice: {listed}"
    ]


def _expected_pairs(values: Sequence[float]) -> float:
    """How many pairs of normal results, rounded as these are, are equal by chance."""
    decimals = max(len(f"{value:.12g}".partition(".")[2]) for value in values)
    spread = pstdev(values)
    if spread == 0:
        return math.inf
    pairs = len(values) * (len(values) - 1) / 2
    return float(pairs * 10.0**-decimals / (2 * math.sqrt(math.pi) * spread))


def arm_order(runs: Runs, options: Options) -> list[str]:
    """The arms in the order of the table, or of --order-by (the smallest value of each arm).

    Args:
        runs: of all arms.
        options: whether and by what they are ordered.

    Raises:
        UserError: where an arm has nothing to be ordered by.
    """
    arms = runs.arms
    if not options.order_by:
        return arms
    names: dict[str, list[str]] = {}
    numbers: dict[str, list[float | None]] = {}
    for arm in arms:
        cells = [run.order for run in runs.of(arm)]
        names[arm] = [name_of(cell) for cell in cells]
        numbers[arm] = [value_of(cell).number for cell in cells]
    empty = [arm for arm in arms if not any(names[arm])]
    if empty:
        raise UserError(f"--order-by {options.order_by}: empty for {', '.join(empty[:5])}")
    if all(None not in values for values in numbers.values()):
        smallest = {arm: min(_known(values)) for arm, values in numbers.items()}
        return sorted(arms, key=smallest.__getitem__, reverse=options.descending)
    first = {arm: min(values) for arm, values in names.items()}
    return sorted(arms, key=first.__getitem__, reverse=options.descending)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]
