"""Tuning: bad input, the cap, pruning, warm starts, what workers do for each other, the batch, a killed study from end to end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tuned import Curve, command, prepare, write

from paribus.errors import UserError

pytestmark = pytest.mark.timeout(600)  # a killed study and its re-tests, on a busy machine


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Path:
    """A project with tokens."""
    return prepare(tmp_path_factory.mktemp("tune"), project_root)


@pytest.fixture
def inside(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(prepared)
    return prepared


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"space": {}}, "empty"),
        ({"space": {"model.dept": {"low": 1, "high": 2}}}, "did you mean model.depth?"),
        ({"space": {"model.depth": {"low": 0, "high": 2}}}, "out of range"),
        ({"space": {"model.depth": {"low": 4, "high": 2}}}, "low < high"),
        ({"budget": {"hours": 2}}, "tokens, flops, seconds"),
        ({"memory": "lots"}, "24GiB"),
        ({"trails": 3}, "did you mean trials?"),
        ({"overrides": {"pretrain.steps": 9}}, "the budget says"),
    ],
    ids=str,
)
def test_a_wrong_study_is_told(inside: Path, changes: dict[str, Any], said: str) -> None:
    from paribus.study.space import read_study

    write(inside, "wrong", **changes)
    with pytest.raises(UserError) as caught:
        read_study("wrong")
    assert any(said in problem for problem in caught.value.problems), caught.value.problems


def test_all_problems_of_a_study_are_told_at_once_with_exit_status_2(inside: Path) -> None:
    write(
        inside,
        "wrong",
        space={"model.dept": {"low": 1, "high": 2}, "model.depth": {"low": 0, "high": 2}},
        trials=0,
    )
    done = subprocess.run(command("run", "wrong"), cwd=inside, capture_output=True, text=True)
    assert (
        done.returncode == 2
        and "Traceback" not in done.stderr
        and len(done.stderr.splitlines()) == 3
    )


@pytest.mark.parametrize(
    "memory, url, said",
    [
        ("100MiB", None, "below the smallest model"),
        ("3GiB", "sqlite:////nowhere/at/all.db", "not to be had"),
        ("3GiB", "postgresql://me:secret@127.0.0.1:1/none", "not to be had"),
        ("3GiB", "postgres!", "not to be had"),
    ],
    ids=str,
)
def test_a_budget_too_small_and_a_storage_that_is_down_are_told(
    inside: Path, memory: str, url: str | None, said: str
) -> None:
    from paribus.study import tune

    write(inside, "small", memory=memory)
    with pytest.raises(UserError) as caught:
        tune.run("small", url=url)
    assert said in str(caught.value) and "secret" not in str(caught.value)


def test_a_switch_that_saves_memory_counts_for_the_smallest_model(inside: Path) -> None:
    from paribus.plan.memory import stage_memory
    from paribus.study.space import least_memory, read_study

    def memory(config: Any) -> int:
        return stage_memory(config, "pretrain", device="cpu", dtype="float32").total

    write(
        inside,
        "switch",
        space={
            "train.activation_checkpointing": {"choices": [False, True]},
            "model.depth": {"low": 3, "high": 6},
        },
    )
    study = read_study("switch")
    smallest = study.config({"train.activation_checkpointing": True, "model.depth": 3})
    assert (
        least_memory(study, memory) == memory(smallest) < memory(study.config({"model.depth": 3}))
    )


# ---------------------------------------------------------------- one trial


def test_a_trial_over_the_cap_is_caught_and_says_how_far_it_came(inside: Path) -> None:
    from paribus.study.launch import job_of, watch
    from paribus.study.space import read_study

    write(inside, "capped")
    config = read_study("capped").config(
        {"model.depth": 8, "model.width": 512, "pretrain.device_batch_size": 4}
    )
    result = watch(inside / "capped", job_of(config, 500 * 2**20, {"tokens": 1536}))
    assert result["out_of_memory"] and 100 * 2**20 < result["peak_memory_bytes"] < 600 * 2**20


def test_a_trial_that_diverges_is_a_result_and_not_a_crash(inside: Path) -> None:
    from paribus.study.launch import job_of, watch
    from paribus.study.space import read_study

    write(inside, "wild")
    config = read_study("wild").config(
        {"optimizer.weight_decay": 1e10, "train.save_seconds": 1000.0}
    )
    result = watch(inside / "wild", job_of(config, 3 * 2**30, {"tokens": 256 * 40}))
    assert "not finite" in result["diverged"]


def test_what_was_left_by_another_study_of_that_name_is_not_taken(inside: Path) -> None:
    from paribus.study.launch import _make_ready, finished, job_of
    from paribus.study.space import read_study

    write(inside, "named")
    config, folder = read_study("named").config(), inside / "named"
    folder.mkdir()
    job = job_of(config, 2**30, {"tokens": 1536})
    _make_ready(folder, job)
    (folder / "result.json").write_text('{"val_bpb": 1.0}')
    assert finished(folder, job | {"parent": 1}) == {"val_bpb": 1.0}
    for other in (
        job_of(replace(config, seed=8), 2**30, {"tokens": 1536}),
        job | {"data": "other"},
    ):
        assert finished(folder, other) is None
    _make_ready(folder, job | {"steps": 7})
    assert not (folder / "result.json").exists()


@pytest.mark.parametrize(
    "budget, steps, seconds",
    [({"tokens": 2560}, 10, None), ({"flops": 1e9}, None, None), ({"seconds": 9}, None, 9)],
)
def test_a_budget_becomes_steps_or_seconds(
    inside: Path, budget: dict[str, float], steps: int | None, seconds: float | None
) -> None:
    from paribus.model.accounting import step_flops
    from paribus.study.launch import job_of
    from paribus.study.space import read_study

    write(inside, "budget")
    config = read_study("budget").config()
    job = job_of(config, 2**30, budget)
    if "flops" in budget:
        steps = int(1e9 / step_flops(config.model, job["vocab_size"], config.optimizer, 256))
        assert steps > 1
    assert (job["steps"], job["seconds"]) == (steps, seconds)


# ---------------------------------------------------------------- among trials


def opened(study: Any, url: str) -> Any:
    from paribus.study import tune

    return tune.open_study(study, url)[0]


def worker_of(study: Any, optuna_study: Any) -> Any:
    from paribus.plan.probe import here
    from paribus.study.tune import Worker

    return Worker(study, optuna_study, *here(study.config()))


def curve_trial(value: float, curve: dict[int, float], **params: float) -> Any:
    import optuna

    spread = {key: optuna.distributions.FloatDistribution(0.005, 0.08, log=True) for key in params}
    return optuna.create_trial(
        value=value, params=params, distributions=spread, intermediate_values=curve
    )


def test_a_bad_trial_is_pruned_and_a_good_one_is_not(inside: Path) -> None:
    """The curves of five earlier trials are those of a good one; a trial that cannot learn falls behind them."""
    from paribus.study.space import read_study

    write(
        inside,
        "pruned",
        trials=8,
        budget={"tokens": 256 * 48},
        space={
            "optimizer.matrix_lr": {"low": 0.005, "high": 0.08, "log": True},
            "pretrain.lr_scale": {"choices": [1.0, 1e-6]},
        },
    )
    study = read_study("pruned")
    optuna_study = opened(study, f"sqlite:///{inside}/pruned.db")
    optuna_study.enqueue_trial({"optimizer.matrix_lr": 0.02, "pretrain.lr_scale": 1.0})
    worker_of(replace(study, trials=1), optuna_study).work()
    good = optuna_study.trials[0]
    assert (
        set(good.intermediate_values) == {12, 25, 38, 50, 62, 75, 88}
        and good.state.name == "COMPLETE"
    )
    for _ in range(5):
        optuna_study.add_trial(good)
    for scale in (1e-6, 1.0):
        optuna_study.enqueue_trial({"optimizer.matrix_lr": 0.02, "pretrain.lr_scale": scale})
    worker_of(study, optuna_study).work()
    bad, again = optuna_study.trials[6:8]
    assert (
        bad.state.name == "PRUNED"
        and "behind the median" in bad.user_attrs["why"]
        and max(bad.intermediate_values) < 88
    )
    assert again.state.name == "COMPLETE" and again.value == good.value


def test_a_study_begins_with_the_default_and_the_best_of_earlier_ones(inside: Path) -> None:
    from paribus.study import tune
    from paribus.study.space import read_study

    url = f"sqlite:///{inside}/warm.db"
    write(inside, "earlier")
    earlier = opened(read_study("earlier"), url)
    earlier.add_trial(curve_trial(1.5, {}, **{"optimizer.matrix_lr": 0.05}))
    earlier.add_trial(curve_trial(1.4, {}, **{"optimizer.matrix_lr": 0.006}))
    write(inside, "later", warm_start=["earlier"])
    study = read_study("later")
    later, new = tune.open_study(study, url)
    tune._begin(study, later, url, new)
    tune._begin(study, later, url, False)  # a second worker adds none
    starts = [trial.system_attrs["fixed_params"] for trial in later.trials]
    assert starts == [
        {"optimizer.matrix_lr": 0.02, "model.depth": 2},
        {"optimizer.matrix_lr": 0.006},
    ]
    write(inside, "later", warm_start=["earlier"], memory="2GiB")
    with pytest.raises(UserError, match="memory changed since it began"):
        tune._begin(read_study("later"), later, url, False)
    write(inside, "orphan", warm_start=["nowhere"])
    with pytest.raises(UserError, match="no study 'nowhere'"):
        tune._begin(read_study("orphan"), opened(read_study("orphan"), url), url, True)


def test_trials_of_the_dead_are_put_back_once(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose worker died before its first beat; one whose finder died before putting it back."""
    import optuna

    from paribus.study import tune
    from paribus.study.space import read_study

    monkeypatch.setattr(tune, "HEARTBEAT", 1)
    monkeypatch.setattr(tune, "GRACE", 1)
    write(inside, "dead")
    study = read_study("dead")
    optuna_study = opened(study, f"sqlite:///{inside}/dead.db")
    for _ in range(2):
        tune.suggest(optuna_study.ask(), study.space)
    optuna_study.tell(1, state=optuna.trial.TrialState.FAIL)
    workers = [worker_of(study, optuna_study) for _ in range(2)]
    until = time.monotonic() + 20
    while (
        sum(trial.state.name == "WAITING" for trial in optuna_study.trials) < 2
        and time.monotonic() < until
    ):
        for worker in workers:
            worker.take_up_dead()
        time.sleep(0.3)
    first, second, *again = optuna_study.trials
    assert [trial.state.name for trial in again] == ["WAITING", "WAITING"]
    assert sorted(trial.params["optimizer.matrix_lr"] for trial in again) == sorted(
        trial.params["optimizer.matrix_lr"] for trial in (first, second)
    )


def test_of_workers_that_ask_at_once_no_more_go_on_than_the_study_has_trials(inside: Path) -> None:
    from paribus.study.space import read_study
    from paribus.study.tune import RETRY, Dropped

    write(inside, "crowd", trials=2)
    study = read_study("crowd")
    optuna_study = opened(study, f"sqlite:///{inside}/crowd.db")
    worker = worker_of(study, optuna_study)
    trials = [optuna_study.ask() for _ in range(3)]
    for trial in trials[:2]:
        worker._admit(trial, trial.number)
    with pytest.raises(Dropped, match="has its trials"):
        worker._admit(trials[2], 2)
    for _ in range(2):  # two finders put trial 0 back, which its worker finishes in the end
        RETRY()(optuna_study, optuna_study.trials[0])
    with pytest.raises(Dropped, match="another worker has it"):
        worker._admit(optuna_study.ask(), 0)


# ---------------------------------------------------------------- the batch


@pytest.mark.parametrize("overhead, crowding", [(0.0, 0.0), (3.0, 0.0), (1.0, 0.01), (0.2, 0.1)])
def test_the_batch_that_is_found_is_within_5_percent_of_the_best(
    overhead: float, crowding: float
) -> None:
    """Of a step whose passes each cost something, and whose rows cost more the more of them go together."""
    from paribus.study.batch import candidates

    def seconds(rows: int, step: int) -> float:
        sizes = [rows] * (step // rows) + ([step % rows] if step % rows else [])
        return sum(overhead + size * (1 + crowding * size / 16) for size in sizes)

    for step in (1, 7, 16, 24, 64, 96):
        for largest in {1, 3, step // 2 or 1, step}:
            if largest <= step:
                found = min(seconds(rows, step) for rows in candidates(step, largest))
                assert found <= min(seconds(rows, step) for rows in range(1, largest + 1)) / 0.95


def test_slow_minutes_do_not_choose_the_batch() -> None:
    """Sizes that take turns are compared within a turn: an hour of other work passes over all of them."""
    from paribus.study.batch import step_seconds

    true, slowed = {4: 1.0, 8: 0.9, 16: 1.05}, [1.0, 1.6, 1.3, 1.0, 2.0]
    times = {rows: [seconds * factor for factor in slowed] for rows, seconds in true.items()}
    times[8][0] = 5.0  # one disturbance within a turn
    found = step_seconds(times)
    assert min(found, key=lambda rows: found[rows]) == 8
    assert found[16] / found[4] == pytest.approx(1.05)


def test_the_fastest_batch_is_measured_and_named(
    inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from paribus.config import merge, read_yaml
    from paribus.study.batch import batch

    before = (inside / "params.yaml").read_text()
    (inside / "params.yaml").write_text(
        yaml.safe_dump(merge(read_yaml("params.yaml"), {"pretrain.batch_tokens": 128}))
    )
    try:
        batch("3GiB", json_out=True)
        with pytest.raises(UserError, match="not one row fits 50 MiB"):
            batch("50MiB")
    finally:
        (inside / "params.yaml").write_text(before)
    found = json.loads(capsys.readouterr().out)
    assert set(found["tried"]) == {"1", "2"}
    speeds = {int(rows): entry["tokens_per_second"] for rows, entry in found["tried"].items()}
    assert found["tokens_per_second"] == max(speeds.values()) == speeds[found["device_batch_size"]]
    assert all(entry["peak_memory_bytes"] > 2**27 for entry in found["tried"].values())


# ---------------------------------------------------------------- killed, and what is left at the end


@pytest.fixture(scope="module")
def killed(prepared: Path) -> dict[str, Any]:
    """A study whose process was killed in its first trial, with the state that this had left, and then run to its end."""
    write(
        prepared,
        "killed",
        trials=4,
        budget={"tokens": 256 * 120},
        overrides={"train.save_seconds": 0.2},
        space={
            "optimizer.matrix_lr": {"low": 0.005, "high": 0.08, "log": True},
            "optimizer.head_lr": {"low": 0.001, "high": 0.02, "log": True},
        },
    )
    first = subprocess.Popen(
        command("run", "killed"), cwd=prepared, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    trial = Curve(prepared / ".paribus/tune/killed/trial-0000")
    trial.wait_for_state(60)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    left = trial.newest_state()
    done = subprocess.run(command("run", "killed"), cwd=prepared, capture_output=True, text=True)
    return {"left": left, "done": done, "root": prepared}


@pytest.mark.long
def test_a_killed_study_goes_on_with_its_trial_from_its_state(killed: dict[str, Any]) -> None:
    """The same values; not from the start; to the bit what it would have come to; and each point once."""
    import optuna

    from paribus.journal import read_json
    from paribus.study.launch import watch

    root, done = killed["root"], killed["done"]
    assert done.returncode == 0, done.stderr
    trials = optuna.load_study(
        study_name="killed", storage=f"sqlite:///{root}/.paribus/tune.db"
    ).trials
    dead, *others = trials
    again = [trial for trial in others if trial.user_attrs["origin"] == 0]
    assert dead.state.name == "FAIL" and len(again) == 1 and again[0].params == dead.params
    assert again[0].user_attrs["went_on_from_step"] >= killed["left"] > 0
    job = read_json(root / ".paribus/tune/killed/trial-0000/trial.json")
    assert job is not None
    whole = watch(root / "uninterrupted", job | {"parent": os.getpid()})
    start = json.loads((root / "uninterrupted/start.json").read_text())
    assert again[0].value == whole["val_bpb"] and start == {"went_on_from_step": 0}
    ran = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    assert len({trial.user_attrs["origin"] for trial in ran}) == len(ran) == 4


@pytest.mark.long
def test_claims_stand_beside_re_tests_and_the_profile_says_where_it_comes_from(
    killed: dict[str, Any],
) -> None:
    from paribus.config import flatten, load_config, read_yaml

    root = killed["root"]
    found = json.loads((root / "report/tune/killed/summary.json").read_text())
    assert (
        found["trials"] == 4 and found["retried"] == 1 and found["retest"]["default"]["seeds"] == 2
    )
    winner, entry = next((arm, entry) for arm, entry in found["retest"].items() if arm != "default")
    assert (
        entry["low"] < entry["mean"] < entry["high"]
        and entry["claimed"] == found["best"]["val_bpb"]
    )
    assert (
        f"{winner}: claimed {entry['claimed']:.4f}, re-tested {entry['mean']:.4f}"
        in killed["done"].stdout
    )
    profile = root / "experiments/profiles/tuned-killed.yaml"
    assert (
        profile.read_text().startswith("# Best of the study killed")
        and "# commit " in profile.read_text()
    )
    values = flatten(read_yaml(profile))
    assert entry["params"].items() <= values.items()
    load_config(root / "params.yaml", values)


@pytest.mark.long
def test_figures_open_offline_in_a_browser_and_none_is_empty(killed: dict[str, Any]) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    pages = sorted((killed["root"] / "report/tune/killed").glob("*.html"))
    assert [page.stem for page in pages] == ["history", "importances", "memory", "parallel"]
    messages: list[str] = []
    marks = {
        "history": ".scatterlayer .point",
        "importances": ".barlayer .point",
        "memory": ".scatterlayer .point",
        "parallel": ".parcoords .axis",
    }
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium,
            args=[
                "--no-sandbox",
                "--disable-background-networking",
                "--use-gl=swiftshader",
                "--enable-unsafe-swiftshader",
            ],
        )
        for page in pages:
            tab = browser.new_page()
            tab.on(
                "console",
                lambda message: messages.append(message.text) if message.type == "error" else None,
            )
            tab.on("pageerror", lambda error: messages.append(str(error)))
            tab.on(
                "request",
                lambda request: (
                    messages.append(request.url) if request.url.startswith("http") else None
                ),
            )
            tab.goto(page.as_uri())
            tab.wait_for_selector(marks[page.stem], state="attached")
            assert tab.locator(marks[page.stem]).count() >= 2, page
            tab.close()
        browser.close()
    assert messages == []


@pytest.mark.long
def test_trials_are_child_runs_with_study_and_number_and_predictions(
    killed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(killed["root"])
    from paribus import runtime
    from paribus.tracking.store import connect, tracking_uri

    store = connect(tracking_uri(), "paribus", runtime.state_root())
    runs = store.client.search_runs([store.experiment], "tags.study = 'killed'")
    numbers = [run.data.tags["trial"] for run in runs if "trial" in run.data.tags]
    assert len(numbers) == len(set(numbers)) == 4
    assert all(run.data.tags["mlflow.parentRunId"] for run in runs)
    report = next(run for run in runs if run.data.tags.get("report"))
    kept = {file.path for file in store.client.list_artifacts(report.info.run_id, "tune")}
    assert {f"tune/{name}.html" for name in ("history", "importances", "memory", "parallel")} < kept


@pytest.mark.long
def test_predictions_are_graded_against_what_runs_took(killed: dict[str, Any]) -> None:
    """A stage's run and the trials', by `paribus plan --grade`."""
    root = killed["root"]
    for arguments in (["pretrain"], ["plan", "--grade", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "paribus", *arguments], cwd=root, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    graded = json.loads(done.stdout)
    assert {"pretrain", "tune"} == {row["stage"] for row in graded["runs"]}
    for row in graded["runs"]:
        for kind in ("memory", "seconds"):
            assert (
                row[f"{kind}_error"] == pytest.approx(row[f"{kind}_predicted"] / row[kind] - 1)
                and row[kind] > 0
            )
    assert graded["memory_median_error"] < 1 and graded["seconds_median_error"] >= 0


def test_intervals_are_student_s() -> None:
    from paribus.study.outcome import interval

    mean, low, high = interval([1.0, 2.0, 3.0])  # t of 0.975 with two degrees of freedom: 4.303
    assert (mean, low, high) == pytest.approx(
        (2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), rel=1e-4
    )
