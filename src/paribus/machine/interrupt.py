"""Being asked to stop: by signals, time, `paribus pause`, or the death of DVC.

A stop may be requested at any moment of a stage's life:

| moment | who answers | how |
| --- | --- | --- |
| before the session: imports, reading inputs; after it | `leave_on_signals`, `LauncherWatch` | the process ends at once |
| in a stage of data | `stopping_at_once` | the process ends at once |
| in the session | `Interrupt.requested`, asked between steps | the stage saves its state |

Both end with `EXIT_PAUSED`.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import signal
import socket
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# EX_TEMPFAIL: DVC takes the stage as not done, so the next `dvc repro` goes on with it.
EXIT_PAUSED = 75
STOPPING = (signal.SIGINT, signal.SIGTERM)  # the signals that ask for a stop
SAME_SECONDS = 1.0  # signals that follow each other so soon are one request
_END = b"\0"  # what the reader of signals gets when no more are to come


class Interrupt:
    """`with Interrupt(folder, session_minutes) as interrupt:` and, between steps, `if interrupt.requested(): save`.

    A stop is requested by SIGINT or SIGTERM, by the end of the session, by the death of the DVC or torchrun
    that started this stage, or by a file `pause` in the state folder. `reason` says which. Only the main thread may enter.
    """

    def __init__(self, folder: Path | None = None, session_minutes: float | None = None) -> None:
        self.reason: str | None = None
        self._pause = str(folder / "pause") if folder else None
        self._deadline = time.monotonic() + session_minutes * 60 if session_minutes else math.inf
        self._session_minutes = session_minutes
        self._next_look = 0.0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        # A background job of a shell inherits SIGINT ignored: install the handler all the same.
        for number in STOPPING:
            self._handlers[number] = signal.signal(number, self._signalled)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _signalled(self, number: int, _: types.FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name

    def requested(self) -> bool:
        """Whether to save and stop now. Once true, it stays so. About a microsecond."""
        now = time.monotonic()
        if self.reason is None and now >= self._deadline:
            self.reason = f"the session's {self._session_minutes:g} minutes are over"
        if self.reason is None and now >= self._next_look:
            self._next_look = now + 0.2
            self._look()
        return self.reason is not None

    def _look(self) -> None:
        if self._pause and os.path.exists(self._pause):
            with contextlib.suppress(
                OSError
            ):  # another user's: this run stops, the next start stops too
                os.unlink(self._pause)
            self.reason = "paribus pause"
        elif launcher_gone():
            self.reason = "the process that started this stage (DVC, torchrun) is gone"


def _process(pid: int) -> tuple[str, int, str] | None:
    """(state, parent, start time in clock ticks) of a process, from /proc; None without such a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[1]), fields[19]


def _launchers() -> list[tuple[int, str]]:
    """(pid, start time) from the parent up to the DVC process, or to torchrun without DVC; empty without /proc.

    DVC sets DVC_STAGE for what it starts and not for itself: a shell or torchrun in between has it, DVC has not.
    """
    chain: list[tuple[int, str]] = []
    pid = os.getppid() if _launched() else 0
    while pid and (process := _process(pid)):
        chain.append((pid, process[2]))
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # another user's: not one of ours
            break
        if not any(entry.startswith(b"DVC_STAGE=") for entry in environment):
            break
        pid = process[1]
    return chain


def _launched() -> bool:
    """Whether DVC or torchrun started this process, which then must not outlive them."""
    return "DVC_STAGE" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def launcher_gone() -> bool:
    """Whether DVC, torchrun, or a shell between them and us, has died since we started; false where neither started us."""
    if not _launched():
        return False
    if os.getppid() != _PARENT:
        return True
    processes = ((_process(pid), start) for pid, start in _LAUNCHERS)
    return any(
        process is None or process[0] == "Z" or process[2] != start for process, start in processes
    )


LAUNCHER = "PARIBUS_LAUNCHER"  # the launcher's process id, in the environment of what it starts
WATCH_SECONDS = 0.5
# A stage whose launcher has died saves and stops by itself. One that is still there after so long waits for something
# that will not come (a process that has died, a long evaluation): it is ended, and its last state stays.
GRACE_SECONDS = 120.0


def leave_on_signals(stage: str) -> None:
    """From here on SIGINT and SIGTERM end the process at once with `EXIT_PAUSED`, unless a session or a stage of data answers.

    The handlers stay for the rest of the process, and while Python and its libraries are taken down, where no handler would
    run, the signals are ignored: a second one does not turn a pause into a death by a signal.
    """

    def leave(number: int, _: types.FrameType | None) -> None:
        _ignore_signals()  # so that two print one line
        words = f"paribus {stage}: {signal.Signals(number).name}: stopped; nothing was under way\n"
        os.write(2, words.encode())
        os._exit(EXIT_PAUSED)

    for one in STOPPING:
        signal.signal(one, leave)
    atexit.register(_ignore_signals)


def _ignore_signals() -> None:
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def stopping_at_once(stage: str) -> Iterator[None]:
    """Within the block SIGINT and SIGTERM end the process with `EXIT_PAUSED`, whatever it is at.

    For stages whose outputs are whole or not there, and whose libraries compute for minutes without coming back to Python,
    where none of its handlers would run: a thread receives the signals through a socket. The earlier handlers return
    only when that thread has read all that came within the block, so that of several signals none meets them.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    reader = threading.Thread(target=_leave, args=(stage, ours), name="signals", daemon=True)
    reader.start()
    late: list[int] = []  # signals that came when the block had ended

    def note(number: int, _: types.FrameType | None) -> None:
        late.append(number)

    # The socket comes first: a signal in between meets the earlier handler, and is not lost.
    pipe = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, note) for number in STOPPING}
    try:
        yield
    finally:
        theirs.send(_END)
        reader.join()
        signal.set_wakeup_fd(pipe)
        for number, handler in before.items():
            signal.signal(number, handler)
        ours.close()
        theirs.close()
        for one in late:
            signal.raise_signal(one)


def _leave(stage: str, signals: socket.socket) -> None:
    """End the process at the first number that is a request to stop; return at `_END`."""
    number = signals.recv(1)[0]
    while number not in (*STOPPING, _END[0]):
        number = signals.recv(1)[0]
    if number in STOPPING:
        name = signal.Signals(number).name
        words = f"paribus {stage}: {name}: stopped; the next start begins it anew\n"
        os.write(2, words.encode())
        os._exit(EXIT_PAUSED)


def raises(make: Callable[[int], BaseException]) -> Callable[[int, types.FrameType | None], None]:
    """A handler of signals that raises what `make` gives for the signal's number.

    Those that follow within `SAME_SECONDS` belong to the same request: raised again, they would interrupt what the first
    one made the process do, as saving or closing. A later one is a person who does not want to wait.
    """
    first: float | None = None

    def handler(number: int, _: types.FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None or now - first > SAME_SECONDS:
            first = now
            raise make(number)

    return handler


class LauncherWatch(threading.Thread):
    """Ends this process when the launcher that started it has died, whatever the main thread is waiting for.

    Before `joined` at once, as nothing has begun; afterwards the stage itself notices (`Interrupt`) and gets
    `GRACE_SECONDS` to save.
    """

    def __init__(self) -> None:
        super().__init__(name="launcher-watch", daemon=True)
        self._joined = threading.Event()

    def joined(self) -> None:
        """All processes are together, and the session answers from here on."""
        self._joined.set()

    def run(self) -> None:
        """Poll the launcher; once it has died, wait out the grace period of a stage that runs, then exit."""
        while not launcher_gone():
            time.sleep(WATCH_SECONDS)
        if self._joined.is_set():
            time.sleep(GRACE_SECONDS)
        os._exit(EXIT_PAUSED)


def _own_parent() -> int:
    """The process that started this one; it may have died before we could look, so the launcher writes down who it is."""
    named = os.environ.pop(LAUNCHER, "")
    return int(named) if named else os.getppid()


_PARENT: int
_LAUNCHERS: list[tuple[int, str]]


def note_launchers() -> None:
    """Note who started this process, for `launcher_gone`.

    That is done on import, before torch is loaded, so that a launcher that dies in those seconds is noticed too. A
    process that was forked after the import does it again.
    """
    global _PARENT, _LAUNCHERS
    _PARENT = _own_parent()
    _LAUNCHERS = _launchers()


note_launchers()
