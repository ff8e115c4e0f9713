"""Names that come from data (labels, listings, archive members, manifests) as paths that stay in their folder."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from paribus.errors import UserError

# Bytes of one part: file systems allow 255, and a temporary file's name is longer.
LONGEST_PART = 200
# Bytes of a whole name: Linux allows a path 4,096, macOS 1,024, and the folder before it takes a part of them.
LONGEST_NAME = 800


def inside(folder: Path, name: str, where: str, *, links: bool = False) -> Path:
    """The path of `name` below `folder`: the one way from a name in data to a path.

    Arguments:
        folder: what the path must stay in; it need not exist.
        name: a relative path with `/` between its parts, as data gives it.
        where: what holds the name, to say in errors.
        links: whether links in the folder may lead outside: in an output of a stage DVC may have put links to its cache.

    Raises UserError if the name is empty, absolute, has `..`, `.` or empty parts, backslashes, drive letters or
    control characters, or, without `links`, if a link in the folder leads it outside.
    """
    problem = name_problem(name)
    if problem is None and not links:
        problem = _link_problem(folder, name)
    if problem:
        raise UserError(f"{where}: {name!r:.200} {problem}; nothing is read or written there")
    return folder / name


def file_name_problem(name: str) -> str | None:
    """What keeps `name` from being the name of one file, in whatever folder; None if nothing does."""
    if "/" in name:
        return "holds a '/', and is to be the name of one file"
    return name_problem(name)


def name_problem(name: str) -> str | None:
    """What keeps `name` from being a path below a folder, whatever the folder holds; None if nothing does."""
    if not name:
        return "is empty"
    if name.startswith(("/", "~")):
        return "leads out of its folder"
    if "\\" in name or re.match(r"[A-Za-z]:", name):
        return "holds a backslash or a drive letter"
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        return "holds a control character"
    return _parts_problem(name.split("/")) or _length_problem(name)


def _parts_problem(parts: list[str]) -> str | None:
    if ".." in parts:
        return "leads out of its folder"
    if "." in parts or "" in parts:
        return "has an empty part"
    return None


def _length_problem(name: str) -> str | None:
    if any(len(part.encode()) > LONGEST_PART for part in name.split("/")):
        return f"has a part longer than {LONGEST_PART} bytes"
    if len(name.encode()) > LONGEST_NAME:
        return f"is longer than {LONGEST_NAME} bytes"
    return None


def own_path(root: Path, text: str, key: str) -> Path:
    """The path that a user wrote as the value of `key`: relative to `root`, `~` for a home.

    Raises UserError for the home of an unknown user and for a name that no file can have.
    """
    try:
        path = root / Path(text).expanduser()
        path.exists()
    except RuntimeError:
        raise UserError(f"{key}: {text!r:.200}: there is no such home") from None
    except OSError as error:  # longer than any path can be
        raise UserError(f"{key}: {text!r:.200}: {error.strerror}") from None
    return path


def _link_problem(folder: Path, name: str) -> str | None:
    """A link below the folder may lead elsewhere although the name does not."""
    home = folder.resolve()
    if not (folder / name).resolve().is_relative_to(home):
        return "leads out of its folder by a link"
    return None
