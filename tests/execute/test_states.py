"""Training states in a remote: newest, whole, and gone when the run is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dvc.fs import LocalFileSystem

from paribus.execute.states import RemoteStates, copied
from paribus.run_id import RunId

RUN = RunId("study", "arm", 7)
STAGE = "pretrain-0a1b"


def states_on(disk: Path, remote: Path) -> RemoteStates:
    (disk / "runs").mkdir(parents=True, exist_ok=True)
    return RemoteStates(LocalFileSystem(), str(remote / "states"), disk / "runs", RUN)


def save(disk: Path, step: int, run: RunId = RUN) -> None:
    folder = disk / "runs" / STAGE
    (folder / "state").mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"tags": {"dvc.experiment": str(run)}}))
    (folder / "metrics.jsonl").write_text("not copied: the state has a log of its own\n")
    for suffix in ("safetensors", "jsonl", "json"):
        (folder / "state" / f"step-{step:08d}.{suffix}").write_text(f"{step} {suffix}")


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_newest_state_goes_to_another_machine(tmp_path: Path) -> None:
    here, there, remote = tmp_path / "a", tmp_path / "b", tmp_path / "remote"
    save(here, 10)
    save(here, 20)
    states_on(here, remote).push()
    states_on(there, remote).bring()
    assert files(there / "runs") == [
        f"{STAGE}/run.json",
        f"{STAGE}/state/step-00000020.json",
        f"{STAGE}/state/step-00000020.jsonl",
        f"{STAGE}/state/step-00000020.safetensors",
    ]
    assert (there / f"runs/{STAGE}/state/step-00000020.jsonl").read_text() == "20 jsonl"


def test_a_newer_state_replaces_the_one_before(tmp_path: Path) -> None:
    here, remote = tmp_path / "a", tmp_path / "remote"
    for step in (10, 30):
        save(here, step)
        states_on(here, remote).push()
    kept = [name for name in files(remote) if "step" in name]
    assert len(kept) == 3
    assert all("step-00000030" in name for name in kept)


def test_a_state_here_that_is_newer_stays(tmp_path: Path) -> None:
    here, there, remote = tmp_path / "a", tmp_path / "b", tmp_path / "remote"
    save(here, 10)
    states_on(here, remote).push()
    save(there, 40)
    before = files(there)
    states_on(there, remote).bring()
    assert files(there) == before


def test_what_was_cut_off_is_no_state(tmp_path: Path) -> None:
    """The machine died while its tensors were on their way: the JSON, which is copied last, is missing."""
    here, there, remote = tmp_path / "a", tmp_path / "b", tmp_path / "remote"
    save(here, 10)
    states_on(here, remote).push()
    next(remote.rglob("step-*.json")).unlink()
    states_on(there, remote).bring()
    assert not list(there.rglob("step-*"))


def test_only_this_runs_states_are_copied(tmp_path: Path) -> None:
    here, remote = tmp_path / "a", tmp_path / "remote"
    save(here, 10, RunId("study", "other", 7))
    states_on(here, remote).push()
    assert not files(remote)


def test_a_run_that_stops_leaves_its_state_and_one_that_is_done_does_not(tmp_path: Path) -> None:
    here, remote = tmp_path / "a", tmp_path / "remote"
    save(here, 10)
    with pytest.raises(KeyboardInterrupt), copied(states_on(here, remote), minutes=60):
        raise KeyboardInterrupt
    assert len([name for name in files(remote) if "step" in name]) == 3
    with copied(states_on(here, remote), minutes=60):
        pass
    assert not files(remote)


def test_a_remote_that_is_away_costs_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, remote = tmp_path / "a", tmp_path / "remote"
    with pytest.raises(ValueError), copied(states_on(here, remote), minutes=60):
        save(here, 10)
        remote.write_text("a file where the folder was")
        raise ValueError
    assert "was not copied to the DVC remote" in capsys.readouterr().err
