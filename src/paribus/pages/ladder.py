"""A ladder on a page: what becomes of each arm's effect beyond the sizes trained, its effect on every rung, and the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from paribus.pages.code_arms import code_sections
from paribus.pages.drawing import BLUE, FAINT, GOLD, GREEN, INK, RED, canvas, title
from paribus.study.advice import Again, NextLook
from paribus.study.experiment import BASELINE, Experiment
from paribus.study.groups import Ladder, Rung
from paribus.study.ladder import Climb, LadderJudged, on_rung
from paribus.study.outcomes import Outcomes
from paribus.study.trend import Estimate, Trend
from paribus.study.verdict import costs
from paribus.text import quantity, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = (BLUE, RED, GREEN, GOLD)


def ladder_values(
    experiment: Experiment,
    outcomes: Outcomes,
    judged: LadderJudged,
    coming: NextLook | None,
    asked_again: Again,
    cost_rows: Mapping[str, tuple[str, Any]],
) -> dict[str, Any]:
    """What the page of a study with a ladder shows in place of verdicts at one size, by name.

    Args:
        experiment: the study.
        outcomes: how its runs ended.
        judged: what its looks gave.
        coming: its next look; None: there is none.
        asked_again: its question in a new study.
        cost_rows: of the cost table: name -> (words, how it is written).
    """
    ladder = experiment.ladder
    assert ladder is not None
    columns, names = [], []
    for rung in ladder.rungs:
        here, results = experiment.at(rung), on_rung(experiment, outcomes, rung).results
        for name in experiment.names:
            names.append(f"{name}, {_size(ladder, rung)}")
            columns.append(costs(here, results, name))
    cost = []
    for key, (words, write) in cost_rows.items():
        values = [column[key] for column in columns]
        if any(value is not None for value in values):
            cost.append([words, *("–" if value is None else write(value) for value in values)])
    largest = ladder.rungs[-1]
    of_largest = on_rung(experiment, outcomes, largest).results
    verdicts = []
    for arm, climb in judged.climbs.items():
        words = sentence(experiment, arm, climb, coming, asked_again)
        verdicts.append({"name": arm, "sentence": words, "effect": None, "verdict": climb.answer})
    return {
        "verdicts": verdicts,
        "names": names,
        "cost": cost,
        "values": _pairs(experiment, judged),
        "code": code_sections(experiment.at(largest), of_largest),
        "ladder": {
            "rule": ladder.rule(),
            "key": ladder.key,
            "rows": _rows(experiment, judged),
        },
    }


def _size(ladder: Ladder, rung: Rung) -> str:
    return f"{ladder.key.rpartition('.')[2]} {rung.value:g}"


def _pairs(experiment: Experiment, judged: LadderJudged) -> list[dict[str, Any]]:
    """The metric of each matched pair on each rung."""
    ladder = experiment.ladder
    assert ladder is not None
    rows = []
    for arm, climb in judged.climbs.items():
        for one in climb.rungs:
            for seed, base, value in zip(one.seeds, one.baseline, one.values, strict=True):
                pair = {"arm": f"{arm}, {_size(ladder, one.rung)}", "seed": seed}
                rows.append(pair | {"baseline": base, "value": value, "difference": value - base})
    return rows


def _rows(experiment: Experiment, judged: LadderJudged) -> list[dict[str, Any]]:
    """A row for each arm on each rung, and one for the size not trained."""
    ladder = experiment.ladder
    assert ladder is not None
    rows = []
    for arm, climb in judged.climbs.items():
        for one in climb.rungs:
            line = climb.trend.line(one.rung.flops) if climb.trend else None
            rows.append(
                _row(ladder, arm, one.rung, one.effect) | {"line": line, "seeds": len(one.seeds)}
            )
        beyond = _row(ladder, arm, ladder.beyond, climb.predicted)
        line = climb.predicted.mean if climb.predicted else None
        rows.append(beyond | {"line": line, "seeds": None})
    return rows


def _row(ladder: Ladder, arm: str, rung: Rung, effect: Estimate | None) -> dict[str, Any]:
    return {
        "arm": arm,
        "size": f"{rung.value:g}",
        "parameters": quantity(rung.parameters),
        "tokens": quantity(rung.tokens),
        "flops": quantity(rung.flops),
        "effect": effect,
    }


# ---------------------------------------------------------------- in words


def sentence(
    experiment: Experiment,
    arm: str,
    climb: Climb,
    coming: NextLook | None = None,
    asked_again: Again | None = None,
) -> str:
    """What becomes of an arm's effect, for people.

    Args:
        experiment: the study.
        arm: its name.
        climb: what its rungs say.
        coming: the study's next look; None: there is none.
        asked_again: its question in a new study; None: no command is named.
    """
    ladder, unit = experiment.ladder, experiment.metric.unit
    assert ladder is not None
    if climb.trend is None or climb.predicted is None or climb.change is None:
        why = climb.lost or "a line takes two seeds at every rung, and a spread"
        return f"{arm}: unknown: {why}{_next(experiment, climb, coming, asked_again)}."
    level = experiment.alpha if climb.level is None else climb.level
    interval = f"{100 * (1 - level):.4g} % interval"
    at = f"{ladder.key} {ladder.beyond.value:g} ({quantity(ladder.beyond.parameters)} parameters, not trained)"
    predicted = (
        f"{signed(climb.predicted.mean)} {unit} predicted at {at}, {interval} {signed(climb.predicted.low)} to "
        f"{signed(climb.predicted.high)} for what {climb.seeds} seeds would measure"
    )
    trend = (
        f"over {len(climb.rungs)} rungs it changes by {signed(climb.change.mean)} for each tenfold of compute "
        f"({signed(climb.change.low)} to {signed(climb.change.high)})"
    )
    parts = [predicted, trend, *_checked(experiment, climb)]
    if climb.answer == "unknown":
        parts.append(_why_unknown(climb))
        return f"{arm}: unknown: {'; '.join(parts)}{_next(experiment, climb, coming, asked_again)}."
    if climb.answer == "vanishes":
        parts[0] += f", within ±{experiment.smallest_effect:g}, the smallest effect that matters"
    return f"{arm} {climb.answer}: {'; '.join(parts)}."


def _next(
    experiment: Experiment, climb: Climb, coming: NextLook | None, asked_again: Again | None
) -> str:
    """What may be done about an arm whose answer is unknown."""
    if coming:
        return f"; {coming.words()}"
    ladder = experiment.ladder
    if ladder is None or asked_again is None:
        return ""
    commands = asked_again.each_seed(len(ladder.rungs) * len(experiment.names))
    if climb.check is not None and not climb.check.passed:
        return f"; more seeds do not make it a line, other rungs may: set them in a new study: {commands}"
    return f"; a new study with fresh seeds and open looks may tell: {commands}"


def _checked(experiment: Experiment, climb: Climb) -> list[str]:
    """What the rung says that was kept out."""
    ladder, check = experiment.ladder, climb.check
    if check is None or ladder is None:
        return []
    kept_out = max(ladder.rungs, key=lambda rung: rung.flops)
    where = "inside" if check.passed else "outside"
    return [
        f"kept out of a first fit, {_size(ladder, kept_out)} was measured at {signed(check.measured)}, {where} its prediction "
        f"from the others ({signed(check.predicted.low)} to {signed(check.predicted.high)})"
    ]


def _why_unknown(climb: Climb) -> str:
    if climb.lost:
        return f"{climb.lost}, and no answer rests on the others alone"
    if climb.level is None:
        return "estimates without a verdict, as no look with an error rate to spend was complete"
    if climb.check is not None and not climb.check.passed:
        return "so the line does not hold over the rungs"
    return "neither that it holds, shrinks nor vanishes is shown"


# ---------------------------------------------------------------- the picture


def draw_ladder(experiment: Experiment, judged: LadderJudged) -> Figure | None:
    """Effect over compute: every rung with its interval, the line with its prediction interval, and the size not trained.

    Args:
        experiment: the study.
        judged: what its looks gave.
    """
    ladder = experiment.ladder
    fitted = {arm: climb for arm, climb in judged.climbs.items() if climb.trend is not None}
    if ladder is None or not fitted:
        return None
    figure, (axes,) = canvas(height=3.6)
    smallest = experiment.smallest_effect
    axes.axhspan(-smallest, smallest, color=FAINT, alpha=0.18, linewidth=0)
    axes.axhline(0, color=INK, linewidth=1)
    places = [rung.flops for rung in (*ladder.rungs, ladder.beyond)]
    between = np.geomspace(min(places), max(places), 100)
    for (arm, climb), colour in zip(fitted.items(), LINES * len(fitted), strict=False):
        level = experiment.alpha if climb.level is None else climb.level
        _draw_line(axes, arm, climb.trend, between, level, colour)
        _draw_rungs(axes, climb, colour)
        _draw_prediction(axes, climb, ladder.beyond.flops, colour)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(places, [_tick(ladder, at) for at in places])
    axes.margins(x=0.06)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    title(
        axes,
        f"{experiment.metric.name}: arm − {BASELINE} over sizes",
        f"{ladder.key}, by FLOPs of the baseline; open: not trained",
        experiment.metric.unit,
    )
    return figure


def _draw_line(
    axes: Axes, arm: str, trend: Trend | None, flops: np.ndarray, level: float, colour: str
) -> None:
    """An arm's line with its band, at FLOPs (n,)."""
    if trend is None:
        return
    bands = [trend.at(float(at), level) for at in flops]
    low, high = [band.low for band in bands], [band.high for band in bands]
    axes.fill_between(flops, low, high, color=colour, alpha=0.12, linewidth=0)
    means = [band.mean for band in bands]
    axes.plot(flops, means, color=colour, linewidth=1.6, label=arm)


def _draw_rungs(axes: Axes, climb: Climb, colour: str) -> None:
    """Every difference of an arm at every size, and their mean."""
    for one in climb.rungs:
        for difference in one.differences:
            axes.plot(one.rung.flops, difference, marker="_", markersize=8, color=FAINT)
        if one.effect is not None:
            axes.plot(one.rung.flops, one.effect.mean, marker="s", markersize=6, color=colour)


def _draw_prediction(axes: Axes, climb: Climb, flops: float, colour: str) -> None:
    """What is predicted of the size that is not trained."""
    predicted = climb.predicted
    if predicted is None or not math.isfinite(predicted.high):
        return
    axes.plot([flops] * 2, [predicted.low, predicted.high], color=colour, linewidth=2.4)
    axes.plot(flops, predicted.mean, "D", markersize=7, color=colour, markerfacecolor="white")


def _tick(ladder: Ladder, flops: float) -> str:
    [rung] = [one for one in (*ladder.rungs, ladder.beyond) if one.flops == flops]
    return f"{rung.value:g}\n{quantity(flops)}"


def printed(values: Mapping[str, Any]) -> Sequence[str]:
    """The rows of a ladder as lines for a terminal.

    Args:
        values: what the page shows, as `ladder_values` gives it.
    """
    lines = []
    for row in values["ladder"]["rows"]:
        effect = row["effect"]
        size = (
            "–"
            if effect is None
            else f"{signed(effect.mean)} ({signed(effect.low)} to {signed(effect.high)})"
        )
        kind = "predicted" if row["seeds"] is None else f"{row['seeds']} seeds"
        lines.append(f"  {row['arm']}, {values['ladder']['key']} {row['size']}: {size}, {kind}")
    return lines
