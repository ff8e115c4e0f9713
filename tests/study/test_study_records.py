"""What a study is judged by: its pages, its notes and the experiments of its runs, damaged, edited or of another time."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.studied import LightProject, depth
from support.tiny import TINY


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, with_tokens: LightProject) -> LightProject:
    """One project for tests of studies of their own; its `tokens` are made."""
    return with_tokens.copy(tmp_path_factory.mktemp("studies") / "project")


@pytest.fixture
def ended(after_a_study: LightProject, tmp_path: Path) -> LightProject:
    """A project whose study `ended` has run, to be damaged."""
    return after_a_study.copy(tmp_path / "project")


# ---------------------------------------------------------------- reports


def test_a_page_is_not_replaced_by_one_of_fewer_runs(ended: LightProject) -> None:
    project = ended
    results = project.root / "experiments/results"
    project.ablate("report", "ended")
    page = (results / "ended.md").read_text()
    project.run("dvc", "exp", "remove", "ended.adamw.s8")
    done = project.ablate("report", "ended", check=False)
    assert done.returncode == 2
    assert "rests on 4 runs, and 3 count now" in done.stderr
    assert (results / "ended.md").read_text() == page
    (results / "ended.json").unlink()
    done = project.ablate("report", "ended", check=False)
    assert done.returncode == 2, "a page without data beside it is counted by its rows"
    project.ablate("report", "ended", "--force")
    assert (results / "ended.md").read_text() != page


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


def test_a_study_file_is_read_again_after_every_change(shared: LightProject) -> None:
    shared.study("again", baseline=depth(90))
    path = shared.root / "experiments/again.yaml"
    raw = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(raw | {"seeds": "many"}))
    done = shared.ablate("status", "again", check=False)
    shared.git("checkout", "-q", "experiments/again.yaml")
    assert done.returncode == 2
    assert "seeds: 'many' is not allowed" in done.stderr
