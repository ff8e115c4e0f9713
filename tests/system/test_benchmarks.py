"""The benchmarks that are no study of their own: they end, whatever a side does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


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
