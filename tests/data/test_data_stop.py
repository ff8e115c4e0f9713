"""The stages of data: asked to stop they end at once and leave nothing half, and a disk too small is named before they begin."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from support.project import Project
from support.tiny import TINY

from paribus.config import load_config
from paribus.data.corpus import build_corpus
from paribus.errors import MachineError, UserError
from paribus.machine.interrupt import EXIT_PAUSED

# A stage whose work is one call that does not come back to Python, as the tokenizer's training.
STAGE = """
import ctypes, sys
from paribus.machine.interrupt import stopping_at_once
with stopping_at_once("tokenizer"):
    print("under way", flush=True)
    ctypes.PyDLL(None).sleep(1) if sys.argv[1] == "done" else ctypes.CDLL(None).sleep(60)
print("done", flush=True)
"""

# The block ends as a signal comes, and another one follows as soon as the earlier handler is back.
ENDING = """
import os, signal, threading
from paribus.machine.interrupt import stopping_at_once
def follow():
    while signal.getsignal(signal.SIGTERM) != signal.SIG_DFL: pass
    os.kill(os.getpid(), signal.SIGTERM)
with stopping_at_once("tokenizer"):
    threading.Thread(target=follow, daemon=True).start()
    os.kill(os.getpid(), signal.SIGTERM)
print("done", flush=True)
"""


def stage(*arguments: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", STAGE, *arguments]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_within_a_call_of_a_library(number: signal.Signals) -> None:
    process = stage("long")
    assert process.stdout is not None
    assert process.stdout.readline() == "under way\n"
    began = time.monotonic()
    for _ in range(3):
        process.send_signal(number)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == EXIT_PAUSED
    assert time.monotonic() - began < 10
    assert said == f"paribus tokenizer: {number.name}: stopped; the next start begins it anew\n"


def test_no_signal_meets_the_earlier_handler_when_one_came_within_the_block() -> None:
    statuses = set()
    for _ in range(12):
        done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, check=False)
        statuses.add(done.returncode)
    assert statuses == {EXIT_PAUSED}


def test_a_signal_after_the_work_is_left_to_the_earlier_handler() -> None:
    late = ENDING.replace("    os.kill(os.getpid(), signal.SIGTERM)\nprint", "    pass\nprint")
    done = subprocess.run([sys.executable, "-c", f"{late}signal.pause()"], check=False)
    assert done.returncode == -signal.SIGTERM


def test_without_a_signal_it_is_done_and_signals_are_as_before() -> None:
    process = stage("done")
    assert process.communicate(timeout=30) == ("under way\ndone\n", "")
    assert process.returncode == 0


def test_a_corpus_that_was_stopped_is_made_anew(tmp_path: Path, project_root: Path) -> None:
    made = Project(tmp_path, project_root, **{"corpus.world.megabytes": 400.0})
    command = [sys.executable, "-m", "paribus", "corpus"]
    environment = made.environment() | {"PYTHONPATH": str(tmp_path / "src")}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert "documents" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM: stopped" in process.communicate(timeout=30)[1]
    assert process.returncode == EXIT_PAUSED
    assert not (tmp_path / "data/corpus").exists()
    Project(tmp_path / "again", project_root)
    shutil.copy(tmp_path / "again/params.yaml", tmp_path / "params.yaml")
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "data/corpus/manifest.json").is_file()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["corpus"]


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("total", "kind"), [(10**12, MachineError), (10**9, UserError)])
def test_a_world_larger_than_the_disk_is_refused_before_it_is_made(
    tmp_path: Path,
    project_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    total: int,
    kind: type[UserError],
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(total, 0, 10**8))
    config = load_config(project_root / "params.yaml", TINY | {"corpus.world.megabytes": 50_000.0})
    with pytest.raises(
        UserError, match="corpus.world.megabytes: 50,000: takes about 50,000 MB"
    ) as found:
        build_corpus(config.corpus, tmp_path / "corpus", tmp_path)
    assert type(found.value) is kind
    assert os.listdir(tmp_path) == []
