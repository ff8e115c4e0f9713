"""Reading the rows of a table that a verdict needs: cells of the named columns, conditions, wide tables."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from paribus.errors import UserError, did_you_mean, shown
from paribus.judge.cells import Value, name_of, value_of
from paribus.judge.options import Options
from paribus.judge.table import MOST_ROWS, Source, listed_rows

HIGHER = {"acc", "accuracy", "bleu", "rouge", "f1", "reward", "score", "auc", "recall", "precision"}
# Columns that say where on a curve a row is, written in any case, also with a folder: train/global_step.
CURVE_COLUMNS = {
    *("step", "steps", "iter", "iters", "iteration", "iterations", "epoch", "epochs"),
    *("global_step", "train_step", "tokens", "tokens_seen", "train_tokens"),
}
CURVE_POINTS = 3  # places of one arm from which on they may be a curve's
CURVE_REACH = 2.0  # last place over the first from which on they are no ends of runs of like length


@dataclass(slots=True)
class Row:
    """A row as it was read: names, and cells that should be numbers."""

    number: int
    arm: str
    pair: str
    block: str
    run: str
    metric: Value
    step: Value | None
    horizon: Value | None
    order: object
    place: Value | None = None
    blank: bool = False


@dataclass
class Faults:
    """Problems by kind, with the rows that have them and an example of a cell."""

    unit: str
    rows: dict[str, list[int]] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    def note(self, problem: str, row: int, example: str = "") -> None:
        """A row has a problem; example: its cell, as in a message."""
        self.rows.setdefault(problem, []).append(row)
        if example:
            self.examples.setdefault(problem, example)

    def misread(self, column: str, value: Value, row: int) -> None:
        """The cell of a column cannot be read as a number."""
        self.note(f"{column} holds {value.problem}", row, value.text)

    def listed(self) -> list[str]:
        """Every problem with its rows, of many the first."""
        by_row = []
        for what, rows in self.rows.items():
            example = f" ({self.examples[what]})" if what in self.examples else ""
            by_row.append(f"{listed_rows(self.unit, rows)}: {what}{example}")
        return [*by_row[:12], *more_of(by_row[12:]), *self.others]


def more_of(left: Sequence[str]) -> list[str]:
    """In place of problems that are not listed, how many there are."""
    return [f"… and {len(left)} problems more of this kind"] if left else []


# ---------------------------------------------------------------- columns


def matching(
    source: Source, option: str, patterns: Sequence[str], others: Sequence[str]
) -> tuple[str, ...]:
    """The columns that patterns such as seed* name, in the table's order.

    Args:
        source: the table.
        option: that has the patterns.
        patterns: names, with commas between, or patterns.
        others: columns that other options name, which a pattern leaves alone.

    Raises:
        UserError: for one that names no column.
    """
    names = [name.strip() for pattern in patterns for name in pattern.split(",")]
    found: dict[str, None] = {}
    for name in names:
        matching = [name] if name in source.header else _like(source, name, others)
        if not matching:
            near = did_you_mean(name, source.header)
            there = near or f"there are: {', '.join(source.header[:12])}"
            raise UserError(f"{option}: {source.name} has no column {shown(name)}; {there}")
        found |= dict.fromkeys(matching)
    return tuple(found)


def _like(source: Source, pattern: str, others: Sequence[str]) -> list[str]:
    found = [column for column in source.header if fnmatch.fnmatchcase(column, pattern)]
    return [column for column in found if column not in others]


def asked_columns(source: Source, options: Options) -> dict[str, str]:
    """Option -> column, of the columns that are named one by one.

    Args:
        source: the table.
        options: that name them.
    """
    asked = {}
    for option, columns in (("--arm", options.arm), ("--pair-by", options.pair_by)):
        for column in columns:
            asked[f"{option} {column}" if len(columns) > 1 else option] = column
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


def of_where(options: Options) -> str:
    """The conditions in words, for the end of a message."""
    return f" where {' and '.join(options.where)}" if options.where else ""


# ---------------------------------------------------------------- rows


def rows_of(source: Source, options: Options, faults: Faults) -> list[Row]:
    """The rows that meet the conditions; of a wide table one for each result.

    Args:
        source: the table.
        options: which columns to read.
        faults: where problems are noted.

    Raises:
        UserError: for more rows than a verdict can rest on.
    """
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
        "place": _one(curve_column(source, options)),
    }
    columns = [column for group in names.values() for column in group]
    rows: list[Row] = []
    for number, cells in source.rows(columns):
        parts = _parts(names, cells)
        if not _meets(conditions, parts["where"]):
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


def _meets(conditions: Sequence[tuple[str, bool, str]], cells: Sequence[object]) -> bool:
    """Whether a row's cells are as `--where` asks."""
    met = []
    for cell, (_, equal, wanted) in zip(cells, conditions, strict=True):
        met.append((name_of(cell) == wanted) == equal)
    return all(met)


def _one(column: str | None) -> tuple[str, ...]:
    return (column,) if column else ()


def _parts(
    names: Mapping[str, Sequence[str]], cells: Sequence[object]
) -> dict[str, Sequence[object]]:
    parts = {}
    place = 0
    for name, columns in names.items():
        parts[name] = cells[place : place + len(columns)]
        place += len(columns)
    return parts


def _of_row(
    number: int, parts: Mapping[str, Sequence[object]], options: Options, metrics: Sequence[str]
) -> list[Row]:
    """The results of one row: one, or in a wide table one a column."""
    arm, pair = _joined(parts["arm"]), _joined(parts["pair"])
    block, run = _joined(parts["block"]), _joined(parts["run"])
    order = parts["order"][0] if parts["order"] else None
    place = value_of(parts["place"][0]) if parts["place"] else None
    step = value_of(parts["step"][0]) if parts["step"] else None
    horizon = value_of(parts["horizon"][0]) if parts["horizon"] else None
    rows = []
    for column, cell in zip(metrics, parts["metric"], strict=True):
        row = Row(number, arm, pair, block, run, value_of(cell), step, horizon, order, place)
        if options.arms_in:
            row.arm = column
        if options.runs_in:
            row.pair = column
        row.blank = bool(options.arms_in or options.runs_in) and name_of(cell) == ""
        rows.append(row)
    return rows


def _joined(cells: Sequence[object]) -> str:
    names = [name_of(cell) for cell in cells]
    return " ".join(names) if all(names) else ""


def curve_column(source: Source, options: Options) -> str | None:
    """The column by which rows may turn out to be points of curves; None where options say what rows are.

    Args:
        source: the table.
        options: as asked.
    """
    if options.step or options.run or options.reach or options.rows_are_runs:
        return None
    told = [*options.arm, options.horizon, options.metric]
    for name in source.header:
        if name.lower().rpartition("/")[2] in CURVE_COLUMNS and name not in told:
            return name
    return None


def check_no_curves(source: Source, options: Options, rows: Sequence[Row]) -> None:
    """Refuse rows that look like points of curves: a run would count as often as it was measured.

    Args:
        source: the table.
        options: as asked.
        rows: that count.

    Raises:
        UserError: where an arm's rows lie at several places along a curve's column, the last twice as far as the first.
    """
    column = curve_column(source, options)
    places: dict[str, set[float]] = {}
    for row in rows:
        if row.place is not None and row.place.number is not None:
            places.setdefault(row.arm, set()).add(row.place.number)
    for arm, seen in places.items():
        first, last = min(seen), max(seen)
        if len(seen) >= CURVE_POINTS and last >= CURVE_REACH * max(first, 0):
            raise UserError(
                f"{source.name}: rows look like points of curves: those of {shown(arm)} have {len(seen)} values of "
                f"{column}, from {first:g} to {last:g}, and each would count as a run. For the last point of each run say "
                f"--step {column} and --run COLUMN (or --pair-by COLUMN); for one point --where {column}={last:g}; if every "
                "row is a run of its own, say --rows-are-runs"
            )


def notes_on(options: Options) -> list[str]:
    """What may have been meant otherwise: a direction.

    Args:
        options: as asked.
    """
    words = options.metric.lower().replace(".", "_").replace("/", "_").split("_")
    if not options.higher_is_better and HIGHER & set(words):
        return [f"lower {options.metric} is taken as better; if it is not, say --higher-is-better"]
    return []
