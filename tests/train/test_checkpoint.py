"""Training states: whole or not there, the last ones kept, a damaged one passed over, a full disk survived."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from paribus.errors import MachineError, UserError
from paribus.train import checkpoint
from paribus.train.checkpoint import StateStore


def store_with(tmp_path: Path, steps: range, keep: int = 2) -> StateStore:
    store = StateStore(tmp_path, keep)
    for step in steps:
        store.save(step, {"w": torch.full((1000,), float(step))}, {"position": {"step": step}})
    store.wait()
    return store


def test_newest_state_comes_back(tmp_path: Path) -> None:
    state = store_with(tmp_path, range(1, 4)).load()
    assert state is not None
    assert state.step == 3
    assert state.values == {"position": {"step": 3}}
    assert torch.equal(state.tensors["w"], torch.full((1000,), 3.0))


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    assert store_with(tmp_path, range(1, 6), keep=2).steps() == [5, 4]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    "damage",
    [
        "truncated",
        "bit flipped",
        "header cut",
        "tensors gone",
        "value changed",
        "values gone",
        "another step",
    ],
)
def test_damaged_state_is_passed_over_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    store = store_with(tmp_path, range(1, 3))
    data, header = tmp_path / "step-00000002.safetensors", tmp_path / "step-00000002.json"
    content = bytearray(data.read_bytes())
    if damage == "truncated":
        data.write_bytes(content[:-1])
    elif damage == "bit flipped":
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif damage == "header cut":
        header.write_bytes(header.read_bytes()[:20])
    elif damage == "value changed":
        header.write_text(header.read_text().replace('"position": {"step": 2}', '"position": {}'))
    elif damage == "values gone":
        header.write_text(header.read_text().replace('{"position": {"step": 2}}', "null"))
    elif damage == "another step":
        header.write_bytes((tmp_path / "step-00000001.json").read_bytes())
        data.write_bytes((tmp_path / "step-00000001.safetensors").read_bytes())
    else:
        data.unlink()
    state = store.load()
    assert state is not None
    assert state.step == 1
    assert "step-00000002.json is damaged" in capsys.readouterr().err


def test_where_no_whole_state_is_left_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_with(tmp_path, range(1, 3))
    for header in tmp_path.glob("*.json"):
        header.write_text("[]")
    assert store.load() is None
    assert capsys.readouterr().err.rstrip().endswith("is damaged; no other is left")


def test_a_copy_that_someone_made_of_a_state_is_none(tmp_path: Path) -> None:
    store = store_with(tmp_path, range(1, 2))
    header = tmp_path / "step-00000001.json"
    (tmp_path / "step-00000001 (copy).json").write_bytes(header.read_bytes())
    assert store.steps() == [1]


def test_saving_copies_before_it_returns(tmp_path: Path) -> None:
    store, weights = StateStore(tmp_path, 1), torch.zeros(1_000_000)
    store.save(1, {"w": weights}, {})
    weights.fill_(7.0)  # the next step's update must not reach the state being written
    store.wait()
    state = store.load()
    assert state is not None
    assert not state.tensors["w"].any()


def test_full_disk_keeps_the_state_before_and_stops_in_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_with(tmp_path, range(1, 2))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_atomic", full)
    for step in range(2, 2 + checkpoint.MAX_FAILURES):
        store.save(step, {"w": torch.ones(3)}, {})
        store.wait()
    assert "No space left" in capsys.readouterr().err
    assert store.steps() == [1]
    with pytest.raises(UserError, match="free some space"):
        store.save(9, {"w": torch.ones(3)}, {})


def test_clear_removes_every_state(tmp_path: Path) -> None:
    store = store_with(tmp_path, range(1, 3))
    store.clear()
    assert store.load() is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newest_state_does_not_push_out_new_ones(tmp_path: Path, keep: int) -> None:
    """As where training begins again below the step of a state that nobody can read."""
    store_with(tmp_path, range(100, 101), keep)
    data = tmp_path / "step-00000100.safetensors"
    data.write_bytes(b"x" * data.stat().st_size)
    store = StateStore(tmp_path, keep)
    assert store.load() is None
    for step in (10, 20, 30):
        store.save(step, {"w": torch.ones(3)}, {})
        store.wait()
        state = store.load()
        assert state is not None
        assert state.step == step
    assert store.steps() == [30, 20][:keep]


def test_a_damaged_state_stays_until_there_is_a_new_one(tmp_path: Path) -> None:
    store_with(tmp_path, range(1, 3))
    (tmp_path / "step-00000002.json").write_text("{")
    store = StateStore(tmp_path, 2)
    state = store.load()
    assert state is not None
    assert state.step == 1
    assert store.steps() == [2, 1]
    store.save(5, {"w": torch.ones(3)}, {})
    store.wait()
    assert store.steps() == [5, 1]


KILLED_WHILE_SAVING = """
import os, sys, torch
from pathlib import Path
from paribus.train.checkpoint import StateStore
def die(*_): os.kill(os.getpid(), 9)
setattr(os, sys.argv[2], die)
store = StateStore(Path(sys.argv[1]), 2)
store.save(int(sys.argv[3]), {"w": torch.ones(1000)}, {})
store.wait()
"""


def test_what_killed_saves_leave_behind_is_removed_by_the_next_one(tmp_path: Path) -> None:
    for step, call in enumerate(("replace", "fsync")):
        command = [sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path), call, str(step)]
        assert subprocess.run(command).returncode == -9
        assert len(list(tmp_path.glob(".step-*"))) == 1
    (tmp_path / "step-00000003.safetensors").write_bytes(b"tensors whose JSON never came")
    store = store_with(tmp_path, range(5, 6))
    assert store.steps() == [5]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "broken"), ValueError("odd")])
def test_any_failure_of_the_writer_counts_as_a_failed_save(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fail(*_: object) -> None:
        raise error

    store = store_with(tmp_path, range(1, 2))
    monkeypatch.setattr(checkpoint, "write_atomic", fail)
    store.save(2, {"w": torch.ones(3)}, {})
    store.wait()
    said = capfd.readouterr().err
    assert store.failures == 1
    assert store.steps() == [1]
    assert len(list(tmp_path.iterdir())) == 2
    assert "could not save the training state of step 2" in said
    assert "Traceback" not in said


def test_a_save_that_cannot_begin_leaves_the_one_in_progress_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = safetensors.torch.save_file

    def slow(tensors: dict[str, torch.Tensor], path: Path) -> None:
        real(tensors, path)
        time.sleep(0.3)

    monkeypatch.setattr(safetensors.torch, "save_file", slow)
    store = StateStore(tmp_path, 2)
    store.save(1, {"w": torch.ones(3)}, {})
    while not list(tmp_path.glob(".step-*")):
        time.sleep(0.01)
    store.note_failure(2, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    store.wait()
    state = store.load()
    assert state is not None
    assert state.step == 1
    assert store.failures == 1


def test_the_step_that_a_hopeless_run_names_is_that_of_its_newest_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StateStore(tmp_path, 2)
    real = safetensors.torch.save_file

    def slow(tensors: dict[str, torch.Tensor], path: Path) -> None:
        time.sleep(0.3)
        real(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", slow)
    store.save(7, {"w": torch.ones(3)}, {})
    store.failures = checkpoint.MAX_FAILURES
    with pytest.raises(MachineError, match="goes on from step 7"):
        store.refuse_if_hopeless()


def test_memory_that_does_not_do_for_a_copy_is_a_failed_save(tmp_path: Path) -> None:
    class Hungry(torch.Tensor):
        @classmethod
        def __torch_function__(cls, *_: object, **__: object) -> object:
            raise MemoryError

    store = store_with(tmp_path, range(1, 2))
    store.save(2, {"w": torch.ones(3).as_subclass(Hungry)}, {})
    assert store.failures == 1
    assert store.steps() == [1]


def test_a_disk_that_refuses_to_read_is_not_taken_for_a_damaged_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_with(tmp_path, range(1, 2))

    def refuse(*_: object) -> bytes:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(PermissionError):
        store.load()


def test_a_full_disk_is_the_machines_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StateStore(tmp_path, 2)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_atomic", full)
    with pytest.raises(MachineError) as caught:
        for step in range(checkpoint.MAX_FAILURES + 1):
            store.save(step, {"w": torch.ones(3)}, {})
    assert caught.value.exit_status == 74


def test_a_state_is_written_without_another_copy_of_it_in_memory(tmp_path: Path) -> None:
    """Peak memory over what the tensors and their one copy take."""
    code = """
import resource, sys, torch
from pathlib import Path
from paribus.train.checkpoint import StateStore
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
store = StateStore(Path(sys.argv[1]), 2)
store.save(1, {"w": torch.ones(10)}, {}); store.wait()
tensors = {str(i): torch.ones(2**20) for i in range(64)}
before = peak(); store.save(2, tensors, {}); store.wait(); print(peak() - before)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.5 * 256
