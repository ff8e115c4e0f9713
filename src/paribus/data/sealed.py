"""Small JSON files that carry a checksum of their own content, so that a damaged one is named and never used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paribus.data import sha256_file
from paribus.errors import UserError

SEAL = "checksum"
FILES = "sha256"  # the key with the checksums of files beside the object


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """The same with its checksum as the last entry."""
    return value | {SEAL: _checksum(value)}


def read_sealed(path: Path, advice: str, *, required: bool = False) -> dict[str, Any]:
    """The object in a JSON file, its checksum left out.

    required: whether the checksum has to be there; False takes a file without one, as older editions wrote, as it is.

    Raises UserError, with `advice` on how to make the file again, if it is absent, is not JSON, or was changed.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; {advice}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged: {error}; {advice}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged: it holds {type(value).__name__}; {advice}")
    expected = value.pop(SEAL, None)
    if required and expected is None:
        raise UserError(
            f"{path}: key {SEAL} is missing, so nothing vouches for its content; {advice}"
        )
    if expected is not None and expected != _checksum(value):
        raise UserError(f"{path}: damaged: its content is not that of its checksum; {advice}")
    return value


def sealed_by_files(value: dict[str, Any], paths: Iterable[Path]) -> dict[str, Any]:
    """A sealed object that also vouches for files beside it.

    Arguments:
        value: the object; its key `sha256` is set to the files' checksums.
        paths: of the files, all in the folder that the object is to be written to.
    """
    return seal(value | {FILES: {path.name: sha256_file(path) for path in paths}})


def check_sealed_files(folder: Path, sealed: dict[str, Any], advice: str) -> None:
    """Raises UserError naming each file of `folder` that is not as a sealed object beside it says."""
    wrong = []
    for name, expected in (sealed.get(FILES) or {}).items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{path}: missing; {advice}")
        elif sha256_file(path) != expected:
            wrong.append(
                f"{path}: damaged: its sha256 is not the one noted when it was written; {advice}"
            )
    if wrong:
        raise UserError(wrong)


def _checksum(value: Mapping[str, object]) -> str:
    text = json.dumps({name: item for name, item in value.items() if name != SEAL}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
