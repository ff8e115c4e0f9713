"""Errors for people: what the machine refused is told apart from what the values do wrong, by words and by exit status."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from safetensors import SafetensorError

from paribus.cli.commands import Commands
from paribus.errors import MachineError, UserError, explained, naming


def exit_status_of(error: BaseException) -> tuple[int, str]:
    """Status and standard error of a command that raises `error`."""

    @click.group(cls=Commands)
    def group() -> None: ...

    @group.command("fail")
    def fail() -> None:
        raise error

    result = CliRunner().invoke(group, ["fail"])
    return result.exit_code, result.stderr


MACHINE = {
    "disk full": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/run.json"),
    "quota": OSError(errno.EDQUOT, "over"),
    "read-only disk": OSError(errno.EROFS, os.strerror(errno.EROFS), "/data/x"),
    "another user's folder": PermissionError(errno.EACCES, "denied", ".paribus"),
    "no file locks": OSError(errno.ENOLCK, "no locks", "lock"),
    "open files": OSError(errno.EMFILE, "too many"),
    "memory": MemoryError(),
    "safetensors": SafetensorError(
        'Error while serializing: I/O error: No space left on device (os error 28) "x"'
    ),
    "tokenizers": Exception("No space left on device (os error 28)"),
    "sqlite": sqlite3.OperationalError("database or disk is full"),
}


@pytest.mark.parametrize("kind", MACHINE)
def test_what_the_machine_refuses_exits_74_in_words(kind: str) -> None:
    status, said = exit_status_of(MACHINE[kind])
    assert status == 74
    assert said.startswith("paribus: ")
    assert "Traceback" not in said
    assert "start again" in said


def test_the_file_that_could_not_be_written_is_named() -> None:
    assert "/data/run.json: No space left on device" in exit_status_of(MACHINE["disk full"])[1]


def test_wrong_values_exit_2_and_a_fault_of_the_program_is_not_explained_away() -> None:
    assert exit_status_of(UserError("model.depth: 0"))[0] == 2
    assert explained(FileNotFoundError(errno.ENOENT, "absent", "x")) is None
    assert explained(RuntimeError("shapes")) is None
    assert explained(SafetensorError("header too large")) is None


def test_a_tensor_larger_than_the_machine_is_the_values_fault() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    found = explained(caught.value)
    assert found is not None
    assert found.exit_status == 2
    assert "device_batch_size" in str(found)


def test_memory_that_a_larger_machine_would_have_had_is_the_machines_fault() -> None:
    said = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."
    found = explained(RuntimeError(said))
    assert isinstance(found, MachineError)


def test_a_real_full_disk_is_explained(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, open("/dev/full", "w") as file:
        file.write("x")
        file.flush()
    assert isinstance(explained(caught.value), MachineError)


def test_the_file_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(MachineError) as caught, naming("checkpoints/base"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    assert str(caught.value).startswith("checkpoints/base: No space left on device: free some")
    with pytest.raises(MachineError) as caught, naming("a/b"):
        raise OSError(errno.EROFS, "read-only", "a/b/c")
    assert str(caught.value).count("a/b") == 1
    with pytest.raises(ZeroDivisionError), naming("a"):
        raise ZeroDivisionError


SMALL_FILES = """
import resource, signal, sys
from pathlib import Path
from paribus.files import write_atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
write_atomic(Path(sys.argv[1]), "x" * 1000)
"""


def test_a_small_file_that_does_not_fit_leaves_the_old_one_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("old")
    command = [sys.executable, "-c", SMALL_FILES, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert f"MachineError: {path}: File too large" in done.stderr
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
