"""dvc.yaml as DVC reads it: the names of stages and the digests of what they depend on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from paribus import graph
from paribus.errors import UserError


def test_tree_digest_sees_names_and_contents_and_not_caches(stages_project: Path) -> None:
    first = graph.tree_digest(["code"])
    (stages_project / "code/__pycache__").mkdir()
    (stages_project / "code/__pycache__/loop.pyc").write_text("cache")
    assert graph.tree_digest(["code"]) == first
    (stages_project / "code/loop.py").write_text("pass ")
    changed = graph.tree_digest(["code"])
    (stages_project / "code/loop.py").write_text("pass")
    (stages_project / "code/loop.py").rename(stages_project / "code/loop2.py")
    assert len({first, changed, graph.tree_digest(["code"])}) == 3
    with pytest.raises(UserError, match="nowhere: does not exist"):
        graph.tree_digest(["nowhere"])


def test_stage_definitions_have_dvcs_names(stages_project: Path) -> None:
    stages = graph.stage_definitions()
    assert list(stages) == [
        "tokens",
        "pretrain",
        "gsm8k@base",
        "gsm8k@mid",
        "grid@s-arm0",
        "grid@s-arm1",
        "grid@l-arm0",
        "grid@l-arm1",
    ]
    assert stages["gsm8k@mid"].deps == ["checkpoints/mid"]
    assert stages["gsm8k@mid"].params == ["eval.gsm8k"]
    assert stages["pretrain"].outs == ["checkpoints/base", "metrics/pretrain.json"]
    with pytest.raises(
        UserError, match="no stage 'gsm8k'; there are: tokens, pretrain, gsm8k@base"
    ):
        graph.stage_definition("gsm8k")


def test_the_projects_own_stages_are_named_as_dvc_names_them(project_root: Path) -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--name-only"],
        cwd=project_root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert sorted(graph.stage_definitions(project_root / "dvc.yaml")) == sorted(listed)
