"""Runs in clean clones: what they are called, how they end, what they leave and what they never touch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.studied import LightProject

from paribus.execute.local import Pool
from paribus.execute.repository import clone
from paribus.execute.run import Outcome, RunSpec, folder_of_run
from paribus.execute.worker import write_overrides
from paribus.git import GitError, git
from paribus.run_id import NAME, RunId, parse_experiment_name

# ---------------------------------------------------------------- what a run is called


def test_a_run_and_the_name_of_its_experiment_are_one_to_one() -> None:
    parts = ["muon", "vs-adamw", "muon-vs-adamw", "half", "muon-vs-adamw-half", "a_b", "0", "s7"]
    runs = [RunId(study, arm, seed) for study in parts for arm in parts for seed in (0, 7, 70)]
    names = {run.experiment_name() for run in runs}
    assert len(names) == len(runs)
    for run in runs:
        assert parse_experiment_name(run.experiment_name()) == (run, False)
        assert parse_experiment_name(f"{run.experiment_name()}-was-0a1b2c3") == (run, True)


@pytest.mark.parametrize(
    "name", ["muon", "exp-1a2b3", "a.b", "a.b.7", "a.b.s", "a.b.s7.c", "a.b.s7-was-", "A.b.s7"]
)
def test_other_experiments_are_nobodys_run(name: str) -> None:
    assert parse_experiment_name(name) is None


def test_names_are_what_git_takes_in_a_reference(tmp_path: Path) -> None:
    run = RunId("a" * 60, "b_-" * 20, 2**62)
    for name in (run.experiment_name(), f"{run.experiment_name()}-was-{'0' * 7}"):
        subprocess.run(["git", "check-ref-format", f"refs/exps/ab/{'c' * 38}/{name}"], check=True)
    assert NAME.startswith("[a-z0-9]")


# ---------------------------------------------------------------- how a run ends


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, light_project: LightProject) -> LightProject:
    return light_project.copy(tmp_path_factory.mktemp("execute") / "project")


@pytest.fixture(scope="module")
def pool(project: LightProject) -> Iterator[Pool]:
    """One worker, which loads DVC once for all of these tests; two GPUs that nobody looks at."""
    here = dict(os.environ)
    os.environ.update(project.environment())
    pool = Pool(project.root, project.root / ".paribus", 1, ["4", "5"])
    yield pool
    pool.close()
    os.environ.clear()
    os.environ.update(here)


def spec(project: LightProject, arm: str, overrides: dict[str, Any], seed: int = 7) -> RunSpec:
    commit = git("rev-parse", "HEAD", at=project.root)
    stages = ["tokens", "pretrain"]
    return RunSpec(RunId("study", arm, seed), commit, {"seed": seed} | overrides, stages, "key")


def outcome_of(pool: Pool, run: RunSpec, cards: int = 0) -> Outcome:
    pool.submit(run, cards)
    while True:
        for event in pool.poll(60):
            if event.kind == "ended":
                assert event.outcome
                assert event.run == run.id
                return event.outcome


def test_a_run_becomes_an_experiment_with_the_values_it_was_asked_for(
    project: LightProject, pool: Pool
) -> None:
    overrides = {"optimizer.eps": 1e-8, "optimizer.embedding_lr": 1e30, "pretrain.steps": None}
    outcome = outcome_of(pool, spec(project, "plain", overrides))
    assert outcome.state == "done"
    assert outcome.experiment
    shown = json.loads(project.run("dvc", "exp", "show", "--json").stdout)
    [experiment] = [one for row in shown for one in row["experiments"] or []]
    assert experiment["name"] == "study.plain.s7"
    assert experiment["revs"]
    params = git("show", f"{outcome.experiment}:params.yaml", at=project.root)
    from paribus.config import flatten, parse_yaml

    written = flatten(parse_yaml(params, "params.yaml"))
    assert {key: written[key] for key in overrides} == overrides
    folder = folder_of_run(project.root / ".paribus", RunId("study", "plain", 7))
    assert Outcome.read(folder / "outcome.json") == outcome
    assert not (folder / "clone").exists()
    assert not (folder / "site").exists()


@pytest.mark.parametrize(
    "do, state, diverged",
    [
        ({"exit": 2, "say": "depth: too deep"}, "refused", False),
        ({"exit": 2, "kind": "Diverged", "say": "loss not finite"}, "refused", True),
        ({"exit": 2, "kind": "StateInUse", "say": "in use by"}, "busy", False),
        ({"exit": 74, "say": "No space left on device"}, "machine", False),
        ({"exit": 75, "say": ""}, "paused", False),
        ({"exit": 3, "say": "Traceback"}, "failed", False),
    ],
    ids=lambda value: str(value.get("exit")) if isinstance(value, dict) else str(value),
)
def test_how_a_stage_ended_is_an_outcome(
    project: LightProject, pool: Pool, do: dict[str, Any], state: str, diverged: bool
) -> None:
    project.behave({"when": {"stage": "pretrain"}, "do": do | {"steps": 1}})
    outcome = outcome_of(pool, spec(project, "ends", {}, seed=do["exit"]))
    project.behave()
    assert (outcome.state, outcome.diverged) == (state, diverged)
    assert outcome.stage == "pretrain"
    said = [] if state == "paused" else [do["say"]]
    assert outcome.problems == said


def test_a_run_that_git_or_dvc_refuses_fails_with_words(project: LightProject, pool: Pool) -> None:
    wrong = spec(project, "wrong", {})
    absent = RunSpec(wrong.id, "0" * 40, wrong.overrides, wrong.stages, "key")
    outcome = outcome_of(pool, absent)
    assert outcome.state == "failed"
    assert all(outcome.problems)
    unknown = RunSpec(wrong.id, wrong.commit, wrong.overrides, ["nothing"], "key")
    outcome = outcome_of(pool, unknown)
    assert outcome.state == "failed"
    assert "nothing" in " ".join(outcome.problems)


def test_a_run_sees_the_gpus_it_was_given_and_no_others(project: LightProject, pool: Pool) -> None:
    say = project.root / "work.py"
    text = say.read_text()
    line = 'open(os.environ["DVC_ROOT"] + "/tmp", "w").write(os.environ["CUDA_VISIBLE_DEVICES"])\n'
    say.write_text(text.replace("stage, params =", f"{line}stage, params =", 1))
    project.commit("tell which")
    assert outcome_of(pool, spec(project, "two", {}, seed=20), cards=2).state == "done"
    assert (project.root / "tmp").read_text() == "4,5"
    assert outcome_of(pool, spec(project, "one", {}, seed=21), cards=1).state == "done"
    assert (project.root / "tmp").read_text() == "4"
    say.write_text(text)
    project.commit("as before")


def test_a_run_that_is_cancelled_saves_and_goes_on_later(project: LightProject, pool: Pool) -> None:
    project.behave({"when": {"stage": "pretrain"}, "do": {"steps": 40}})
    run = spec(project, "long", {}, seed=30)
    pool.submit(run)
    ended = None
    while ended is None:
        for event in pool.poll(60):
            if (event.kind, event.stage) == ("stage", "pretrain"):
                pool.cancel(run.id)
            if event.kind == "ended":
                ended = event.outcome
    assert ended
    assert ended.state == "paused"
    assert outcome_of(pool, run).state == "done"
    project.behave()
    assert max(project.trained().values(), key=len) == list(range(40))


def test_two_workers_never_compute_the_same_run(project: LightProject, pool: Pool) -> None:
    from paribus.journal import locked

    run = spec(project, "held", {}, seed=40)
    folder = folder_of_run(project.root / ".paribus", run.id)
    with locked(folder / "lock"):
        assert outcome_of(pool, run).state == "busy"
    assert outcome_of(pool, run).state == "done"


# ---------------------------------------------------------------- where the checkout is


def run_one(project: LightProject) -> str:
    """One study of four runs; the names of its experiments."""
    project.study("tiny", seeds=2, arms={"adamw": {"optimizer.kind": "adamw"}})
    done = project.execute("tiny")
    assert "failed" not in done.stderr
    return " ".join(sorted(project.values("tiny")))


@pytest.mark.soak
def test_a_path_with_letters_outside_ascii(tmp_path: Path, light_project: LightProject) -> None:
    project = light_project.copy(tmp_path / "Müller 'q' $x")
    assert run_one(project).split()[0] == "tiny.adamw.s7"


def test_a_shallow_clone(tmp_path: Path, light_project: LightProject) -> None:
    first = light_project.copy(tmp_path / "full")
    first.commit_more()
    project = LightProject.__new__(LightProject)
    project.root = tmp_path / "shallow"
    subprocess.run(
        ["git", "clone", "-q", "--depth", "1", f"file://{first.root}", str(project.root)],
        check=True,
    )
    project.git("config", "user.email", "a@example.org")
    project.git("config", "user.name", "A")
    assert run_one(project).split()[0] == "tiny.adamw.s7"
    assert project.git("rev-parse", "--is-shallow-repository") == "true"


def test_a_project_in_a_folder_of_its_repository(tmp_path: Path, project_root: Path) -> None:
    project = LightProject(tmp_path / "repository" / "below", project_root)
    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=project.root.parent, check=True)
    for key in ("user.email", "user.name"):
        project.git("config", key, "a@b")
    project.run("dvc", "init", "-q", "--subdir")
    project.commit("start")
    assert run_one(project).split()[0] == "tiny.adamw.s7"


# ---------------------------------------------------------------- clones


def test_a_clone_is_of_the_commit_whatever_the_checkout_holds(
    project: LightProject, tmp_path: Path
) -> None:
    commit = git("rev-parse", "HEAD", at=project.root)
    (project.root / "notes.md").write_text("mine\n")
    made = clone(project.root, commit, tmp_path / "clone")
    assert (made.project / "notes.md").read_text() == "notes\n"
    assert git("status", "--porcelain", at=made.top) == ""
    with pytest.raises(GitError):
        clone(project.root, "0" * 40, tmp_path / "other")
    shutil.copy(made.project / "notes.md", project.root / "notes.md")


def test_a_clone_has_the_submodules_of_its_repository_at_the_commits_it_names(
    light_project: LightProject, tmp_path: Path
) -> None:
    library = tmp_path / "library"
    git("init", "--quiet", str(library))
    (library / "helper.py").write_text("X = 1\n")
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    git("add", "--all", at=library)
    git(*identity, "commit", "--quiet", "--message", "one", at=library)
    project = light_project.copy(tmp_path / "project")
    for name in ("ext", "empty"):
        allowed = ("-c", "protocol.file.allow=always")
        git(*allowed, "submodule", "--quiet", "add", str(library), name, at=project.root)
    project.commit("submodules")
    commit = git("rev-parse", "HEAD", at=project.root)
    (project.root / "ext/helper.py").write_text("X = 2\n")
    git("submodule", "--quiet", "deinit", "--force", "empty", at=project.root)
    made = clone(project.root, commit, tmp_path / "clone")
    assert (made.project / "ext/helper.py").read_text() == "X = 1\n"
    assert not list((made.project / "empty").iterdir())
    assert git("status", "--porcelain", at=made.top) == ""


def test_overrides_keep_the_comments_of_params_yaml(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("# why\nseed: 7  # any\nmodel:\n  depth: 4\n")
    write_overrides(path, {"seed": 8, "model.width": 64, "eval.core.max": 1e-7})
    text = path.read_text()
    assert "# why" in text
    assert "seed: 8" in text
    assert "# any" in text
    assert "width: 64" in text
