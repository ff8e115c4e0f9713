"""Seconds of a step of each arm, measured in turns, and what their error adds to a comparison at equal seconds.

One measurement of an arm fixes the steps of all of its runs, so its error is the same at every seed and no number of seeds
shows it. Arms and baseline are therefore timed in turns, several rounds, so that a machine that slows down slows both, and the
scatter of their ratio gives an error. What that means for bits per byte follows from the end of the curves: so many per cent
more steps would have lowered them by so much. In the decay of the learning rate a curve falls faster than longer runs end
lower, so the error is on the wide side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev

from paribus.config import Config
from paribus.files import Optional, Shape, Values, read_json
from paribus.study.events import folder_of
from paribus.study.experiment import BASELINE, Experiment
from paribus.study.results import Result

ROUNDS = 4
SECONDS = 8.0  # of all rounds of an arm together
END = 0.8  # of the tokens: from there to the end a curve's slope is taken
KEPT: Shape = {"step_seconds": Optional(Values({"error": Optional((int, float))}))}
# (an arm's parameters, for how long) -> seconds of a step.
Measure = Callable[[Config, float], float]


def time_in_turns(
    configs: Mapping[str, Config], measure: Measure, known: float | None = None
) -> dict[str, tuple[float, float]]:
    """Arm -> (seconds of a step, standard error of the ratio to the baseline's); measured in turns.

    Args:
        configs: of the baseline and of the arms.
        measure: times an arm.
        known: seconds of a step of the baseline, where they were settled before; arms are then timed in ratio to it.
    """
    seen: dict[str, list[float]] = {arm: [] for arm in configs}
    for _ in range(ROUNDS):
        for arm, config in configs.items():
            seen[arm].append(math.log(measure(config, SECONDS / ROUNDS)))
    base = seen[BASELINE]
    of_base = fmean(base) if known is None else math.log(known)
    found = {}
    for arm, own in seen.items():
        ratios = [one - other for one, other in zip(own, base, strict=True)]
        error = stdev(ratios) / math.sqrt(ROUNDS)
        found[arm] = (math.exp(of_base + fmean(ratios)), error)
    return found


def error_of_timing(experiment: Experiment, pairs: Sequence[tuple[Result, Result]]) -> float:
    """The standard error that the measured seconds give a difference, in bits per byte; 0 where seconds are not held equal.

    Args:
        experiment: the study.
        pairs: of runs of two arms.
    """
    if experiment.equal != "seconds" or not pairs:
        return 0.0
    kept = read_json(folder_of(experiment.name) / "study.json", KEPT, move=False) or {}
    errors = []
    slopes = []
    for result in pairs[0]:
        entry = (kept.get("step_seconds") or {}).get(result.arm) or {}
        errors.append(float(entry.get("error") or 0.0))
    for pair in pairs:
        slopes += [slope for slope in map(slope_at_end, pair) if slope is not None]
    return math.hypot(*errors) * fmean(slopes) if slopes else 0.0


def slope_at_end(result: Result) -> float | None:
    """By how much bits per byte fall for each e-fold of tokens, over the last fifth of a run; None of fewer than two looks."""
    looks = []
    for row in result.curve:
        tokens, value = row.get("tokens"), row.get("val_bpb")
        if tokens and value is not None and math.isfinite(value):
            looks.append((tokens, value))
    if len(looks) < 2:
        return None
    last_tokens, last = looks[-1]
    earlier = [look for look in looks[:-1] if look[0] <= END * last_tokens]
    first_tokens, first = earlier[-1] if earlier else looks[-2]
    return abs(first - last) / math.log(last_tokens / first_tokens)
