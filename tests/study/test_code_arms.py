"""Studies whose arms are code: each run starts from its arm's commit, and an arm that does not start is refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.studied import LightProject

from paribus.cli.ablation import usable
from paribus.pages.verdict import html, markdown, page_values
from paribus.study.reading import read_experiment
from paribus.study.sequence import judge
from paribus.study.settled import study_of
from paribus.study.verdict import verdicts

REFERENCES = "refs/paribus/ideas"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, light_project: LightProject) -> LightProject:
    return light_project.copy(tmp_path_factory.mktemp("arms") / "project")


def branch(project: LightProject, name: str, before: str, after: str) -> str:
    """A branch whose trainer has `after` in place of `before`, and its commit; main is checked out again."""
    project.git("checkout", "-q", "-b", name, "main")
    trainer = project.root / "work.py"
    text = trainer.read_text()
    assert before in text
    trainer.write_text(text.replace(before, after))
    project.commit(name)
    project.git("checkout", "-q", "main")
    return project.git("rev-parse", name)


def test_runs_of_an_arm_start_from_its_commit(
    project: LightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    better = branch(project, "ideas/better", "value = do", "bias -= 0.5\n    value = do")
    project.study("code", arms={"better": {"code": "ideas/better", "as_one": "a trainer"}})
    before = project.checkout()
    done = project.execute("code")
    assert f"better: ideas/better is {better[:10]}, which changes 1 file" in done.stderr
    assert project.checkout() == before
    values = {name: round(value, 6) for name, value in project.values("code").items()}
    for seed in (7, 8):
        assert values[f"code.better.s{seed}"] == round(values[f"code.baseline.s{seed}"] - 0.5, 6)
    started = {one.run.arm: one.started_from for one in project.experiments("code")}
    assert started == {"baseline": project.git("rev-parse", "HEAD"), "better": better}
    assert better in project.git("for-each-ref", "--format=%(objectname)", f"{REFERENCES}/studies")
    project.execute("code")
    assert len(project.ended("code", "done")) == 4, "nothing is run twice"
    # The page shows what the arm's code changes, and that its seeds do not match: a trainer that is not paribus's own.
    monkeypatch.chdir(project.root)
    experiment = read_experiment("code")
    evidence = usable(study_of(experiment))
    outcomes = evidence.outcomes
    assert len(outcomes.results) == 4
    judged = judge(experiment, outcomes)
    found = verdicts(experiment, outcomes, judged.effects)
    values = page_values(experiment, evidence.runs, outcomes, judged, {}, [], found)
    shown = values | {"scaling": None}
    for page in (html(shown, {}), markdown(shown, [])):
        assert "work.py" in page
        assert "bias -= 0.5" in page
        assert "compared as unmatched runs" in page
        assert "2 unmatched runs of each" in page
        assert "the code of ideas/better" in page


@pytest.mark.soak
def test_an_arm_that_does_not_start_is_refused_before_the_first_run(project: LightProject) -> None:
    branch(project, "ideas/broken", "import yaml", "import yaml, no_such_module")
    branch(project, "ideas/sound", 'steps", 8', 'steps", 9')
    project.study(
        "broken",
        arms={
            "broken": {"code": "ideas/broken", "as_one": "a"},
            "sound": {"code": "ideas/sound", "as_one": "b"},
        },
    )
    done = project.execute("broken", check=False)
    assert done.returncode == 2
    assert "arms.broken.code: ideas/broken" in done.stderr
    assert "No module named 'no_such_module'" in done.stderr
    assert "arms.sound" not in done.stderr
    assert "Traceback" not in done.stderr
    assert project.experiments("broken") == []
    assert project.clones() == []


@pytest.mark.soak
def test_a_patch_is_an_arm_too_and_leaves_no_trace_in_the_checkout(project: LightProject) -> None:
    trainer = project.root / "work.py"
    text = trainer.read_text()
    trainer.write_text(text.replace("value = do", "bias += 0.25\n    value = do"))
    patch = Path("experiments/ideas/worse.patch")
    (project.root / patch).parent.mkdir(parents=True, exist_ok=True)
    (project.root / patch).write_text(project.git("diff") + "\n")
    trainer.write_text(text)
    project.study("patched", arms={"worse": {"code": str(patch), "as_one": "a worse trainer"}})
    before = project.checkout()
    project.execute("patched")
    assert project.checkout() == before
    values = {name: round(value, 6) for name, value in project.values("patched").items()}
    assert values["patched.worse.s7"] == round(values["patched.baseline.s7"] + 0.25, 6)
    (project.root / patch).write_text("no patch\n")
    project.commit("no patch")
    refused = project.execute("patched", check=False)
    assert refused.returncode == 2
    assert "does not apply" in refused.stderr
