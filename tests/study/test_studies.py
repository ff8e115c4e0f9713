"""Studies through kills, full disks, divergence and each other: nothing is lost, run twice, left behind or touched."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from support.studied import LightProject, executing, kill
from support.tiny import TINY
from support.waiting import PATIENCE, wait_for

from paribus.errors import UserError

SLOWLY = {"when": {"stage": "pretrain"}, "do": {"seconds": 0.5}}  # 4 s: long enough to be met


@pytest.fixture
def project(tmp_path: Path, light_project: LightProject) -> LightProject:
    return light_project.copy(tmp_path / "project")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, light_project: LightProject) -> LightProject:
    """One project for tests of studies of their own; its `tokens` are made."""
    project = light_project.copy(tmp_path_factory.mktemp("studies") / "project")
    project.run("dvc", "repro", "-q", "tokens")
    project.commit("tokens")
    return project


@pytest.fixture(scope="module")
def after_a_study(tmp_path_factory: pytest.TempPathFactory, shared: LightProject) -> LightProject:
    """To be copied: a project in which the study `ended` has run to its end."""
    project = shared.copy(tmp_path_factory.mktemp("ended") / "project")
    project.behave()
    project.study("ended")
    project.execute("ended")
    return project


@pytest.fixture
def ended(after_a_study: LightProject, tmp_path: Path) -> LightProject:
    """A project whose study `ended` has run, to be damaged."""
    return after_a_study.copy(tmp_path / "project")


def depth(number: int) -> dict[str, Any]:
    """A baseline that no other study shares."""
    return {"set": {"model.depth": number}}


def names(study: str, arms: tuple[str, ...] = ("baseline", "adamw"), seeds: int = 2) -> list[str]:
    return sorted(f"{study}.{arm}.s{7 + number}" for arm in arms for number in range(seeds))


# ---------------------------------------------------------------- killed


@pytest.mark.parametrize(
    "killed, wait, layers",
    [("driver", 1.0, 11), ("worker", 0.3, 12), ("stages", 0.1, 13), ("all", 0.2, 14)],
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


def test_an_exponent_in_a_value_is_read_as_it_was_written(shared: LightProject) -> None:
    project = shared
    arms = {"eps": {"optimizer.eps": 1.0e-8}, "tiny": {"optimizer.embedding_lr": 1.0e-7}}
    project.study("exponents", baseline=depth(52), arms=arms)
    project.execute("exponents")
    assert sorted(project.ended("exponents", "done")) == names(
        "exponents", ("baseline", "eps", "tiny")
    )


def test_a_run_that_came_out_otherwise_is_not_run_again(ended: LightProject) -> None:
    project = ended
    [one] = [
        one for one in project.experiments("ended") if one.run.arm == "adamw" and one.run.seed == 8
    ]
    text = project.git("show", f"{one.commit}:params.yaml").replace("eps: 1.0e-10", "eps: 1.0e-9")
    message = project.git("log", "-1", "--format=%B", one.commit)
    for wrong in (text, "seed: [", "pages: 3\n"):
        blob = project.run("bash", "-c", 'printf "%s" "$1" | git hash-object -w --stdin', "", wrong)
        tree = project.git("ls-tree", one.commit).splitlines()
        lines = [
            f"100644 blob {blob.stdout.strip()}\tparams.yaml"
            if line.endswith("\tparams.yaml")
            else line
            for line in tree
        ]
        made = subprocess.run(
            ["git", "mktree"],
            cwd=project.root,
            input="\n".join(lines) + "\n",
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        commit = project.git("commit-tree", made, "-p", one.started_from, "-m", message)
        place = f"refs/exps/{one.started_from[:2]}/{one.started_from[2:]}/{one.name}"
        project.git("update-ref", place, commit)
        before = project.events("ended")
        done = project.execute("ended", check=False)
        assert done.returncode == 2
        assert "would be no use" in done.stderr
        assert project.events("ended") == before


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
    project.study("diverges", baseline=depth(60), seeds=5)
    project.ablate("run", "diverges", "--workers", "2")
    project.behave()
    page = json.loads((project.root / "experiments/results/diverges.json").read_text())
    found = page["arms"]["adamw"]
    assert (found["diverged"], found["of"]) == (2, 5)
    assert found["verdict"] == "undecided"
    assert found["mean_difference"] < -1
    assert page["diverged"] == {"adamw": [8, 9]}
    text = (project.root / "experiments/results/diverges.md").read_text()
    assert "undecided: adamw diverged 2 of 5" in text
    shown = project.ablate("status", "diverges").stdout
    assert "2 diverged" in shown
    assert "8 of 10 runs done" in shown


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


# ---------------------------------------------------------------- reports


def test_a_page_is_not_replaced_by_one_of_fewer_runs(shared: LightProject) -> None:
    project = shared
    results = project.root / "experiments/results"
    project.study("fewer", baseline=depth(70), seeds=3)
    project.ablate("run", "fewer")
    page = (results / "fewer.md").read_text()
    project.run("dvc", "exp", "remove", "fewer.adamw.s9")
    done = project.ablate("report", "fewer", check=False)
    assert done.returncode == 2
    assert "rests on 6 runs, and 5 count now" in done.stderr
    assert (results / "fewer.md").read_text() == page
    (results / "fewer.json").unlink()
    done = project.ablate("report", "fewer", check=False)
    assert done.returncode == 2, "a page without data beside it is counted by its rows"
    project.ablate("report", "fewer", "--force")
    assert (results / "fewer.md").read_text() != page


def test_a_look_that_was_taken_keeps_its_seeds_when_the_file_asks_for_fewer(
    shared: LightProject,
) -> None:
    project = shared
    project.study("shorter", baseline=depth(71), seeds=3)
    project.ablate("run", "shorter")
    project.study("shorter", baseline=depth(71), seeds=2)
    project.ablate("report", "shorter")
    data = json.loads((project.root / "experiments/results/shorter.json").read_text())
    assert len(data["runs"]) == 6


def test_runs_of_other_code_are_named_when_they_are_left_out(ended: LightProject) -> None:
    project = ended
    work = project.root / "work.py"
    work.write_text(work.read_text() + "\n# as good as before\n")
    project.commit("other code")
    project.ablate("run", "ended")
    page = (project.root / "experiments/results/ended.md").read_text()
    assert "4 finished runs left out: measured with other code" in page
    kept = [one.name for one in project.experiments("ended") if one.superseded]
    assert len(kept) == 4
    assert all("-was-" in name for name in kept)


def test_parameters_and_code_of_two_times_are_never_in_one_verdict(
    ended: LightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second set of parameters came to one seed only; then the code changed."""
    from paribus.cli.ablation import usable
    from paribus.study.reading import read_experiment
    from paribus.study.settled import study_of

    project = ended
    monkeypatch.chdir(project.root)
    fails = {"exit": 2, "say": "no", "steps": 0}
    second = {"when": {"eps": 1e-4}, "do": {"add": 50.0}}
    project.behave({"when": {"stage": "pretrain", "seed": 8}, "do": fails}, second)
    project.study("ended", baseline={"set": {"optimizer.eps": 1e-4}})
    project.execute("ended")
    assert [value > 50 for value in project.values("ended").values()].count(True) == 2
    work = project.root / "work.py"
    text = work.read_text()
    work.write_text(text + "\n# of another time\n")
    project.commit("other code")
    found = usable(study_of(read_experiment("ended")))
    work.write_text(text)
    project.commit("as before")
    project.behave()
    assert sorted((one.arm, one.seed) for one in found.outcomes.results) == [
        ("adamw", 7),
        ("adamw", 8),
        ("baseline", 7),
        ("baseline", 8),
    ]
    values = [one.value for one in found.outcomes.results if one.value is not None]
    assert len(values) == 4
    assert len({value > 50 for value in values}) == 1


@pytest.mark.parametrize("edit", ["the command", "data of dvc add"])
def test_whatever_a_stage_is_made_of_is_part_of_its_code(
    shared: LightProject, monkeypatch: pytest.MonkeyPatch, edit: str
) -> None:
    from paribus.study.reading import read_experiment
    from paribus.study.results import code_key

    project = shared
    monkeypatch.chdir(project.root)
    pipeline = project.root / "dvc.yaml"
    text = pipeline.read_text()
    with_data = text.replace("deps: [work.py]", "deps: [work.py, data/raw/own.txt]")
    pipeline.write_text(with_data)
    note = project.root / "data/raw.dvc"
    note.parent.mkdir(exist_ok=True)
    note.write_text("outs: [{md5: 0123.dir, path: raw}]\n")
    project.git("add", "-f", "data/raw.dvc")
    project.study("made-of", baseline=depth(73))
    experiment = read_experiment("made-of")
    before = code_key(experiment)
    if edit == "the command":
        pipeline.write_text(with_data.replace("work.py pretrain", "work.py pretrain --faster"))
    else:
        note.write_text("outs: [{md5: 4567.dir, path: raw}]\n")
    refused = project.execute("made-of", check=False)
    assert refused.returncode == 2
    assert "changed and not committed" in refused.stderr
    project.git("add", "-f", "data/raw.dvc")
    project.commit(edit)
    assert code_key(experiment) != before
    pipeline.write_text(text)
    project.git("rm", "-q", "-f", "data/raw.dvc")
    project.commit("as before")


# ---------------------------------------------------------------- small files


# Rows of a journal whose values are of other kinds than they have to be.
WRONG_KINDS = """{"time": null, "run": "ended.adamw.s7", "event": "done"}
{"time": 1, "run": ["ended.adamw.s7"], "event": "started"}
"""


def test_damaged_notes_are_put_aside_and_made_again(ended: LightProject) -> None:
    project = ended
    folder = project.root / ".paribus/ablations/ended"
    settled = json.loads((folder / "study.json").read_text())
    journal = (folder / "journal.jsonl").read_text()
    (folder / "study.json").write_text('{"threads": ')
    (folder / "journal.jsonl").write_text(f'{journal}{{"time": 1, "ru\n[]\n{WRONG_KINDS}{{"torn')
    assert "study.json: damaged (not JSON" in project.ablate("status", "ended").stderr
    (folder / "study.json").write_text('{"threads": 1, "steps": []}')
    done = project.execute("ended")
    assert "study.json: damaged" in done.stderr
    assert "journal.jsonl: 4 damaged line(s)" in done.stderr
    assert json.loads((folder / "study.json").read_text()) == settled
    assert (folder / "journal.jsonl").read_text() == journal
    assert (folder / "journal.jsonl.damaged").exists()
    assert (folder / "study.json.damaged").exists()


def test_values_kept_under_paribus_reach_no_verdict(ended: LightProject) -> None:
    project = ended
    folder = project.root / ".paribus/ablations/ended/results"
    folder.mkdir()
    for one in project.experiments("ended"):
        (folder / f"{one.commit}.json").write_text(json.dumps({"value": -1.0}))
    shown = project.ablate("status", "ended").stdout
    assert "-1.0" not in shown
    assert "4 of 4 runs done" in shown


def change_experiment(project: LightProject, run: str, path: str, old: str, new: str) -> None:
    """Replace text of one file in the experiment of a run, as somebody with git can."""
    [one] = [one for one in project.experiments(run.split(".")[0]) if one.name == run]
    text = project.git("show", f"{one.commit}:{path}")
    assert old in text
    index: dict[str, Any] = {"GIT_INDEX_FILE": str(project.root / ".git/forged-index")}
    project.run("git", "read-tree", one.commit, **index)
    (project.root / "forged").write_text(text.replace(old, new) + "\n")
    blob = project.git("hash-object", "-w", "forged")
    (project.root / "forged").unlink()
    cacheinfo = f"100644,{blob},{path}"
    project.run("git", "update-index", "--add", "--cacheinfo", cacheinfo, **index)
    tree = project.run("git", "write-tree", **index).stdout.strip()
    message = project.git("log", "-1", "--format=%B", one.commit)
    commit = project.git("commit-tree", tree, "-p", one.started_from, "-m", message)
    place = f"refs/exps/{one.started_from[:2]}/{one.started_from[2:]}/{one.name}"
    project.git("update-ref", place, commit)


def test_an_experiment_that_was_edited_counts_for_nothing_and_is_made_again(
    ended: LightProject,
) -> None:
    project = ended
    values = project.values("ended")
    edits = {
        "ended.adamw.s7": ("metrics/pretrain.json", '"val_bpb": ', '"val_bpb": -'),
        "ended.adamw.s8": ("work.py", '"adamw": 0.5', '"adamw": -9'),
        "ended.baseline.s7": ("dvc.lock", "pretrain:", "pretraining:"),
    }
    for run, (path, old, new) in edits.items():
        change_experiment(project, run, path, old, new)
    shown = project.ablate("status", "ended")
    assert "1 of 4 runs done" in shown.stdout
    for run, (path, _, _) in edits.items():
        assert f"{run}: {path} of its experiment" in shown.stderr
    project.execute("ended")
    assert values.items() <= project.values("ended").items()


def test_a_metric_that_was_edited_with_its_hash_in_dvc_lock_counts_for_nothing(
    ended: LightProject,
) -> None:
    project = ended
    run = "ended.adamw.s7"
    values = project.values("ended")
    [one] = [one for one in project.experiments("ended") if one.name == run]
    text = project.git("show", f"{one.commit}:metrics/pretrain.json")
    better = text.replace('"val_bpb": ', '"val_bpb": -')
    was, now = (hashlib.md5(one.encode()).hexdigest() for one in (text, better + "\n"))
    change_experiment(project, run, "metrics/pretrain.json", text, better)
    change_experiment(project, run, "dvc.lock", was, now)
    size = (len(text), len(better) + 1)
    change_experiment(project, run, "dvc.lock", f"size: {size[0]}", f"size: {size[1]}")
    shown = project.ablate("status", "ended")
    assert "3 of 4 runs done" in shown.stdout
    assert f"{run}: metrics/pretrain.json of its experiment" in shown.stderr
    compared = project.run("paribus", "compare", run, "ended.baseline.s7").stdout
    assert f"Changed after the run ended: metrics/pretrain.json of {run}" in " ".join(
        compared.split()
    )
    project.execute("ended")
    assert values.items() <= project.values("ended").items()


def test_a_damaged_object_of_the_cache_is_not_believed(
    ended: LightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paribus.study.committed import CommittedFiles

    project = ended
    monkeypatch.chdir(project.root)
    one = project.experiments("ended")[0]
    files = CommittedFiles(one.commit)
    path = "checkpoints/base/config.json"
    mark = files.hash(path)
    assert mark
    assert files.json(path) == {"depth": TINY["model.depth"]}
    stored = project.root / f".dvc/cache/files/md5/{mark[:2]}/{mark[2:]}"
    stored.chmod(0o644)
    stored.write_text('{"depth": 83}')
    assert CommittedFiles(one.commit).json(path) is None


def test_dvcs_own_queue_is_not_used_and_stays_usable(shared: LightProject) -> None:
    assert "No experiment tasks" in shared.run("dvc", "queue", "status").stdout


# ---------------------------------------------------------------- GPUs


def cards(monkeypatch: pytest.MonkeyPatch, count: int, visible: str = "") -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a card")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def experiment_on(project: LightProject, processes: int, device: str = "cuda") -> Any:
    from support.studied import STUDY

    from paribus.study.reading import parse_experiment

    settings = {"train.processes": processes, "train.device": device}
    return parse_experiment("gpus", STUDY | {"baseline": {"set": settings}})


def test_runs_get_as_many_gpus_as_they_train_on(
    shared: LightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paribus.study.gpus import deal

    monkeypatch.chdir(shared.root)
    cards(monkeypatch, 8)
    every = [str(number) for number in range(8)]
    assert deal(experiment_on(shared, 8), None, None) == (1, every)
    assert deal(experiment_on(shared, 4), "0,1,2,3,4,5,6,7", None) == (2, every)
    assert deal(experiment_on(shared, 1), "3,5", None) == (2, ["3", "5"])
    assert deal(experiment_on(shared, 1), "3", 2) == (2, ["3", "3"]), "two runs share a GPU"
    assert deal(experiment_on(shared, 1, "cpu"), None, 3) == (3, [])
    cards(monkeypatch, 2, visible="6,GPU-7f")
    assert deal(experiment_on(shared, 2), None, None) == (1, ["6", "GPU-7f"])


@pytest.mark.parametrize(
    "processes, device, asked, said",
    [
        (1, "cuda", "a,b", "no such GPU"),
        (1, "cuda", "9", "no such GPU"),
        (1, "cuda", ",", "no such GPU"),
        (1, "cuda", "0,0", "named twice"),
        (4, "cuda", "0,1", "train.processes: 4, and there are 2 GPUs"),
        (9, "cuda", None, "train.processes: 9, and there are 8 GPUs"),
        (1, "cpu", "0", "train on the CPU"),
    ],
)
def test_gpus_that_are_not_there_are_refused_at_once(
    shared: LightProject,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    device: str,
    asked: str | None,
    said: str,
) -> None:
    from paribus.study.gpus import deal

    monkeypatch.chdir(shared.root)
    cards(monkeypatch, 8)
    with pytest.raises(UserError, match=said):
        deal(experiment_on(shared, processes, device), asked, None)


def test_a_study_file_is_read_again_after_every_change(shared: LightProject) -> None:
    shared.study("again", baseline=depth(90))
    path = shared.root / "experiments/again.yaml"
    raw = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(raw | {"seeds": "many"}))
    done = shared.ablate("status", "again", check=False)
    shared.git("checkout", "-q", "experiments/again.yaml")
    assert done.returncode == 2
    assert "seeds: 'many' is not allowed" in done.stderr
