"""`paribus clean`: states go once DVC holds the checkpoint, and not a moment before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from paribus import graph
from paribus.execute.finished_states import remove_states_of
from paribus.machine.lock import StateLock
from paribus.train.checkpoint import StateStore


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a finished run that keeps two states, whose checkpoint DVC has not taken yet."""
    for name in [name for name in os.environ if name.startswith("DVC_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], check=True)
    checkpoint = tmp_path / "checkpoints/base"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "config.json").write_text("{}")
    folder = tmp_path / ".paribus/runs/pretrain-abc"
    store = StateStore(folder / "state", 2)
    for step in (1, 2):
        store.save(step, {"w": torch.ones(100)}, {})
    store.wait()
    (folder / "delivered.json").write_text(json.dumps(graph.dvc_digest(checkpoint)))
    return folder


def take_by_dvc() -> None:
    subprocess.run([sys.executable, "-m", "dvc", "add", "-q", "checkpoints/base"], check=True)


def clean(*arguments: str) -> dict[str, object]:
    command = [sys.executable, "-m", "paribus", "clean", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_states_go_once_dvc_holds_the_checkpoint(run: Path) -> None:
    assert clean()["runs"] == []
    assert len(list((run / "state").iterdir())) == 4
    take_by_dvc()
    listed = clean("--dry-run")
    assert listed["bytes"]
    assert not listed["removed"]
    assert len(list((run / "state").iterdir())) == 4
    assert clean()["runs"] == listed["runs"]
    assert not list((run / "state").iterdir())
    assert (run / "delivered.json").exists()
    assert clean()["runs"] == []


def test_a_study_removes_the_states_of_its_own_runs_alone(run: Path) -> None:
    take_by_dvc()
    (run / "run.json").write_text(json.dumps({"tags": {"dvc.experiment": "study.arm.s1"}}))
    remove_states_of("study.arm.s2", Path.cwd(), Path(".paribus"))
    assert len(list((run / "state").iterdir())) == 4
    remove_states_of("study.arm.s1", Path.cwd(), Path(".paribus"))
    assert not list((run / "state").iterdir())


def test_states_stay_while_a_file_of_the_checkpoint_is_not_in_the_cache(run: Path) -> None:
    take_by_dvc()
    objects = [path for path in Path(".dvc/cache/files").rglob("*") if path.is_file()]
    [weights] = [path for path in objects if path.read_bytes() == b"weights"]
    weights.unlink()
    assert clean()["runs"] == []
    assert len(list((run / "state").iterdir())) == 4


def test_states_of_a_run_that_works_stay(run: Path) -> None:
    take_by_dvc()
    with StateLock(run):
        assert clean()["runs"] == []
    assert len(list((run / "state").iterdir())) == 4


def test_states_of_a_run_that_is_not_through_stay(run: Path) -> None:
    take_by_dvc()
    (run / "delivered.json").unlink()
    assert clean()["runs"] == []
    assert len(list((run / "state").iterdir())) == 4
