"""Rows and documents of one file, whatever its format and packing."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus.data import (
    UNREADABLE,
    error_text,
    load_jsonl,
    not_utf8,
    numbered_rows,
    open_bytes,
    open_text,
)
from paribus.data.finding import FORMATS, PACKED, format_of
from paribus.errors import UserError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

ROWS = 256  # of parquet held at once


def read_documents(path: Path, text_column: str) -> Iterator[str | None]:
    """The documents of one file: a .txt is one; of .jsonl, .json and .parquet each row's `text_column`.

    Raises UserError (no such column, no text in it, broken lines, a corrupt file).
    """
    kind = format_of(path)
    if kind == ".txt":
        yield _whole_text(path)
    elif kind in (".jsonl", ".json"):
        yield from _jsonl_texts(path, text_column)
    elif kind == ".parquet":
        yield from _parquet_texts(path, text_column)
    else:
        raise UserError(f"{path}: cannot be read; readable: {', '.join(FORMATS)}, also packed")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl, .json or .parquet file, also packed. Raises UserError."""
    if format_of(path) != ".parquet":
        yield from load_jsonl(path)
        return
    with _open_parquet(path) as file:
        names = file.schema_arrow.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"{path}: more than one column is named {', '.join(map(repr, twice))}")
        done = 0
        for batch in file.iter_batches(batch_size=ROWS):
            yield from _values(_decoded(batch), path, done)
            done += len(batch)


def _whole_text(path: Path) -> str:
    try:
        with open_text(path) as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise UserError(not_utf8(path, error)) from None
    except UNREADABLE as error:
        raise UserError(f"{path}: cannot be read: {error_text(error)}") from None


def _jsonl_texts(path: Path, column: str) -> Iterator[str | None]:
    for number, row in numbered_rows(path):
        if column not in row:
            raise UserError(
                f"{path}: row {number} has no text in column {column!r} (corpus.text_column); "
                f"it has: {', '.join(row) or 'nothing'}"
            )
        text = row[column]
        if text is not None and not isinstance(text, str):
            raise UserError(
                f"{path}: row {number} has no text in column {column!r} (corpus.text_column), "
                f"but {_kind(text)}: {text!r:.60}"
            )
        yield text


def _kind(value: object) -> str:
    names = {bool: "a truth value", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), "an object")


def _parquet_texts(path: Path, column: str) -> Iterator[str | None]:
    import pyarrow

    with _open_parquet(path) as file:
        names = file.schema_arrow.names
        if column not in names:
            raise UserError(
                f"{path}: no column {column!r} (corpus.text_column); it has: {', '.join(names)}"
            )
        if names.count(column) > 1:
            raise UserError(
                f"{path}: {names.count(column)} columns are named {column!r} (corpus.text_column); "
                "which one is meant cannot be told: rename one"
            )
        kind = _plain_type(file.schema_arrow.field(column).type)
        types = pyarrow.types
        if not (types.is_null(kind) or _is_text(kind)):
            raise UserError(f"{path}: column {column!r} holds {kind}, not text")
        done = 0
        for batch in file.iter_batches(batch_size=ROWS, columns=[column]):
            yield from _values(_decoded(batch).column(0), path, done)
            done += len(batch)


def _values(rows: pyarrow.RecordBatch | pyarrow.Array, path: Path, done: int) -> list[Any]:
    """Rows as Python's values. Raises UserError naming the row whose bytes are not text.

    done: rows of the file before these.
    """
    try:
        return list(rows.to_pylist())
    except UnicodeDecodeError:
        for number in range(len(rows)):
            try:
                rows.slice(number, 1).to_pylist()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}: row {done + number + 1}: not UTF-8: byte {error.start + 1} of its text is "
                    f"0x{error.object[error.start]:02x}; write the text as UTF-8"
                ) from None
        raise


@contextlib.contextmanager
def _open_parquet(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    """A parquet file; whatever is wrong with it is raised as a UserError.

    A packed one is unpacked in memory: parquet is read from its end.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        packed = path.suffix in PACKED
        source = io.BytesIO(open_bytes(path).read()) if packed else path
        with pyarrow.parquet.ParquetFile(source) as file:
            yield file
    except (pyarrow.ArrowException, *UNREADABLE) as error:
        raise UserError(f"{path}: cannot be read: {error_text(error)}") from None


def _is_text(kind: pyarrow.DataType) -> bool:
    import pyarrow

    types = pyarrow.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _plain_type(kind: pyarrow.DataType) -> pyarrow.DataType:
    """The type of the values, whatever way they are encoded."""
    import pyarrow

    types = pyarrow.types
    while True:
        if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
            kind = kind.value_type
        elif isinstance(kind, pyarrow.BaseExtensionType):
            kind = kind.storage_type
        else:
            return kind


def _decoded(batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
    """The same rows without dictionaries, run ends and extension types at the top level of columns."""
    import pyarrow

    columns = [_decoded_column(column) for column in batch.columns]
    return pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _decoded_column(column: pyarrow.Array) -> pyarrow.Array:
    import pyarrow
    import pyarrow.compute

    types = pyarrow.types
    while True:
        if types.is_dictionary(column.type):
            values = column.dictionary
            if types.is_string_view(values.type):  # which a cast from a dictionary does not know
                values = values.cast(pyarrow.large_string())
            column = values.take(column.indices)
        elif types.is_run_end_encoded(column.type):
            column = pyarrow.compute.run_end_decode(column)
        elif isinstance(column.type, pyarrow.BaseExtensionType):
            column = column.storage
        else:
            return column
