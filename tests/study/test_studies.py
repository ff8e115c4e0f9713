"""Studies through kills, full disks, divergence and each other: nothing is lost, run twice, left behind or touched."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.studied import LightProject, depth, executing, kill, names
from support.waiting import PATIENCE, wait_for

SLOWLY = {"when": {"stage": "pretrain"}, "do": {"seconds": 0.5}}  # 4 s: long enough to be met


@pytest.fixture
def project(tmp_path: Path, light_project: LightProject) -> LightProject:
    return light_project.copy(tmp_path / "project")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, with_tokens: LightProject) -> LightProject:
    """One project for tests of studies of their own; its `tokens` are made."""
    return with_tokens.copy(tmp_path_factory.mktemp("studies") / "project")


# ---------------------------------------------------------------- killed


@pytest.mark.parametrize(
    "killed, wait, layers",
    [
        pytest.param("driver", 1.0, 11, marks=pytest.mark.soak),
        pytest.param("worker", 0.3, 12, marks=pytest.mark.soak),
        pytest.param("stages", 0.1, 13, marks=pytest.mark.soak),
        ("all", 0.2, 14),
    ],
)
def test_a_killed_study_goes_on_and_leaves_nothing_behind(
    shared: LightProject, killed: str, wait: float, layers: int
) -> None:
    project, study = shared, f"killed-{killed}"
    project.study(study, baseline=depth(layers))
    known = set(project.trained())
    (project.root / "notes.md").write_text(f"not committed: {killed}")
    project.behave(SLOWLY)
    before = project.checkout()
    driver = project.begin(study, workers=2)
    wait_for(lambda: project.stages() and set(project.trained()) - known)
    time.sleep(wait)
    project.behave()
    everything = [psutil.Process(driver.pid), *project.workers(), *project.stages()]
    victims = {
        "driver": [psutil.Process(driver.pid)],
        "worker": project.workers()[:1],
        "stages": project.stages(),
        "all": [*everything, *project.guardians()],
    }
    kill(victims[killed])
    if killed in ("driver", "all"):
        driver.wait()
        project.execute(study, workers=2)
    assert driver.wait(PATIENCE) <= 0
    wait_for(lambda: not project.left_behind())
    assert sorted(one.name for one in project.experiments(study)) == names(study)
    assert sorted(project.ended(study, "done")) == names(study), "each is computed once"
    made = [steps for mark, steps in project.trained().items() if mark not in known]
    assert made == [list(range(8))] * 4, "no step is made twice"
    assert project.clones() == []
    assert project.checkout() == before
    project.git("checkout", "-q", "notes.md")


def test_ctrl_c_and_stop_save_the_runs(shared: LightProject) -> None:
    import signal

    project = shared
    project.study("stopped", baseline=depth(20))
    project.behave(SLOWLY)
    driver = project.begin("stopped")
    wait_for(project.stages)
    said = project.ablate("stop", "stopped")
    assert driver.wait(PATIENCE) == 75
    assert "`paribus ablate run stopped` goes on" in said.stderr
    assert project.left_behind() == []
    assert project.clones() == []
    driver = project.begin("stopped")
    wait_for(project.stages)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(PATIENCE) == 130
    assert project.left_behind() == []
    project.behave()
    project.execute("stopped")
    assert sorted(one.name for one in project.experiments("stopped")) == names("stopped")
    assert project.ended("stopped", "failed") == project.ended("stopped", "refused") == []


# ---------------------------------------------------------------- beside each other


@pytest.mark.soak
def test_studies_whose_names_are_prefixes_leave_each_other_alone(shared: LightProject) -> None:
    project = shared
    project.behave(SLOWLY | {"do": {"seconds": 1.0}})
    project.study("muon", baseline=depth(30), arms={"vs-adamw": {"optimizer.kind": "adamw"}})
    project.study("muon-vs-adamw", baseline=depth(31), arms={"half": {"optimizer.kind": "adamw"}})
    long, short = project.begin("muon-vs-adamw"), project.begin("muon")
    wait_for(lambda: len(project.stages()) >= 2)
    project.ablate("stop", "muon")
    assert short.wait(PATIENCE) == 75
    assert long.poll() is None
    shown = project.ablate("status", "muon-vs-adamw").stdout
    assert "running" in shown
    project.behave()
    project.execute("muon")
    assert long.wait(PATIENCE) == 0
    assert sorted(project.ended("muon-vs-adamw", "done")) == names(
        "muon-vs-adamw", ("baseline", "half")
    )
    assert project.ended("muon-vs-adamw", "paused") == []
    assert sorted(project.values("muon")) == names("muon", ("baseline", "vs-adamw"))


def test_the_same_study_twice_at_once_is_refused(shared: LightProject) -> None:
    project = shared
    project.study("once", baseline=depth(32))
    project.behave(SLOWLY)
    first = project.begin("once")
    wait_for(project.workers)
    project.behave()
    second = project.execute("once", check=False)
    assert second.returncode == 2
    assert "is being run by another" in second.stderr
    assert first.wait(PATIENCE) == 0


def test_what_another_process_computes_at_this_moment_is_waited_for(shared: LightProject) -> None:
    project = shared
    project.study("waits", baseline=depth(33))
    busy = {"exit": 2, "kind": "StateInUse", "say": "in use by process 1"}
    project.behave({"when": {"stage": "pretrain", "kind": "adamw"}, "do": busy | {"steps": 0}})
    driver = project.begin("waits", workers=2)
    wait_for(lambda: len(project.values("waits")) == 2)
    project.behave()
    assert driver.wait(PATIENCE) == 0
    assert sorted(project.values("waits")) == names("waits")
    assert project.ended("waits", "refused") == project.ended("waits", "failed") == []


# ---------------------------------------------------------------- the user's checkout


def test_a_dirty_checkout_another_branch_and_old_notes_stay_as_they_are(
    project: LightProject,
) -> None:
    project.study("tiny")
    note = {"branch": "refs/heads/main", "commit": project.git("rev-parse", "HEAD"), "stash": None}
    (project.root / ".paribus").mkdir()
    (project.root / ".paribus/queueing.json").write_text(json.dumps(note))
    (project.root / "notes.md").write_text("set aside")
    project.git("stash", "push", "-q")
    project.git("checkout", "-q", "-b", "feature")
    (project.root / "notes.md").write_text("staged")
    project.git("add", "notes.md")
    (project.root / "notes.md").write_text("an afternoon's work")
    (project.root / "mine.txt").write_text("not tracked")
    before = project.checkout()
    project.ablate("stop", "tiny")
    assert project.checkout() == before
    project.execute("tiny")
    assert project.checkout() == before
    assert len(project.values("tiny")) == 4
    assert not (project.root / ".paribus/queueing.json").exists()


def test_what_the_user_edits_meanwhile_changes_no_run(shared: LightProject) -> None:
    project = shared
    project.study("edited", baseline=depth(40), seeds=3)
    project.behave(SLOWLY)
    driver = project.begin("edited")
    wait_for(project.stages)
    project.behave()
    params = project.root / "params.yaml"
    text = params.read_text()
    params.write_text(text.replace("eps: 1.0e-10", "eps: 1.0e-4").replace("seed: 7", "seed: 9"))
    project.commit("something else")
    assert driver.wait(PATIENCE) == 0, project.log()
    params.write_text(text)
    project.commit("as before")
    assert sorted(project.values("edited")) == names("edited", seeds=3)
    assert len({one.started_from for one in project.experiments("edited")}) == 1


# ---------------------------------------------------------------- failures


def test_a_fault_of_the_machine_stops_the_study_and_loses_no_seed(shared: LightProject) -> None:
    project = shared
    project.study("full", baseline=depth(50))
    full = {"exit": 74, "say": "No space left on device: free some space", "steps": 1}
    project.behave({"when": {"stage": "pretrain", "seed": 7}, "do": full})
    for _ in range(4):
        done = project.execute("full", check=False)
        assert done.returncode == 74
        assert "no seed is lost" in done.stderr
        assert "free some space" in done.stderr
    project.behave()
    project.execute("full")
    assert sorted(project.values("full")) == names("full")


@pytest.mark.soak
def test_a_stage_that_leaves_other_figures_of_the_same_inputs_is_told(
    project: LightProject,
) -> None:
    project.study("once", baseline=depth(51))
    project.execute("once")
    # DVC cannot take the runs from its cache.
    shutil.rmtree(project.root / ".dvc/cache/files/md5")
    project.study("twice", baseline=depth(51))
    project.behave({"when": {"stage": "pretrain", "seed": 7, "kind": "adamw"}, "do": {"add": 0.1}})
    done = project.execute("twice", check=False)
    assert done.returncode == 2
    assert "twice.adamw.s7: was computed, and metrics/pretrain.json" in done.stderr
    assert "has to leave the same figures each time" in done.stderr


def test_a_disk_without_room_is_the_machines_fault(shared: LightProject) -> None:
    """Files may have 20 kB here, which is less than a shard of the tokens and than what git and DVC note."""
    project = shared
    project.study("quota", baseline={"set": {"tokens.shard_tokens": 12_345}})
    command = [sys.executable, *executing("quota")]
    line = 'ulimit -f 20; exec "$@"'
    done = project.run("bash", "-c", line, "bash", *command, check=False)
    assert done.returncode == 74, done.stderr
    assert "Traceback" not in done.stderr
    assert "no seed is lost" in done.stderr
    project.execute("quota")
    assert sorted(project.values("quota")) == names("quota")


def test_what_fails_is_tried_three_times_and_again_when_asked(shared: LightProject) -> None:
    project = shared
    project.study("fails", baseline=depth(51))
    fails = {"exit": 3, "say": "RuntimeError: out of luck", "steps": 0}
    project.behave({"when": {"stage": "pretrain", "seed": 8, "kind": "adamw"}, "do": fails})
    said = project.execute("fails").stderr
    assert project.ended("fails", "failed") == ["fails.adamw.s8"] * 3
    assert "out of luck" in said
    assert "failed in its set-up: \n" not in said
    project.execute("fails")
    assert len(project.ended("fails", "failed")) == 3, "given up until it is asked for"
    project.behave()
    project.execute("fails", retry=True)
    assert sorted(project.values("fails")) == names("fails")


@pytest.mark.soak
def test_an_exponent_in_a_value_is_read_as_it_was_written(shared: LightProject) -> None:
    project = shared
    arms = {"eps": {"optimizer.eps": 1.0e-8}, "tiny": {"optimizer.embedding_lr": 1.0e-7}}
    project.study("exponents", baseline=depth(52), arms=arms)
    project.execute("exponents")
    assert sorted(project.ended("exponents", "done")) == names(
        "exponents", ("baseline", "eps", "tiny")
    )


# ---------------------------------------------------------------- divergence, and other doubts


def test_divergence_is_counted_and_no_verdict_rests_on_the_survivors(shared: LightProject) -> None:
    project = shared
    nan = float("nan")
    project.behave(
        {"when": {"stage": "pretrain", "kind": "adamw", "seed": 8}, "do": {"value": nan}},
        {
            "when": {"stage": "pretrain", "kind": "adamw", "seed": 9},
            "do": {"exit": 2, "kind": "Diverged", "say": "step 3: loss not finite"},
        },
        {"when": {"stage": "pretrain", "kind": "adamw"}, "do": {"add": -2.0}},
    )
    project.study("diverges", baseline=depth(60), seeds=4)
    project.ablate("run", "diverges", "--workers", "2")
    project.behave()
    page = json.loads((project.root / "experiments/results/diverges.json").read_text())
    found = page["arms"]["adamw"]
    assert (found["diverged"], found["of"]) == (2, 4)
    assert found["verdict"] == "undecided"
    assert found["mean_difference"] < -1
    assert page["diverged"] == {"adamw": [8, 9]}
    text = (project.root / "experiments/results/diverges.md").read_text()
    assert "undecided: adamw diverged 2 of 4" in text
    shown = project.ablate("status", "diverges").stdout
    assert "2 diverged" in shown
    assert "6 of 8 runs done" in shown


def test_an_arm_with_the_baselines_weights_changed_nothing(shared: LightProject) -> None:
    project = shared
    same = {"weights": "w", "value": 1.5}
    project.behave({"when": {"stage": "pretrain"}, "do": same})
    project.study("idle", baseline=depth(61), arms={"idle": {"optimizer.muon_iterations": 6}})
    project.ablate("run", "idle")
    project.behave()
    text = (project.root / "experiments/results/idle.md").read_text()
    assert "idle changed nothing" in text
    assert "equivalent" not in text.partition("## Where")[0]


@pytest.mark.soak
def test_runs_of_two_models_have_no_mean(shared: LightProject) -> None:
    project = shared
    wider = {"depth": 99}
    project.behave({"when": {"stage": "pretrain", "kind": "adamw", "seed": 8}, "do": wider})
    project.study("models", baseline=depth(62))
    done = project.ablate("run", "models", check=False)
    project.behave()
    assert done.returncode == 2
    assert "adamw: its runs are of 2 models" in done.stderr
    assert not (project.root / "experiments/results/models.md").exists()
