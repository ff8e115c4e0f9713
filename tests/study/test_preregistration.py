"""What was asked after it was answered is called exploratory; what studies share is said."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from support.ablation_file import parse
from support.results import result
from support.tiny import TINY

from paribus.study.preregistration import registration, shared_with
from paribus.study.results import Result

GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
FILE = Path("experiments/two.yaml")


def run_began(mark: str, moment: float) -> None:
    folder = Path(".paribus/runs") / f"pretrain-{mark}"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"created": moment}))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A repository in which the study's file was committed at 1,700,000,000 s; its blob."""
    monkeypatch.chdir(tmp_path)
    FILE.parent.mkdir()
    FILE.write_text("question: is it better?")
    subprocess.run([*GIT, "init", "-q"], check=True)
    subprocess.run([*GIT, "add", "."], check=True)
    when = {"GIT_COMMITTER_DATE": "1700000000 +0000", "GIT_AUTHOR_DATE": "1700000000 +0000"}
    subprocess.run([*GIT, "commit", "-qm", "ask"], check=True, env=when | {"PATH": "/usr/bin:/bin"})
    found = subprocess.run([*GIT, "hash-object", FILE], check=True, capture_output=True, text=True)
    return found.stdout.strip()


def of(arm: str, blob: str, mark: str) -> Result:
    return replace(result(arm, 7, 1.0), file=blob, fingerprints={"pretrain": mark})


def test_an_arm_that_ran_before_the_file_was_committed_is_exploratory(project: str) -> None:
    run_began("old", 1_600_000_000)
    run_began("new", 1_800_000_000)
    of_arm = registration([of("baseline", project, "new"), of("adamw", project, "old")], FILE)
    assert of_arm.exploratory
    assert of_arm.older == ("tiny.adamw.s7",)
    assert of_arm.sentence().startswith("exploratory: 1 of 2 runs began before this study's file")
    assert "2023-11-14" in of_arm.sentence()
    base = registration([of("baseline", project, "old"), of("adamw", project, "new")], FILE)
    assert not base.exploratory
    assert "all of them are of the baseline" in base.sentence()
    after = registration([of("adamw", project, "new"), of("baseline", project, "gone")], FILE)
    assert after.sentence() == ""
    assert not after.exploratory


@pytest.mark.usefixtures("in_checkout")
def test_fresh_seeds_are_the_studys_own() -> None:
    usual, fresh = parse(), parse(fresh_seeds=True)
    assert usual.first_seed == usual.config().seed
    assert fresh.first_seed > 1000
    assert fresh.run("adamw", 2, {}).seed == fresh.first_seed + 2
    assert replace(fresh, name="other").first_seed != fresh.first_seed


def test_studies_that_share_runs_or_seeds_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_root: Path
) -> None:
    monkeypatch.chdir(project_root)
    experiment = parse(baseline={"set": TINY})
    monkeypatch.chdir(tmp_path)
    folder = Path("experiments/results")
    folder.mkdir(parents=True)
    row = "| {0}.baseline.s7 | 0123456789 | 1.0 | pretrain {1} |\n"
    (folder / "one.md").write_text(row.format("one", "abcd0123"))
    (folder / "two.md").write_text(row.format("two", "ffff0123"))
    (folder / "tiny.md").write_text(row.format("tiny", "abcd0123"))
    runs, seeds = shared_with(experiment, [of("baseline", "", "abcd0123")])
    assert "shares computed stages with one (1)" in runs
    assert "two" not in runs
    assert "uses seeds that two used" in seeds
    assert "fresh_seeds" in seeds
