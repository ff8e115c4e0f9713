"""What a study can find, and what it costs, before its first run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats

from paribus.files import Items, Optional, Shape, Values, read_json
from paribus.graph import chain
from paribus.plan.devices import Device
from paribus.plan.estimate import Plan, make_plan
from paribus.recipe import Recipe
from paribus.study.differences import differences_of
from paribus.study.experiment import Experiment
from paribus.study.identity import chain_key, definitions
from paribus.study.ladder import sizes_of
from paribus.study.looks import Schedule, level
from paribus.study.outcomes import Outcomes
from paribus.study.power import POWER, Floats, detectable_effect, power_of, upper_stdev
from paribus.study.record import PUBLISHED
from paribus.study.settled import Study

DRAWS = 8_000  # simulated studies for a power: it is off by .01 at most, 19 times in 20
LOOKS_SHOWN = 5  # of an open study
NOISE: Shape = {"values": Optional(Values(Items((int, float))))}


@dataclass(frozen=True)
class Spread:
    """The standard deviation of matched differences that a study is planned with.

    Attributes:
        stdev: an upper limit of it (80 %), in the metric's unit.
        source: where it was measured, in words.
    """

    stdev: float
    source: str


@dataclass(frozen=True)
class Outlook:
    """What a study knows and has cost after a look.

    Attributes:
        seeds: after which it is.
        runs: of all arms and the baseline up to it.
        detectable_sd: the smallest effect that is found by then with power .8, in standard deviations of the differences, for the
            first arm that Holm tests.
        detectable: the same in the metric's unit; None: no spread is known.
        power: chance to find the study's smallest effect by then; None: no spread is known.
        hours, usd: of all runs up to it, one after another; usd None: no price is known.
        disk_gb: of the checkpoints that its runs leave.
    """

    seeds: int
    runs: int
    detectable_sd: float
    detectable: float | None
    power: float | None
    hours: float
    usd: float | None
    disk_gb: float


# ---------------------------------------------------------------- power


class Chances:
    """The chance that an effect is found by each look, from simulated studies of matched differences.

    Args:
        schedule: when the study looks.
        seeds: after which the last look is.
        alpha: level that one arm may spend.
    """

    def __init__(self, schedule: Schedule, seeds: int, alpha: float) -> None:
        self.looks = schedule.upto(seeds)
        draws = np.random.default_rng(0).standard_normal((DRAWS, self.looks[-1]))
        self._means, self._errors = [], []
        for number, look in enumerate(self.looks, start=1):
            at = level(schedule.taken(self.looks[:number]), alpha)
            part = draws[:, :look]
            error = part.std(axis=1, ddof=1) / math.sqrt(look)
            self._means.append(part.mean(axis=1))
            self._errors.append(error * float(stats.t.isf(at / 2, look - 1)))

    def by_look(self, size: float) -> list[float]:
        """The chance that an effect of `size` standard deviations is found, by each look."""
        found: Floats = np.zeros(DRAWS, bool)
        chances = []
        for mean, half in zip(self._means, self._errors, strict=True):
            found = found | (np.abs(mean + size) >= half)
            chances.append(float(found.mean()))
        return chances

    def detectable(self, look: int) -> float:
        """The smallest effect that is found with power .8 by a look, counted from 0."""

        def excess(size: float) -> float:
            return self.by_look(size)[look] - POWER

        high = 1.0
        while excess(high) < 0:
            high *= 2
        return float(optimize.bisect(excess, 0, high, xtol=1e-3))


# ---------------------------------------------------------------- noise


def spread_of(experiment: Experiment, outcomes: Outcomes | None = None) -> Spread | None:
    """The spread to plan a study with: of its own differences, else of its profile's noise floor; None: neither is known.

    Args:
        experiment: the study.
        outcomes: how its runs ended, where some have.
    """
    own = _own_spread(experiment, outcomes) if outcomes else None
    if own is not None:
        return own
    if experiment.profile is None:
        return None
    path = PUBLISHED / f"noise-{experiment.profile}.json"
    values = (read_json(path, NOISE, move=False) or {}).get("values") or {}
    measured = values.get(experiment.metric.name) or []
    if len(measured) < 2 or len(set(measured)) < 2:
        return None
    stdev = upper_stdev(float(np.std(measured, ddof=1)), len(measured))
    words = (
        f"{path}, {len(measured)} seeds of the profile, as if matching gained nothing: the standard deviation over seeds times "
        "the root of 2, at its upper limit (80 %)"
    )
    return Spread(stdev * math.sqrt(2), words)


def _own_spread(experiment: Experiment, outcomes: Outcomes) -> Spread | None:
    squares, freedom = 0.0, 0
    for arm in experiment.arms:
        differences = differences_of(experiment, outcomes.results, arm)
        if len(differences) > 1:
            squares += float(np.var(differences, ddof=1)) * (len(differences) - 1)
            freedom += len(differences) - 1
    if not squares:
        return None
    stdev = upper_stdev(math.sqrt(squares / freedom), freedom + 1)
    return Spread(stdev, "this study's own matched differences so far, at their upper limit (80 %)")


# ---------------------------------------------------------------- cost


@dataclass(frozen=True)
class Cost:
    """What one seed of all arms and the baseline takes; stages that runs share are counted once."""

    seconds: float
    disk_gb: float
    usd_per_hour: float | None


def cost_of_a_seed(
    study: Study, device: Device, dtype: str, gpus: int = 1, price: float | None = None
) -> Cost:
    """What one seed of a study takes on a device.

    Args:
        study: its runs.
        device: that computes them.
        dtype: of its products.
        gpus: of a run.
        price: in USD, of an hour and card; None: typical of the card.
    """
    seconds, gigabytes = 0.0, 0.0
    known: set[str] = set()
    rate: float | None = None
    for group in study.groups_planned():
        config = study.experiment.config_of(study.run(group, 0))
        planned = make_plan(
            Recipe.of(config), device, dtype=dtype, vram=device.memory, gpus=gpus, price=price
        )
        rate = planned.bill.get("price_per_hour")
        for stage, taken in _seconds_of_stages(study.experiment, planned).items():
            piece = stage + chain_key(chain([stage], definitions()), config)
            if piece not in known:
                known.add(piece)
                seconds += taken
                if stage in planned.stages:
                    gigabytes += 4 * planned.parameters["total"] / 1e9
    return Cost(seconds, gigabytes, None if rate is None else rate * gpus)


def _seconds_of_stages(experiment: Experiment, planned: Plan) -> dict[str, float]:
    """Stage of the study -> its seconds; all evaluations together count as the plan's evaluation, with the first of them."""
    seconds: dict[str, float] = {}
    evaluated = False
    for stage in experiment.stages:
        if stage in planned.stages:
            seconds[stage] = planned.stages[stage].seconds
        elif stage.startswith(("core", "gsm8k")) and not evaluated:
            seconds[stage] = planned.stages["evaluation"].seconds
            evaluated = True
    return seconds


# ---------------------------------------------------------------- the outlook


def outlook(
    experiment: Experiment, cost: Cost, spread: Spread | None, groups: int | None = None
) -> list[Outlook]:
    """What a study knows and has cost after each look, LOOKS_SHOWN of an open one.

    Args:
        experiment: the study.
        groups: runs of one seed; None: one for the baseline and each arm.
        cost: of one seed.
        spread: to plan with; None: effects are in standard deviations alone.
    """
    schedule = experiment.seeds
    looks: list[int] = []
    due = schedule.after(0)
    while due is not None and (not schedule.open or len(looks) < LOOKS_SHOWN):
        looks.append(due)
        due = schedule.after(due)
    found, powers = _found(experiment, looks, spread)
    tuning = experiment.tune
    # Every arm also runs as the file has it, beside its tuned self.
    alike, first = (2, tuning.runs) if tuning else (1, 0)
    rows = []
    for number, seeds in enumerate(looks):
        size = found[number]
        rounds = seeds * alike + first  # of all arms and the baseline
        hours = cost.seconds * rounds / 3600
        rows.append(
            Outlook(
                seeds=seeds,
                runs=rounds * (groups or len(experiment.names)),
                detectable_sd=size,
                detectable=size * spread.stdev if spread else None,
                power=powers[number] if spread else None,
                hours=hours,
                usd=None if cost.usd_per_hour is None else hours * cost.usd_per_hour,
                disk_gb=cost.disk_gb * rounds,
            )
        )
    return rows


def _found(
    experiment: Experiment, looks: Sequence[int], spread: Spread | None
) -> tuple[list[float], Sequence[float]]:
    """(smallest effect that each look finds, in sd of the differences; power at the smallest effect that matters, or none).

    Of a study with factors it is a single factor's: its contrast over seeds alone has to show it, at half of alpha.
    """
    margin = experiment.smallest_effect / spread.stdev if spread else None
    if experiment.factorial is not None:
        scale = math.sqrt(
            2 / len(experiment.names)
        )  # sd of a contrast over that of a difference of two runs
        level_of = experiment.alpha / 2
        sizes = [detectable_effect(seeds, alpha=level_of) * scale for seeds in looks]
        if margin is None:
            return sizes, ()
        return sizes, [power_of(margin / scale, seeds, alpha=level_of) for seeds in looks]
    chances = Chances(experiment.seeds, looks[-1], experiment.alpha / len(experiment.arms))
    sizes = [chances.detectable(number) for number in range(len(looks))]
    return sizes, chances.by_look(margin) if margin is not None else ()


def as_json(
    experiment: Experiment, device: Device, rows: Sequence[Outlook], spread: Spread | None
) -> Mapping[str, Any]:
    """What `paribus ablate plan --json` prints; names are a contract."""
    return {
        "study": experiment.name,
        "metric": experiment.metric.name,
        "arms": list(experiment.arms),
        "factors": list(experiment.factorial.factors) if experiment.factorial else [],
        "tuning_runs": experiment.tune.runs * len(experiment.names) if experiment.tune else 0,
        "alpha": experiment.alpha,
        "smallest_effect": experiment.smallest_effect,
        "open": experiment.seeds.open,
        "device": device.name,
        "stdev_of_differences": spread.stdev if spread else None,
        "stdev_source": spread.source if spread else None,
        "looks": [vars(row) for row in rows],
        "ladder": None if experiment.ladder is None else sizes_of(experiment.ladder),
    }
