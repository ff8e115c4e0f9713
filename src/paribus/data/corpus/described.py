"""What a corpus records of each file that it was made from, and where it keeps what it fetches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paribus.data import sha256_file

DOWNLOADS = Path(".paribus/downloads")  # in the main checkout: outlives the corpus made of it

Entry = dict[str, Any]  # of manifest.json
NamedFile = tuple[str, Path]  # its name in manifest.json, and where it is


def describe(path: Path, name: str, **more: object) -> Entry:
    """A file's entry: its name, size and sha256, and what else is known of it."""
    return {"path": name, "bytes": path.stat().st_size, "sha256": sha256_file(path), **more}
