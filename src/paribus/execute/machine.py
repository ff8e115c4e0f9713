"""Whether an error is the machine's fault and not the run's: no space, no access, a broken disk."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

EXIT_MACHINE = 74  # EX_IOERR: what a stage exits with where the machine is at fault
LEAST_FREE = 1 << 20  # bytes; below it a failure says nothing about the run that met it

_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,  # a limit on the size of files
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,  # a network file system that went away
    errno.EMFILE,
    errno.ENFILE,
}
_WORDS = [os.strerror(number) for number in sorted(_ERRORS)]  # as git says them


def is_machines_fault(error: BaseException) -> bool:
    """Whether the error, or one that it came from, is of a kind that another run would meet too."""
    return any(_is_own_fault(one) for one in _with_causes(error))


def _is_own_fault(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in _ERRORS
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_FULL", "SQLITE_IOERR"))
    if type(error).__name__ == "CacheLinkError":  # DVC's, where it could not even copy
        return True
    return type(error).__name__ == "GitError" and any(words in str(error) for words in _WORDS)


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def is_full(folder: Path) -> bool:
    """Whether the file system of a folder has no room left."""
    about = os.statvfs(folder)
    return about.f_bavail * about.f_frsize < LEAST_FREE
