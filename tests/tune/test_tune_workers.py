"""Many workers on one PostgreSQL, a real one: one killed, and the server itself stopped midway. No trial lost or doubled."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import postgres
from support.tuned import Curve, Tuning, prepare, write
from support.waiting import wait_for

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    there = postgres.found()
    if isinstance(there, str):
        pytest.skip(there)
    made = postgres.Server(*there)
    made.start()
    yield made
    made.stop()
    shutil.rmtree(made.folder)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, project_root: Path, tiny_data: Path) -> Path:
    """A project with tokens."""
    return prepare(tmp_path_factory.mktemp("workers"), project_root, tiny_data)


def trials_of(name: str, url: str) -> list[Any]:
    import optuna

    return optuna.load_study(study_name=name, storage=url).trials


def started(root: Path, name: str, url: str) -> Tuning:
    return Tuning(root, "run", name, "--worker", "--storage", url)


def under_way(root: Path, name: str) -> Curve:
    """The first trial that is."""

    def first() -> Curve | None:
        folders = sorted((root / ".paribus/tune" / name).glob("trial-*"))
        curves = (Curve(folder) for folder in folders)
        return next((curve for curve in curves if curve.under_way()), None)

    found: Curve = wait_for(first)
    return found


def check_each_once(trials: list[Any], wanted: int) -> None:
    """Every trial has ended; each point that was asked was run to its end once."""
    assert all(trial.state.is_finished() for trial in trials)
    ran = [
        trial
        for trial in trials
        if trial.state.name in ("COMPLETE", "PRUNED") and "skipped" not in trial.user_attrs
    ]
    assert len(ran) == wanted == len({trial.user_attrs["origin"] for trial in ran})
    others = [
        trial
        for trial in trials
        if trial.state.name == "FAIL" and "dropped" not in trial.user_attrs
    ]
    again = {trial.user_attrs["origin"]: trial for trial in ran}
    for dead in others:
        assert again[dead.user_attrs["origin"]].params == dead.params, "a lost trial"


# A state after every step. Of so few trials none is pruned: Optuna's MedianPruner begins after five whole ones.
LONG = {
    "budget": {"tokens": 256 * 80},
    "overrides": {"train.save_seconds": 0},
    "trials": 5,
    "space": {"optimizer.matrix_lr": {"low": 0.005, "high": 0.08, "log": True}},
}


def test_four_workers_one_killed_and_no_trial_is_lost_or_doubled(
    prepared: Path, server: postgres.Server
) -> None:
    """They begin at the same moment, on a database without tables."""
    write(prepared, "crowd", **LONG)
    workers = [started(prepared, "crowd", server.url) for _ in range(4)]
    trial = under_way(prepared, "crowd")
    holder = int((trial.folder / "lock").read_text().split('"pid": ')[1].split(",")[0])
    killed = next(worker for worker in workers if worker.process.pid == holder)
    killed.process.kill()
    left = trial.newest_state()
    for worker in workers:
        status, said = worker.wait()
        assert status == (-signal.SIGKILL if worker is killed else 0), said
    trials = trials_of("crowd", server.url)
    check_each_once(trials, 5)
    origin = int(trial.folder.name.removeprefix("trial-"))
    again = next(
        one for one in trials if one.user_attrs.get("origin") == origin and one.state.name != "FAIL"
    )
    assert again.number != origin
    assert again.user_attrs["went_on_from_step"] >= left > 0
    defaults = [
        one
        for one in trials
        if "fixed_params" in one.system_attrs and "failed_trial" not in one.system_attrs
    ]
    assert len(defaults) == 1


def test_a_storage_lost_midway_loses_nothing(prepared: Path, server: postgres.Server) -> None:
    write(prepared, "lost", **LONG | {"trials": 2})
    worker = started(prepared, "lost", server.url)
    trial = under_way(prepared, "lost")
    [training] = psutil.Process(worker.process.pid).children()
    training.suspend()  # it ends in no case before its worker notices the loss, at the next evaluation
    server.stop()
    training.resume()
    status, said = worker.wait()
    assert status == 2, said
    assert "Traceback" not in said, said
    assert "lost" in said
    assert "same command again" in said
    left = trial.newest_state()
    server.start()
    status, said = started(prepared, "lost", server.url).wait()
    assert status == 0, said
    trials = trials_of("lost", server.url)
    check_each_once(trials, 2)
    assert any(one.user_attrs.get("went_on_from_step") == left > 0 for one in trials)
