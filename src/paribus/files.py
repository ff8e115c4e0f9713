"""Files that a process keeps for later ones: written whole, and read as absent, damaged or fine.

`write_atomic`, or `replacing` for what another library writes, replaces a file so that a reader, or the next start after
a crash, sees the old one or the whole new one; `whole_folder` does it for a folder.

A power cut, a full disk or a stray editor damages a small file now and then. That is no reason to stop: what is
damaged is named once on stderr, put aside as NAME.damaged for inspection, and read as if it were absent.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from paribus.errors import UserError, naming

NUMBER = (int, float)
_DAMAGED_ERRNOS = (errno.EISDIR, errno.EIO, errno.ELOOP, errno.EUCLEAN)

_named: set[str] = set()  # files whose damage was reported and which could not be put aside


@dataclass(frozen=True)
class Values:
    """The shape of a mapping with any keys, whose values all have one shape."""

    shape: Shape


@dataclass(frozen=True)
class Items:
    """The shape of a list whose entries all have one shape."""

    shape: Shape


@dataclass(frozen=True)
class Optional:
    """The shape of a key that may be absent."""

    shape: Shape


Shape: TypeAlias = "type | tuple[type, ...] | Values | Items | Optional | Mapping[str, Shape]"


# ---------------------------------------------------------------- writing


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file by `content`, text as UTF-8, so that it is the old or the new one, whole, whatever happens.

    Raises MachineError, and leaves the old file, where the disk is full or refuses otherwise.

    path: of the file, in a folder that exists.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with replacing(path) as aside:
        aside.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; when the block ends well, what is there takes the place of `path`.

    Who may read it is decided by the user's umask, also where a library makes a file that only its owner may read.
    Raises MachineError, and leaves the old file and nothing beside it, where the disk refuses.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")  # `remove_leftovers` knows it
    with naming(path):
        try:
            aside.touch()
            mode = aside.stat().st_mode
            yield aside
            aside.chmod(mode)
            put_in_place(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` only when the block ends well: `out` is the old one or the new, or not there.

    A link in the place of `out` stays, and the folder that it leads to is replaced.
    """
    if out.is_symlink():
        out = out.resolve()
    partial, before = (out.with_name(f".{out.name}.{name}") for name in ("partial", "before"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(before, ignore_errors=True)
    if out.exists():
        out.rename(before)
    partial.rename(out)
    _sync(out.parent)
    shutil.rmtree(before, ignore_errors=True)


def put_in_place(aside: Path, path: Path) -> None:
    """Bring a finished file to the disk and give it its name; the name is on the disk when this returns.

    Args:
        aside: the finished file, on the same disk.
        path: its name from now on.
    """
    _sync(aside)
    os.replace(aside, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Bring a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- shapes


def misfit(value: object, shape: Shape, name: str = "") -> str | None:
    """The first part of a JSON value that deviates from `shape`, in words; None where all of it matches.

    Arguments:
        value: as `json.loads` gives it.
        shape: a type, or several; a mapping of the keys that have to be there to their shapes; `Values`; `Items`;
            `Optional`.
        name: of the value, dotted; "" for the whole file.
    """
    if isinstance(shape, Optional):
        return misfit(value, shape.shape, name)
    if isinstance(shape, Values):
        return _misfit_of_values(value, shape, name)
    if isinstance(shape, Items):
        return _misfit_of_items(value, shape, name)
    if isinstance(shape, Mapping):
        return _misfit_of_keys(value, shape, name)
    types = shape if isinstance(shape, tuple) else (shape,)
    if isinstance(value, float) and not math.isfinite(value):  # also what 1e999 is read as
        return f"{name or 'the file'} holds {value}, which is no number of JSON"
    if isinstance(value, bool) and bool not in types:  # for Python, true is the number 1
        return _expected(_names_of(types), value, name)
    if isinstance(value, types):
        return None
    return _expected(_names_of(types), value, name)


def _misfit_of_keys(value: object, shape: Mapping[str, Shape], name: str) -> str | None:
    if not isinstance(value, dict):
        return _expected("a mapping", value, name)
    for key, expected in shape.items():
        dotted = f"{name}.{key}" if name else key
        if key in value:
            problem = misfit(value[key], expected, dotted)
        elif isinstance(expected, Optional):
            problem = None
        else:
            problem = f"{dotted} is missing"
        if problem:
            return problem
    return None


def _misfit_of_values(value: object, shape: Values, name: str) -> str | None:
    if not isinstance(value, dict):
        return _expected("a mapping", value, name)
    for key, each in value.items():
        problem = misfit(each, shape.shape, f"{name}.{key}" if name else key)
        if problem:
            return problem
    return None


def _misfit_of_items(value: object, shape: Items, name: str) -> str | None:
    if not isinstance(value, list):
        return _expected("a list", value, name)
    for place, each in enumerate(value):
        problem = misfit(each, shape.shape, f"{name}.{place}" if name else str(place))
        if problem:
            return problem
    return None


def _expected(wanted: str, value: object, name: str) -> str:
    whole = name or "the file"
    return f"{whole} holds {_NAMES.get(type(value), type(value).__name__)} where {wanted} belongs"


_NAMES: dict[type, str] = {
    dict: "a mapping",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def _names_of(types: tuple[type, ...]) -> str:
    names = dict.fromkeys(_NAMES.get(each, each.__name__) for each in types)
    return " or ".join(names)


# ---------------------------------------------------------------- one object a file


def read_json(
    path: Path, shape: Shape | None = None, *, move: bool = True
) -> dict[str, Any] | None:
    """The object in a file; None where the file is missing, or damaged: then it is named on stderr and put aside.

    Arguments:
        path: the file.
        shape: that the object must have; any mapping by default.
        move: False leaves a damaged file where it is, as for an output that DVC owns.

    Raises:
        UserError: this user may not read the file.
    """
    value = read_value(path, {} if shape is None else shape, move=move)
    return None if value is None else dict(value)


def read_value(path: Path, shape: Shape, *, move: bool = True) -> Any:
    """As `read_json`, for a file that may hold any JSON value.

    Args:
        path: of the file.
        shape: that the value must have.
        move: put a damaged file aside.
    """
    problem = "replaced while it was read"
    for _ in range(3):  # another process may replace the file between reading and putting aside
        try:
            read = path.stat()
            text = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno not in _DAMAGED_ERRNOS:
                raise UserError(
                    f"{path}: {error.strerror}; give this user the right to read it"
                ) from None
            problem = str(error.strerror)
        else:
            value, found = parse(text, shape)
            if found is None:
                return value
            problem = found
        if _same_file(path, read):
            break
    report_damage(path, problem, move)
    return None


def parse(text: bytes, shape: Shape) -> tuple[Any, str | None]:
    """(the value, None), or (None, what is wrong with it).

    Args:
        text: of a file.
        shape: that the value must have.
    """
    if not text.strip(b"\0 \n\t\r"):
        return None, "empty"
    try:
        value = json.loads(text.decode("utf-8"))
    except RecursionError:
        return None, "nested too deep"
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 at byte {error.start}"
    except json.JSONDecodeError as error:
        return None, f"not JSON: {error.msg}, line {error.lineno}"
    except ValueError as error:  # a number of thousands of digits
        return None, str(error)
    problem = misfit(value, shape)
    return (None, problem) if problem else (value, None)


def _same_file(path: Path, before: os.stat_result) -> bool:
    try:
        now = path.stat()
    except OSError:
        return False
    return (now.st_ino, now.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def report_damage(path: Path, problem: str, move: bool = True) -> None:
    """Name a damaged file on stderr, and put it aside. The same file is named only once.

    Args:
        path: of the file.
        problem: what is wrong with it.
        move: rename it to NAME.damaged.
    """
    if str(path) in _named:
        return
    aside = free_name(path)
    moved = False
    if move:
        try:
            path.rename(aside)
            moved = True
        except FileNotFoundError:  # another process was first
            return
        except OSError:
            moved = False
    if moved:
        what = f"put aside as {aside.name}; paribus goes on without it"
    else:
        _named.add(str(path))
        what = "paribus goes on without it"
    print(f"paribus: {path}: damaged ({problem}); {what}", file=sys.stderr, flush=True)


def free_name(path: Path) -> Path:
    """NAME.damaged, or NAME.damaged.2 and so on where such a file exists already."""
    aside = path.with_name(f"{path.name}.damaged")
    number = 2
    while aside.exists():
        aside = path.with_name(f"{path.name}.damaged.{number}")
        number += 1
    return aside


# ---------------------------------------------------------------- files that grow


@dataclass(frozen=True)
class Extent:
    """How far a growing file had come: its first `size` bytes have this sha256, whatever was appended since."""

    size: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> Extent:
        """The extent of a file that holds `content`."""
        return cls(len(content), hashlib.sha256(content).hexdigest())


def beginning(path: Path, extent: Extent) -> bytes | None:
    """The first bytes of a file if they are those of `extent`; None where the file is absent, shorter or altered.

    path: of the file, which may have grown since.
    """
    try:
        with path.open("rb") as file:
            content = file.read(extent.size)
    except FileNotFoundError:
        return None
    return content if Extent.of(content) == extent else None


# ---------------------------------------------------------------- one object a line


def read_lines(
    path: Path, shape: Shape | None = None
) -> tuple[list[tuple[bytes, dict[str, object]]], list[str]]:
    """([(line, row)] of the sound lines, the problems of the others) of a JSONL file.

    A last line without its end is being written, or was torn by a kill: it is left out, and does not count as damage.

    Args:
        path: of the file.
        shape: that each row must have; None: any.
    """
    rows: list[tuple[bytes, dict[str, object]]] = []
    problems: list[str] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            row, problem = parse(line, {} if shape is None else shape)
            if problem is None:
                rows.append((line, row))
            else:
                problems.append(f"line {number}: {problem}")
    return rows, problems


def read_rows(path: Path, shape: Shape | None = None) -> list[dict[str, Any]]:
    """Every row of a JSONL file; damaged lines are named once on stderr and left out.

    Args:
        path: of the file.
        shape: that each row must have; None: any.
    """
    rows, problems = read_lines(path, shape)
    if problems and str(path) not in _named:
        _named.add(str(path))
        print(f"paribus: {path}: {_summary(problems)}; left out", file=sys.stderr, flush=True)
    return [row for _, row in rows]


def set_lines_aside(path: Path, problems: list[str]) -> None:
    """Name the damaged lines of a JSONL file that is about to be rewritten without them, and keep a copy of it.

    Args:
        path: of the file.
        problems: as `read_lines` names them.
    """
    aside = free_name(path)
    shutil.copyfile(path, aside)
    print(
        f"paribus: {path}: {_summary(problems)}; left out, and the file as it was is {aside.name}",
        file=sys.stderr,
        flush=True,
    )


def _summary(problems: list[str]) -> str:
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"damaged ({problems[0]}{more})"


_TEMPORARY = re.compile(r"\..+\.(\d+)")  # .NAME.PID: written aside, to be renamed to NAME


def remove_leftovers(folder: Path, recursive: bool = False) -> None:
    """Remove the files in `folder` that a process was writing aside when it was killed; those of living ones stay.

    recursive: in the folders below as well.
    """
    paths = folder.rglob(".*") if recursive else folder.glob(".*")
    for path in list(paths):
        named = _TEMPORARY.fullmatch(path.name)
        if named and path.is_file() and not _alive(int(named[1])):
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
