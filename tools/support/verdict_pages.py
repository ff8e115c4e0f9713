"""A verdict's page of every design, from results that nobody computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paribus.pages.verdict import built, html, markdown
from paribus.study.experiment import Experiment
from paribus.study.ladder import judge
from paribus.study.outcomes import Outcomes
from paribus.study.reading import parse_experiment
from paribus.study.results import Result
from paribus.study.tuned import Trial, Tuned
from paribus.study.tuning_report import TuningReport
from support.ablation_file import FILE, parse
from support.results import result

SEEDS = (7, 8, 9)
FACTORS: dict[str, Any] = {
    "mlp": {"model.mlp": ["swiglu", "relu2"]},
    "qk": {"model.qk_norm": [True, False]},
    "adamw": {"optimizer.kind": ["muon", "adamw"]},
}


def noise(seed: int, place: int = 0) -> float:
    """A little, the same in every run of the tests."""
    return 0.001 * ((seed * 7 + place * 5) % 11 - 5)


def page(experiment: Experiment, results: list[Result], tuning: TuningReport | None = None) -> str:
    """The page of a study with these results."""
    outcomes = Outcomes(results)
    notes = ["two runs were started again"]
    judged = judge(experiment, outcomes)
    values, figures = built(experiment, [], outcomes, judged, {}, notes, tuning)
    return html(values, figures)


def text_page(experiment: Experiment, results: list[Result]) -> str:
    """The same as text, without figures."""
    outcomes = Outcomes(results)
    values, _ = built(experiment, [], outcomes, judge(experiment, outcomes), {}, [], None)
    return markdown(values, [])


def arms(**changes: Any) -> str:
    """Three arms of which one is worse, one equivalent, one undecided."""
    return page(*arms_and_results(**changes))


def arms_and_results(**changes: Any) -> tuple[Experiment, list[Result]]:
    """The study of `arms`, and its runs."""
    wanted = {
        "adamw": {"optimizer.kind": "adamw"},
        "eps": {"optimizer.eps": 1e-7},
        "half-the-rate": {"optimizer.matrix_lr": 0.01},
    }
    expects = {"adamw": "worse", "eps": "equivalent", "half-the-rate": "better"}
    experiment = parse(arms=wanted, expects=expects, seeds=3, **changes)
    found = []
    for seed in SEEDS:
        found.append(result("baseline", seed, 2.0 + noise(seed)))
        found.append(result("adamw", seed, 2.2 + noise(seed, 1)))
        found.append(result("eps", seed, 2.0005 + noise(seed)))
        found.append(result("half-the-rate", seed, 2.0 + 20 * noise(seed, 2)))
    return experiment, found


def horizons() -> str:
    """An effect in compute: the baseline at three lengths."""
    experiment = parse(horizons=[0.5, 1.0, 1.5], seeds=3)
    found = []
    for seed in SEEDS:
        found.append(result("baseline", seed, 2.0 + noise(seed)))
        found.append(result("baseline-0p5x", seed, 2.1 + noise(seed, 1)))
        found.append(result("baseline-1p5x", seed, 1.95 + noise(seed, 2)))
        found.append(result("adamw", seed, 2.04 + noise(seed, 3)))
    return page(experiment, found)


def ladder() -> str:
    """An arm at four sizes, and its effect at one that nobody trained."""
    sizes = [2, 3, 4, 5]
    experiment = parse(ladder={"model.depth": sizes}, seeds=3, expects={"adamw": "holds"})
    found = []
    for depth in sizes:
        for seed in SEEDS:
            found.append(result(f"baseline-depth-{depth}", seed, 2.0))
            found.append(result(f"adamw-depth-{depth}", seed, 1.8 + noise(seed, depth)))
    return page(experiment, found)


def factors() -> str:
    """Three factors in all combinations."""
    raw = {key: value for key, value in FILE.items() if key != "arms"}
    experiment = parse_experiment("tiny", raw | {"factors": FACTORS, "seeds": 3})
    design = experiment.factorial
    assert design is not None
    found = []
    for place, name in enumerate(experiment.names):
        for seed in SEEDS:
            worse = 0.2 if "adamw" in name else 0.0
            found.append(result(name, seed, 2.0 + worse + noise(seed, place)))
    return page(experiment, found)


def tuned() -> str:
    """An arm and a baseline that were tuned alike."""
    rate: dict[str, Any] = {"low": 0.005, "high": 0.08, "log": True}
    space = {"optimizer.matrix_lr": rate, "optimizer.adamw_matrix_lr": rate}
    experiment = parse(tune={"space": space, "trials": 6}, seeds=3)
    trials = tuple(
        Trial(number, {"optimizer.matrix_lr": 0.01 * (number + 1)}, (2.1 - 0.01 * number,), True)
        for number in range(3)
    )
    one = Tuned({"optimizer.matrix_lr": rate}, trials, trials[-1])
    tuning = TuningReport(6, {"baseline": one, "adamw": one}, {}, {})
    found = []
    for seed in SEEDS:
        found.append(result("baseline", seed, 2.0 + noise(seed)))
        found.append(result("adamw", seed, 2.05 + noise(seed, 1)))
    return page(experiment, found, tuning)


DESIGNS: dict[str, Callable[[], str]] = {
    "arms": arms,
    "horizons": horizons,
    "ladder": ladder,
    "factors": factors,
    "tuned": tuned,
}
