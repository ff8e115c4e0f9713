"""Being asked to stop: signals, `paribus pause`, the session's end, the death of DVC."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.waiting import PATIENCE, wait_for

from paribus.machine import interrupt as interrupting
from paribus.machine.interrupt import EXIT_PAUSED, Interrupt, raises


def run_python(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    process: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, **options
    )
    return process


STAGE = """
import os, sys, time
from pathlib import Path
from paribus.machine import interrupt as interrupting
from paribus.machine.interrupt import EXIT_PAUSED, Interrupt, raises
folder = Path(sys.argv[1])
with Interrupt(folder) as interrupt:
    (folder / "pid").write_text(str(os.getpid()))
    deadline = time.monotonic() + 60
    while not interrupt.requested() and time.monotonic() < deadline:
        time.sleep(0.01)
(folder / "reason").write_text(str(interrupt.reason))
raise SystemExit(EXIT_PAUSED)
"""


def text_of(path: Path) -> str:
    """What a stage writes there, once it has."""
    text: str = wait_for(lambda: path.exists() and path.read_text())
    return text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_ask_for_a_stop_even_where_the_shell_had_them_ignored(
    tmp_path: Path, number: signal.Signals
) -> None:
    stage = run_python(
        STAGE, str(tmp_path), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    )
    text_of(tmp_path / "pid")
    stage.send_signal(number)
    assert stage.wait(PATIENCE) == EXIT_PAUSED
    assert (tmp_path / "reason").read_text() == number.name


def test_a_pause_is_honoured_once(tmp_path: Path) -> None:
    with Interrupt(tmp_path) as interrupt:
        assert not interrupt.requested()
        (tmp_path / "pause").touch()
        time.sleep(0.25)  # it looks five times a second
        assert interrupt.requested()
        assert interrupt.requested()
        assert interrupt.reason == "paribus pause"
    with Interrupt(tmp_path) as interrupt:
        assert not interrupt.requested()


def test_a_session_ends_and_handlers_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before, began = signal.getsignal(signal.SIGTERM), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began)
    with Interrupt(session_minutes=2.0) as interrupt:
        assert not interrupt.requested()
        assert signal.getsignal(signal.SIGTERM) != before
        monkeypatch.setattr(time, "monotonic", lambda: began + 121)
        assert interrupt.requested()
        assert "session" in str(interrupt.reason)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_stage_started_by_dvc_notices_that_dvc_was_killed(tmp_path: Path) -> None:
    """The real DVC, with a shell between it and the stage that lives on."""
    script = tmp_path / "stage.py"
    script.write_text(STAGE)
    (tmp_path / "dvc.yaml").write_text(
        f"stages:\n  train:\n    cmd: {sys.executable} {script} {tmp_path}; true\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("DVC_ROOT", "DVC_STAGE")
    }
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "-q"], cwd=tmp_path, env=environment, check=True)
    repro = subprocess.Popen([*dvc, "repro", "-q"], cwd=tmp_path, env=environment)
    stage = int(text_of(tmp_path / "pid"))
    assert Path(f"/proc/{stage}/stat").read_text().split()[3] != str(
        repro.pid
    )  # the shell is its parent
    time.sleep(0.5)
    assert not (tmp_path / "reason").exists()
    repro.kill()
    repro.wait()
    assert "DVC" in text_of(tmp_path / "reason")


def test_a_direct_child_notices_too(tmp_path: Path) -> None:
    start = (
        "import os, subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', *sys.argv[1:]], env=os.environ | {'DVC_STAGE': 'train'})"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    launcher = run_python(start, STAGE, str(tmp_path), env=environment)
    text_of(tmp_path / "pid")
    launcher.kill()
    assert "DVC" in text_of(tmp_path / "reason")  # while the dead launcher is still a zombie
    launcher.wait()


def test_without_dvc_the_death_of_the_parent_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    with Interrupt() as interrupt:
        assert not interrupt.requested()


PAUSED = """
import atexit, os, signal
from paribus.machine.interrupt import EXIT_PAUSED, Interrupt, leave_on_signals
leave_on_signals("pretrain")
atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))
with Interrupt() as interrupt:
    os.kill(os.getpid(), signal.SIGTERM)
assert interrupt.requested()
raise SystemExit(EXIT_PAUSED)
"""


def test_a_second_signal_on_the_way_out_of_a_paused_stage_is_no_death_by_a_signal() -> None:
    assert run_python(PAUSED).wait(20) == EXIT_PAUSED


def test_signals_that_follow_each_other_interrupt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = raises(lambda number: KeyboardInterrupt(number))
    with pytest.raises(KeyboardInterrupt):
        handler(signal.SIGTERM, None)
    handler(signal.SIGTERM, None)
    handler(signal.SIGINT, None)
    monkeypatch.setattr(interrupting, "SAME_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        handler(signal.SIGINT, None)
