"""Training states that nothing needs any more: those of finished runs whose checkpoint DVC's cache holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paribus.errors import UserError
from paribus.files import remove_leftovers
from paribus.graph import cache_folder
from paribus.machine.lock import StateLock, lock_holder


@dataclass(frozen=True)
class Finished:
    """A finished run whose training states are no longer needed: DVC's cache holds its checkpoint."""

    folder: Path
    bytes: int  # of its states


def finished_runs(root: Path, state_root: Path) -> list[Finished]:
    """Runs under `.paribus/runs` whose checkpoint is in DVC's cache and that still keep states.

    Args:
        root: the main checkout.
        state_root: its `.paribus`.
    """
    cache = cache_folder(root)
    found = []
    for folder in sorted((state_root / "runs").glob("*")):
        run = _finished(folder, cache)
        if run is not None:
            found.append(run)
    return found


def remove_states(run: Finished) -> None:
    """Remove the states of a run. Raises UserError if a process has taken it up again meanwhile."""
    with StateLock(run.folder, patience=0.0):
        for path in _state_files(run.folder):
            path.unlink(missing_ok=True)
        remove_leftovers(run.folder, recursive=True)


def remove_states_of(experiment: str, root: Path, state_root: Path) -> None:
    """Remove the states of the training stages that an experiment of DVC's computed, where the cache holds their results.

    Args:
        experiment: its name.
        root: the main checkout.
        state_root: its `.paribus`.
    """
    cache = cache_folder(root)
    for folder in _computed_by(experiment, state_root):
        run = _finished(folder, cache)
        if run is not None:
            try:
                remove_states(run)
            except (
                UserError,
                OSError,
            ):  # in use, or not ours to remove: `paribus clean` tries again
                continue


def _computed_by(experiment: str, state_root: Path) -> Iterator[Path]:
    for path in (state_root / "runs").glob("*/run.json"):
        try:
            tags = json.loads(path.read_text(encoding="utf-8"))["tags"]
            if tags.get("dvc.experiment") == experiment:
                yield path.parent
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # damaged, or of another version


def _finished(folder: Path, cache: Path) -> Finished | None:
    """The run in a folder, where it keeps states that nothing needs."""
    size = sum(path.stat().st_size for path in _state_files(folder))
    if size and _is_held(folder, cache) and lock_holder(folder) is None:
        return Finished(folder, size)
    return None


def _state_files(folder: Path) -> list[Path]:
    state = folder / "state"
    return [*state.glob("step-*"), *state.glob(".step-*")]


def _is_held(folder: Path, cache: Path) -> bool:
    """Whether DVC's cache has the checkpoint that the run handed over, the list and every file of it."""
    try:
        digest = json.loads((folder / "delivered.json").read_text(encoding="utf-8"))
        listed = json.loads(_object(cache, digest).read_text(encoding="utf-8"))
        return all(_object(cache, entry["md5"]).is_file() for entry in listed)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _object(cache: Path, digest: str) -> Path:
    return cache / digest[:2] / digest[2:]
