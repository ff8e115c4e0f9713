"""From the rows of a table to runs: one result each, its arm, its pair, its block, its compute.

All that is wrong with the rows is collected and named in one UserError: text in the metric, results that are not finite,
runs that appear twice, names that are missing.
"""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import fmean
from typing import Any

from paribus.errors import UserError, did_you_mean, shown
from paribus.judge.cells import Value, name_of, value_of
from paribus.judge.options import Options
from paribus.judge.table import MOST_ROWS, Source, column_problems, listed_rows
from paribus.study.censored import Reach, crossing

HIGHER = {"acc", "accuracy", "bleu", "rouge", "f1", "reward", "score", "auc", "recall", "precision"}
FINE = 0.8  # share of distinct results from which two equal ones of an arm look like one run listed twice
CURVE_COLUMNS = {"step", "steps", "iter", "iteration", "epoch", "global_step", "tokens_seen"}


@dataclass(frozen=True)
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


@dataclass
class _Row:
    """A row as it was read: names, and cells that should be numbers."""

    number: int
    arm: str
    pair: str
    block: str
    run: str
    metric: Value
    step: Value | None
    horizon: Value | None
    order: Any
    blank: bool = False


@dataclass
class _Faults:
    """Problems by kind, with the rows that have them."""

    unit: str
    rows: dict[str, list[int]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    def note(self, problem: str, row: int) -> None:
        self.rows.setdefault(problem, []).append(row)

    def listed(self) -> list[str]:
        by_row = [f"{listed_rows(self.unit, rows)}: {what}" for what, rows in self.rows.items()]
        return [*by_row[:12], *_more(by_row[12:]), *self.others]


def _more(left: Sequence[str]) -> list[str]:
    return [f"… and {len(left)} problems more of this kind"] if left else []


def read_runs(source: Source, options: Options) -> Runs:
    """The runs of a table.

    Args:
        source: the table.
        options: which columns to read, and how.

    Raises:
        UserError: with every problem of columns or rows.
    """
    options = replace(
        options,
        arms_in=_matching(source, "--arms-in", options.arms_in),
        runs_in=_matching(source, "--runs-in", options.runs_in),
    )
    problems = column_problems(source, _asked(source, options))
    if problems:
        raise UserError(problems)
    faults = _Faults(source.unit)
    rows = _rows(source, options, faults)
    notes = _notes(source, options, rows)
    kept, diverged = _with_results(rows, options, faults, notes)
    runs = _assembled(kept, options, faults)
    _check_names(runs, options, faults)
    found = faults.listed()
    if found:
        raise UserError(f"{source.name}: {problem}" for problem in found)
    if not runs:
        raise UserError(f"{source.name}: no rows with results{_of_where(options)}")
    merged = _merged(runs, options, notes)
    notes += _repeated(merged)
    return Runs(merged, diverged, notes)


# ---------------------------------------------------------------- columns


def _matching(source: Source, option: str, patterns: Sequence[str]) -> tuple[str, ...]:
    """The columns that patterns such as seed* name, in the table's order."""
    names = [name.strip() for pattern in patterns for name in pattern.split(",")]
    found: dict[str, None] = {}
    for name in names:
        matching = [column for column in source.header if fnmatch.fnmatchcase(column, name)]
        if not matching:
            near = did_you_mean(name, source.header)
            there = near or f"there are: {', '.join(source.header[:12])}"
            raise UserError(f"{option}: {source.name} has no column {shown(name)}; {there}")
        found |= dict.fromkeys(matching)
    return tuple(found)


def _asked(source: Source, options: Options) -> dict[str, str]:
    """Option -> column, of the columns that are named one by one."""
    asked = {f"--arm {name}" if len(options.arm) > 1 else "--arm": name for name in options.arm}
    asked |= {
        f"--pair-by {name}" if len(options.pair_by) > 1 else "--pair-by": name
        for name in options.pair_by
    }
    if options.reach:
        asked["--curve"] = options.curve or ""
        asked["--step"] = _axis(source, options)
    elif options.metric and not (options.arms_in or options.runs_in):
        asked["--metric"] = options.metric
    for name in ("block", "order_by", "run", "step", "horizon"):
        column = getattr(options, name)
        if column:
            asked[f"--{name.replace('_', '-')}"] = column
    for condition in options.where:
        asked[f"--where {condition}"] = _condition(condition)[0]
    return asked


def _axis(source: Source, options: Options) -> str:
    """The column along which a target metric is measured: --step, else the axis's own name."""
    assert options.reach is not None
    if options.step:
        return options.step
    axis = options.reach[0]
    known = [
        name for name in (axis, axis.removesuffix("s"), f"train_{axis}") if name in source.header
    ]
    return known[0] if known else axis


def _condition(text: str) -> tuple[str, bool, str]:
    """(column, whether it must be equal, value) of COLUMN=VALUE or COLUMN!=VALUE."""
    column, _, value = text.partition("=")
    equal = not column.endswith("!")
    return column.removesuffix("!").strip(), equal, name_of(value)


def _of_where(options: Options) -> str:
    return f" where {' and '.join(options.where)}" if options.where else ""


# ---------------------------------------------------------------- rows


def _rows(source: Source, options: Options, faults: _Faults) -> list[_Row]:
    conditions = [_condition(text) for text in options.where]
    metrics = options.arms_in or options.runs_in or (options.curve or options.metric,)
    step = _axis(source, options) if options.reach else options.step
    names = {
        "arm": tuple(options.arm),
        "pair": tuple(options.pair_by),
        "metric": tuple(metrics),
        "where": tuple(column for column, _, _ in conditions),
        "block": _one(options.block),
        "run": _one(options.run),
        "step": _one(step),
        "horizon": _one(options.horizon),
        "order": _one(options.order_by),
    }
    columns = [column for group in names.values() for column in group]
    rows: list[_Row] = []
    for number, cells in source.rows(columns):
        parts = _parts(names, cells)
        values = [name_of(cell) for cell in parts["where"]]
        if not all(
            (value == wanted) == equal
            for value, (_, equal, wanted) in zip(values, conditions, strict=True)
        ):
            continue
        rows += _of_row(number, parts, options, tuple(metrics))
        if len(rows) > MOST_ROWS:
            raise UserError(
                f"{source.name}: more than {MOST_ROWS:,} results; choose rows with --where"
            )
    for row in rows:
        if not row.arm:
            faults.note("the arm has no name", row.number)
    return rows


def _one(column: str | None) -> tuple[str, ...]:
    return (column,) if column else ()


def _parts(names: Mapping[str, Sequence[str]], cells: Sequence[Any]) -> dict[str, Sequence[Any]]:
    parts = {}
    place = 0
    for name, columns in names.items():
        parts[name] = cells[place : place + len(columns)]
        place += len(columns)
    return parts


def _of_row(
    number: int, parts: Mapping[str, Sequence[Any]], options: Options, metrics: Sequence[str]
) -> list[_Row]:
    """The results of one row: one, or in a wide table one a column."""
    arm, pair = _joined(parts["arm"]), _joined(parts["pair"])
    block, run = _joined(parts["block"]), _joined(parts["run"])
    order = parts["order"][0] if parts["order"] else None
    step = value_of(parts["step"][0]) if parts["step"] else None
    horizon = value_of(parts["horizon"][0]) if parts["horizon"] else None
    rows = []
    for column, cell in zip(metrics, parts["metric"], strict=True):
        row = _Row(number, arm, pair, block, run, value_of(cell), step, horizon, order)
        if options.arms_in:
            row.arm = column
        if options.runs_in:
            row.pair = column
        row.blank = bool(options.arms_in or options.runs_in) and name_of(cell) == ""
        rows.append(row)
    return rows


def _joined(cells: Sequence[Any]) -> str:
    names = [name_of(cell) for cell in cells]
    return " ".join(names) if all(names) else ""


def _notes(source: Source, options: Options, rows: Sequence[_Row]) -> list[str]:
    notes = []
    words = options.metric.lower().replace(".", "_").replace("/", "_").split("_")
    if not options.higher_is_better and HIGHER & set(words):
        notes.append(
            f"lower {options.metric} is taken as better; if it is not, say --higher-is-better"
        )
    curves = [name for name in source.header if name.lower() in CURVE_COLUMNS]
    points = len(rows) > 20 * len({row.arm for row in rows})
    if curves and points and not options.step and not options.horizon:
        notes.append(
            f"every row counts as a run; if rows are points of curves, say --step {curves[0]} and --run COLUMN"
        )
    return notes


# ---------------------------------------------------------------- results


def _with_results(
    rows: Sequence[_Row], options: Options, faults: _Faults, notes: list[str]
) -> tuple[list[_Row], dict[str, int]]:
    """(rows with a finite result, arm -> runs that diverged)."""
    kept: list[_Row] = []
    diverged: dict[str, int] = {}
    absent = 0
    for row in rows:
        if row.blank:
            absent += 1
        elif row.metric.problem:
            faults.note(f"{_metric(options)}: {row.metric.problem}", row.number)
        elif row.metric.number is not None:
            kept.append(row)
        elif options.reach or options.step:
            continue  # a curve's points without a value say nothing; a run without any is found later
        elif options.missing == "refuse":
            what = "is infinite" if row.metric.infinite else "is missing or not a number"
            faults.note(
                f"{_metric(options)} {what}; a run without a result is not left out silently: --missing diverged or absent",
                row.number,
            )
        elif options.missing == "diverged":
            diverged[row.arm] = diverged.get(row.arm, 0) + 1
        else:
            absent += 1
    if absent:
        notes.append(f"{absent} empty result{'s' if absent > 1 else ''} left out as never measured")
    return kept, diverged


def _metric(options: Options) -> str:
    return options.curve or options.metric or "the result"


def _assembled(rows: Sequence[_Row], options: Options, faults: _Faults) -> list[Run]:
    if options.step or options.reach:
        return _of_curves(rows, options, faults)
    runs = []
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        if options.run:
            first = seen.setdefault((row.arm, row.run), row.number)
            if first != row.number:
                faults.note(
                    f"{shown(row.arm)} has a run {shown(row.run)} already ({faults.unit} {first}); if rows are points of "
                    "a curve, say --step",
                    row.number,
                )
        runs.append(_run(row, row.metric.number or 0.0, options, faults))
    return runs


def _run(row: _Row, value: float, options: Options, faults: _Faults) -> Run:
    horizon = row.horizon.number if row.horizon else None
    if row.horizon and horizon is None:
        faults.note(
            f"--horizon: {row.horizon.problem or 'it is missing or not finite'}", row.number
        )
    elif horizon is not None and horizon <= 0:
        faults.note(f"--horizon: {horizon:g} is not above 0", row.number)
    if options.pair_by and not row.pair:
        faults.note(f"--pair-by: no {' and '.join(options.pair_by)}", row.number)
    if options.block and not row.block:
        faults.note(f"--block: no {options.block}", row.number)
    return Run(row.arm, value, row.pair, row.block, horizon, row.order, row.number)


def _of_curves(rows: Sequence[_Row], options: Options, faults: _Faults) -> list[Run]:
    """Runs from the points of their curves."""
    curves: dict[tuple[str, str], list[_Row]] = {}
    for row in rows:
        name = row.run or row.pair
        if not name:
            faults.note("--run: the run has no name", row.number)
        curves.setdefault((row.arm, name), []).append(row)
    runs = []
    for (arm, name), points in curves.items():
        run = _of_curve(arm, name, points, options, faults)
        if run is not None:
            runs.append(run)
    return runs


def _of_curve(
    arm: str, name: str, points: list[_Row], options: Options, faults: _Faults
) -> Run | None:
    who = f"run {shown(name)} of {shown(arm)}"
    steps = []
    for row in points:
        step = row.step.number if row.step else None
        if step is None:
            problem = row.step.problem if row.step else ""
            faults.note(f"--step: {problem or 'it is missing or not finite'}", row.number)
            return None
        steps.append(step)
    order = sorted(range(len(points)), key=steps.__getitem__)
    for before, after in pairwise(order):
        same = steps[before] == steps[after]
        if same and points[before].metric.number != points[after].metric.number:
            faults.note(
                f"{who} has two results at step {steps[after]:g}; two runs under one name?",
                points[after].number,
            )
            return None
    for what in ("pair", "block"):
        if len({getattr(row, what) for row in points}) > 1:
            faults.note(f"{who} changes its {what} along its curve", points[0].number)
    last = points[order[-1]]
    run = _run(last, last.metric.number or 0.0, options, faults)
    if run.horizon is None:
        run = replace(run, horizon=steps[order[-1]])
    if options.reach is None:
        return run
    values = [points[place].metric.number or 0.0 for place in order]
    ordered = [steps[place] for place in order]
    reach = crossing(ordered, values, options.reach[1], options.direction)
    return replace(run, value=reach.time, reach=reach)


# ---------------------------------------------------------------- runs as a whole


def _check_names(runs: Sequence[Run], options: Options, faults: _Faults) -> None:
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
    faults.others[:] = [*faults.others[:12], *_more(faults.others[12:])]


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
    """A note on runs of one arm with the very same result, where results are fine enough for that to be no chance."""
    values = [run.value for run in runs if run.reach is None or run.reach.known == "reached"]
    if len(set(values)) < FINE * len(values):
        return []
    rows: dict[tuple[str, float, float | None], list[int]] = {}
    for run in runs:
        if run.reach is None or run.reach.known == "reached":
            rows.setdefault((run.arm, run.value, run.horizon), []).append(run.row)
    again: dict[str, int] = {}
    for (arm, _, _), same in rows.items():
        if len(same) > 1:
            again[arm] = again.get(arm, 0) + len(same) - 1
    if not again:
        return []
    listed = ", ".join(f"{arm} ({count})" for arm, count in list(again.items())[:5])
    return [
        f"runs with the very result of another run of their arm, which may be one run listed twice: {listed}"
    ]


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
    cells = {arm: [run.order for run in runs.of(arm)] for arm in arms}
    empty = [arm for arm, values in cells.items() if not any(name_of(value) for value in values)]
    if empty:
        raise UserError(f"--order-by {options.order_by}: empty for {', '.join(empty[:5])}")
    numbers = {arm: [value_of(value).number for value in values] for arm, values in cells.items()}
    if all(None not in values for values in numbers.values()):
        smallest = {arm: min(_known(values)) for arm, values in numbers.items()}
        return sorted(arms, key=smallest.__getitem__, reverse=options.descending)
    first = {arm: min(name_of(value) for value in values) for arm, values in cells.items()}
    return sorted(arms, key=first.__getitem__, reverse=options.descending)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]
