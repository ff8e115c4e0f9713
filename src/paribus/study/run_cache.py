"""DVC's run-cache as evidence of a stage's outputs when it ran.

DVC notes the outputs of each stage that ran: `.dvc/cache/runs/<2 letters>/<key>/<name>` holds the same as the stage's
entry in dvc.lock. `key` is the sha256 of the command, the parameters, and the hashes of what was read; `name` is that of
the whole entry. So a metric that is edited later together with its hash in dvc.lock contradicts the note, and one that
is given to DVC by `dvc commit` stands beside the note of the run itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paribus.config import parse_yaml
from paribus.errors import UserError
from paribus.study.lasting import FIGURES, lasting

_NOT_HASHED = ("size", "nfiles")  # of DVC's hash of an entry
Read = Callable[[str], bytes | None]  # what the cache has under a hash


@dataclass(frozen=True)
class Note:
    """The outputs of a run: output -> hash, and when DVC noted them, in seconds since the epoch."""

    outs: dict[str, str]
    noted: float


def edited(entry: dict[str, Any], runs: Path, read: Read) -> list[str]:
    """Outputs in a stage's entry of dvc.lock that differ from those that a run of the stage left.

    Arguments:
        entry: of dvc.lock.
        runs: folder of the run-cache.
        read: the content of an object in DVC's cache, None where it has none.

    Returns the outputs, sorted; none where the run-cache knows nothing of these parameters and inputs. Times and the
    machine's figures may differ: the same stage may have run twice.
    """
    folder = _folder(entry, runs)
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not names or names == [_name(entry)]:
        return []
    notes = sorted(_notes(folder), key=lambda note: note.noted)
    outs = _outs(entry)
    own = next((note for note in notes if note.outs == outs), None)
    if own is None:
        return _unlike_all(outs, notes, read)
    before = [note for note in notes if note.noted < own.noted]
    return _other_figures(outs, before, read)


def _unlike_all(outs: dict[str, str], notes: list[Note], read: Read) -> list[str]:
    """Outputs that differ from those of the run that is most like this entry; none without a note."""
    differences = [_differing(outs, note.outs, read) for note in notes]
    return min(differences, key=len, default=[])


def _other_figures(outs: dict[str, str], notes: list[Note], read: Read) -> list[str]:
    """Figures that differ from those of a run noted before which left all else the same: a run leaves one set of figures."""
    found: set[str] = set()
    for note in notes:
        differing = _differing(outs, note.outs, read)
        if all(path.startswith(FIGURES) for path in differing):
            found.update(differing)
    return sorted(found)


def _differing(outs: dict[str, str], others: dict[str, str], read: Read) -> list[str]:
    """Outputs that differ in more than times."""
    found = []
    for path in sorted(outs.keys() | others.keys()):
        mark, other = outs.get(path), others.get(path)
        if mark != other and not _same_but_times(path, mark, other, read):
            found.append(path)
    return found


def _same_but_times(path: str, mark: str | None, other: str | None, read: Read) -> bool:
    if mark is None or other is None or not path.startswith(FIGURES):
        return False
    content, other_content = read(mark), read(other)
    if content is None or other_content is None:
        return False
    return bool(lasting(path, content) == lasting(path, other_content))


# ---------------------------------------------------------------- DVC's files


def _folder(entry: dict[str, Any], runs: Path) -> Path:
    """Where DVC notes the runs of this command with these parameters and inputs."""
    key = _hash({**entry, "outs": [out["path"] for out in entry.get("outs", [])]})
    return runs / key[:2] / key


def _name(entry: Mapping[str, object]) -> str:
    """The name of the note that a run which left this entry has."""
    return _hash(entry)


def _hash(value: Mapping[str, object]) -> str:
    text = json.dumps(_hashed(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _hashed(value: object) -> object:
    if isinstance(value, list):
        return [_hashed(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _hashed(item) for key, item in value.items() if key not in _NOT_HASHED}


def _notes(folder: Path) -> Iterator[Note]:
    """The notes in a folder; a note whose name does not match its content is not DVC's, and is left out."""
    for path in folder.iterdir():
        try:
            entry = parse_yaml(path.read_text(encoding="utf-8"), str(path))
        except (OSError, ValueError, UserError):
            continue
        if _name(entry) == path.name:
            yield Note(_outs(entry), path.stat().st_mtime)


def _outs(entry: dict[str, Any]) -> dict[str, str]:
    return {out["path"]: str(out.get("md5")) for out in entry.get("outs", [])}
