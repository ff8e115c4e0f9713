"""How a run ended, in words: the outcome of an error, of a stage that failed, of a machine whose disk is full."""

from __future__ import annotations

import signal
from pathlib import Path

from paribus.errors import EXIT_MACHINE
from paribus.execute.machine import NO_SPACE, full_folder, is_machines_fault
from paribus.execute.run import Outcome, said
from paribus.machine.interrupt import EXIT_PAUSED

LAST_LINES = 4  # of a stage's output, where the stage left no report


class StageFailed(Exception):
    """A stage ended with a status other than 0; a negative one is the signal that killed it."""

    def __init__(self, stage: str, status: int | None, words: str) -> None:
        super().__init__(words)
        self.stage, self.status = stage, status


def of_error(error: Exception, root: Path, stage: str, log: Path) -> Outcome:
    """The outcome of a run that an error ended.

    Args:
        error: of DVC, git or the disk.
        root: the main checkout.
        stage: in which it happened; "" before the first.
        log: of the run.
    """
    if is_machines_fault(error) or full_folder(root):
        return _of_machine(root, stage, [words_of(error)], log)
    return Outcome("failed", stage, [words_of(error)])


def _of_machine(root: Path, stage: str, words: list[str], log: Path) -> Outcome:
    """The outcome of a run that its machine could not compute. A full disk is named, as many errors name none."""
    full = full_folder(root)
    if full is not None and not any(str(full) in line and NO_SPACE in line for line in words):
        words = [f"{full}: {NO_SPACE}", *words]
    if not any(NO_SPACE in line for line in words):  # DVC only logs why it could not push
        words = words + [line for line in _last_lines(log) if NO_SPACE in line][-1:]
    return Outcome("machine", stage, words)


def of_failed_stage(failure: StageFailed, root: Path, folder: Path, stopped: bool) -> Outcome:
    """The outcome of a run that a stage ended, by the stage's own report, or else the end of what it printed.

    Args:
        failure: of the stage.
        root: the main checkout.
        folder: of the run.
        stopped: whether the run was asked to stop.
    """
    log = folder / "log.txt"
    kind, problems = said(folder / "said.json")
    words = problems or _last_lines(log) or [str(failure)]
    if failure.status == EXIT_PAUSED or stopped:
        return Outcome("paused", failure.stage)
    if failure.status == EXIT_MACHINE or full_folder(root):
        return _of_machine(root, failure.stage, words, log)
    if failure.status == 2 and kind == "StateInUse":
        return Outcome("busy", failure.stage, words)
    if failure.status == 2:
        return Outcome("refused", failure.stage, words, diverged=kind == "Diverged")
    if failure.status is not None and failure.status < 0:
        name = signal.Signals(-failure.status).name
        return Outcome("failed", failure.stage, [f"was killed ({name})", *problems])
    return Outcome("failed", failure.stage, words)


def words_of(error: Exception) -> str:
    """An error in one line, with its kind where it has no message."""
    text, cause = (" ".join(str(part or "").split()) for part in (error, error.__cause__))
    if cause and cause not in text:
        text = f"{text}: {cause}" if text else cause
    return text or type(error).__name__


def _last_lines(log: Path) -> list[str]:
    """The end of what a stage printed."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - 8192, 0))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()][-LAST_LINES:]
