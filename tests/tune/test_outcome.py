"""What a study says of itself: whether its best beats the default, a note for optuna-dashboard, how it stands."""

from __future__ import annotations

from typing import Any

import optuna

from paribus.tune.note import write_note
from paribus.tune.outcome import page, retests
from paribus.tune.space import Study
from paribus.tune.standing import lines, standing

STUDY = Study(
    "rates", 4, "tokens", 2e5, 2**30, {}, {"optimizer.eps": {"low": 1, "high": 2}}, 3, 3, []
)


def after(gains: list[float], arms: int = 1) -> dict[str, Any]:
    """Re-tests of a trial that differs from the default by `gains`, and of others that do not."""
    default = {str(seed): 1.0 + 0.1 * seed for seed in range(len(gains))}
    best = {str(seed): default[str(seed)] + gain for seed, gain in enumerate(gains)}
    values = {"trial 3": best} | {f"trial {9 + arm}": default for arm in range(arms - 1)}
    everyone = values | {"default": default}
    params: dict[str, Any] = {arm: {} for arm in everyone}
    again = {"claimed": {"trial 3": 0.9}, "values": everyone, "lost": {}, "params": params}
    return retests(again)


def said(found: dict[str, Any]) -> str:
    counts = ("refused_by_plan", "out_of_memory", "pruned", "retried", "repeated_points")
    summary = dict.fromkeys(counts, 0) | {"study": "rates", "trials": 4, "minutes_saved": 0.0}
    return page(summary | {"best": None, "retest": found})


def test_a_best_that_may_be_luck_is_not_said_to_beat_the_default() -> None:
    assert "trial 3 is shown to beat the default" in said(after([-0.1, -0.11, -0.09]))
    assert "trial 3 is not shown to beat the default" in said(after([-0.3, 0.2, -0.1]))


def test_several_re_tests_ask_for_more_than_one() -> None:
    """A gain whose own 95 % interval ends just below 0 may be the luckiest of three."""
    close = [-0.08, -0.1, -0.16, -0.05]
    assert after(close, arms=1)["trial 3"]["beats_default"]
    assert not after(close, arms=3)["trial 3"]["beats_default"]


def test_counts_of_nothing_are_left_out() -> None:
    assert said({}) == "study rates: 4 trials"


def test_the_note_of_a_study_says_what_it_searches() -> None:
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(study_name="rates", storage=storage)
    write_note(STUDY, study)
    attributes = storage.get_study_system_attrs(storage.get_study_id_from_name("rates"))
    assert "optimizer.eps" in attributes["dashboard:note_str:0"]
    assert attributes["dashboard:note_ver"] == 1


def test_the_standing_of_a_study_names_its_best_so_far() -> None:
    study = optuna.create_study()
    for value in (3.0, 2.0):
        trial = study.ask({"optimizer.eps": optuna.distributions.FloatDistribution(1, 2)})
        study.tell(trial, value)
    study.ask({})
    found = standing(STUDY, study)
    assert (found.done, found.of) == (2, 4)
    assert found.best is not None
    assert found.best["trial"] == 1
    assert list(found.running) == [2]
    assert "best so far: trial 1, 2.0000 bits per byte" in "\n".join(lines(found))
