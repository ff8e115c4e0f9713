"""Whether an error is the machine's fault and not the run's: no space, no access, a broken disk."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from paribus import graph
from paribus.errors import machine_fault

NO_SPACE = os.strerror(errno.ENOSPC)
LEAST_FREE = 1 << 20  # bytes; below it a failure says nothing about the run that met it

# As git words them; it keeps no numbers.
_OF_GIT = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)]
_OF_SQLITE = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY")


def is_machines_fault(error: BaseException) -> bool:
    """Whether the error, or one of its causes, is of a kind that another run would meet too."""
    return any(_is_own_fault(one) for one in _with_causes(error))


def _is_own_fault(error: BaseException) -> bool:
    if machine_fault(error) is not None:
        return True
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorname", "").startswith(_OF_SQLITE)
    kind = type(error).__name__
    if kind == "CacheLinkError":  # DVC's, where it could not even copy
        return True
    return kind == "GitError" and any(words in str(error) for words in _OF_GIT)


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


def full_folder(root: Path) -> Path | None:
    """The first folder of a checkout that has no room left; None where all have some.

    root: of the checkout. Its `.git`, its `.paribus` and DVC's cache may be on disks of their own.
    """
    folders = [root, root / ".git", root / ".paribus"]
    with contextlib.suppress(Exception):  # a damaged .dvc/config is for others to tell
        folders.append(graph.cache_folder(root))
    return next((folder for folder in folders if folder.exists() and is_full(folder)), None)
