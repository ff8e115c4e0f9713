"""`ablate list`, `ablate new`, `ablate status` of what did not begin here, `tune new`, `runs`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.shell_completion import BashComplete
from support.checkout import make_checkout
from support.studied import LightProject

from paribus.cli.commands import commands
from paribus.cli.runs import show_runs
from paribus.cli.studies import list_studies, new_ablation, new_tuning
from paribus.errors import UserError
from paribus.study.reading import read_experiment
from paribus.tune.space import read_study
from paribus.tune.standing import list_studies as list_tuning


@pytest.fixture
def inside(tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the committed studies and their reports."""
    make_checkout(tmp_path, project_root)
    for name in ("rl-sparsity", "switches-together", "block-ideas"):
        shutil.copy(project_root / f"experiments/{name}.yaml", tmp_path / "experiments")
    shutil.copytree(project_root / "experiments/results", tmp_path / "experiments/results")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- new files


@pytest.mark.usefixtures("inside")
def test_the_template_of_an_ablation_is_one() -> None:
    new_ablation("mine", None, [])
    found = read_experiment("mine")
    assert found.expects == {"adamw": "worse"}
    assert found.seeds.open
    assert "ablate run mine" in Path("experiments/mine.yaml").read_text()


@pytest.mark.usefixtures("inside")
def test_the_template_of_a_tuning_study_is_one() -> None:
    new_tuning("mine")
    assert read_study("mine").trials == 20


@pytest.mark.usefixtures("inside")
def test_a_study_asked_again_has_fresh_seeds_open_looks_and_the_arms_named() -> None:
    new_ablation("again", "rl-sparsity", ["redraw"])
    before, now = read_experiment("rl-sparsity"), read_experiment("again")
    assert now.seeds.open
    assert now.fresh_seeds
    assert list(now.arms) == ["redraw"]
    assert now.arms["redraw"].overrides == before.arms["redraw"].overrides
    assert now.first_seed != before.first_seed


@pytest.mark.usefixtures("inside")
def test_a_study_of_factors_asked_again_keeps_its_one_look() -> None:
    before = read_experiment("switches-together")
    new_ablation("again", "switches-together", [])
    assert read_experiment("again").seeds == before.seeds
    assert read_experiment("again").fresh_seeds


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    "name, like, arms, said",
    [
        ("rl-sparsity", None, [], "is there already"),
        ("no name", None, [], "small letters"),
        ("again", "rl-sparsty", [], "did you mean rl-sparsity?"),
        ("again", "rl-sparsity", ["redrw"], "there are: redraw, easy-first"),
        ("again", None, ["redraw"], "only with --like"),
    ],
)
def test_what_cannot_be_a_new_study_is_refused(
    name: str, like: str | None, arms: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        new_ablation(name, like, arms)


# ---------------------------------------------------------------- what there is


@pytest.mark.usefixtures("inside")
def test_the_list_says_how_each_study_stands(capsys: pytest.CaptureFixture[str]) -> None:
    list_studies(as_json=True)
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["block-ideas"]["verdicts"] == {"reglu2": "worse", "sub-norm": "equivalent"}
    assert found["switches-together"]["runs"] == 0
    list_studies(as_json=False)
    shown = capsys.readouterr().out
    assert "    worse: reglu2; equivalent: sub-norm\n" in shown
    assert "    undecided: redraw, easy-first\n" in shown
    assert "    undecided: adamw; worse: relu2, nove; equivalent: noqknorm, nox0\n" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


@pytest.mark.usefixtures("inside")
def test_the_list_of_tuning_studies_says_what_they_vary(capsys: pytest.CaptureFixture[str]) -> None:
    new_tuning("mine")
    Path("experiments/tune/broken.yaml").write_text("trials: many\n")
    capsys.readouterr()
    list_tuning(as_json=True)
    broken, mine = json.loads(capsys.readouterr().out)
    assert "broken.yaml: budget: missing" in broken["problem"]
    assert mine["varies"] == list(read_study("mine").space)
    assert mine["standing"] is None
    list_tuning(as_json=False)
    assert "mine: not started here, 20 trials" in capsys.readouterr().out


def test_a_study_that_did_not_begin_here_shows_its_committed_report(
    after_a_study: LightProject, tmp_path: Path
) -> None:
    """A fresh clone has the page and no run; where runs are, their table is shown."""
    project = after_a_study.copy(tmp_path / "main")
    results = project.root / "experiments/results"
    results.mkdir()
    page = "# Better?\n\n- adamw is worse than the baseline: \\*\n\n## Effects\n\n- no answer\n"
    (results / "ended.md").write_text(page)
    (results / "asked.md").write_text(page)
    project.study("asked")
    said = project.ablate("status", "asked").stdout
    assert said.startswith("asked: not started here; the committed report says:\nadamw is worse")
    assert "baseline: *\n" in said
    assert "no answer" not in said
    assert "4 of 4 runs done" in project.ablate("status", "ended").stdout


def test_runs_of_a_project_stand_beside_each_other_with_what_they_change(
    after_a_study: LightProject,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(after_a_study.root)
    show_runs(["ended.*"], as_json=True)
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    values = after_a_study.values("ended")
    assert {name: row["figures"]["val_bpb"] for name, row in rows.items()} == values
    assert rows["ended.adamw.s8"]["changed"] == {"optimizer.kind": "adamw", "seed": 8}
    show_runs([], as_json=False)
    shown = capsys.readouterr().out
    assert "workspace" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80
    with pytest.raises(UserError, match=r"did you mean ended\.adamw\.s7\?"):
        show_runs(["ended.adamw.s77"], as_json=False)


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    "words, begun, completed",
    [
        (["ablate", "run"], "rl-", ["rl-sparsity"]),
        (["ablate", "new", "again", "--like"], "switches", ["switches-together"]),
        (["plan"], "lap", ["laptop"]),
        (["keys"], "optimizer.k", ["optimizer.kind"]),
        (["export"], "s", ["sft"]),
    ],
)
def test_a_shell_completes_the_names_that_a_command_takes(
    words: list[str], begun: str, completed: list[str]
) -> None:
    shell = BashComplete(commands, {}, "paribus", "_PARIBUS_COMPLETE")
    assert [item.value for item in shell.get_completions(words, begun)] == completed
