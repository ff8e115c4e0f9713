"""Text to training batches: sources, tokenizer, token shards, conversations, loaders; and their file helpers."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from paribus.errors import UserError, escaped

MOST_PROBLEMS = 20  # a file with more broken lines than this is broken as a whole: the 21st would help no reader

DEEPEST = 100  # levels of JSON that are read: some readers recurse once a level
# What corrupt files raise; OverflowError: dates beyond those of Python.
UNREADABLE = (OSError, EOFError, ValueError, NotImplementedError, OverflowError, zlib.error)

# The current work, done, total; both in the same unit.
Progress = Callable[[str, float, float], None]


class _Unzstd(io.RawIOBase):
    """Bytes of a .zst file of one or more frames. zstandard's own reader takes a truncated file for a short one."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self._start_frame, self._corrupt = (
            zstandard.ZstdDecompressor().decompressobj,
            zstandard.ZstdError,
        )
        self._file, self._frame, self._ready = path.open("rb"), self._start_frame(), b""
        self._packed, self._between_frames = b"", True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and self._unpack_more():
            pass
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _unpack_more(self) -> bool:
        packed = self._packed or self._file.read(1 << 18)
        if not packed and not self._between_frames:
            raise OSError("truncated: its last zstd frame does not end")
        if not packed:
            return False
        try:
            self._ready = self._frame.decompress(packed)
        except self._corrupt as error:
            raise OSError(str(error)) from None
        self._packed, self._between_frames = self._frame.unused_data, self._frame.eof
        if self._between_frames:
            self._frame = self._start_frame()
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


def open_bytes(path: Path) -> IO[bytes]:
    """A file's bytes, unpacked if its name ends in .gz or .zst. Corrupt ones raise OSError, EOFError, zlib.error."""
    if path.suffix not in (".gz", ".zst"):
        return path.open("rb")
    if path.stat().st_size == 0:  # the libraries take it for one that packs nothing
        raise OSError("truncated: it is empty")
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.open(path))
    return io.BufferedReader(_Unzstd(path))


def open_text(path: Path) -> IO[str]:
    """The same as UTF-8 text, with or without a byte order mark; other bytes raise UnicodeDecodeError."""
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig")


def not_utf8(path: Path, error: UnicodeDecodeError) -> str:
    """What is wrong with a file that `open_text` could not decode, with the line and the byte in it.

    error: as it was raised; its own place is one in a piece of the file.
    """
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            found = _ESCAPED.search(line)
            if found:
                value = ord(found[0]) - 0xDC00
                place = len(line[: found.start()].encode("utf-8", "surrogateescape")) + 1
                return (
                    f"{path}:{number}: not UTF-8: byte {place} of the line is 0x{value:02x}; "
                    "save the file as UTF-8"
                )
    return f"{path}: cannot be read: {error_text(error)}"


def say(line: str) -> None:
    """Print a progress message."""
    print(f"paribus: {escaped(line, limit=None)}", file=sys.stderr, flush=True)


_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # as JSON writes half of a surrogate pair
_ESCAPED = re.compile("[\udc80-\udcff]")  # a byte that is not UTF-8, read with surrogateescape
_SURROGATE = re.compile("[\ud800-\udfff]")


def replace_surrogates(value: object) -> tuple[object, int]:
    r"""A JSON value with each lone half of a surrogate pair as U+FFFD, and how many there were.

    JSON can write them (`\ud83d` alone), UTF-8 cannot. The nesting of `value` is what `json.loads` accepts.
    """
    if isinstance(value, str):
        return _SURROGATE.subn("\ufffd", value)
    if isinstance(value, list):
        items = [replace_surrogates(item) for item in value]
        return [item for item, _ in items], sum(count for _, count in items)
    if isinstance(value, dict):
        replaced, total = {}, 0
        for name, item in value.items():
            new_name, in_name = replace_surrogates(name)
            replaced[new_name], in_item = replace_surrogates(item)
            total += in_name + in_item
        return replaced, total
    return value, 0


def _is_deeper(value: object, depth: int) -> bool:
    """Whether lists and objects are nested in each other more than `depth` times."""
    level = [value]
    for _ in range(depth + 1):
        below: list[object] = []
        for one in level:
            if isinstance(one, dict):
                below += one.values()
            elif isinstance(one, list):
                below += one
        level = below
    return bool(level)


def parse_json(line: str) -> Any:
    """The value that a line of JSON holds. Raises ValueError, with its reason, for whatever cannot be read."""
    try:
        value = json.loads(line)
        if line.count("[") + line.count("{") > DEEPEST and _is_deeper(value, DEEPEST):
            raise RecursionError
        return value
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError("not read: nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise ValueError(f"not read: {error}") from None


def load_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl file (also .gz, .zst), one a line; blank lines are skipped.

    Lone halves of surrogate pairs become U+FFFD, reported once the file is read. Broken lines are passed over
    and raised together at the end as a UserError that names file and line.
    """
    for _, row in numbered_rows(path):
        yield row


def numbered_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """`load_jsonl` with the number of each row's line, from 1."""
    problems: list[str] = []
    replaced = first = 0
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row, reason, halves = _row(line)
                if halves and not first:
                    first = number
                replaced += halves
                if row is not None:
                    yield number, row
                else:
                    problems.append(f"{path}:{number}: {reason}")
                if len(problems) >= MOST_PROBLEMS:
                    break
    except UnicodeDecodeError as error:
        problems.append(not_utf8(path, error))
    except UNREADABLE as error:
        problems.append(f"{path}: cannot be read: {error_text(error)}")
    if replaced:
        say(f"{path}: {replaced:,} lone surrogates became U+FFFD, the first in line {first}")
    if problems:
        raise UserError(problems)


def _row(line: str) -> tuple[dict[str, object] | None, str, int]:
    """The object in a line, else why there is none; and how many lone surrogates were replaced."""
    halves = 0
    try:
        row = parse_json(line)
        if _HALF.search(line):
            row, halves = replace_surrogates(row)
    except ValueError as error:
        return None, str(error), 0
    except RecursionError:
        return None, "not read: nested too deeply", 0
    if not isinstance(row, dict):
        return None, f"expected an object, not {type(row).__name__}", 0
    return row, "", halves


def error_text(error: BaseException) -> str:
    """What an error says, without the number and the path that an OSError adds."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> int:
    """Write one object a line; returns how many."""
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
