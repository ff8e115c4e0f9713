"""A certificate of a run whose arm is code rebuilds it with that arm's code, keys of its own included."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from support.project import Project
from support.studied import STUDY

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

KEY = '    muon_scale: float = key("factor of Muon\'s steps", ge=0, le=10)\n    grad_clip: float = key('
STEP = "step = lr * scale("


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new))


def make_idea(project: Project) -> None:
    """A branch on which Muon's steps have a factor, a key that the baseline does not know."""
    project.run("git", "switch", "-q", "-c", "ideas/scaled")
    source = project.root / "src/paribus"
    replace(source / "config/training_schema.py", "    grad_clip: float = key(", KEY)
    replace(source / "train/muon.py", STEP, STEP.replace("lr", "config.muon_scale * lr"))
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params["optimizer"]["muon_scale"] = 2.0
    (project.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    project.run("git", "commit", "-qam", "scaled")
    project.run("git", "switch", "-q", "main")


def test_runs_of_code_arms_are_rebuilt_with_their_own_code(
    tmp_path: Path, project_root: Path
) -> None:
    project = Project(tmp_path / "project", project_root).start()
    make_idea(project)
    (project.root / "experiments").mkdir()
    study = STUDY | {"arms": {"scaled": {"code": "ideas/scaled"}}}
    (project.root / "experiments/scaled.yaml").write_text(yaml.safe_dump(study))
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "study")
    project.feed_mlflow()
    project.run("paribus", "ablate", "run", "scaled", PYTHONPATH=str(project.root / "src"))

    done = verified(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("bit-exact") == 4
    place = project.root / "experiments/results/verify-study-scaled.json"
    proofs = json.loads(place.read_text())["certificates"]
    assert len({proof["record"]["fingerprint"] for proof in proofs}) == 4


def verified(project: Project) -> subprocess.CompletedProcess[str]:
    source = str(project.root / "src")
    arguments = ("verify", "--study", "scaled", "--steps", "4")
    return project.run("paribus", *arguments, check=False, PYTHONPATH=source)
