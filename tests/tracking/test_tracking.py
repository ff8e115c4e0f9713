"""tracking.py and journal.py, seen as a person sees them: through MLflow's client, on one real sqlite store."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import postgres
from support.project import senders
from support.waiting import wait_for
from support.warm import feed_mlflow

from paribus import config, tracking
from paribus.config import Config
from paribus.journal import Journal, locked, read_rows
from paribus.machine.interrupt import EXIT_PAUSED
from paribus.places import state_root
from paribus.tracking import RunLog, sender
from paribus.tracking.address import public_uri, redacted, tracking_uri, with_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# A stage in a process of its own. argv: its name, and `dies` to be killed -9 once MLflow has begun to take it.
STAGE = """
import os, signal, sys, time
from pathlib import Path
from paribus import config, tracking
from paribus.places import state_root
name, dies = sys.argv[1], sys.argv[2:] == ["dies"]
(Path(name + ".ready")).touch()
while not Path("go").exists():
    time.sleep(0.005)
settings = config.load_config("params.yaml", {"tracking.system_metrics": False})
with tracking.RunLog.open(name, folder=state_root() / "runs" / name, config=settings, params={},
                          fingerprint=name) as run:
    for step in range(1, 31):
        run.log(step, {"train/loss": step})
    while dies:
        time.sleep(0.01)
        if (run.folder / "mlflow.json").exists():
            os.kill(os.getpid(), signal.SIGKILL)
"""
# A sender that is killed -9 right after MLflow took a first batch.
DYING_SENDER = """
import os, signal, sys
from pathlib import Path
from mlflow import MlflowClient
from paribus.tracking import sender
send = MlflowClient.log_batch
def send_and_die(self, run_id, metrics=(), **rest):
    send(self, run_id, metrics=metrics, **rest)
    if len(metrics) > 0:
        os.kill(os.getpid(), signal.SIGKILL)
MlflowClient.log_batch = send_and_die
sender.main(Path(sys.argv[1]))
"""
# Logs three steps of a run and then waits to be killed. argv: the run's folder.
WAITING = """
import sys
from pathlib import Path
from paribus import config, tracking
tracking.FLUSH_SECONDS = 0.1
settings = config.load_config("params.yaml", {"tracking.system_metrics": False})
with tracking.RunLog.open("pretrain", folder=Path(sys.argv[1]), config=settings, params={},
                          fingerprint="f" * 20) as run:
    for step in (1, 2, 3):
        run.log(step, {"train/loss": step})
    print("logged", flush=True)
    sys.stdin.read()
"""
FOUR = ("one", "two", "three", "killed")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Iterator[Path]:
    """A project in git, the working folder; its store is first touched by four processes at once."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        patch.chdir(root)
        (root / "params.yaml").write_text((project_root / "params.yaml").read_text())
        (root / ".gitignore").write_text("*\n!params.yaml\n")
        for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-qm", "first"]):
            subprocess.run(
                ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *command], check=True
            )
        stages = [
            subprocess.Popen(
                [sys.executable, "-c", STAGE, name, *(["dies"] if name == "killed" else [])],
                stderr=subprocess.PIPE,
                text=True,
            )
            for name in FOUR
        ]
        while len(list(root.glob("*.ready"))) < 4:
            time.sleep(0.01)
        (root / "go").touch()
        (root / "four.json").write_text(
            json.dumps([(stage.wait(), stage.communicate()[1]) for stage in stages])
        )
        patch.setattr(tracking, "FLUSH_SECONDS", 0.1)
        end_sender()  # from here on, one that these tests wait for less long
        feed_mlflow(state_root(), dict(os.environ))
        yield root


def end_sender() -> None:
    """Until none runs."""
    sender.renew(state_root())
    wait_for(lambda: not lock_is_held(state_root() / "sender.lock"))


def lock_is_held(path: Path) -> bool:
    with locked(path, wait=False) as free:
        return not free


@pytest.fixture
def settings(
    project: Path,
    tiny_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Config:
    """The configuration, in an experiment named after the test, so that its parent run is its own."""
    monkeypatch.setenv("DVC_EXP_NAME", request.node.name)
    feed_mlflow(state_root(), dict(os.environ))
    return tiny_config


@pytest.fixture(scope="module")
def client(project: Path) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{project}/mlflow.db")


def begin(
    settings: Config, stage: str = "pretrain", resume_step: int | None = None, **options: Any
) -> RunLog:
    folder = state_root() / "runs" / f"{os.environ['DVC_EXP_NAME']}-{stage}"
    options = {"params": {}, "fingerprint": "f" * 20} | options
    return RunLog.open(stage, folder=folder, config=settings, resume_step=resume_step, **options)


def killed(client: MlflowClient) -> Path:
    """The folder of a run whose process is killed -9 once MLflow has its three steps."""
    folder = state_root() / "runs" / f"{os.environ['DVC_EXP_NAME']}-pretrain"
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        assert process.stdout.readline() == "logged\n"
        wait_for(lambda: latest(client) == 3)
        process.kill()
    return folder


def runs_of(client: MlflowClient, experiment: str | None) -> list[Run]:
    """The runs of a test in the store; its parents have no stage."""
    stored = client.get_experiment_by_name("paribus")
    assert stored is not None
    found = client.search_runs([stored.experiment_id])
    return [run for run in found if run.data.tags.get("dvc.experiment") == experiment]


def above(client: MlflowClient, run: Run) -> Run:
    return client.get_run(run.data.tags["mlflow.parentRunId"])


def children(client: MlflowClient, stage: str = "pretrain") -> list[Run]:
    return [
        run
        for run in runs_of(client, os.environ["DVC_EXP_NAME"])
        if run.data.tags.get("stage") == stage
    ]


def child(client: MlflowClient, stage: str = "pretrain") -> Run:
    [run] = children(client, stage)
    return run


def named(client: MlflowClient, name: str) -> Run:
    [run] = [run for run in runs_of(client, None) if run.data.tags.get("stage") == name]
    return run


def run_folder(run: Run) -> Path:
    return state_root() / "runs" / f"{run.data.tags['dvc.experiment']}-{run.data.tags['stage']}"


def child_experiment(client: MlflowClient) -> str:
    stored = client.get_experiment_by_name("paribus")
    assert stored is not None
    identity: str = stored.experiment_id
    return identity


def latest(client: MlflowClient, key: str = "train/loss") -> float | None:
    """The value MLflow shows now, if it has the run by now."""
    return next((run.data.metrics.get(key) for run in children(client)), None)


def steps(client: MlflowClient, run: Run, key: str = "train/loss") -> list[int]:
    return [metric.step for metric in client.get_metric_history(run.info.run_id, key)]


# ---------------------------------------------------------------- the store


def test_four_processes_may_touch_a_new_store_at_once(project: Path, client: MlflowClient) -> None:
    assert json.loads((project / "four.json").read_text()) == [[0, ""]] * 3 + [
        [-signal.SIGKILL, ""]
    ]  # no complaint
    mine = runs_of(client, None)
    [parent] = [run for run in mine if "mlflow.parentRunId" not in run.data.tags]
    children = [
        run for run in mine if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    ]
    assert sorted(run.data.tags["stage"] for run in children) == sorted(FOUR)
    assert all(steps(client, run) == list(range(1, 31)) for run in children)
    ended = {run.data.tags["stage"] for run in children if run.info.status == "FINISHED"}
    assert ended >= set(FOUR[:3])
    wait_for(lambda: named(client, "killed").info.status == "KILLED")
    assert len(senders(project)) <= 1  # it ends by itself when there is nothing to send
    assert parent.info.run_name == "default s7"
    assert parent.data.tags["git.dirty"] == "false"


def test_a_clone_of_an_experiment_uses_the_main_checkouts_store(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(project))
    assert tracking_uri() == f"sqlite:///{project}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert tracking_uri() == f"sqlite:///{project}/other.db"
    for uri in ("sqlite:////data/absolute.db", "http://127.0.0.1:5000"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert tracking_uri() == uri


def test_a_run_for_files_alone_starts_nothing_that_feeds_mlflow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_config: Config
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("DVC_EXP_NAME", "files")
    monkeypatch.setenv(sender.FILES_ONLY, "1")
    with begin(tiny_config) as run:
        run.log(1, {"train/loss": 0.5})
    assert [row["train/loss"] for row in run.rows()] == [0.5]
    assert not (state_root() / "sender.lock").exists()


# ---------------------------------------------------------------- what a run looks like


@pytest.fixture(scope="module")
def shown(
    project: Path, client: MlflowClient, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Run]:
    """A run with all that may be logged, and its parent, as MLflow shows them."""
    sample = tmp_path_factory.mktemp("samples") / "samples.md"
    sample.write_text("2 and 2 are 4")
    settings = config.load_config(project / "params.yaml", {"tracking.system_metrics": True})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_EXP_NAME", "shown")
        patch.setattr(tracking, "SYSTEM_SECONDS", 0.1)
        with begin(
            settings,
            params={"model.depth": 4, "model.window": None, "train.compile": False},
            tags={"hardware": "abacus"},
            datasets={"tokens": ("data/tokens", "0123456789" * 5)},
        ) as run:
            for step in range(1, 2501):
                run.log(step, {"train/loss": 5 / step, "val/bpb": math.inf if step == 1 else 1.5})
            run.event(7, "spike", "loss 9.1 after 2.2")
            run.event(9, "spike", "loss 8.0 after 2.1")
            run.artifact(sample, "answers")
            run.summary(
                {"val_bpb": 1.25, "tasks": {"arc@easy": {"accuracy": 0.5}}, "bundle": "synthetic"}
            )
            sampled = run.folder / "system.jsonl"
            wait_for(lambda: sampled.exists() and sampled.read_text())
        found = child(client)
    return found, above(client, found)


def test_a_run_is_named_after_its_stage_and_what_is_particular_about_it(
    shown: tuple[Run, Run],
) -> None:
    names = [run.info.run_name for run in shown]
    assert names == ["pretrain default s7 (shown)", "default s7 (shown)"]
    assert [run.info.status for run in shown] == ["FINISHED", "FINISHED"]


def test_a_run_has_what_it_depends_on_as_params_and_its_parent_has_the_configuration(
    shown: tuple[Run, Run], tiny_config: Config
) -> None:
    run, parent = shown
    assert run.data.params == {
        "model.depth": "4",
        "model.window": "null",
        "train.compile": "false",
    }
    facts = tiny_config.midtrain.mixture["facts"]
    assert parent.data.params["midtrain.mixture.facts"] == str(facts)


def test_a_run_is_tagged_with_what_made_it(shown: tuple[Run, Run]) -> None:
    git = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    tags = {
        "stage": "pretrain",
        "fingerprint": "f" * 20,
        "hardware": "abacus",
        "git.branch": "main",
        "git.commit": head,
    }
    run, parent = shown
    assert tags.items() <= run.data.tags.items()
    assert parent.data.tags["git.commit"] == head


def test_a_curve_has_every_step_and_what_is_not_finite(
    shown: tuple[Run, Run], client: MlflowClient
) -> None:
    run, _ = shown
    assert steps(client, run) == list(range(1, 2501))
    assert client.get_metric_history(run.info.run_id, "val/bpb")[0].value > 1e308


def test_events_are_counted_and_the_last_one_is_told(shown: tuple[Run, Run]) -> None:
    run, _ = shown
    assert run.data.metrics["events/spike"] == 2
    assert "step 9: loss 8.0" in run.data.tags["event.spike"]


def test_the_machine_is_sampled(shown: tuple[Run, Run]) -> None:
    run, _ = shown
    assert run.data.metrics["system/process_memory_megabytes"] > 10


def test_data_sets_are_named_with_their_digests(shown: tuple[Run, Run]) -> None:
    run, _ = shown
    assert run.inputs is not None
    [dataset] = [entry.dataset for entry in run.inputs.dataset_inputs]
    assert (dataset.name, dataset.digest) == ("tokens", ("0123456789" * 5)[:36])
    assert "data/tokens" in dataset.source


def test_artifacts_lie_in_the_project(
    shown: tuple[Run, Run], client: MlflowClient, project: Path
) -> None:
    run, _ = shown
    place = client.download_artifacts(run.info.run_id, "answers/samples.md")
    assert Path(place).read_text() == "2 and 2 are 4"
    assert run.info.artifact_uri.startswith((project / "mlartifacts").as_uri())


def test_a_summary_is_whole_in_an_artifact_and_its_headline_is_the_parents(
    shown: tuple[Run, Run], client: MlflowClient
) -> None:
    run, parent = shown
    assert parent.data.metrics == {"val_bpb": 1.25}
    assert run.data.tags["bundle"] == "synthetic"
    whole = Path(client.download_artifacts(run.info.run_id, "summary.json"))
    assert json.loads(whole.read_text()) == {
        "val_bpb": 1.25,
        "tasks.arc@easy.accuracy": 0.5,
        "bundle": "synthetic",
    }
    log = Path(client.download_artifacts(run.info.run_id, "log/metrics.jsonl"))
    assert log.read_text() == (run_folder(run) / "metrics.jsonl").read_text()


def test_the_stages_of_an_execution_share_a_parent_until_it_is_closed(
    settings: Config, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parent_of(name: str) -> str:
        with begin(settings, name):
            pass
        parent: str = child(client, name).data.tags["mlflow.parentRunId"]
        return parent

    first = parent_of("tokenizer")
    assert parent_of("tokens") == first
    tracking.close_execution(settings)
    second = parent_of("pretrain")
    assert second != first
    assert parent_of("report") == second


def test_a_run_is_filed_under_the_group_it_names_and_the_next_one_is_not(
    settings: Config, client: MlflowClient
) -> None:
    """A search's trial names its parent; what the process runs next has the parent it would have had."""
    name = os.environ["DVC_EXP_NAME"]
    with begin(settings, "tune", group="tune tiny", name="trial 3: depth=4"):
        pass
    with begin(settings, "pretrain"):
        pass
    assert os.environ["DVC_EXP_NAME"] == name
    [trial] = [run for run in runs_of(client, None) if run.data.tags.get("stage") == "tune"]
    assert trial.info.run_name == "trial 3: depth=4"
    parents = [above(client, run).info.run_name for run in (trial, child(client))]
    assert parents[0] == "tune tiny"
    assert parents[1].endswith(f"s7 ({name})")


def test_a_studys_runs_lie_under_it_with_their_arm_and_seed_to_group_curves_by(
    settings: Config, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (7, 8):
        monkeypatch.setenv("DVC_EXP_NAME", f"lights.adamw.s{seed}")
        changed = {"seed": seed, "optimizer.kind": "adamw", "tracking.system_metrics": False}
        with begin(config.load_config("params.yaml", changed)) as run:
            run.log(1, {"train/loss": 1.0})
            run.summary({"val_bpb": 1.0 + seed})
    note = {"report": "true", "mlflow.note.content": "**Does it help?** No."}
    with begin(settings, "ablation", group=tracking.study_group("lights"), tags=note) as run:
        run.summary({"adamw": 0.25})
    [first] = [run for run in runs_of(client, "lights.adamw.s7") if "stage" in run.data.tags]
    tags = {"study": "lights", "arm": "adamw", "seed": "7"}
    changed_key = {"changed": "optimizer.kind: muon → adamw"}
    assert (tags | changed_key).items() <= first.data.tags.items()
    arm = above(client, first)
    assert arm.info.run_name == "adamw s7"
    assert tags.items() <= arm.data.tags.items()
    assert arm.data.metrics["val_bpb"] == 8.0
    study = above(client, arm)
    assert study.info.run_name == "study lights"
    assert study.info.status == "FINISHED"
    assert study.data.metrics == {"adamw": 0.25}
    assert study.data.tags["mlflow.note.content"] == note["mlflow.note.content"]


def test_a_page_has_thirty_metrics_of_a_run_and_what_the_plan_said_is_a_tag(
    settings: Config, client: MlflowClient
) -> None:
    with begin(settings, "rl") as run:
        run.log(0, {"predicted/memory_bytes": 5.0, "predicted/seconds": 2.0})
        breakdown = {f"rl/by_steps.{steps}.accuracy": 0.5 for steps in range(9)}
        run.log(1, {f"rl/figure_{number}": 1.0 for number in range(40)} | breakdown)
        figures = {f"final_{number}": 1.0 for number in range(40)}
        run.summary(figures | {"mean_reward_last": 0.5, "by_steps": {"1": {"accuracy": 0.5}}})
    found = child(client, "rl")
    assert len(found.data.metrics) == 30
    assert not [key for key in found.data.metrics if "by_steps" in key or "predicted" in key]
    assert found.data.tags["predicted.memory_bytes"] == "5.0"
    assert above(client, found).data.metrics == {"reward": 0.5}


def test_answers_of_all_stages_are_one_table_above_them(
    settings: Config, client: MlflowClient
) -> None:
    for stage in ("rl", "base"):
        with begin(settings, f"gsm8k_stage@{stage}") as run:
            run.table("gsm8k", [{"index": 0, "question": "2+2?", "right": stage == "rl"}])
    parent = above(client, child(client, "gsm8k_stage@rl"))
    table = Path(client.download_artifacts(parent.info.run_id, "tables/gsm8k.json"))
    assert json.loads(table.read_text()) == {
        "columns": ["stage", "index", "question", "right"],
        "data": [["base", 0, "2+2?", False], ["rl", 0, "2+2?", True]],
    }
    assert "tables/gsm8k.json" in parent.data.tags["mlflow.loggedArtifacts"]


def test_a_checkpoint_is_a_registered_model_with_a_card_and_an_alias(
    settings: Config, client: MlflowClient
) -> None:
    tags = {"hardware": "abacus", "dtype": "float32"}
    for digest in ("a" * 64, "b" * 64):
        with begin(settings, tags=tags, params={"model.depth": 4}) as run:
            run.summary({"val_bpb": 1.25, "weights_sha256": digest})
    version = client.get_model_version_by_alias("paribus-base", "newest")
    assert version.tags["weights_sha256"] == "b" * 64
    assert version.description is not None
    for words in ("val_bpb | 1.25", "model.depth | 4", "abacus", "b" * 64):
        assert words in version.description
    models = client.search_logged_models([child_experiment(client)])
    assert {"a" * 64, "b" * 64} <= {model.tags.get("weights_sha256") for model in models}


def test_artifacts_are_found_after_the_checkout_was_moved(
    settings: Config, client: MlflowClient, project: Path, tmp_path: Path, shown: tuple[Run, Run]
) -> None:
    from mlflow import MlflowClient

    from paribus.tracking import store

    moved = tmp_path / "moved"
    (moved / ".paribus").mkdir(parents=True)
    shutil.copy(project / "mlflow.db", moved / "mlflow.db")
    shutil.copytree(project / "mlartifacts", moved / "mlartifacts")
    uri = f"sqlite:///{moved / 'mlflow.db'}"
    there = store.connect(uri, "paribus", moved / ".paribus").client
    run, _ = shown
    assert isinstance(there, MlflowClient)
    assert str(moved) in there.get_run(run.info.run_id).info.artifact_uri
    place = Path(there.download_artifacts(run.info.run_id, "answers/samples.md"))
    assert place.read_text() == "2 and 2 are 4"
    assert str(moved) not in client.get_run(run.info.run_id).info.artifact_uri


def test_every_run_of_a_store_is_found_however_many_a_page_holds(
    settings: Config, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest one too, by name and where predictions are graded; MLflow's client is asked page by page."""
    from paribus.tracking import grades, lookup, store
    from paribus.tracking.parts import Question

    monkeypatch.setattr(store, "PAGE", 3)
    connected = store.connect(tracking_uri(), "paged", state_root())
    for number in range(8):
        run = client.create_run(connected.experiment, run_name=f"run-{number}")
        client.log_metric(run.info.run_id, "predicted/memory_bytes", 2.0)
        client.log_metric(run.info.run_id, "predicted/seconds", 2.0)
        client.log_metric(run.info.run_id, "train/peak_memory_bytes", 1.0)
        client.log_metric(run.info.run_id, "seconds", 1.0)
        client.set_terminated(run.info.run_id)
    assert lookup.Runs("paged").names() == [f"run-{number}" for number in range(8)]
    assert len(lookup.Runs("paged").search({})) == 8
    assert len(lookup.Client(tracking_uri(), "paged").search(Question())) == 8
    assert len(grades.graded_runs("paged")) == 8


def test_a_studys_run_keeps_the_params_that_the_first_machine_sent(
    settings: Config, client: MlflowClient
) -> None:
    """Another machine's first run below it has others: MLflow would refuse all that it sends."""
    from paribus.tracking import store

    connected = store.connect(tracking_uri(), "groups", state_root())
    run = client.create_run(connected.experiment).info.run_id
    connected.log_params(run, {"model.mlp_ratio": "4.0"})
    connected.log_params(run, {"model.mlp_ratio": "6.0", "model.depth": "2"})
    params = client.get_run(run).data.params
    assert params == {"model.mlp_ratio": "4.0", "model.depth": "2"}


def some_runs(client: MlflowClient, uri: str) -> str:
    """An experiment with runs of every kind; returns the id of a run that was deleted."""
    from mlflow.entities import Dataset, DatasetInput

    from paribus.tracking import store

    connected = store.connect(uri, "asked", state_root())
    for number, (status, loss) in enumerate((("FINISHED", math.nan), ("FAILED", math.inf))):
        tags = {"stage": "pretrain", "dvc.experiment": "it's"} if number else {}
        run = client.create_run(connected.experiment, number + 1, tags, f"run-{number}").info.run_id
        client.log_param(run, "seed", str(number))
        client.log_metric(run, "loss", 3.0, step=1)
        client.log_metric(run, "loss", loss, step=2)
        tokens = Dataset(name="data/tokens", digest="1.dir", source_type="dvc", source="data")
        client.log_inputs(run, [DatasetInput(tokens)])
        client.set_terminated(run, status)
    deleted: str = client.create_run(connected.experiment, run_name="run-0").info.run_id
    client.delete_run(deleted)
    elsewhere = client.create_experiment("asked elsewhere")
    client.create_run(elsewhere, run_name="run-0")
    return deleted


@pytest.fixture(scope="module")
def asked(project: Path, client: MlflowClient) -> str:
    """`some_runs` of this project's own database."""
    return some_runs(client, tracking_uri())


@pytest.mark.parametrize(
    ("tags", "finished", "found"),
    [
        ({}, False, ["run-1", "run-0"]),
        ({}, True, ["run-0"]),
        ({"mlflow.runName": "run-0"}, False, ["run-0"]),
        ({"stage": "pretrain", "dvc.experiment": "it's"}, False, ["run-1"]),
        ({"stage": "pretrain", "dvc.experiment": "its"}, False, []),
        ({"stage": "pretrain"}, True, []),
    ],
)
def test_the_tables_give_what_mlflows_client_gives(
    asked: str, tags: dict[str, str], finished: bool, found: list[str]
) -> None:
    from paribus.tracking.lookup import Client
    from paribus.tracking.parts import Question
    from paribus.tracking.tables import Tables

    question = Question(tags=tags, finished=finished)
    read = Tables(tracking_uri(), "asked").search(question)
    assert [run.name for run in read] == found
    assert repr(read) == repr(Client(tracking_uri(), "asked").search(question))  # nan is not nan


@pytest.mark.soak
def test_the_tables_of_postgresql_give_what_mlflows_client_gives(project: Path) -> None:
    from mlflow import MlflowClient

    from paribus.tracking.lookup import Client
    from paribus.tracking.parts import Question
    from paribus.tracking.tables import Tables

    there = postgres.found()
    if isinstance(there, str):
        pytest.skip(there)
    server = postgres.Server(*there)
    server.start()
    try:
        deleted = some_runs(MlflowClient(server.url), server.url)
        tables, client = Tables(server.url, "asked"), Client(server.url, "asked")
        finished = Question(tags={"mlflow.runName": "run-0"}, finished=True)
        assert [run.name for run in tables.search(finished)] == ["run-0"]
        for question in (Question(), finished):
            assert repr(tables.search(question)) == repr(client.search(question))
        assert tables.by_id(deleted) == client.by_id(deleted)
        [newest, _] = tables.parts(Question(), ["stage"], ["loss"])
        assert newest.tags == {"stage": "pretrain"}
    finally:
        server.stop()


COMPARED = """
import sys
from paribus.cli.commands import main
sys.argv = ["paribus", "compare", "run-0", "run-1"]
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
assert "mlflow" not in sys.modules, "MLflow was loaded"
"""


def test_runs_in_a_database_are_compared_without_loading_mlflow(
    asked: str, project: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    values = (project / "params.yaml").read_text()
    asking = values.replace("experiment: paribus", "experiment: asked")
    (copy / "params.yaml").write_text(asking)
    command = [sys.executable, "-c", COMPARED]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.stderr == ""
    assert "run-1" in done.stdout


def test_a_deleted_run_is_found_by_its_id_and_stays_deleted(
    asked: str, client: MlflowClient
) -> None:
    from paribus.tracking.lookup import Client
    from paribus.tracking.tables import Tables

    read = Tables(tracking_uri(), "asked").by_id(asked)
    assert read is not None
    assert read == Client(tracking_uri(), "asked").by_id(asked)
    assert client.get_run(asked).info.lifecycle_stage == "deleted"


def test_parts_of_runs_hold_the_keys_that_were_named(asked: str) -> None:
    from paribus.tracking.lookup import Runs

    newest, oldest = Runs("asked").parts(tags=["stage"], metrics=["loss"])
    assert newest.tags == {"stage": "pretrain"}
    assert list(newest.metrics) == ["loss"]
    assert math.isnan(oldest.metrics["loss"])
    assert oldest.tags == {}


# ---------------------------------------------------------------- going on


def test_a_paused_run_goes_on_without_a_step_twice_or_missing(
    settings: Config, client: MlflowClient
) -> None:
    with pytest.raises(SystemExit), begin(settings) as run:
        for step in range(1, 21):
            run.log(
                step,
                {"train/loss": step, "val/bpb": 2.0} if step % 10 == 0 else {"train/loss": step},
            )
        wait_for(lambda: latest(client) == 20)
        raise SystemExit(EXIT_PAUSED)
    wait_for(lambda: child(client).info.status == "SCHEDULED")
    assert child(client).data.tags["paused"] == "at step 20; the next start goes on"
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "time": 1, "tra')  # a line torn by a crash
    with begin(settings, resume_step=12) as run:
        assert [row["step"] for row in run.rows()] == list(range(1, 13))
        wait_for(lambda: child(client).info.status == "RUNNING")
        assert "paused" not in child(client).data.tags
        for step in range(13, 31):
            run.log(
                step,
                {"train/loss": step, "val/bpb": 2.0} if step % 10 == 0 else {"train/loss": step},
            )
    found = child(client)  # one run
    assert found.info.status == "FINISHED"
    assert steps(client, found) == list(range(1, 31))
    assert steps(client, found, "val/bpb") == [
        10,
        20,
        30,
    ]
    assert [row["step"] for row in run.rows()] == list(range(1, 31))


def test_a_run_that_was_killed_goes_on(
    project: Path, tiny_config: Config, client: MlflowClient
) -> None:
    """kill -9 of a real process of which MLflow has some steps; then the same steps come again."""
    folder = state_root() / "runs" / "killed"
    with RunLog.open(
        "killed", folder=folder, config=tiny_config, params={}, fingerprint="k", resume_step=12
    ) as run:
        for step in range(13, 41):
            run.log(step, {"train/loss": step})
    found = named(client, "killed")
    assert found.info.status == "FINISHED"
    assert steps(client, found) == list(range(1, 41))


def test_a_sender_killed_between_a_batch_and_whatever_would_note_it(
    project: Path, settings: Config, client: MlflowClient
) -> None:
    end_sender()
    dying = subprocess.Popen([sys.executable, "-c", DYING_SENDER, str(project / ".paribus")])
    wait_for(lambda: dying.poll() is None and lock_is_held(project / ".paribus/sender.lock"))
    with begin(settings) as run:
        for step in range(1, 21):
            run.log(step, {"train/loss": step})
        assert dying.wait() == -signal.SIGKILL
        for step in range(21, 31):
            run.log(step, {"train/loss": step})
    assert child(client).info.status == "FINISHED"
    assert steps(client, child(client)) == list(range(1, 31))


def test_a_run_that_was_killed_before_its_first_state_starts_over_in_the_same_run(
    settings: Config, client: MlflowClient
) -> None:
    for attempt in range(2):
        folder = killed(client)  # its run.json says RUNNING, and MLflow must not for ever
        wait_for(lambda: child(client).info.status == "KILLED")
        if attempt == 0:  # as if the sender had been killed before it noted MLflow's run id
            (folder / "mlflow.json").unlink()
    assert steps(client, child(client)) == [1, 2, 3]


def test_a_finished_run_started_over_is_a_new_run(settings: Config, client: MlflowClient) -> None:
    for _ in range(2):
        with begin(settings) as run:
            run.log(1, {"train/loss": 1})
    assert [steps(client, one) for one in children(client)] == [[1], [1]]


def test_an_error_fails_the_run(settings: Config, client: MlflowClient) -> None:
    with pytest.raises(ZeroDivisionError), begin(settings):
        raise ZeroDivisionError
    assert child(client).info.status == "FAILED"


def test_a_rollback_keeps_the_events_and_repeats_nothing(
    settings: Config, client: MlflowClient
) -> None:
    with begin(settings) as run:
        for step in range(1, 11):
            run.log(step, {"train/loss": step})
        run.event(10, "rollback", "to 4")
        wait_for(lambda: latest(client, "events/rollback") == 1)
        run.rewind(4)
        assert [row["step"] for row in run.rows()] == [1, 2, 3, 4]
        for step in range(5, 16):
            run.log(step, {"train/loss": step})
        run.event(15, "rollback", "to 9")
    found = child(client)
    assert steps(client, found) == list(range(1, 16))
    assert [row["step"] for row in run.rows()] == list(range(1, 16))
    assert len(run.events()) == 2
    assert [
        metric.value for metric in client.get_metric_history(found.info.run_id, "events/rollback")
    ] == [1, 2]


# ---------------------------------------------------------------- a server that is down


class Server:
    """MLflow's own REST server on a port of its own, in a thread: to be stopped and started."""

    def __init__(self, store: str, artifacts: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.environment = {
            "_MLFLOW_SERVER_FILE_STORE": store,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": str(artifacts),
        }

    def start(self) -> None:
        os.environ |= self.environment
        from mlflow.server import app
        from werkzeug.serving import make_server

        self.server = make_server("127.0.0.1", self.port, app, threaded=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_what_a_server_misses_is_sent_later(
    project: Path,
    settings: Config,
    client: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(tracking_uri(), project / "mlartifacts")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.port}")
    for count in (
        1,
        2,
    ):  # nobody listens from start to end, and the second run takes the folder of the first
        with begin(settings, "missed") as run:
            for step in range(1, 6):
                run.log(step, {"train/loss": step})
            run.summary({"val_bpb": 1.0})
        assert len(caplog.messages) == count
    assert f"http://127.0.0.1:{server.port}" in caplog.messages[0]
    assert "sent later" in caplog.messages[0]
    assert children(client, "missed") == []

    server.start()
    with begin(settings) as run:  # the next start sends it
        run.log(1, {"train/loss": 1})
        wait_for(
            lambda: [one.info.status for one in children(client, "missed")] == ["FINISHED"] * 2
        )
        assert [steps(client, one) for one in children(client, "missed")] == [[1, 2, 3, 4, 5]] * 2
        wait_for(lambda: not list((state_root() / "unsent").iterdir()))
        wait_for(lambda: latest(client) == 1)
        server.stop()  # and down midway
        run.log(2, {"train/loss": 2})
        wait_for(lambda: len(caplog.messages) == 3)
        run.log(3, {"train/loss": 3})
        server.start()  # and up again
        wait_for(lambda: latest(client) == 3)
        run.log(4, {"train/loss": 4})
    server.stop()
    assert steps(client, child(client)) == [1, 2, 3, 4]
    assert child(client).info.status == "FINISHED"
    missed = children(client, "missed")
    assert [one.data.metrics["val_bpb"] for one in missed] == [1.0, 1.0]
    assert len(caplog.messages) == 3  # one a run


# ---------------------------------------------------------------- damaged files, refused runs


DAMAGE = ["", "{", "[]", '{"id": "x"}', '{"id": ["x"], "status": {}}', "\0" * 100]


@pytest.mark.parametrize("text", DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_run_is_named_and_every_other_run_arrives(
    settings: Config, client: MlflowClient, capfd: pytest.CaptureFixture[str], text: str
) -> None:
    other = state_root() / "runs" / f"damaged-{abs(hash(text))}"
    other.mkdir()
    (other / "run.json").write_text(text)
    with begin(settings) as run:
        run.log(1, {"train/loss": 1})
    assert child(client).info.status == "FINISHED"
    assert steps(client, child(client)) == [1]
    assert (other / "run.json.damaged").read_text() == text
    log = (state_root() / "sender.log").read_text()
    assert f"{other}/run.json: damaged" in capfd.readouterr().err + log


def test_a_damaged_run_json_of_ones_own_costs_nothing_that_was_logged(
    settings: Config, client: MlflowClient, capfd: pytest.CaptureFixture[str]
) -> None:
    (killed(client) / "run.json").write_text('{"id": ')
    with begin(settings, resume_step=3) as run:
        run.log(4, {"train/loss": 4})
    assert steps(client, child(client)) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "place",
    [
        "mlflow.json",
        pytest.param("execution", marks=pytest.mark.soak),
        pytest.param("parents", marks=pytest.mark.soak),
        "sender.json",
    ],
)
@pytest.mark.parametrize(
    "text",
    [
        "{",
        pytest.param("[1]", marks=pytest.mark.soak),
        pytest.param('{"uri": 3}', marks=pytest.mark.soak),
    ],
    ids=range(3),
)
def test_a_damaged_note_stops_no_later_stage(
    settings: Config, client: MlflowClient, place: str, text: str
) -> None:
    with begin(settings, "first") as run:
        run.log(1, {"train/loss": 1})
    root = state_root()
    execution = json.loads((run.folder / "run.json").read_text())["execution"]
    path = {
        "mlflow.json": run.folder / "mlflow.json",
        "execution": root / f"executions/{execution}.json",
        "parents": root / f"executions/mlflow/{execution}.json",
        "sender.json": root / "sender.json",
    }[place]
    path.write_text(text)
    with begin(settings, "second") as run:
        run.log(1, {"train/loss": 2})
    with begin(settings, "first", resume_step=1) as run:
        run.log(2, {"train/loss": 1})
    assert steps(client, child(client, "first")) == [1, 2]
    assert steps(client, child(client, "second")) == [1]
    tracking.close_execution(settings)


@pytest.mark.parametrize("line", ["rubbish", "[]", '{"step": "x", "time": 1}', "3"], ids=range(4))
def test_a_damaged_line_of_the_log_stops_nothing(
    settings: Config, client: MlflowClient, line: str
) -> None:
    with begin(settings) as run:
        run.log(1, {"train/loss": 1})
        with (run.folder / "metrics.jsonl").open("a") as file:
            file.write(line + "\n")
        odd: Any = [1]
        run.log(2, {"train/loss": 2, "note": odd})
        assert [row["step"] for row in run.rows()] == [1, 2]
    assert steps(client, child(client)) == [1, 2]


@pytest.mark.parametrize("name", ["", "x" * 600, "half \ud800 a pair"], ids=range(3))
def test_a_run_that_mlflow_refuses_is_told_alone(
    settings: Config, client: MlflowClient, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    from dataclasses import replace

    refused = replace(settings, tracking=replace(settings.tracking, experiment=name))
    with begin(refused, "refused") as run:
        run.log(1, {"train/loss": 1})
    [message] = caplog.messages
    assert "does not take this run" in message
    assert "not available" not in message
    caplog.clear()
    with begin(settings) as run:
        run.log(1, {"train/loss": 1})
    assert caplog.messages == []
    assert child(client).info.status == "FINISHED"
    shutil.rmtree(state_root() / "runs" / f"{os.environ['DVC_EXP_NAME']}-refused")


# ---------------------------------------------------------------- passwords


SECRET = "pa%2Fss%40w0rd"


def below(root: Path) -> list[Path]:
    """Everything that is written below a folder, databases included."""
    return [path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_password_is_neither_stored_nor_printed(
    project: Path,
    settings: Config,
    client: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server = Server(tracking_uri(), project / "mlartifacts")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    uri = f"http://ann:{SECRET}@127.0.0.1:{server.port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with begin(settings, "away") as run:  # nobody listens
        run.log(1, {"train/loss": 1})
    assert f"http://127.0.0.1:{server.port}" in caplog.messages[0]
    server.start()
    with begin(settings) as run:
        run.log(1, {"train/loss": 1})
        run.summary({"val_bpb": 1.0})
    wait_for(lambda: len(children(client, "away")) == 1)
    server.stop()
    assert child(client).info.status == "FINISHED"
    assert len(caplog.messages) == 1
    said = capfd.readouterr()
    shown = [said.out, said.err, *caplog.messages]
    for secret in (SECRET, "pa/ss@w0rd"):
        assert not any(secret in text for text in shown)
        holders = [path for path in below(project) if secret.encode() in path.read_bytes()]
        assert holders == []


@pytest.mark.parametrize(
    "uri, shown",
    [
        ("http://ann:secret@host:5000/a", "http://host:5000/a"),
        ("http://ann@host", "http://host"),
        ("https://ann:se%2Fcret@host/", "https://host/"),
        ("http://ann:se/cret@host:1", "http://host:1"),
        ("http://ann:se@cret@host:1", "http://host:1"),
        ("http://ann:se#c?ret@host:1", "http://host:1"),
        ("http://ann:secret@[::1]:5000", "http://[::1]:5000"),
        ("postgresql+psycopg2://ann:secret@db:5432/mlflow", "postgresql+psycopg2://db:5432/mlflow"),
        ("postgresql://db/x?port=5&password=secret", "postgresql://db/x?port=5&password=***"),
        ("postgresql:///x?host=/run&password=secret", "postgresql:///x?host=/run&password=***"),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dsecret", "mssql+pyodbc:///?odbc_connect=***"),
        ("http://secret@host:5000", "http://host:5000"),
        ("https://host/a?sig=secret", "https://host/a?sig=***"),
        ("https://host/a?port=1;auth=secret", "https://host/a?port=1;auth=***"),
        ("https://host/a#token=secret", "https://host/a"),
        ("ann:secret@host:5000", "host:5000"),
        ("sqlite:////home/ann#1/mlflow.db", "sqlite:////home/ann#1/mlflow.db"),
        ("sqlite:////home/ann@work/mlflow.db", "sqlite:////home/ann@work/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
        ("databricks", "databricks"),
    ],
)
def test_what_is_shown_of_an_address(uri: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert public_uri(uri) == shown
    assert public_uri(shown) == shown
    assert "secret" not in redacted(f"request to {uri}/api failed: {uri!r}")
    assert tracking_uri() == uri
    assert with_secrets(shown) == uri


@pytest.mark.parametrize(
    "uri", ["https://secret@host", "https://secret:@host", "postgresql:///x?user=a&pin=secret"]
)
def test_a_message_that_repeats_a_secret_alone_is_redacted(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As drivers do, which name the user or what they were given, and not the address."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert "secret" not in redacted("access denied for 'secret'")


# ---------------------------------------------------------------- asking MLflow


def test_every_run_is_found_however_many_there_are(
    project: Path, settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paribus.tracking import lookup, store
    from paribus.tracking.parts import Question

    monkeypatch.setattr(store, "PAGE", 2)
    with begin(settings) as run:
        run.log(1, {"train/loss": 1})
    runs = lookup.Runs("paribus")
    everything = lookup.Client(tracking_uri(), "paribus").search(Question())
    assert len(everything) > 4
    assert len({one.id for one in everything}) == len(everything)
    executions = [one for one in everything if one.is_execution]
    assert runs.names() == sorted({name for one in executions for name in one.names})


@pytest.mark.parametrize("damage", ["garbage", "half", "no tables"])
def test_a_damaged_store_is_explained(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    from paribus.errors import UserError
    from paribus.tracking import grades, lookup

    whole = (project / "mlflow.db").read_bytes()
    path = tmp_path / "mlflow.db"
    path.write_bytes({"garbage": b"x" * 5000, "half": whole[: len(whole) // 2]}.get(damage, b""))
    if damage == "no tables":
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
            connection.execute("INSERT INTO alembic_version VALUES ('no such version')")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    for ask in (lambda: lookup.Runs("paribus"), lambda: grades.graded_runs("paribus")):
        with pytest.raises(UserError, match="paribus doctor"):
            ask()


# ---------------------------------------------------------------- the journal


def test_logging_a_step_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "metrics.jsonl", print)
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("it waits for the disk"))
    row = {"step": 1, "time": 1.5} | {f"train/metric{i}": i / 3 for i in range(10)}
    for _ in range(50):
        journal.append(row)
    assert read_rows(journal.path) == [row] * 50


def test_what_is_not_finite_stays_strict_json_and_comes_back(settings: Config) -> None:
    with begin(settings) as run:
        run.log(1, {"loss": math.nan, "low": -math.inf, "one": 1.0})
        row = run.rows()[0]
    assert math.isnan(row["loss"])
    assert row["low"] == -math.inf
    assert row["one"] == 1.0
    json.loads(
        (run.folder / "metrics.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name)
    )


def test_a_full_disk_costs_a_warning_and_no_line(tmp_path: Path) -> None:
    warnings: list[str] = []
    journal = Journal(tmp_path / "metrics.jsonl", warnings.append)
    before, limits = (
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    try:
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (200, limits[1])
        )  # the kernel then writes a part, and then refuses
        for step in range(50):
            journal.append({"step": step})
        assert warnings
        assert (tmp_path / "metrics.jsonl").stat().st_size == 200
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    journal.append({"step": 50})
    assert [row["step"] for row in read_rows(journal.path)] == list(range(51))


def test_a_store_whose_making_was_killed_is_made_anew(tmp_path: Path) -> None:
    from paribus.tracking.store import connect

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    code = (
        "import sys; from pathlib import Path; from paribus.tracking.store import connect; "
        "connect(*sys.argv[1:3], Path(sys.argv[3]))"
    )
    maker = subprocess.Popen([sys.executable, "-c", code, uri, "x", str(tmp_path)])
    aside = tmp_path / "mlflow.db.new"
    while not (aside.exists() and aside.stat().st_size > 50_000):
        assert maker.poll() is None, "it was made before it could be killed"
        time.sleep(0.005)
    maker.kill()
    maker.wait()
    assert not (tmp_path / "mlflow.db").exists()
    assert connect(uri, "x", tmp_path).experiment
    assert (tmp_path / "mlflow.db").exists()
    assert not aside.exists()
