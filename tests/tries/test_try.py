"""`paribus try` from a change to a verdict, with real git, DVC and workers around a trainer of a few lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.studied import LightProject
from support.tried import ended

from paribus.cli import ledger as ledger_command
from paribus.cli import trying
from paribus.errors import UserError
from paribus.tries.attempt import ask
from paribus.tries.ledger import Entry, Ledger
from paribus.tries.terms import read_terms

TERMS = {"smallest_effect": 0.01, "seeds": {"from": 3, "to": 4}, "false_keeps": 0.4}
NOISE = (0.0, 0.0001, -0.0001, 0.00005)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, light_project: LightProject) -> LightProject:
    """A project whose AdamW is better at seeds 7 to 10, and no different at all others."""
    project = light_project.copy(tmp_path_factory.mktemp("try") / "project")
    (project.root / "experiments").mkdir(exist_ok=True)
    (project.root / "experiments/try.yaml").write_text(yaml.safe_dump(TERMS))
    project.commit("terms")
    return project


@pytest.fixture
def project(
    started: LightProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LightProject]:
    copied = started.copy(tmp_path / "project")
    here = dict(os.environ)
    own = copied.environment()
    os.environ.clear()
    os.environ.update(own)
    monkeypatch.chdir(copied.root)
    yield copied
    os.environ.clear()
    os.environ.update(here)


def change(project: LightProject, **values: Any) -> None:
    """Edit params.yaml: dotted key -> value."""
    path = project.root / "params.yaml"
    params = yaml.safe_load(path.read_text())
    for dotted, value in values.items():
        section, _, key = dotted.partition("__")
        params[section][key] = value
    path.write_text(yaml.safe_dump(params, sort_keys=False))


def seen_by_the_user(project: LightProject) -> list[str]:
    """Branches, and what differs between commit, index and files."""
    asked = (["branch", "-v"], ["status", "--porcelain"], ["diff"], ["diff", "--cached"])
    return [project.git(*one) for one in asked]


def attempt(**given: Any) -> int:
    return trying.run(None, "an idea", None, False, 1, True, given)


def adamw_is(project: LightProject, gain: float, seeds: range = range(7, 40)) -> None:
    """AdamW's value at each seed, so that its difference from Muon's is `gain` and a little noise."""
    rules = []
    for seed in seeds:
        base = 1.0 + 0.1 * seed + 0.001 * (seed % 3)
        value = base - gain + NOISE[seed % 4]
        rules.append(
            {"when": {"stage": "pretrain", "seed": seed, "kind": "adamw"}, "do": {"value": value}}
        )
    project.behave(*rules)


def only_entry() -> Entry:
    [entry] = Ledger().entries()
    return entry


@pytest.mark.long
def test_a_better_change_is_kept_and_not_tried_twice(
    project: LightProject, capsys: pytest.CaptureFixture[str]
) -> None:
    adamw_is(project, 0.5)
    change(project, optimizer__kind="adamw")
    before = seen_by_the_user(project)
    assert attempt() == 0
    assert seen_by_the_user(project) == before, "branch, index and files stay as they are"
    entry = json.loads(capsys.readouterr().out)
    assert entry["verdict"] == "keep"
    assert entry["files"] == ["params.yaml: optimizer.kind"]
    assert entry["runs_computed"] == 2 * len(entry["seeds"])
    assert attempt() == 0
    assert only_entry().number == 1


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_an_audit_tells_what_stands_from_what_was_luck(
    project: LightProject, capsys: pytest.CaptureFixture[str]
) -> None:
    """eps gains 0.3 at the seeds of its try, and nothing at all others."""
    adamw_is(project, 0.5)
    rules = json.loads((project.root / ".paribus/behave.json").read_text())
    lucky = []
    for rule in rules[4:8]:
        when = rule["when"] | {"eps": 1e-9}
        value = rule["do"]["value"] - 0.3 + NOISE[(rule["when"]["seed"] + 1) % 4]
        lucky.append({"when": when, "do": {"value": value}})
    project.behave(*lucky, *rules)
    change(project, optimizer__kind="adamw")
    assert attempt() == 0
    project.commit("kept")
    change(project, optimizer__eps=1e-9)
    assert attempt() == 0
    assert Ledger().entries()[1].begun.baseline_side == Ledger().entry(1).begun.change_side
    capsys.readouterr()

    assert ledger_command.audit(3, 1, True) == 0
    first = capsys.readouterr()
    assert "12 runs, 0 of them found again" in first.err
    found = json.loads(first.out)
    assert found["claimed"] == pytest.approx(-0.8, abs=0.01)
    assert found["measured"]["mean"] == pytest.approx(-0.5, abs=0.01)
    assert [part["standing"] for part in found["parts"]] == ["holds", "barnacle"]

    assert ledger_command.audit(3, 1, True) == 0
    again = capsys.readouterr()
    assert "12 runs, 12 of them found again" in again.err
    assert json.loads(again.out) == found


@pytest.mark.long
def test_a_change_that_crashes_is_discarded_with_its_last_words(project: LightProject) -> None:
    project.behave(
        {
            "when": {"kind": "adamw", "stage": "pretrain"},
            "do": {"exit": 2, "say": "shapes differ", "steps": 1},
        }
    )
    change(project, optimizer__kind="adamw")
    assert attempt() == 1
    ended = only_entry().ended
    assert ended is not None
    assert "shapes differ" in ended.why
    assert Ledger().budget(0.4).level() == only_entry().level, "a crash uses up nothing"


@pytest.mark.soak
def test_a_baseline_that_fails_is_no_verdict(project: LightProject) -> None:
    project.behave(
        {"when": {"kind": "muon", "stage": "pretrain"}, "do": {"exit": 2, "say": "no", "steps": 1}}
    )
    change(project, optimizer__kind="adamw")
    with pytest.raises(UserError, match="the baseline .* itself fails"):
        attempt()
    assert only_entry().ended is None


@pytest.mark.long
def test_a_kept_change_of_the_batch_leaves_the_next_try_its_tokens(project: LightProject) -> None:
    ledger, terms = Ledger(), read_terms()
    change(project, pretrain__batch_tokens=128, pretrain__device_batch_size=2)
    first = ask(terms, ledger, None, "half a batch", None, False, 1)
    ledger.end(1, ended("keep"))
    project.commit("kept")
    change(project, optimizer__eps=1e-9)
    second = ask(terms, ledger, None, "another epsilon", None, False, 1)
    assert first.pair is not None
    assert second.pair is not None
    assert second.pair.tokens == first.pair.tokens == 6 * 256
    assert second.pair.baseline.steps == second.pair.change.steps == 12


# ---------------------------------------------------------------- refused before any run


def refused(**given: Any) -> str:
    with pytest.raises(UserError) as error:
        attempt(**given)
    assert Ledger().entries() == []
    return str(error.value)


def test_what_cannot_be_tried_is_refused_before_any_run(project: LightProject) -> None:
    assert "nothing is changed" in refused()
    (project.root / "notes.md").write_text("other notes\n")
    assert "nothing can differ: notes.md" in refused()
    change(project, optimizer__kind="adamw")
    assert "did you mean main?" in refused(baseline="mian")
    assert "seeds: '8'" in refused(seeds="8")
    assert "at least 5 steps" in refused(budget="10tokens")
    assert "unit" in refused(budget="5parsecs")


def test_a_change_of_what_the_metric_measures_is_refused_unless_it_is_meant(
    project: LightProject,
) -> None:
    work = project.root / "work.py"
    work.write_text(work.read_text() + "\n")
    message = refused()
    assert "work.py: decides what val_bpb measures" in message
    assert "--as-one" in message


def test_a_change_without_the_baselines_commits_is_refused(project: LightProject) -> None:
    project.git("checkout", "-q", "-b", "idea")
    change(project, optimizer__kind="adamw")
    project.commit("idea")
    project.git("checkout", "-q", "main")
    project.commit_more()
    with pytest.raises(UserError, match="lacks commits that the baseline"):
        trying.run("idea", None, None, False, 1, True, {})


def test_a_change_that_does_not_start_is_discarded_without_a_run(project: LightProject) -> None:
    package = project.root / "src/paribus"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('no such thing')\n")
    change(project, optimizer__kind="adamw")
    assert attempt() == 1
    ended = only_entry().ended
    assert ended is not None
    assert "no such thing" in ended.why
    assert project.experiments("try") == []
