"""The GPU comparison, tried on a CPU: every case runs, the bare dependencies are enough, and without a GPU it says so."""

from __future__ import annotations

import importlib
import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

TINY = [
    "--device",
    "cpu",
    "--depths",
    "1",
    "--rows",
    "2",
    "--length",
    "32",
    "--vocab",
    "300",
    "--steps",
    "2",
]
# What a machine with torch, numpy, tokenizers and safetensors may lack.
ABSENT = (
    "yaml",
    "psutil",
    "mlflow",
    "dvc",
    "optuna",
    "pyarrow",
    "datasets",
    "zstandard",
    "jinja2",
    "lm_eval",
    "ruamel",
)


@pytest.fixture
def gpu(project_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(project_root / "benchmarks"))
    mode, threads = torch.get_deterministic_debug_mode(), torch.get_num_threads()
    yield importlib.import_module("gpu")
    torch.set_deterministic_debug_mode(mode)
    torch.set_num_threads(threads)


def test_every_case_is_measured(gpu: ModuleType) -> None:
    options = gpu.parse(TINY)
    rounds = {case.name: [gpu.measure(case)] for case in gpu.cases(options)}
    assert list(rounds) == ["paribus d1", "deterministic d1", "memory", "memory eager"]
    for [found] in rounds.values():
        assert found["tokens_per_second"] > 0
        assert 0 < found["mfu"] < 1
        assert found["planned_bytes"] > 0
        assert found["nonfinite"] == 0
        assert found["loss"] < 6.5
    summary = gpu.summary(rounds, options.depths)
    assert {
        "d1_mfu",
        "d1_data_wait_share",
        "deterministic_cost",
        "memory_measured_to_planned",
    } <= set(summary)
    assert not any("peer" in name for name in summary)  # it was not there


def test_one_command_with_the_bare_dependencies(project_root: Path, tmp_path: Path) -> None:
    """A case as the command starts it, where nothing else can be imported."""
    script = (
        f"import sys, runpy; sys.modules.update(dict.fromkeys({ABSENT})); sys.argv[0] = {str(project_root)!r} + "
        "'/benchmarks/gpu.py'; sys.path.insert(0, sys.argv[0].rpartition('/')[0]); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", script, *TINY, "--case", "deterministic d1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["tokens_per_second"] > 0


def test_a_case_that_fails_is_named_and_the_others_count(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = gpu.parse([*TINY, "--out", str(tmp_path / "gpu.json")])
    good = {"tokens_per_second": 2.0, "mfu": 0.5, "data_wait_seconds": 0.0, "step_seconds": 1.0}
    assert (
        gpu.write(options, {"paribus d1": [good], "deterministic d1": [{"error": "exit status 1"}]})
        == 1
    )
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["summary"] == {"d1_mfu": 0.5, "d1_data_wait_share": 0.0}
    assert record["cases"]["deterministic d1"] == [{"error": "exit status 1"}]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_gpu_it_says_so(
    project_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpu: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(project_root / "benchmarks/gpu.py"), run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_side_that_does_not_start_is_left_out_and_the_comparison_ends(project_root: Path) -> None:
    script = project_root / "benchmarks" / "train.py"
    options = ["--sides", "paribus float32", "--start-seconds", "0", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, script, *options], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "paribus float32: starting" in done.stdout
    assert "paribus float32: left out: waiting for its first steps" in done.stdout
    assert "no side could be measured" in done.stderr
