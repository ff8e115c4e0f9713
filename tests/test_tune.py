"""Tuning: bad input, the cap, kill -9, a study from end to end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY

from paribus.config import merge, read_yaml
from paribus.errors import UserError

STUDY = {"trials": 3, "budget": {"tokens": 1536}, "memory": "3GiB", "overrides": {"pretrain": {"eval_every": 2}},
         "space": {"optimizer.matrix_lr": {"low": 0.005, "high": 0.08, "log": True}, "model.depth": {"low": 1, "high": 3}},
         "retest": {"top": 1, "seeds": 2}}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Path:
    """A project with tokens."""
    root = tmp_path_factory.mktemp("tune")
    for name in ("dvc.yaml", "requirements.lock"):
        shutil.copy(project_root / name, root / name)
    (root / "params.yaml").write_text(yaml.safe_dump(merge(read_yaml(project_root / "params.yaml"), TINY), sort_keys=False))
    (root / "experiments/tune").mkdir(parents=True)
    code = "from paribus import stages; stages.corpus(); stages.tokenizer(); stages.tokens()"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True)
    return root


def write(root: Path, name: str, **changes: Any) -> None:
    (root / f"experiments/tune/{name}.yaml").write_text(yaml.safe_dump(STUDY | changes))


def command(root: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "paribus", "tune", *arguments]


@pytest.mark.parametrize("changes, said", [
    ({"space": {}}, "empty"),
    ({"space": {"model.dept": {"low": 1, "high": 2}}}, "did you mean model.depth?"),
    ({"space": {"model.depth": {"low": 0, "high": 2}}}, "out of range"),
    ({"space": {"model.depth": {"low": 4, "high": 2}}}, "low < high"),
    ({"budget": {"hours": 2}}, "tokens, flops, seconds"),
    ({"memory": "lots"}, "24GiB"),
    ({"trails": 3}, "did you mean trials?"),
], ids=str)
def test_a_wrong_study_is_told(prepared: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str) -> None:
    from paribus.study.space import read_study

    monkeypatch.chdir(prepared)
    write(prepared, "wrong", **changes)
    with pytest.raises(UserError) as caught:
        read_study("wrong")
    assert any(said in problem for problem in caught.value.problems), caught.value.problems


def test_budget_below_the_smallest_model_and_storage_down_are_told(prepared: Path) -> None:
    write(prepared, "small", memory="100MiB")
    for arguments, said in ((("run", "small"), "below the smallest model"),
                            (("run", "small", "--storage", "sqlite:////nowhere/at/all.db"), "not to be had")):
        done = subprocess.run(command(prepared, *arguments), cwd=prepared, capture_output=True, text=True)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_trial_over_the_cap_is_caught_and_says_how_far_it_came(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from paribus.journal import write_json
    from paribus.study import tune
    from paribus.study.space import read_study

    monkeypatch.chdir(prepared)
    write(prepared, "capped")
    study = replace(read_study("capped"), memory=500 * 2**20)
    config = study.config({"model.depth": 8, "model.width": 512, "pretrain.device_batch_size": 4})
    folder = prepared / "capped"
    folder.mkdir()
    write_json(folder / "trial.json", tune.job_of(study, config))
    result = tune.watch(folder, None, None)
    assert result["out_of_memory"] and 100 * 2**20 < result["peak_memory_bytes"] < 600 * 2**20


@pytest.mark.timeout(600)
def test_a_killed_study_goes_on_and_loses_nothing(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(prepared, "killed")
    first = subprocess.Popen(command(prepared, "run", "killed"), cwd=prepared, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    curve = prepared / ".paribus/tune/killed/trial-0000/curve.jsonl"
    until = time.monotonic() + 120
    while not (curve.exists() and curve.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    done = subprocess.run(command(prepared, "run", "killed"), cwd=prepared, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((prepared / "report/tune/killed/summary.json").read_text())
    assert found["trials"] == 3 and found["retest"]["default"]["seeds"] == 2 and found["best"]
    assert (prepared / "experiments/profiles/tuned-killed.yaml").read_text().startswith("# Best of the study killed")
    assert "<html" in (prepared / "report/tune/killed/history.html").read_text()[:2000]

    import optuna

    trials = optuna.load_study(study_name="killed", storage=f"sqlite:///{prepared}/.paribus/tune.db").trials
    origins = [trial.user_attrs["origin"] for trial in trials if trial.state.is_finished() and trial.state.name != "FAIL"]
    assert len(origins) == len(set(origins)), "a trial was run twice"
    assert trials[0].state.name == "FAIL" or trials[0].user_attrs["origin"] == 0
