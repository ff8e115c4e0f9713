"""What killed runs leave behind: clones, and stages that outlived their worker. Removed before a study goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

from paribus.execute import processes
from paribus.execute.live import is_elsewhere
from paribus.execute.run import ASKED_TO_SAY, RunSpec
from paribus.journal import locked
from paribus.run_id import RunId

# A note of an earlier way of queueing, which led to a reset of the checkout. It no longer has a meaning.
_OBSOLETE = ("queueing.json",)


def remove_leftovers(state_root: Path) -> list[str]:
    """End the stages and remove the clones of runs that no worker has; returns the findings, in words."""
    found = []
    for name in _OBSOLETE:
        (state_root / name).unlink(missing_ok=True)
    for folder in sorted((state_root / "execute").glob("*/*/")):
        remains = [folder / name for name in ("clone", "site") if (folder / name).exists()]
        if not remains:
            continue
        with locked(folder / "lock", wait=False) as mine:
            if not mine:
                continue
            orphans = _stages_of(folder)
            if orphans:
                _end(orphans)
                found.append(
                    f"{folder.parent.name}, {folder.name}: a stage without a worker was ended"
                )
            for path in remains:
                shutil.rmtree(path, ignore_errors=True)
            found.append(
                f"{folder.parent.name}, {folder.name}: the clone of a killed run was removed"
            )
    return found


def under_way(state_root: Path, study: str) -> dict[RunId, str]:
    """Runs of a study that a worker has at this moment, of any process or machine -> their stage ("" before the first)."""
    found = {}
    for folder in sorted((state_root / "execute" / study).glob("*/")):
        try:
            spec = RunSpec.read(folder / "run.json")
            with locked(folder / "lock", wait=False) as free:
                here = not free
            if here or is_elsewhere(folder):
                found[spec.id] = stage_now(folder)
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
        ):  # just begun, or torn by a power cut
            continue
    return found


def stage_now(folder: Path) -> str:
    """The stage that the run in a folder has begun last."""
    try:
        return (folder / "stage.txt").read_text(encoding="utf-8")
    except OSError:
        return ""


def _stages_of(folder: Path) -> list[psutil.Process]:
    """Processes that a run in this folder started and that serve no other run."""
    mark = str(folder / "said.json")
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get(ASKED_TO_SAY) == mark
            if ours and not processes.is_spared(process):
                found.append(process)
        except psutil.Error:  # another user's, or gone
            continue
    return found


def _end(stages: list[psutil.Process]) -> None:
    pids = [process.pid for process in stages]
    processes.ask_to_end(pids)
    _, alive = psutil.wait_procs(stages, timeout=processes.SAVE_SECONDS)
    processes.kill([process.pid for process in alive])
