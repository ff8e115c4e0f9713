"""Giving disk space back: training states of runs whose checkpoint DVC holds, and what killed processes left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from paribus.files import remove_leftovers
from paribus.machine.lock import StateLock, lock_holder
from paribus.places import main_checkout, state_root


@dataclass(frozen=True)
class Finished:
    """A finished run whose training states are no longer needed: DVC's cache holds its checkpoint."""

    folder: Path
    bytes: int  # of its states


def finished_runs() -> list[Finished]:
    """Runs under `.paribus/runs` whose checkpoint is in DVC's cache and that still keep states."""
    cache = cache_folder()
    found = []
    for folder in sorted((state_root() / "runs").glob("*")):
        size = sum(path.stat().st_size for path in _state_files(folder))
        if size and _is_held(folder, cache) and lock_holder(folder) is None:
            found.append(Finished(folder, size))
    return found


def remove_states(run: Finished) -> None:
    """Remove the states of a run. Raises UserError if a process has taken it up again meanwhile."""
    with StateLock(run.folder, patience=0.0):
        for path in _state_files(run.folder):
            path.unlink(missing_ok=True)
        remove_leftovers(run.folder, recursive=True)


def cache_folder() -> Path:
    """The folder of DVC's cache, as its configuration says."""
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    done = subprocess.run(command, cwd=main_checkout(), capture_output=True, text=True)
    if done.returncode:
        return main_checkout() / ".dvc/cache"
    return Path(done.stdout.strip())


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
    return cache / "files/md5" / digest[:2] / digest[2:]


def clean_finished(dry_run: bool, as_json: bool) -> None:
    """Remove the training states that finished runs no longer need, and say what that gave back."""
    runs = finished_runs()
    for run in runs:
        if not dry_run:
            remove_states(run)
        if not as_json:
            click.echo(f"{run.folder.name}: {run.bytes / 1e6:,.1f} MB")
    total = sum(run.bytes for run in runs)
    if as_json:
        listed = [{"run": run.folder.name, "bytes": run.bytes} for run in runs]
        click.echo(json.dumps({"runs": listed, "bytes": total, "removed": not dry_run}))
        return
    click.echo(f"{total / 1e6:,.1f} MB of {len(runs)} runs {'to remove' if dry_run else 'removed'}")
