"""Certificates: a tiny real run is made again bit for bit, and every planted fault is caught and named as the cause."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.project import Project
from support.studied import STUDY

from paribus import graph
from paribus.audit import band, lookup, verify
from paribus.audit.agreement import Difference
from paribus.audit.certificate import page
from paribus.audit.proof import About, Certificate, Outcome, Parting
from paribus.errors import UserError

pytestmark = pytest.mark.long
soak = pytest.mark.soak

STAGES = ("corpus", "tokenizer", "tokens", "pretrain")


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Project:
    """A project that is committed, in which pretraining has run, and its outputs are committed as a user does."""
    made = Project(
        tmp_path_factory.mktemp("origin"), project_root, **{"train.threads": None}
    ).start()
    made.feed_mlflow()
    made.run("dvc", "repro", *STAGES)
    made.run("git", "add", "-A")
    made.run("git", "commit", "-qm", "first run")
    return made


@pytest.fixture
def project(origin: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A copy to be damaged, and the working folder. The cache's files are read-only and shared: replace, never write."""
    copy = Project.__new__(Project)
    copy.root = tmp_path / "project"
    shutil.copytree(
        origin.root,
        copy.root,
        symlinks=True,
        ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts"),
    )
    monkeypatch.chdir(copy.root)
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    yield copy


def certify(name: str = "checkpoints/base", steps: int | None = 0) -> Certificate:
    found = lookup.find(name)
    return verify.certificate(found, verify.choose_stage(found, None, steps), steps)


def edit_lock(change: Callable[[dict[str, Any]], None]) -> None:
    stages = yaml.safe_load(Path("dvc.lock").read_text())
    change(stages["stages"])
    Path("dvc.lock").write_text(yaml.safe_dump(stages))


def whats(made: Certificate, cause: str) -> str:
    return "; ".join(one.what for one in made.differences if one.cause == cause)


def swap(first: Path, second: Path) -> None:
    """Exchange two objects of DVC's cache."""
    contents = [path.read_bytes() for path in (first, second)]
    for path, content in zip((first, second), reversed(contents), strict=True):
        path.chmod(0o644)
        path.write_bytes(content)
        path.chmod(0o444)


def objects(out: str) -> dict[str, Path]:
    found: dict[str, Path] | None = graph.cached_files(
        lookup.find("workspace").data[out], Path(".dvc/cache/files/md5").resolve()
    )
    assert found
    return found


# ---------------------------------------------------------------- sound


def test_a_run_is_certified_bit_for_bit_and_nothing_of_it_is_touched(origin: Project) -> None:
    """As a user does it, by git revision; the certificate is a file, and an artifact and tags of the run in MLflow."""
    from mlflow import MlflowClient

    def fingers() -> dict[str, tuple[int, int]]:
        kept = [
            path
            for top in ("checkpoints", "data", ".dvc/cache", ".paribus/runs")
            for path in (origin.root / top).rglob("*")
        ]
        return {
            str(path): (path.stat().st_mtime_ns, path.stat().st_size)
            for path in kept
            if path.is_file() and path.suffix != ".lock"
        }  # the project's own sender looks whether runs are over

    before = fingers()
    done = origin.run("paribus", "verify", "HEAD")
    assert "# bit-exact: pretrain of HEAD" in done.stdout
    assert fingers() == before
    [path] = (origin.root / "experiments/results").glob("verify-pretrain-*.json")
    made = json.loads(path.read_text())
    assert made["reproduced"]
    assert made["differences"] == []
    assert made["outcome"]["steps"] == 6
    assert made["outcome"]["weights"][0] == made["outcome"]["weights"][1] == origin_weights(origin)
    client = MlflowClient(f"sqlite:///{origin.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("paribus")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.stage = 'pretrain'")
    assert [run.data.tags["verify.verdict"] for run in runs] == ["bit-exact"], (
        "one run: the rebuilt one is not in this store"
    )
    assert {item.path for item in client.list_artifacts(runs[0].info.run_id, "verify")} == {
        f"verify/{path.name}",
        f"verify/{path.stem}.md",
    }
    assert runs[0].data.tags["weights_sha256"] == origin_weights(origin)


def origin_weights(origin: Project) -> str:
    return graph.file_digest(origin.root / "checkpoints/base/model.safetensors")


def test_records_that_agree_are_consistent(project: Project) -> None:
    made = certify()
    assert made.verdict == "consistent"
    assert made.outcome is None
    assert made.causes == []


# ---------------------------------------------------------------- planted faults


def test_an_edited_dvc_lock_is_caught(project: Project) -> None:
    def edit(stages: dict[str, Any]) -> None:
        stages["tokens"]["outs"][0]["md5"] = stages["tokenizer"]["outs"][0]["md5"]

    edit_lock(edit)
    made = certify()
    assert made.verdict == "contradicted"
    assert made.causes[0] in ("dvc.lock", "data")
    assert "data/tokens" in whats(made, "dvc.lock")
    assert "data/tokens" in whats(made, "data")


def test_a_dvc_lock_that_names_what_nobody_has_is_not_reproduced(project: Project) -> None:
    def edit(stages: dict[str, Any]) -> None:
        stages["tokens"]["outs"][0]["md5"] = "0123456789abcdef0123456789abcdef.dir"

    edit_lock(edit)
    made = certify(steps=None)
    assert made.verdict == "not reproduced"
    assert "data/tokens is unavailable" in whats(made, "data")


def test_a_dvc_lock_that_names_another_checkpoint_is_caught(project: Project) -> None:
    def edit(stages: dict[str, Any]) -> None:
        stages["pretrain"]["outs"][0]["md5"] = stages["tokens"]["outs"][0]["md5"]

    edit_lock(edit)
    made = certify()
    assert made.causes == ["dvc.lock"]
    assert "checkpoints/base" in whats(made, "dvc.lock")


@pytest.mark.parametrize(
    "file, old, new",
    [
        ("train/optim.py", "0.5 * ", "0.25 * "),
        pytest.param(
            "config/derived.py", "model.aspect_ratio", "2 * model.aspect_ratio", marks=soak
        ),
        pytest.param(
            "train/trainer.py", "initialise(recipe.config.seed)", "initialise(7)", marks=soak
        ),
    ],
)
def test_dirty_code_is_caught_by_the_file(project: Project, file: str, old: str, new: str) -> None:
    """The run used code that was never committed. Its record is made as a run makes it, without training."""
    source = project.root / "src/paribus" / file
    text = source.read_text()
    source.write_text(text.replace(old, new) if old in text else text + "\nUNCOMMITTED = True\n")
    script = (
        "import json; from paribus.stages.context import session\n"
        "with session('pretrain') as run: print(json.dumps(run.provenance))"
    )
    written = project.run(sys.executable, "-c", script, PYTHONPATH=str(project.root / "src")).stdout
    shutil.copytree(project.root / "checkpoints/base", project.root / "mine")
    (project.root / "mine/provenance.json").write_text(written)
    made = certify("mine")
    assert made.verdict == "contradicted"
    assert "code" in made.causes
    assert f"src/paribus/{file} (the run had uncommitted changes)" in whats(made, "code")


def test_a_swapped_shard_is_caught_by_the_file(project: Project) -> None:
    shards = {
        name: path
        for name, path in objects("data/tokens").items()
        if name.endswith("-documents.bin") or "train" in name
    }
    names = sorted(shards)[:2]
    swap(shards[names[0]], shards[names[1]])
    made = certify()
    assert made.causes == ["data"]
    assert all(name in whats(made, "data") for name in names)


def test_a_changed_tokenizer_is_caught(project: Project) -> None:
    """Changed, and committed to DVC as if it had always been so."""
    path = project.root / "data/tokenizer/tokenizer.json"
    text = path.read_text()
    path.unlink()
    path.write_text(text + "\n")
    project.run("dvc", "commit", "-q", "-f", "tokenizer")
    made = certify()
    assert made.verdict == "contradicted"
    assert "data/tokenizer" in whats(made, "data")
    assert "data" in made.causes


def test_another_seed_parts_and_the_step_is_named(project: Project) -> None:
    """dvc.lock says seed 8; the checkpoint is of seed 7. At step 1 the head is zero, so any seed's loss is ln(vocabulary)."""
    edit_lock(lambda stages: stages["pretrain"]["params"]["params.yaml"].update(seed=8))
    made = certify(steps=2)
    assert made.verdict == "not reproduced"
    assert made.causes == ["params"]
    assert "seed in dvc.lock" in whats(made, "params")
    assert made.outcome
    assert made.outcome.parted
    assert made.outcome.parted.step == 2
    assert made.outcome.parted.column == "train_loss"
    assert "They part at step 2: train_loss" in page(made)
    assert "Why: params (seed in dvc.lock)." in page(made)


def test_another_thread_count_is_caught(project: Project) -> None:
    edit_lock(
        lambda stages: stages["pretrain"]["params"]["params.yaml"].update({"train.threads": 3})
    )
    made = certify()
    assert made.causes == ["threads"]
    assert made.differences[0].what == "train.threads"


def test_a_forged_record_is_caught_by_its_own_fingerprint(project: Project) -> None:
    path = project.root / "checkpoints/base/provenance.json"
    written = json.loads(path.read_text())
    written["hardware"]["threads"] += 1
    shutil.copytree(path.parent, project.root / "elsewhere")
    (project.root / "elsewhere/provenance.json").write_text(json.dumps(written))
    assert "fingerprint" in whats(certify("elsewhere"), "params")


# ---------------------------------------------------------------- forged figures, edits after the run


def commit_as_user(project: Project, what: str) -> None:
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", what)


def forge_metric(project: Project, by: float) -> float:
    """Lower val_bpb in the metrics file; what it was."""
    path = project.root / "metrics/pretrain.json"
    values = json.loads(path.read_text())
    honest = float(values["val_bpb"])
    path.write_text(json.dumps(values | {"val_bpb": honest - by}, indent=1) + "\n")
    return honest


def test_a_metric_that_the_weights_do_not_measure_is_never_bit_exact(project: Project) -> None:
    """Forged, and made DVC's and git's own record: only measuring again shows it."""
    honest = forge_metric(project, by=0.5)
    project.run("dvc", "commit", "-q", "-f", "pretrain")
    commit_as_user(project, "a better number")
    made = certify("HEAD", steps=None)
    assert made.verdict == "not reproduced"
    assert made.causes == ["metrics"]
    assert made.outcome
    assert made.outcome.metrics == {"val_bpb": (pytest.approx(honest - 0.5), honest)}
    assert made.outcome.weights[0] == made.outcome.weights[1]
    shown = page(made)
    assert f"these weights measure {honest}" in shown
    assert "bit-exact" not in shown


@pytest.mark.parametrize("name", ["HEAD", "workspace"])
def test_a_metrics_file_is_held_against_dvc_lock_without_running(
    project: Project, name: str
) -> None:
    """DVC's cache still has what was there before; git's file is the one that people read."""
    forge_metric(project, by=0.5)
    commit_as_user(project, "a better number")
    made = certify(name)
    assert made.verdict == "contradicted"
    assert made.causes == ["metrics"]
    assert "metrics/pretrain.json" in whats(made, "metrics")


def test_a_metric_that_was_edited_with_its_hash_in_dvc_lock_is_held_against_the_run_cache(
    project: Project,
) -> None:
    """Without running anything, and without MLflow: DVC noted what the run left."""
    assert certify("HEAD").verdict == "consistent"
    forge_metric(project, by=0.5)
    project.run("dvc", "commit", "-q", "-f", "pretrain")
    commit_as_user(project, "a better number")
    made = certify("HEAD")
    assert made.verdict == "contradicted"
    assert made.causes == ["metrics"]
    assert "as the run left it (DVC's run-cache)" in whats(made, "metrics")


def test_a_metrics_file_is_held_against_what_the_run_logged(
    project: Project, origin: Project
) -> None:
    """Without running anything, where DVC's and git's own records were forged and MLflow's was not."""
    shutil.rmtree(project.root / ".dvc/cache/runs")
    shutil.copy(origin.root / "mlflow.db", project.root / "mlflow.db")
    assert certify("HEAD").verdict == "consistent"
    forge_metric(project, by=0.5)
    project.run("dvc", "commit", "-q", "-f", "pretrain")
    commit_as_user(project, "a better number")
    made = certify("HEAD")
    assert made.verdict == "contradicted"
    assert made.causes == ["metrics"]
    assert whats(made, "metrics") == "val_bpb in metrics/pretrain.json, and as the run logged it"


def test_an_edit_of_params_after_the_run_is_contradicted(project: Project) -> None:
    path = project.root / "params.yaml"
    values = yaml.safe_load(path.read_text())
    values["pretrain"]["steps"] = 9
    values["sft"]["steps"] = 9  # of another stage: none of pretraining's business
    path.write_text(yaml.safe_dump(values))
    assert certify("HEAD").verdict == "consistent", "not in that commit"
    commit_as_user(project, "longer")
    for name in ("HEAD", "workspace"):
        made = certify(name)
        assert made.verdict == "contradicted"
        assert made.causes == ["params"]
        assert whats(made, "params") == "pretrain.steps in params.yaml"


@pytest.mark.parametrize("name", ["workspace", "checkpoints/base"])
def test_a_flipped_byte_of_the_data_in_the_working_folder_is_named(
    project: Project, name: str
) -> None:
    shard = next((project.root / "data/tokens").glob("*train*.bin"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.unlink()
    shard.write_bytes(bytes(content))
    made = certify(name)
    assert made.verdict == "contradicted"
    assert made.causes == ["data"]
    assert f"data/tokens in the working folder: {shard.name}" in whats(made, "data")


@soak  # rebuilds a run twice
def test_what_no_record_explains_is_not_called_chance_where_two_rebuilds_agree(
    project: Project,
) -> None:
    """A curve that another program wrote: the records agree, and the computation is deterministic here."""
    path = project.root / "plots/pretrain.csv"
    lines = path.read_text().splitlines()
    cells = lines[2].split(",")
    cells[3] = "5.0"
    path.write_text("\n".join([*lines[:2], ",".join(cells), *lines[3:]]) + "\n")
    project.run("dvc", "commit", "-q", "-f", "pretrain")
    commit_as_user(project, "another curve")
    shutil.rmtree(
        project.root / ".dvc/cache/runs"
    )  # as in another clone: nothing else remembers the curve
    made = certify("HEAD", steps=3)
    assert made.verdict == "not reproduced"
    assert made.causes == []
    assert made.outcome
    assert made.outcome.again == "same"
    shown = page(made)
    assert "the cause is not recorded" in shown
    assert "two rebuilds here are the same" in shown
    assert "deterministic" not in shown


def made_of(outcome: Outcome, *found: Difference) -> Certificate:
    """A certificate around an outcome."""
    verdict = verify.judge(list(found), outcome)
    named = ("device_name", "isa", "dtype", "process_threads", "torch_version")
    about = About(
        name="HEAD",
        kind="revision",
        stage="pretrain",
        commit="c",
        mlflow_run=None,
        experiment="paribus",
        fingerprint="f",
        data={},
        hardware=dict.fromkeys(named, "x"),
        requirements_lock=None,
        git={"dirty": False},
    )
    causes = verify.causes(list(found), verdict)
    return Certificate(verdict, causes, about, list(found), outcome, None, "today", 1)


def test_two_rebuilds_that_differ_are_what_shows_that_a_computation_is_not_deterministic() -> None:
    part = Parting(2, "train_loss", "1", "2")
    apart = Outcome(6, True, part, ("a", "b"), None, again="different")
    twice = Difference("determinism", "two rebuilds here part at step 2", "2", "3", False)
    shown = page(made_of(apart, twice))
    assert "differs from itself: the computation is not deterministic" in shown


def test_metrics_are_compared_but_for_times_and_the_machine() -> None:
    recorded = {"val_bpb": 1.0, "steps": 6, "seconds": 3.0, "tokens_per_second": 9.0}
    same = recorded | {"seconds": 4.0, "tokens_per_second": 8.0}
    assert verify.differing_metrics(recorded, same, whole=True) == {}
    lacking = {key: value for key, value in same.items() if key != "steps"}
    assert verify.differing_metrics(recorded, lacking, whole=True) == {"steps": (6, "absent")}
    assert verify.differing_metrics(lacking, same, whole=False) == {}, "MLflow keeps some only"


def test_a_row_that_only_one_of_two_whole_curves_has_parts_them() -> None:
    rows = [{"step": str(i), "seconds": str(i), "train_loss": "1.0"} for i in (1, 2, 3)]
    assert verify.parted(rows, rows, whole=True) is None
    found = verify.parted([rows[0], rows[2]], rows, whole=True)
    assert found is not None
    assert found.step == 2
    assert verify.parted(rows[:2], rows) is None, "of a run that was ended early"


def as_experiment(project: Project, name: str, commit: str = "HEAD") -> None:
    """Give a commit the reference that DVC gives an experiment."""
    mark = project.run("git", "rev-parse", commit).stdout.strip()
    project.run("git", "update-ref", f"refs/exps/{mark[:2]}/{mark[2:]}/{name}", mark)


def test_a_whole_study_is_certified_run_by_run(project: Project) -> None:
    """Of three runs one has another metric than it measured; one is superseded, and is nobody's result."""
    (project.root / "experiments").mkdir(exist_ok=True)
    file = STUDY | {"equal": "tokens"}
    (project.root / "experiments/tiny.yaml").write_text(yaml.safe_dump(file))
    for name in ("tiny.baseline.s7", "tiny.baseline.s8-was-1234567", "tinier.baseline.s7"):
        as_experiment(project, name)
    done = project.run("paribus", "verify", "--study", "tiny", check=False)
    assert done.returncode == 0
    assert "1 of 1 agree" in done.stdout
    forge_metric(project, by=0.5)
    commit_as_user(project, "a better number")
    as_experiment(project, "tiny.adamw.s7")
    done = project.run("paribus", "verify", "--study", "tiny", check=False)
    assert done.returncode == 1
    assert "1 of 2 agree" in done.stdout
    assert "contradicted  tiny.adamw.s7 pretrain: metrics/pretrain.json" in done.stdout
    page = (project.root / "experiments/results/verify-study-tiny.md").read_text()
    assert "| tiny.baseline.s7 | pretrain | consistent |" in page
    both = project.run("paribus", "verify", "HEAD", "--study", "tiny", check=False)
    assert both.returncode == 2
    assert "name one run, or one study" in both.stderr


# ---------------------------------------------------------------- the band


def log_seed(
    client: Any,
    experiment: str,
    written: dict[str, Any],
    curve: list[dict[str, str]],
    seed: int,
    shift: float,
) -> str:
    """A finished run of pretraining in MLflow that differs in the seed, and in its losses by `shift`; its id."""
    run_id = client.create_run(experiment, tags={"stage": "pretrain"}).info.run_id
    moved = [row | {"train_loss": repr(float(row["train_loss"]) + shift)} for row in curve]
    text = "\n".join([",".join(moved[0]), *(",".join(row.values()) for row in moved)])
    client.log_text(
        run_id,
        json.dumps(written | {"params": written["params"] | {"seed": seed}}),
        "provenance.json",
    )
    client.log_text(run_id, text + "\n", "plots/pretrain.csv")
    client.set_terminated(run_id)
    return str(run_id)


def test_the_band_is_that_of_runs_that_differ_in_the_seed_alone(project: Project) -> None:
    """Losses of -.1, 0 and .1 beside the recorded one: t(2) x .1 x root 2 = .61 either way."""
    from paribus.tracking.address import tracking_uri
    from paribus.tracking.store import connect

    store = connect(tracking_uri(), "paribus", project.root / ".paribus")
    one = lookup.find("HEAD")
    provenance, curve = one.provenance("pretrain"), one.curve("pretrain")
    assert provenance is not None
    written = asdict(provenance)

    def rebuilt(shift: float) -> list[dict[str, str]]:
        return [row | {"train_loss": repr(float(row["train_loss"]) + shift)} for row in curve]

    twin = log_seed(store.client, store.experiment, written, curve, seed=101, shift=-0.1)
    other = written | {"params": written["params"] | {"model.depth": 3}}
    log_seed(store.client, store.experiment, other, curve, seed=102, shift=5.0)
    assert band.measured_band(one, "pretrain", curve, rebuilt(0.0)) is None, (
        "two seeds are no spread; the other is no twin"
    )
    log_seed(store.client, store.experiment, written, curve, seed=103, shift=0.1)
    near, far = (band.measured_band(one, "pretrain", curve, rebuilt(shift)) for shift in (0.5, 0.7))
    assert near
    assert far
    assert near.within
    assert not far.within
    assert near.seeds == 3
    assert near.half_width == pytest.approx(4.3027 * 0.1 * 2**0.5, rel=1e-3)
    stored = lookup.find(twin)
    provenance = stored.provenance("pretrain")
    assert stored.kind == "MLflow run"
    assert provenance is not None
    assert provenance.params["seed"] == 101
    assert [row["step"] for row in stored.curve("pretrain")] == [row["step"] for row in curve]


def test_a_difference_within_the_noise_is_reproduced_only_where_nothing_contradicts() -> None:
    within = band.Band("train_loss", 0.1, 0.6, 3, True, "")
    outcome = Outcome(6, True, Parting(2, "train_loss", "1", "2"), ("a", "b"), within)
    machine = Difference("hardware", "isa", "avx2", "avx512", False)
    edited = Difference("params", "seed in dvc.lock", 7, 8, True)
    assert verify.judge([machine], outcome) == "within noise"
    assert verify.judge([machine, edited], outcome) == "not reproduced"
    assert verify.causes([machine, edited], "not reproduced") == ["params"]
    assert verify.judge([machine], Outcome(6, True, None, ("a", "a"), None)) == "bit-exact"
    assert verify.judge([machine], Outcome(6, True, None, ("a", "b"), None)) == "not reproduced", (
        "the weights alone part"
    )


# ---------------------------------------------------------------- bad input


def test_a_name_that_nothing_has_names_the_nearest(project: Project) -> None:
    with pytest.raises(UserError, match=r"'checkpoints/bse'; did you mean checkpoints/base"):
        lookup.find("checkpoints/bse")
    done = project.run("paribus", "verify", "mian", check=False)
    assert done.returncode == 2
    assert "did you mean main?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_is_never_offered_for_itself(project: Project) -> None:
    shutil.rmtree(project.root / ".git")
    project.run("git", "init", "-q", "-b", "main")
    with pytest.raises(UserError) as told:
        lookup.find("HEAD")
    assert "did you mean HEAD" not in str(told.value)


def test_a_checkout_that_git_refuses_names_gits_cure(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own switch for its tests
    for look in (lookup.find, lookup.find_all):
        with pytest.raises(UserError, match="git config --global --add safe.directory /"):
            look("HEAD")


def test_a_damaged_store_of_mlflow_is_explained_and_costs_no_certificate(
    project: Project,
) -> None:
    (project.root / "mlflow.db").write_bytes(b"not a database at all" * 500)
    done = project.run("paribus", "compare", "HEAD", "nothing-of-that-name", check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "mlflow.db" in done.stderr
    assert "cannot be read" in done.stderr
    done = project.run("paribus", "verify", "HEAD", "--steps", "0", check=False)
    assert done.returncode == 0
    assert "consistent" in done.stdout
    assert "not attached to MLflow's run" in done.stderr


def test_a_stage_that_did_not_run_is_said(project: Project) -> None:
    with pytest.raises(
        UserError, match=r"no checkpoints/rl/provenance.json is kept here.*\(pretrain\)"
    ):
        verify.choose_stage(lookup.find("HEAD"), "rl", None)
