"""DVC's run-cache bears witness: what a stage left when it ran is told from what somebody made of it afterwards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.studied import LightProject

from paribus.audit.compare import comparison
from paribus.audit.lookup import find
from paribus.study.committed import CommittedFiles, altered
from paribus.study.lasting import lasting

STAGES = ("tokens", "pretrain")
METRIC = Path("metrics/pretrain.json")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, light_project: LightProject) -> LightProject:
    """To be copied: a project that has run, and whose outputs are committed."""
    made = light_project.copy(tmp_path_factory.mktemp("ran") / "project")
    made.run("dvc", "repro", "-q", "pretrain")
    made.commit("first run")
    return made


@pytest.fixture
def project(ran: LightProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LightProject:
    """One that has run; the working folder."""
    made = ran.copy(tmp_path / "project")
    monkeypatch.chdir(made.root)
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    return made


def named(project: LightProject) -> list[str]:
    return altered(CommittedFiles(project.git("rev-parse", "HEAD")), STAGES)


def forge(change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(METRIC.read_text())
    change(values)
    METRIC.write_text(json.dumps(values))


def edit_lock(change: Callable[[dict[str, Any]], object]) -> None:
    lock = yaml.safe_load(Path("dvc.lock").read_text())
    change(lock["stages"]["pretrain"])
    Path("dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))


def test_what_a_run_left_is_as_it_left_it(project: LightProject) -> None:
    assert list(Path(".dvc/cache/runs").rglob("*/*/*"))
    assert named(project) == []
    project.run("dvc", "repro", "-q", "-f", "pretrain")
    assert named(project) == []


def test_a_stage_that_has_not_run_again_does_not_say_that_its_inputs_were_edited(
    project: LightProject,
) -> None:
    """As `dvc exp run pretrain` leaves it: what reads the metrics has read those before."""
    lock = yaml.safe_load(Path("dvc.lock").read_text())
    lock["stages"]["report"] = {
        "cmd": "paribus report",
        "deps": [{"path": str(METRIC), "hash": "md5", "md5": "0" * 32, "size": 9}],
    }
    Path("dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    project.commit("pretrained again")
    commit = project.git("rev-parse", "HEAD")
    assert altered(CommittedFiles(commit), (*STAGES, "report")) == []


def test_a_metric_that_was_made_dvcs_own_afterwards_is_named(project: LightProject) -> None:
    forge(lambda values: values.update(val_bpb=0.1))
    project.run("dvc", "commit", "-q", "-f", "pretrain")
    project.commit("a better number")
    assert named(project) == [str(METRIC)]
    first = project.git("rev-parse", "HEAD^")
    assert altered(CommittedFiles(first), STAGES) == []
    found = comparison([find("HEAD^")], [find("HEAD")])
    assert found.edited == {"HEAD": [str(METRIC)]}


def test_figures_of_the_hour_may_differ_between_two_runs(project: LightProject) -> None:
    forge(lambda values: values.update(seconds=2.5))
    project.run("dvc", "commit", "-q", "-f", "pretrain")
    project.commit("a run that took another time")
    forge(lambda values: values.update(seconds=3.5, tokens_per_second=9))
    project.run("dvc", "commit", "-q", "-f", "pretrain")
    project.commit("and another")
    assert named(project) == []


def test_another_checkpoint_in_dvc_lock_is_named(project: LightProject) -> None:
    def swap(entry: dict[str, Any]) -> None:
        [out] = [out for out in entry["outs"] if out["path"] == "checkpoints/base"]
        out["md5"] = "0" * 32 + ".dir"

    edit_lock(swap)
    project.commit("another checkpoint")
    assert named(project) == ["checkpoints/base"]


def test_without_a_note_nothing_is_claimed(project: LightProject) -> None:
    edit_lock(lambda entry: entry["params"]["params.yaml"].update(seed=99))
    values = yaml.safe_load(Path("params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(values | {"seed": 99}, sort_keys=False))
    project.commit("parameters of a run that never was")
    assert named(project) == []


def test_a_note_that_was_edited_is_no_witness(project: LightProject) -> None:
    [note] = [
        path
        for path in Path(".dvc/cache/runs").rglob("*")
        if path.is_file() and "checkpoints/base" in path.read_text()
    ]
    note.write_text(note.read_text().replace("metrics/pretrain.json", "metrics/other.json"))
    assert named(project) == []


def test_compare_names_a_metric_edited_in_the_working_folder(project: LightProject) -> None:
    forge(lambda values: values.update(val_bpb=0.1))
    found = comparison([find("HEAD")], [find("workspace")])
    assert found.edited == {"workspace": [str(METRIC)]}


def test_times_are_told_from_what_lasts() -> None:
    one, other = b'{"val_bpb": 1.5, "a": {"seconds": 1}}', b'{"val_bpb": 1.5, "a": {"seconds": 2}}'
    assert lasting("metrics/a.json", one) == lasting("metrics/a.json", other)
    assert lasting("metrics/a.json", one) != lasting("metrics/a.json", one.replace(b"5", b"6"))
    curve, again = b"step,seconds,train_loss\n1,2,3\n", b"step,seconds,train_loss\n1,9,3\n"
    assert lasting("plots/a.csv", curve) == lasting("plots/a.csv", again)
    assert lasting("plots/a.csv", curve) != lasting("plots/a.csv", curve.replace(b"3", b"4"))
