"""The whole curriculum at a tiny size through real DVC, git and MLflow, as a user runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from support.project import STAGES, Project
from support.tiny import TINY

from paribus.curriculum import HEADLINE

CONTRACT = {
    "tokenizer": {"vocab_size", "bytes_per_token"},
    "pretrain": {
        "val_bpb",
        "train_tokens",
        "tokens_per_second",
        "seconds",
        "parameters",
        "flops_per_token",
        "peak_memory_bytes",
    },
    "core": {"core", "core_stderr", "tasks", "bundle"},
    "gsm8k": {*STAGES, "dataset"},
    "rl": {
        "steps",
        "mean_reward_first",
        "mean_reward_last",
        "groups",
        "zero_reward_groups",
        "all_reward_groups",
        "zero_gradient_groups",
        "effective_samples_per_second",
        "wasted_token_fraction",
    },
}
CURVES = {
    "pretrain": "step,tokens,seconds,train_loss,val_bpb",
    "gsm8k": "stage,accuracy,ci_low,ci_high",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Project:
    """A project in which `dvc repro` has run once."""
    made = Project(tmp_path_factory.mktemp("project"), project_root).start()
    made.feed_mlflow()
    shutil.copytree(project_root / ".dvc/plots", made.root / ".dvc/plots", dirs_exist_ok=True)
    made.run("dvc", "repro")
    made.run("git", "add", "-A")
    made.run("git", "commit", "-qm", "first run")
    return made


@pytest.mark.parametrize("name", CONTRACT)
def test_metrics_have_the_keys_of_the_contract(project: Project, name: str) -> None:
    assert CONTRACT[name] <= project.metrics(name).keys()


def test_gsm8k_metrics_have_intervals_for_every_stage(project: Project) -> None:
    for stage in STAGES:
        entry = project.metrics("gsm8k")[stage]
        assert entry["ci_low"] <= entry["accuracy"] <= entry["ci_high"]
        assert entry["n"] == TINY["eval.gsm8k.questions"]


@pytest.mark.parametrize("name", CURVES)
def test_curves_have_the_columns_of_the_contract(project: Project, name: str) -> None:
    lines = (project.root / f"plots/{name}.csv").read_text().splitlines()
    assert lines[0] == CURVES[name]
    assert len(lines) > 1


def test_curve_has_every_step_once(project: Project) -> None:
    lines = (project.root / "plots/pretrain.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[0]) for line in lines] == list(range(1, TINY["pretrain.steps"] + 1))


def test_dvc_prints_the_headline_alone_in_a_terminals_width(project: Project) -> None:
    lines = project.run("dvc", "metrics", "show").stdout.splitlines()
    assert lines[0].split()[1:] == sorted(figure.name for figure in HEADLINE)
    assert max(map(len, lines)) <= 120


def test_dvc_draws_every_curve_and_nothing_of_the_metrics(project: Project) -> None:
    plots = json.loads(project.run("dvc", "plots", "show", "--json").stdout)
    drawn = {name for name, shown in plots["data"].items() if shown}
    curves = {f"plots/{path.name}" for path in (project.root / "plots").glob("*.csv")}
    assert drawn == {"Held-out text", *curves}
    assert "errors" not in plots


def test_checkpoints_hold_all_that_using_them_needs(project: Project) -> None:
    for stage in STAGES:
        files = {path.name for path in (project.root / "checkpoints" / stage).iterdir()}
        assert files == {"model.safetensors", "config.json", "tokenizer.json", "provenance.json"}


def test_a_second_repro_runs_nothing(project: Project) -> None:
    assert "Running stage" not in project.run("dvc", "repro").stdout


def test_every_run_is_in_mlflow_under_one_parent(project: Project) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("paribus")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.data.tags["stage"]: run for run in runs if run not in parents}
    assert len(parents) == 1
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {
        parents[0].info.run_id
    }
    assert {
        "pretrain",
        "midtrain",
        "sft",
        "rl",
        "core",
        "report",
        *(f"gsm8k_stage@{s}" for s in STAGES),
    } <= children.keys()
    pretrain = children["pretrain"]
    assert pretrain.data.params["model.depth"] == str(TINY["model.depth"])
    assert pretrain.data.params["model.width"] == str(
        TINY["model.depth"] * TINY["model.aspect_ratio"]
    )
    steps = [point.step for point in client.get_metric_history(pretrain.info.run_id, "train/loss")]
    assert steps == list(range(1, TINY["pretrain.steps"] + 1))
    assert pretrain.data.metrics["val_bpb"] == project.metrics("pretrain")["val_bpb"]
    lock = yaml.safe_load((project.root / "dvc.lock").read_text())["stages"]["tokens"]["outs"]
    assert pretrain.inputs is not None
    digests = {data.dataset.name: data.dataset.digest for data in pretrain.inputs.dataset_inputs}
    assert digests["data/tokens"] == lock[0]["md5"][:36]
    assert {item.path for item in client.list_artifacts(pretrain.info.run_id)} >= {"plots"}
    answered = children["gsm8k_stage@base"]
    tables = json.loads(answered.data.tags["mlflow.loggedArtifacts"])
    assert [table["path"] for table in tables] == ["tables/prompts.json", "tables/gsm8k.json"]
    assert len(parents[0].data.metrics) <= 12
    assert all(len(run.data.metrics) <= 30 for run in runs)
    assert {item.path for item in client.list_artifacts(answered.info.run_id)} >= {
        "answers",
        "tables",
    }


def test_report_is_one_file_with_the_figures(project: Project) -> None:
    page = (project.root / "report/report.html").read_text()
    assert page.count("<svg") >= 3
    assert "<script" not in page


def test_sparsity_is_foretold_without_training(project: Project) -> None:
    shown = project.run(
        "paribus",
        "eval",
        "sparsity",
        "checkpoints/sft",
        "--questions",
        "3",
        "--samples",
        "2",
        "--json",
    )
    found = json.loads(shown.stdout)
    assert found["questions"] == 3
    assert found["by_group_size"]["2"]["zero_gradient_groups"] <= 1
    assert found["recommendation"]


def test_wrong_key_is_refused_by_dvc(project: Project) -> None:
    done = project.run("dvc", "exp", "run", "-S", "model.dept=6", check=False)
    assert done.returncode != 0
    assert "dept" in done.stdout + done.stderr


def test_wrong_value_explains_itself_before_any_compute(project: Project) -> None:
    done = project.run("dvc", "exp", "run", "--temp", "-S", "model.depth=abc", check=False)
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in text
    assert "model.depth: 'abc' is not allowed; expected a whole number" in text


@pytest.mark.long
@pytest.mark.soak
def test_queued_experiment_runs_rl_and_what_follows_only_into_the_same_store(
    project: Project,
) -> None:
    from mlflow import MlflowClient

    project.run("dvc", "exp", "run", "--queue", "-n", "cooler", "-S", "rl.temperature=0.7")
    project.run("dvc", "queue", "start", "-j", "1")
    log = project.run("dvc", "queue", "logs", "--follow", "cooler").stdout
    ran = [line.split("'")[1] for line in log.splitlines() if line.startswith("Running stage")]
    # DVC leaves a follower out when what it depends on came out the same: so tiny a model may answer as before.
    assert ran[:2] == ["rl", "gsm8k_stage@rl"]
    assert set(ran[2:]) <= {"gsm8k", "report"}
    shown = json.loads(project.run("dvc", "exp", "show", "--json").stdout)
    names = [exp["name"] for row in shown for exp in (row["experiments"] or [])]
    assert names == ["cooler"]
    client = MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("paribus")
    assert experiment is not None
    runs = client.search_runs(
        [experiment.experiment_id], "params.`rl.temperature` = '0.7' and tags.stage = 'rl'"
    )
    assert [run.info.status for run in runs] == ["FINISHED"]


@pytest.mark.soak
def test_a_comment_in_the_code_trains_nothing_again(project: Project) -> None:
    """DVC runs the stage, as the file changed; the fingerprint did not, so the finished run is handed over."""
    weights = project.digests()["base"]
    path = project.root / "src/paribus/train/loop.py"
    text = path.read_text()
    path.write_text(text + "# another comment\n")
    try:
        done = project.run("dvc", "repro", "-s", "pretrain")
    finally:
        path.write_text(text)
    assert "Running stage 'pretrain'" in done.stdout
    assert "going on from step 6 of 6" in done.stderr
    assert project.digests()["base"] == weights


@pytest.mark.soak
def test_same_fingerprint_gives_the_same_bytes(
    project: Project, tmp_path: Path, project_root: Path
) -> None:
    """Every training stage again, in another folder, without DVC: the same weights to the byte."""
    again = Project(tmp_path, project_root)
    names = ("corpus", "tokenizer", "tokens", "pretrain", "midtrain", "sft", "rl")
    again.feed_mlflow()
    again.python(
        f"from paribus.cli.commands import run_stage\nfor name in {names}: run_stage(name)"
    )
    assert again.digests() == project.digests()


def test_core_during_training_is_a_curve_and_changes_no_weight(
    project: Project, tmp_path: Path, project_root: Path
) -> None:
    watched = Project(
        tmp_path, project_root, **{"pretrain.core_every": 2, "pretrain.core_max_per_task": 3}
    )
    shutil.copytree(project.root / "data", tmp_path / "data")
    watched.feed_mlflow()
    watched.python("from paribus.stages.training import pretrain; pretrain()")
    weights = "checkpoints/base/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (project.root / weights).read_bytes()
    header, *lines = [
        line.split(",") for line in (tmp_path / "plots/pretrain.csv").read_text().splitlines()
    ]
    column = header.index("val_core")
    assert [int(line[0]) for line in lines if line[column]] == [2, 4, 6]
    assert all(0 <= float(line[column + 1]) < 1 for line in lines if line[column]), (
        "each with its standard error"
    )


def test_rl_counts_groups_by_difficulty(project: Project) -> None:
    metrics = project.metrics("rl")
    assert sum(row["groups"] for row in metrics["by_steps"].values()) == metrics["groups"]
    assert metrics["redrawn_samples"] == 0
    for kind in ("zero_reward_groups", "all_reward_groups", "zero_gradient_groups"):
        share = (
            sum(row[kind] * row["groups"] for row in metrics["by_steps"].values())
            / metrics["groups"]
        )
        assert share == pytest.approx(metrics[kind])
