"""Accepted extremes of keys: the stage that reads one is done, says how far it is and stops when asked to, or explains itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.extremes import STAGES

PROPER = ("done", "explained", "paused")
# Of the keys that lead a stage into the longest work or the largest tensors, the highest values.
SAMPLE = (
    r"rl rl\.samples_per_question=\d{4,}",
    r"gsm8k_stage eval\.gsm8k\.samples=\d{4,}",
    r"pretrain model\.(width|depth)=\d{3,}",
    r"pretrain pretrain\.batch_tokens=[\d.]{4,}",
    r"corpus corpus\.world\.megabytes=[\d.]{4,}",
)


def improper(made: Path, log: Path, *patterns: str) -> list[str]:
    """Run the cases whose names match. Those that did not end as they have to, with what they said."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tools")])
    subprocess.run(
        [sys.executable, "-m", "support.extremes", str(made), str(log), *patterns],
        env=os.environ | {"PYTHONPATH": paths},
        check=True,
        capture_output=True,
    )
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert rows, f"no case matches {patterns}"
    return [
        f"{row['case']}: {row['kind']}: {row['said'][-600:]}"
        for row in rows
        if row["kind"] not in PROPER
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("extremes") / "project"


def test_stages_end_properly_with_the_largest_accepted_work(made: Path, tmp_path: Path) -> None:
    assert not improper(made, tmp_path / "log", *SAMPLE)


@pytest.mark.long
@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", STAGES)
def test_every_key_of_a_stage_may_have_its_highest_value(
    made: Path, tmp_path: Path, stage: str
) -> None:
    assert not improper(made, tmp_path / "log", rf"{stage} .*=[\d.e+]{{3,}}$")
