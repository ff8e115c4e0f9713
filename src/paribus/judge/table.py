"""Anybody's table of results: CSV, TSV, JSON lines, parquet, an MLflow experiment, or a data frame.

A source names its columns first and is then read row by row, so that a file of any size takes little memory. What is wrong
with a file (encoding, ragged rows, no rows) is a UserError that names the line.
"""

from __future__ import annotations

import csv
import itertools
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from paribus.errors import UserError, did_you_mean, escaped, shown

MOST_ROWS = 1_000_000  # of runs and points of curves that a verdict rests on
LONGEST_LINE = 1 << 20  # bytes
NAMED = 5  # rows that a message names
DELIMITERS = (",", ";", "\t", "|")
OTHER_FORMATS = {
    ".xlsx": "a spreadsheet",
    ".xls": "a spreadsheet",
    ".ods": "a spreadsheet",
    ".gz": "compressed",
    ".zip": "compressed",
    ".zst": "compressed",
    ".pkl": "pickled, and paribus unpickles nothing",
    ".pickle": "pickled, and paribus unpickles nothing",
}


class Source(Protocol):
    """A table: its name, what a row is called ("line" of a file, "row" of a frame), its columns, its rows."""

    @property
    def name(self) -> str:
        """How messages call it."""
        ...

    @property
    def unit(self) -> str:
        """What a row is called."""
        ...

    @property
    def header(self) -> Sequence[str]:
        """Names of the columns."""
        ...

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Sequence[object]]]:
        """Every row: (number, its cells of these columns)."""
        ...


class FrameLike(Protocol):
    """A pandas or polars frame."""

    @property
    def columns(self) -> Iterable[Any]:
        """Names of its columns."""
        ...

    def __getitem__(self, column: Any, /) -> Any:
        """A column."""
        ...


Table = str | Path | Mapping[str, Any] | FrameLike


def opened(table: Table) -> Source:
    """The source that a table, or the name of one, stands for.

    Args:
        table: a path, "mlflow:EXPERIMENT", "study:NAME", a pandas or polars frame, or a mapping of columns to values.

    Raises:
        UserError: where there is no such file, or it has no columns.
    """
    if not isinstance(table, (str, Path)):
        return Frame(table)
    if isinstance(table, str) and table.startswith("mlflow:"):
        from paribus.tracking.table import tracked_table

        return tracked_table(table.removeprefix("mlflow:"))
    if isinstance(table, str) and table.startswith("study:"):
        from paribus.judge.studied import study_table

        return study_table(table.removeprefix("study:"))
    return _file(Path(table))


def _file(path: Path) -> Source:
    if path.is_dir():
        raise UserError(f"{path}: a folder; name a file of results, or mlflow:EXPERIMENT")
    if not path.exists():
        raise UserError(f"{path}: no such file{_beside(path)}")
    if not path.is_file():
        raise UserError(f"{path}: neither a file nor a folder")
    suffix = path.suffix.lower()
    if suffix in OTHER_FORMATS:
        raise UserError(f"{path}: {OTHER_FORMATS[suffix]}; export it as CSV, JSON lines or parquet")
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except PermissionError:
        raise UserError(f"{path}: this user may not read it") from None
    if not start.strip():
        raise UserError(f"{path}: empty")
    if start.startswith(b"PAR1") or suffix == ".parquet":
        return Parquet(path)
    if suffix in (".jsonl", ".ndjson", ".json"):
        return JsonLines(path)
    return Delimited(path)


def _beside(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return ""
    near = did_you_mean(path.name, [one.name for one in folder.iterdir()])
    return f"; {near}" if near else ""


# ---------------------------------------------------------------- text files


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file in UTF-8. Raises UserError for another encoding, or a line too long for a table."""
    with path.open("rb") as file:
        start = file.read(2)
    if start in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path}: UTF-16; save it as UTF-8 (`iconv -f UTF-16 -t UTF-8`)")
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(LONGEST_LINE)
            if not line:
                return
            if len(line) == LONGEST_LINE:
                raise UserError(
                    f"{path}: line {number} is longer than {LONGEST_LINE:,} bytes, which is no row of a table"
                )
            if b"\0" in line:
                raise UserError(f"{path}: line {number} holds a NUL byte; is it a text file?")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}: line {number} is not UTF-8 (byte {line[error.start]:#04x}); save it as UTF-8, for example "
                    "`iconv -f LATIN1 -t UTF-8`"
                ) from None


class Delimited:
    """A CSV or TSV file: a header, then rows. The delimiter is the one its header has most of."""

    unit = "line"

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        first = next(_lines(path), "")
        self.delimiter = "\t" if path.suffix.lower() in (".tsv", ".tab") else _delimiter(first)
        _, names = next(self._cells(), (0, []))
        self.header = tuple(_column_name(name) for name in names)
        if not any(self.header):
            raise UserError(f"{path}: its first line names no columns")

    def _cells(self) -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(_lines(self.path), delimiter=self.delimiter, strict=True)
        try:
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, cells
        except csv.Error as error:
            said = str(error).partition(" - ")[0]
            raise UserError(
                f"{self.path}: line {reader.line_num}: {said}; is it a table with delimiters, a row a line?"
            ) from None

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
        """Every row: (line, its cells of these columns). Raises UserError where a row has more or fewer cells."""
        places = [self.header.index(column) for column in columns]
        ragged = Ragged(self, len(self.header))
        lines = self._cells()
        next(lines)
        for number, cells in lines:
            if len(cells) != len(self.header):
                ragged.note(number, len(cells))
            elif not ragged.lines:
                yield number, [cells[place] for place in places]
        ragged.raise_if_any()


@dataclass
class Ragged:
    """Rows with another number of cells than the header has."""

    source: Delimited
    expected: int
    lines: list[tuple[int, int]] = field(default_factory=list)
    count: int = 0

    def note(self, number: int, cells: int) -> None:
        """A row at line `number` has so many cells."""
        self.count += 1
        if len(self.lines) < NAMED:
            self.lines.append((number, cells))

    def raise_if_any(self) -> None:
        """Raise UserError where there are such rows."""
        if not self.lines:
            return
        listed = ", ".join(f"line {number} has {cells}" for number, cells in self.lines)
        more = f" (and {self.count - len(self.lines)} more)" if self.count > len(self.lines) else ""
        surplus = all(cells > self.expected for _, cells in self.lines)
        hint = ""
        if surplus and self.source.delimiter == ",":
            hint = "; decimal commas? write 3.28 for 3,28"
        raise UserError(
            f"{self.source.name}: ragged: the header has {self.expected} cells, {listed}{more}{hint}"
        )


def _delimiter(header: str) -> str:
    counts = Counter(header)
    return max(DELIMITERS, key=lambda delimiter: counts[delimiter])


def _column_name(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


class JsonLines:
    """A file with one JSON object a line, or one list of objects. Nested keys are joined by points: metrics.loss."""

    unit = "line"

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        names: dict[str, None] = {}
        for _, row in self._objects():
            names |= dict.fromkeys(row)
        if not names:
            raise UserError(f"{path}: holds no objects with keys")
        self.header = tuple(names)

    def _objects(self) -> Iterator[tuple[int, dict[str, object]]]:
        lines = _lines(self.path)
        if next(lines, "").lstrip().startswith("["):
            yield from self._list()
            return
        for number, line in enumerate(_lines(self.path), 1):
            if line.strip():
                yield number, self._object(line, f"line {number}")

    def _list(self) -> Iterator[tuple[int, dict[str, object]]]:
        text = self.path.read_text(encoding="utf-8-sig")
        for number, value in enumerate(self._parsed(text, "the list"), 1):
            if not isinstance(value, dict):
                raise UserError(f"{self.path}: entry {number} of its list is no object")
            yield number, _flat(value)

    def _object(self, line: str, where: str) -> dict[str, object]:
        value = self._parsed(line, where)
        if not isinstance(value, dict):
            raise UserError(f"{self.path}: {where} is no JSON object: {shown(line.strip())}")
        return _flat(value)

    def _parsed(self, text: str, where: str) -> Any:
        try:
            return json.loads(text, parse_constant=str)  # NaN stays a word
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{self.path}: {where} is not JSON ({error}): {shown(text.strip())}"
            ) from None

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, list[object]]]:
        """Every object: (line, its values of these columns, None where it lacks one)."""
        for number, row in self._objects():
            yield number, [row.get(column) for column in columns]


def _flat(value: Mapping[str, Any], before: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, each in value.items():
        name = before + _column_name(str(key))
        if isinstance(each, dict):
            flat |= _flat(each, f"{name}.")
        else:
            flat[name] = each
    return flat


# ---------------------------------------------------------------- parquet, frames


class Parquet:
    """A parquet file, of which only the needed columns are read."""

    unit = "row"

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        self.path, self.name = path, str(path)
        try:
            self.file = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowInvalid, OSError) as error:
            said = str(error).splitlines()[0]
            raise UserError(f"{path}: no sound parquet file ({escaped(said)})") from None
        self.header = tuple(self.file.schema_arrow.names)

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, list[object]]]:
        """Every row: (number from 1, its values of these columns)."""
        number = 0
        for batch in self.file.iter_batches(columns=list(dict.fromkeys(columns))):
            values = [batch.column(column).to_pylist() for column in columns]
            for cells in zip(*values, strict=True):
                number += 1
                yield number, list(cells)


class Frame:
    """A pandas or polars frame, or a mapping of columns to values. Rows count from 0, as frames do."""

    name = "the frame"
    unit = "row"

    def __init__(self, frame: Any) -> None:
        columns = frame.keys() if isinstance(frame, Mapping) else getattr(frame, "columns", None)
        if columns is None:
            raise UserError(
                f"{shown(frame)}: no table; expected a path, a pandas or polars frame, or a mapping of columns to values"
            )
        self.frame = frame
        self.columns = {_column_name(str(column)): column for column in columns}
        self.header = tuple(_column_name(str(column)) for column in columns)

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, list[object]]]:
        """Every row: (number from 0, its values of these columns)."""
        values = [_values(self.frame[self.columns[column]]) for column in columns]
        lengths = {len(each) for each in values}
        if len(lengths) > 1:
            raise UserError(f"{self.name}: its columns are of unequal length")
        for number, cells in enumerate(zip(*values, strict=True)):
            yield number, list(cells)


def _values(column: Iterable[object]) -> list[object]:
    to_list = getattr(column, "to_list", None) or getattr(column, "tolist", None)
    return list(to_list()) if to_list else list(column)


# ---------------------------------------------------------------- columns


def column_problems(source: Source, asked: Mapping[str, str]) -> list[str]:
    """What is wrong with the columns that options name.

    Args:
        source: the table.
        asked: option, as "--arm" -> column.
    """
    problems = []
    counts = Counter(source.header)
    for option, column in asked.items():
        if counts[column] > 1:
            problems.append(f"{option}: {source.name} has {counts[column]} columns {shown(column)}")
        elif not counts[column]:
            near = did_you_mean(column, source.header) or _listed(source.header)
            problems.append(f"{option}: {source.name} has no column {shown(column)}; {near}")
    return problems


def _listed(header: Sequence[str]) -> str:
    names = ", ".join(header[:12])
    return f"there are: {names}{', …' if len(header) > 12 else ''}"


def listed_rows(unit: str, rows: Sequence[int]) -> str:
    """`line 3`, `lines 3, 5`, `lines 3, 5, 8, 9, 12, … (40 in all)`.

    Args:
        unit: "line" or "row".
        rows: their numbers.
    """
    word = unit if len(rows) == 1 else f"{unit}s"
    names = ", ".join(str(row) for row in rows[:NAMED])
    more = f", … ({len(rows)} in all)" if len(rows) > NAMED else ""
    return f"{word} {names}{more}"
