"""Names that come from data (labels, listings, archive members, manifests) as paths that stay in their folder."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from paribus.errors import UserError

LONGEST_PART = (
    200  # bytes of one part: file systems allow 255, and a temporary file's name is longer
)


def inside(folder: Path, name: str, where: str) -> Path:
    """The path of `name` below `folder`: the one way from a name in data to a path.

    Arguments:
        folder: what the path must stay in; it need not exist.
        name: a relative path with `/` between its parts, as data gives it.
        where: what holds the name, to say in errors.

    Raises UserError if the name is empty, absolute, has `..`, `.` or empty parts, backslashes, drive letters or
    control characters, or if a link in the folder leads it outside.
    """
    problem = name_problem(name) or _link_problem(folder, name)
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
    parts = name.split("/")
    if ".." in parts:
        return "leads out of its folder"
    if "." in parts or "" in parts:
        return "has an empty part"
    if any(len(part.encode()) > LONGEST_PART for part in parts):
        return f"has a part longer than {LONGEST_PART} bytes"
    return None


def _link_problem(folder: Path, name: str) -> str | None:
    """A link below the folder may lead elsewhere although the name does not."""
    home = folder.resolve()
    if not (folder / name).resolve().is_relative_to(home):
        return "leads out of its folder by a link"
    return None
