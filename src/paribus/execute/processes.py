"""Processes of a run: asking them to save and end, and ending those that nothing waits for any more.

A worker leads a session of its own, which holds the stages it starts. The sender that feeds MLflow has left it and is spared.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection

import psutil

SAVE_SECONDS = 120.0  # that a stage may take to save its state
LOOK_SECONDS = 0.1
_SPARED = "paribus.tracking.sender"  # delivers what a run logged, for every run of the project


def of_session(session: int) -> set[int]:
    """The processes of a session, this one left out."""
    found = set()
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if os.getsid(pid) == session and pid != os.getpid() and not _is_zombie(pid):
                found.add(pid)
    return found


def ask_to_end(pids: Collection[int]) -> None:
    """SIGTERM: a training stage saves its state and exits with 75."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)


def end_session(session: int, spare: Collection[int] = (), patience: float = SAVE_SECONDS) -> None:
    """Ask the processes of a session to end, and kill what is left after `patience` seconds."""
    deadline = time.monotonic() + patience
    asked: set[int] = set()
    while left := of_session(session) - set(spare):
        if time.monotonic() > deadline:
            kill(left)
            return
        ask_to_end(left - asked)
        asked |= left
        time.sleep(LOOK_SECONDS)


def kill(pids: Collection[int]) -> None:
    """SIGKILL, to them and to what they started; torchrun's processes lead sessions of their own."""
    family: dict[int, psutil.Process] = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            for one in [process, *process.children(recursive=True)]:
                family[one.pid] = one
    for one in family.values():
        with contextlib.suppress(psutil.Error):
            if not is_spared(one):
                one.kill()


def is_spared(process: psutil.Process) -> bool:
    """Whether a process works for other runs too. Raises psutil.Error where it is gone."""
    return _SPARED in process.cmdline()


def _is_zombie(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True
