"""Before the first run: what a study finds by each look agrees with theory, and its costs are of the runs it asks for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.ablation_file import parse
from support.results import result

from paribus.pages.foresight import page
from paribus.study.foresight import Chances, Cost, Spread, as_json, outlook, spread_of
from paribus.study.looks import OPEN, Schedule
from paribus.study.outcomes import Outcomes
from paribus.study.power import detectable_effect, upper_stdev

pytestmark = pytest.mark.usefixtures("in_checkout")


@pytest.mark.parametrize("seeds, alpha", [(3, 0.05), (5, 0.0125)])
def test_what_one_look_finds_is_what_theory_says(seeds: int, alpha: float) -> None:
    found = Chances(Schedule(seeds, seeds), seeds, alpha).detectable(0)
    assert found == pytest.approx(detectable_effect(seeds, alpha=alpha), rel=0.03)


def test_an_open_study_finds_more_with_every_look() -> None:
    chances = Chances(OPEN, 12, 0.05)
    powers = chances.by_look(1.0)
    assert powers == sorted(powers)
    assert powers[0] < 0.3
    assert powers[-1] > 0.5
    assert chances.by_look(0.0)[-1] <= 0.05


def test_the_outlook_counts_runs_hours_money_and_disk() -> None:
    experiment = parse(
        seeds="open", arms={"a": {"optimizer.kind": "adamw"}, "b": {"model.mlp": "gelu"}}
    )
    rows = outlook(experiment, Cost(3600.0, 2.0, 0.5), Spread(0.004, "somewhere"))
    assert [row.seeds for row in rows] == [3, 5, 8, 12, 18]
    assert [row.runs for row in rows] == [9, 15, 24, 36, 54]
    assert (rows[1].hours, rows[1].usd, rows[1].disk_gb) == (5.0, 2.5, 10.0)
    assert rows[0].detectable == pytest.approx(0.004 * rows[0].detectable_sd)
    assert rows[-1].power is not None
    assert rows[0].power is not None
    assert rows[-1].power > rows[0].power
    text = page(experiment, "a card", rows, None)
    assert "not known" in text
    assert "looks go on" in text


def test_the_spread_is_the_studys_own_or_the_profiles() -> None:
    runs = [result("baseline", seed, 1.0) for seed in range(3)]
    runs += [result("adamw", seed, 1.0 + value) for seed, value in enumerate([0.0, 0.01, 0.02])]
    own = spread_of(parse(), Outcomes(runs))
    assert own is not None
    assert own.stdev == pytest.approx(upper_stdev(0.01, 3))
    assert spread_of(parse(), Outcomes([])) is None, "no profile, and no run"
    kept = json.loads(Path("experiments/results/noise-default.json").read_text())
    assert "val_bpb" in kept["values"]
    ofprofile = spread_of(parse(baseline={"profile": "default"}), Outcomes([]))
    assert ofprofile is not None
    assert "noise-default.json, 3 seeds" in ofprofile.source


def test_names_of_the_json_are_a_contract() -> None:
    from paribus.plan.devices import device_named

    experiment = parse(seeds=5)
    rows = outlook(experiment, Cost(60.0, 0.1, None), None)
    told = as_json(experiment, device_named("RTX 3090"), rows, None)
    assert {
        "study",
        "looks",
        "alpha",
        "smallest_effect",
        "stdev_of_differences",
        "device",
    } <= told.keys()
    row = told["looks"][0]
    assert {
        "seeds",
        "runs",
        "detectable_sd",
        "detectable",
        "power",
        "hours",
        "usd",
        "disk_gb",
    } == row.keys()
    assert json.loads(json.dumps(told))["looks"][0]["usd"] is None
