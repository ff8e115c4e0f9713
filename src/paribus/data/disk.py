"""A disk that is full, read-only or another user's, in words for people."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from paribus.errors import MachineError, UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_OTHER = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ESTALE, errno.ENXIO)


@contextlib.contextmanager
def writing(out: Path, what: str = "") -> Iterator[None]:
    """Within the block what the disk refuses is raised as a UserError that names the path and what to do.

    Arguments:
        out: what is being written; named where the error names no path.
        what: what is kept for the next start, or may be removed to make room.
    """
    try:
        yield
    except OSError as error:
        path = Path(error.filename) if isinstance(error.filename, str) else out
        if (advice := _advice(error.errno, str(error), path)) is None:
            raise
        raise UserError(_line(path, error.strerror or str(error), advice, what)) from None
    except Exception as error:
        # The tokenizers library raises plain Exceptions that name the system's error by its number.
        number = re.search(r"\(os error (\d+)\)", str(error))
        advice = _advice(int(number[1]), str(error), out) if number else None
        if advice is None or isinstance(error, UserError):
            raise
        raise UserError(_line(out, str(error), advice, what)) from None


def check_room(folder: Path, size: float, key: str) -> None:
    """Raises UserError where the disk that `folder` is to be on has not so many bytes free.

    key: with its value, for the message.
    """
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.is_dir())
    usage = shutil.disk_usage(there)
    if size <= usage.free:
        return
    kind = UserError if size > usage.total else MachineError
    raise kind(
        f"{key}: takes about {size / 1e6:,.0f} MB, and {usage.free / 1e6:,.0f} of {usage.total / 1e6:,.0f} MB are free "
        f"on the disk of {there}; lower it, or make room"
    )


def _line(path: Path, reason: str, advice: str, what: str) -> str:
    return f"{path}: cannot be written: {reason}; {advice}" + (f"; {what}" if what else "")


def _advice(number: int | None, text: str, path: Path) -> str | None:
    """What to do about an error of the system; None where it is not the disk's."""
    if number in _FULL or "No space left" in text:
        return (
            f"{_free(path)}; make room (`dvc gc -w` drops what no experiment uses, .paribus/downloads is fetched again "
            "when needed, a quota may be the limit), then start again"
        )
    if number in _CLOSED:
        return "check that the disk is mounted for writing and that the folder belongs to you"
    if number in _OTHER:
        return "check the disk and the system's limits, then start again"
    return None


def _free(path: Path) -> str:
    """How much room there is on the disk that `path` is to be on."""
    for folder in (path, *path.parents):
        if folder.is_dir():
            return (
                f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB are free on the disk of {folder}"
            )
    return "the disk is full"
