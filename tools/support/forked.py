"""Ask the process of warm.py to fork a command; as a program, be that command for whoever started it.

    python -I -S forked.py SOCKET MODULE ARGUMENT…    as `python -m MODULE ARGUMENT…`

It imports what starts within milliseconds, and nothing of the project. It hands on SIGINT and SIGTERM, and ends as the
command did. The command is no child of it, which matters where a test kills: such tests start commands themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from types import FrameType


class WarmProcess:
    """A command under way."""

    def __init__(self, connection: socket.socket, arguments: list[str]) -> None:
        self.args = arguments
        self.returncode: int | None = None
        self._connection = connection
        self._answers = connection.makefile("r")
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        """Its exit status, the negative number of the signal that killed it, or None while it runs."""
        with contextlib.suppress(TimeoutError, BlockingIOError):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Until it has ended. Raises TimeoutError."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            answer = self._connection.recv(64)
            assert answer, f"{self.args}: the process it was forked from is gone"
            self.returncode = os.waitstatus_to_exitcode(int(answer))
            self._answers.close()
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def begin(
    address: str,
    arguments: list[str],
    cwd: str,
    environment: dict[str, str],
    output: int,
    errors: int,
) -> WarmProcess:
    """Start `python ARGUMENTS`: -m MODULE … or -c PROGRAM …; output, errors: open files."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    request = {"arguments": arguments, "cwd": cwd, "environment": environment}
    socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], [output, errors])
    return WarmProcess(connection, arguments)


def main(address: str, module: str, arguments: list[str]) -> None:
    process = begin(address, ["-m", module, *arguments], os.getcwd(), dict(os.environ), 1, 2)

    def hand_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hand_on)
    status = process.wait()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
