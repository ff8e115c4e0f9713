"""Studies on a ladder, at horizons and with a target: run, killed, added to and reported, with planted truths."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.studied import LightProject, kill
from support.waiting import wait_for

SEEDS = (7, 8, 9)
NOISE = {7: 0.0, 8: 0.002, 9: -0.001}  # of an arm's difference at each seed


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, light_project: LightProject) -> LightProject:
    project = light_project.copy(tmp_path_factory.mktemp("designs") / "project")
    project.run("dvc", "repro", "-q", "tokens")
    project.commit("tokens")
    return project


def rule(do: dict[str, Any], **when: Any) -> dict[str, Any]:
    return {"when": {"stage": "pretrain", **when}, "do": do | {"steps": 2, "seconds": 0.01}}


def report(project: LightProject, study: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (project.root / f"experiments/results/{study}.json").read_text()
    )
    return found


def climbing(sizes: list[int]) -> list[dict[str, Any]]:
    """An arm that is better by .2 at every depth."""
    rules = []
    for depth in sizes:
        for seed in SEEDS:
            better = 1.3 + NOISE[seed] * (1 if depth % 2 else -1)
            rules.append(rule({"value": better}, kind="adamw", depth=depth, seed=seed))
    return [*rules, rule({"value": 1.5})]


@pytest.mark.soak
def test_a_killed_ladder_gives_its_answer_and_keeps_it_all_when_a_rung_is_added(
    shared: LightProject,
) -> None:
    project = shared
    sizes = [2, 3, 4, 5, 6]
    project.behave(*climbing(sizes))
    project.study("rungs", ladder={"model.depth": sizes[:4]}, seeds={"from": 3})
    driver = project.begin("rungs", workers=2)
    wait_for(lambda: len(project.values("rungs")) > 3)
    kill([psutil.Process(driver.pid), *project.workers()])
    driver.wait()
    project.ablate("run", "rungs", "--workers", "2")
    first = report(project, "rungs")
    assert len(first["runs"]) == 4 * 2 * 3
    assert first["arms"]["adamw"]["verdict"] == "holds"
    of_arm = first["ladder"]["arms"]["adamw"]
    assert of_arm["kept_out"]["passed"]
    assert of_arm["predicted"]["low"] < -0.2 < of_arm["predicted"]["high"]
    page = (project.root / "experiments/results/rungs.md").read_text()
    assert "adamw holds" in page
    assert "tokens for each parameter" in page

    project.study("rungs", ladder={"model.depth": sizes}, seeds={"from": 3})
    kept = {one.name: one.commit for one in project.experiments("rungs")}
    project.ablate("run", "rungs", "--workers", "2")
    now = {one.name: one.commit for one in project.experiments("rungs")}
    assert len(now) == len(kept) + 2 * 3
    assert now.items() >= kept.items()
    page = (project.root / "experiments/results/rungs.md").read_text()
    assert "adamw-depth-6 was added after the look at 3 seeds" in page
    assert report(project, "rungs")["looks"] == first["looks"]


def test_an_effect_in_compute_is_the_planted_one(shared: LightProject) -> None:
    project = shared
    rules = []
    for seed in SEEDS:
        luck = 0.1 * seed
        # -0.1 for each unit of log steps: a result that is better by 0.1 log(1.1) is worth a tenth more steps.
        gain = 0.1 * math.log(1.1) + NOISE[seed] / 10
        rules.append(
            rule({"value": 2 + luck - gain, "by_log_steps": -0.1}, kind="adamw", seed=seed)
        )
        rules.append(rule({"value": 2 + luck, "by_log_steps": -0.1}, seed=seed))
    project.behave(*rules)
    project.study("worth", baseline={"set": {"pretrain.steps": 1000}}, horizons=[0.8, 1.25])
    project.ablate("run", "worth", "--workers", "2")
    found = report(project, "worth")
    assert len(found["runs"]) == 4 * 2
    tokens = found["arms"]["adamw"]["in_compute"]["worth"]["tokens"]
    assert tokens["saved"]["low"] < 1 - 1 / 1.1 < tokens["saved"]["high"]
    assert tokens["saved"]["estimate"] == pytest.approx(1 - 1 / 1.1, abs=0.01)
    page = (project.root / "experiments/results/worth.md").read_text()
    assert "adamw in compute: for the val_bpb" in page


def targets(seed: int, arm: float) -> list[dict[str, Any]]:
    """Curves that fall as 1/look to their end: the baseline to 1, the arm to `arm`."""
    return [rule({"value": arm}, kind="adamw", seed=seed), rule({"value": 1.0}, seed=seed)]


def test_runs_that_never_reach_a_target_count(shared: LightProject) -> None:
    project = shared
    project.behave(*targets(7, 1.4), *targets(8, 1.1))
    project.study(
        "target",
        metric="steps_to:1.2",
        baseline={"set": {"pretrain.steps": 80}},
        smallest_effect=5,
    )
    project.ablate("run", "target")
    found = report(project, "target")["arms"]["adamw"]
    assert found["matched_seeds"] == 2
    assert found["mean_difference"] > 0
    page = (project.root / "experiments/results/target.md").read_text()
    assert "Runs that reached 1.2: baseline 2 of 2, adamw 1 of 2" in page


def test_a_target_outside_all_curves_is_explained(shared: LightProject) -> None:
    project = shared
    project.behave(*targets(7, 1.4), *targets(8, 1.1))
    project.study("far", metric="tokens_to:0.5", baseline={"set": {"pretrain.steps": 81}})
    done = project.ablate("run", "far", check=False)
    assert done.returncode == 2
    assert "0.5 lies below all curves" in done.stderr
    assert "from 2.2750 to 1.0000" in done.stderr
    assert not Path(project.root / "experiments/results/far.json").exists()
