"""The lock of the state folder: one holder, who is named, and a disk that has no locks."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from paribus.errors import MachineError, UserError
from paribus.machine.lock import StateLock, lock_holder
from paribus.places import state_root


def run_python(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    process: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, **options
    )
    return process


def test_a_second_holder_is_refused_and_told_who_the_first_is_until_it_is_killed(
    tmp_path: Path,
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from paribus.machine.lock import StateLock\n"
        "with StateLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = run_python(code, str(tmp_path))
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert (lock_holder(tmp_path) or {})["pid"] == holder.pid
    with (
        pytest.raises(UserError, match=f"in use by process {holder.pid} on "),
        StateLock(tmp_path, 0.1),
    ):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    with StateLock(tmp_path):
        assert (lock_holder(tmp_path) or {})["pid"] == os.getpid()
    assert lock_holder(tmp_path) is None
    holder.wait()


def test_a_disk_without_file_locks_is_the_machines_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(MachineError, match="has no file locks"), StateLock(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": 3}'])
def test_a_lock_that_does_not_say_who_holds_it_refuses_all_the_same(
    tmp_path: Path, text: str
) -> None:
    with StateLock(tmp_path):
        (tmp_path / "lock").write_text(text)
        assert lock_holder(tmp_path) == {}
        with (
            pytest.raises(UserError, match="in use by another process"),
            StateLock(tmp_path, 0.0),
        ):
            pass


def test_a_file_in_the_place_of_the_state_folder_is_told(stages_project: Path) -> None:
    (stages_project / ".paribus").write_text("mine")
    with pytest.raises(UserError, match=r"\.paribus: is a file"):
        state_root()
