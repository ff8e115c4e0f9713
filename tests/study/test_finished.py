"""A finished run reads the same wherever it is kept, and what is damaged of it is named or left out."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from support.committed import commit_all, committed_run

from paribus.audit.lookup import find
from paribus.errors import UserError
from paribus.study.committed import CommittedFiles, FilesAsTheyLie
from paribus.study.finished import NEEDED, FinishedRun, Provenance, at_commit, in_workspace

PROVENANCE = {"stage": "pretrain", "fingerprint": "f" * 20, "params": {"seed": 7}, "hardware": None}
METRICS = {
    "val_bpb": 1.5,
    "steps": 6,
    "tasks": {"a": {"baseline": 0.25}},
    "name": "x",
    "done": True,
}
CURVE = "step,train_loss,val_bpb\n1,2.5,\n2,2.25,1.5\n"


@pytest.fixture
def commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A commit with the outputs of pretraining: metrics and a curve in git, a checkpoint in DVC's cache."""
    monkeypatch.chdir(tmp_path)
    return committed_run(PROVENANCE, METRICS, CURVE)


def read(commit: str) -> FinishedRun:
    return at_commit("run", "revision", CommittedFiles(commit))


def test_a_commit_and_the_working_folder_that_it_is_of_read_the_same(commit: str) -> None:
    committed, here = read(commit), in_workspace()
    assert committed.commit == here.commit == commit
    assert committed.params == here.params == {"seed": 7, "model.depth": 2}
    assert committed.metrics == here.metrics == {"pretrain": METRICS}
    assert committed.data == here.data
    assert "checkpoints/base" in here.data
    assert committed.curve("pretrain") == here.curve("pretrain")
    assert committed.provenance("pretrain") == here.provenance("pretrain")
    assert committed.stages == here.stages == ["pretrain"]


def test_numbers_of_metrics_have_dotted_names(commit: str) -> None:
    assert read(commit).numbers == {
        "pretrain.val_bpb": 1.5,
        "pretrain.steps": 6.0,
        "pretrain.tasks.a.baseline": 0.25,
    }


def test_values_of_a_curve_are_as_they_were_written(commit: str) -> None:
    rows = read(commit).curve("pretrain")
    assert rows == [
        {"step": "1", "train_loss": "2.5", "val_bpb": ""},
        {"step": "2", "train_loss": "2.25", "val_bpb": "1.5"},
    ]


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_metrics_file_is_left_out_and_named_where_a_run_is_asked_for(
    commit: str, content: str
) -> None:
    Path("metrics/pretrain.json").write_text(content)
    run = read(commit_all())
    assert run.metrics == {}
    assert run.params["seed"] == 7
    assert ["metrics/pretrain.json" in problem for problem in run.problems] == [True]
    for name in ("HEAD", "workspace"):
        with pytest.raises(UserError, match=f"{name}: metrics/pretrain.json: damaged"):
            find(name)


def test_a_damaged_object_is_believed_only_by_whoever_looks_for_damage(commit: str) -> None:
    path = "checkpoints/base/provenance.json"
    place = CommittedFiles(commit).place(path)
    assert place is not None
    damaged = json.dumps(PROVENANCE | {"fingerprint": "e" * 20}).encode()
    place.write_bytes(damaged)
    assert CommittedFiles(commit).content(path) is None
    assert FilesAsTheyLie(commit).content(path) == damaged


def test_git_does_not_answer_for_what_dvc_keeps(commit: str) -> None:
    """Somebody commits another file in the place of one below an output of DVC's."""
    path = "checkpoints/base/provenance.json"
    Path(path).write_text("{}")
    subprocess.run(["git", "add", "-f", path], check=True)
    provenance = read(commit_all()).provenance("pretrain")
    assert provenance is not None
    assert provenance.fingerprint == PROVENANCE["fingerprint"]


def test_a_provenance_names_what_it_lacks() -> None:
    provenance = Provenance.of(PROVENANCE | {"unknown": 1})
    assert provenance.params == {"seed": 7}
    assert provenance.hardware == {}
    assert provenance.lacking == [
        name for name in NEEDED if name not in ("stage", "fingerprint", "params")
    ]
