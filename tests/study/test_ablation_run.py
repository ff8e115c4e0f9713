"""A real tiny ablation, killed -9 whole in the middle of its first training and called again; then its results and its pages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from support.project import Project

from paribus.journal import read_rows

# Beyond the suite: tests/study/test_studies.py kills the same parts of a study whose stages take a moment.
pytestmark = [pytest.mark.long, pytest.mark.soak]

FILE: dict[str, Any] = {
    "question": "Is AdamW better?",
    "hypothesis": "It is not.",
    "baseline": {"set": {"pretrain.eval_every": 8}},
    "arms": {"adamw": {"optimizer.kind": "adamw"}},
    "seeds": 2,
    "metric": "val_bpb",
    "smallest_effect": 0.01,
    "equal": "tokens",
    "stages": ["pretrain"],
}


def paribus(project: Project, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "paribus", "ablate", *arguments]


def environment(project: Project) -> dict[str, str]:
    return project.environment() | {"PYTHONPATH": str(project.root / "src")}


def of_project(project: Project) -> list[psutil.Process]:
    """Every process that works for the project: the command, DVC's workers, its runs, their stages."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        about = " ".join(process.info["cmdline"] or []) + " " + (process.info["cwd"] or "")
        if str(project.root) in about and process.pid != os.getpid():
            found.append(process)
    return found


def trained(project: Project) -> list[Path]:
    return sorted((project.root / ".paribus/runs").glob("pretrain-*/metrics.jsonl"))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Project:
    """A project whose ablation was killed whole in the middle of its first training, and called again until its end."""
    project = Project(tmp_path_factory.mktemp("ablation"), project_root, **{"pretrain.steps": 24})
    (project.root / "experiments").mkdir()
    (project.root / "experiments/tiny.yaml").write_text(yaml.safe_dump(FILE, sort_keys=False))
    project.start()
    project.run("dvc", "repro", "tokens")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "data")
    with (project.root / "first.log").open("wb") as log:
        first = subprocess.Popen(
            paribus(project, "run", "tiny", "--workers", "2"),
            cwd=project.root,
            env=environment(project),
            stdout=log,
            stderr=log,
        )
    until = time.monotonic() + 120
    while not any(len(read_rows(path)) > 4 for path in trained(project)):
        assert first.poll() is None, (project.root / "first.log").read_text()
        assert time.monotonic() < until, (project.root / "first.log").read_text()
        time.sleep(0.05)
    for process in of_project(project):
        process.send_signal(signal.SIGKILL)
    first.wait()
    (project.root / "killed.json").write_text(
        json.dumps({path.parent.name: len(read_rows(path)) for path in trained(project)})
    )
    again = subprocess.run(
        paribus(project, "run", "tiny", "--workers", "2"),
        cwd=project.root,
        env=environment(project),
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stdout + again.stderr
    (project.root / "again.log").write_text(again.stdout + again.stderr)
    return project


def events(project: Project) -> list[dict[str, Any]]:
    return read_rows(project.root / ".paribus/ablations/tiny/journal.jsonl")


def test_a_killed_ablation_goes_on_and_runs_nothing_twice(ended: Project) -> None:
    names = {f"tiny.{arm}.s{seed}" for arm in ("baseline", "adamw") for seed in (7, 8)}
    assert sorted(row["run"] for row in events(ended) if row["event"] == "done") == sorted(names)
    assert len(trained(ended)) == 4, "one training state a run"
    for path in trained(ended):
        assert [
            row["step"] for row in read_rows(path) if row["step"] > 0 and "event" not in row
        ] == list(range(1, 25))
    killed = json.loads((ended.root / "killed.json").read_text())
    assert max(killed.values()) < 24
    assert "the clone of a killed run was removed" in (ended.root / "again.log").read_text()
    shown = json.loads(ended.run("dvc", "exp", "show", "--json").stdout)
    assert {exp["name"] for row in shown for exp in (row["experiments"] or [])} == names


def test_the_checkout_is_as_it_was_and_no_clone_is_left(ended: Project) -> None:
    assert not list((ended.root / ".paribus/execute").glob("*/*/clone"))
    assert not list((ended.root / ".dvc/tmp").glob("exps/tmp*"))
    assert ended.run("git", "symbolic-ref", "HEAD").stdout.strip() == "refs/heads/main"
    status = ended.run("git", "status", "--porcelain", "--untracked-files=no").stdout
    assert status == ""


def test_the_result_of_a_killed_run_is_that_of_an_undisturbed_one(
    ended: Project, tmp_path: Path, project_root: Path
) -> None:
    """The same arm and seed in another folder, without DVC and without a kill: the same value to the last bit."""
    killed = json.loads((ended.root / "killed.json").read_text())
    first = max(killed, key=lambda mark: killed[mark])
    run = json.loads((ended.root / f".paribus/runs/{first}/run.json").read_text())
    seed, kind = int(run["params"]["seed"]), run["params"]["optimizer.kind"]
    changes = {"pretrain.steps": 24, "pretrain.eval_every": 8, "seed": seed, "optimizer.kind": kind}
    again = Project(tmp_path, project_root, **changes)
    (tmp_path / "data").symlink_to(ended.root / "data")
    again.run(
        sys.executable,
        "-c",
        "from paribus.stages.training import pretrain; pretrain()",
        PYTHONPATH=str(tmp_path / "src"),
        DVC_ROOT=str(tmp_path),
    )
    name = f"tiny.{'baseline' if kind == 'muon' else 'adamw'}.s{seed}"
    reference = ended.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout
    [full] = [line for line in reference.split() if line.endswith(f"/{name}")]
    measured = json.loads(ended.run("git", "show", f"{full}:metrics/pretrain.json").stdout)
    assert measured["val_bpb"] == again.metrics("pretrain")["val_bpb"]


def test_the_pages_say_the_verdict_and_open_offline(ended: Project) -> None:
    page = (ended.root / "experiments/results/tiny.html").read_text()
    assert "Is AdamW better?" in page
    assert "adamw" in page
    assert page.count("<svg") == 2
    assert "<script" not in page
    # Links to runs open where `paribus ui` shows them; nothing is loaded from there.
    elsewhere = page.replace('<a href="http://127.0.0.1:5000/#/runs/', "")
    assert "http://" not in elsewhere.replace("http://www.w3.org", "")
    assert "https://" not in page
    text = (ended.root / "experiments/results/tiny.md").read_text()
    said = (ended.root / "again.log").read_text()
    sentence = next(line for line in said.splitlines() if line.startswith("adamw"))
    assert sentence in text
    assert (ended.root / "experiments/results/tiny.png").read_bytes().startswith(b"\x89PNG")


def test_mlflow_has_the_report_with_links(ended: Project) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{ended.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("paribus")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    [report] = [run for run in runs if run.data.tags.get("stage") == "ablation"]
    stages = {run.info.run_id for run in runs if run.data.tags.get("stage") == "pretrain"}
    linked = {value for key, value in report.data.tags.items() if key.startswith("run.")}
    assert linked == stages
    assert len(linked) == 4
    assert report.data.metrics["adamw.n"] == 2
    study = client.get_run(report.data.tags["mlflow.parentRunId"])
    assert study.info.run_name == "study tiny"
    assert study.data.metrics["adamw"] == report.data.metrics["adamw"]
    assert {item.path for item in client.list_artifacts(report.info.run_id, "report")} >= {
        "report/tiny.html",
        "report/tiny.md",
    }


def test_called_a_third_time_it_runs_nothing_and_a_changed_file_is_shown(ended: Project) -> None:
    before = len(events(ended))
    path = ended.root / "experiments/tiny.yaml"
    path.write_text(path.read_text().replace("0.01", "0.5"))
    ended.run("git", "commit", "-qam", "a wider margin")
    done = subprocess.run(
        paribus(ended, "run", "tiny"),
        cwd=ended.root,
        env=environment(ended),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert len(events(ended)) == before
    assert "was changed after its first result" in done.stderr
    page = (ended.root / "experiments/results/tiny.html").read_text()
    assert "-smallest_effect: 0.01" in page
    assert "+smallest_effect: 0.5" in page
    shown = ended.run(*paribus(ended, "status", "tiny"), PYTHONPATH=str(ended.root / "src"))
    assert "4 of 4 runs done" in shown.stdout


def test_arms_of_a_seed_read_the_same_rows(ended: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from paribus.curriculum import TOKENS
    from paribus.data.mixture import document_rows
    from paribus.recipe import Recipe
    from paribus.study.reading import read_experiment
    from paribus.train.trainer import next_token

    monkeypatch.chdir(ended.root)
    experiment, first = read_experiment("tiny"), []
    for arm in experiment.names:
        recipe = Recipe.of(experiment.config(arm))
        objective = next_token(document_rows(TOKENS, recipe), recipe, "pretrain")
        first.append(objective.work(0).micro_batches[0].tokens)
    assert torch.equal(*first)
