"""`paribus.judge` and `paribus.load`: light to import, the same answers as the commands, typed values."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
from support.checkout import ROOT
from support.committed import committed_run

import paribus
from paribus.errors import UserError
from paribus.judge.options import Asked, Options

HEAVY = ("torch", "mlflow", "numpy", "dvc", "pandas", "scipy")
PROVENANCE = {
    "stage": "pretrain",
    "fingerprint": "f" * 20,
    "hardware": {"device": "cpu", "threads": 2},
}


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_importing_paribus_loads_no_heavy_library() -> None:
    assert python(f"import sys, paribus; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


def test_judging_a_table_loads_neither_torch_nor_mlflow() -> None:
    table = "dict(arm=['a', 'a', 'b', 'b'], loss=[1.0, 1.1, 2.0, 2.1])"
    code = (
        f"import sys, paribus; found = paribus.judge({table}, arm='arm', metric='loss', baseline='a');"
        "print(found.comparisons[0].verdict, 'torch' in sys.modules, 'mlflow' in sys.modules)"
    )
    assert python(code) == "worse False False"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'jugde'"):
        getattr(paribus, "jugde")  # noqa: B009


def test_an_option_of_judge_has_the_name_that_its_type_hints_have() -> None:
    named = [field.name for field in dataclasses.fields(Options)]
    assert list(get_type_hints(Asked)) == named


def test_a_finished_run_has_numbers_curves_fingerprints_and_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commit = committed_run(
        provenance=PROVENANCE,
        metrics={"val_bpb": 1.5, "tasks": {"a": {"n": 4}}},
        curve="step,train_loss,val_bpb\n1,2.5,\n2,2.25,1.5\n",
    )
    run = paribus.load("HEAD")
    assert run.commit == commit
    assert run.params == {"seed": 7, "model.depth": 2}
    assert run.numbers == {"pretrain.val_bpb": 1.5, "pretrain.tasks.a.n": 4.0}
    assert run.fingerprints == {"pretrain": "f" * 20}
    assert run.machines["pretrain"]["threads"] == 2
    assert run.curves["pretrain"]["train_loss"] == [2.5, 2.25]
    assert math.isnan(run.curves["pretrain"]["val_bpb"][0])


def test_a_damaged_curve_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    committed_run(PROVENANCE, metrics={}, curve="step,train_loss\n1,two\n")
    with pytest.raises(
        UserError, match=r"plots/pretrain\.csv of HEAD: damaged; 'two' is no number"
    ):
        paribus.load("HEAD")


def test_the_example_runs_in_the_checkout() -> None:
    done = subprocess.run(
        [sys.executable, "examples/python_api.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "bits per byte" in done.stdout
    assert "20260501_skylight001: better" in done.stdout
