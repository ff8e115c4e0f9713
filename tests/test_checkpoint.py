"""Training states: whole or not there, the last ones kept, a damaged one passed over, a full disk survived."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from paribus.errors import UserError
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
    assert state is not None and state.step == 3 and state.values == {"position": {"step": 3}}
    assert torch.equal(state.tensors["w"], torch.full((1000,), 3.0))


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    assert store_with(tmp_path, range(1, 6), keep=2).steps() == [5, 4]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "header cut", "tensors gone"])
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
    else:
        data.unlink()
    state = store.load()
    assert state is not None and state.step == 1
    assert "step-00000002.json is damaged" in capsys.readouterr().err


def test_saving_copies_before_it_returns(tmp_path: Path) -> None:
    store, weights = StateStore(tmp_path, 1), torch.zeros(1_000_000)
    store.save(1, {"w": weights}, {})
    weights.fill_(7.0)  # the next step's update must not reach the state being written
    store.wait()
    state = store.load()
    assert state is not None and not state.tensors["w"].any()


def test_full_disk_keeps_the_state_before_and_stops_in_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_with(tmp_path, range(1, 2))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_atomically", full)
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
    assert store.load() is None and not list(tmp_path.iterdir())
