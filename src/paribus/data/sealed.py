"""Small JSON files that carry a checksum of their own content, so that a damaged one is named and never used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from paribus.errors import UserError

SEAL = "checksum"


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """The same with its checksum as the last entry."""
    return value | {SEAL: _checksum(value)}


def read_sealed(path: Path, advice: str) -> dict[str, Any]:
    """The object in a JSON file, its checksum left out; a file without one, as older editions wrote, is taken as it is.

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
    if expected is not None and expected != _checksum(value):
        raise UserError(f"{path}: damaged: its content is not that of its checksum; {advice}")
    return value


def _checksum(value: dict[str, Any]) -> str:
    text = json.dumps({name: item for name, item in value.items() if name != SEAL}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
