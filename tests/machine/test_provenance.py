"""Provenance: a stage's fingerprint, and the commit that a run was made from."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from paribus import config, graph
from paribus.config import Config
from paribus.errors import UserError
from paribus.machine.hardware import Hardware, detect_hardware
from paribus.machine.provenance import collect_provenance, git_state, stage_fingerprint


def test_the_fingerprint_follows_params_deps_and_hardware_and_nothing_else(
    stages_project: Path, tiny_config: Config
) -> None:
    hardware = detect_hardware(tiny_config.train)

    def named(overrides: dict[str, Any] | None = None, hardware: Hardware = hardware) -> str:
        return stage_fingerprint("pretrain", config.load_config(overrides=overrides), hardware)

    first = named()
    same = {
        "train.session_minutes": 5,
        "tracking.experiment": "x",
        "rl.steps": 7,
        "eval.core.max_per_task": 3,
    }
    assert named(same) == first
    assert named({"model.depth": 5}) != first  # of a section
    assert named({"eval.core.batch_size": 5}) != first  # a leaf
    assert named(hardware=dataclasses.replace(hardware, threads=3)) != first
    (stages_project / "data/tokens/a.bin").write_text("others")
    assert named() != first


def test_a_param_that_does_not_exist_is_named(stages_project: Path, tiny_config: Config) -> None:
    definition = graph.StageDefinition(params=["model.dept"], deps=[], outs=[])
    with pytest.raises(UserError, match="model.dept is no key"):
        graph.declared_params(definition, tiny_config)


def test_provenance_outside_a_repository(stages_project: Path) -> None:
    found = collect_provenance()
    assert found["git"] == {"commit": None, "branch": None, "dirty": None, "diff": None}
    assert found["versions"]["torch"] == torch.__version__
    assert found["requirements_lock"] is None


def test_dirty_means_sources_not_outputs(stages_project: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q", "-b", "trunk")
    (stages_project / "metrics").mkdir()
    (stages_project / "metrics/pretrain.json").write_text("{}")
    assert git_state() | {"diff": None} == {
        "commit": None,
        "branch": "trunk",
        "dirty": True,
        "diff": None,
    }
    git("add", ".")
    git("commit", "-qm", "first")
    clean = {"commit": git("rev-parse", "HEAD"), "branch": "trunk", "dirty": False, "diff": None}
    assert git_state() == clean
    (stages_project / "metrics/pretrain.json").write_text('{"val_bpb": 1}')
    (stages_project / "dvc.lock").write_text("x")
    assert git_state() == clean
    digests = set()
    for text in ("a", "b"):
        (stages_project / "code/loop.py").write_text(text)
        state = git_state()
        assert state["dirty"]
        digests.add(state["diff"])
    assert len(digests) == 2
