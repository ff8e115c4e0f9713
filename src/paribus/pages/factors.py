"""The part of a report that is about factors: effects, one change at a time beside them, half-normal and interaction plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from paribus.pages.drawing import BLUE, FAINT, GOLD, INK, RED, canvas, title
from paribus.study.advice import Again
from paribus.study.experiment import Experiment
from paribus.study.factor_effects import FactorEffects
from paribus.study.factors import Factorial, Term, name_of
from paribus.study.fields import as_written
from paribus.study.power import seeds_for_equivalence, seeds_needed, upper_stdev
from paribus.study.statistics import Effect
from paribus.text import p_value, signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PLOTS = 10  # interactions drawn
ALT = {
    "halfnormal": "effects over their errors against the quantiles that noise alone would have",
    "interactions": "the metric at both levels of one factor, for both levels of another",
}


def rows(experiment: Experiment, found: FactorEffects, asked_again: Again) -> list[dict[str, Any]]:
    """The rows of the page's table of verdicts, one for each effect.

    Args:
        experiment: the study.
        found: its effects.
        asked_again: its question in a new study.
    """
    design = _design(experiment)
    effects = found.effects or dict.fromkeys(design.asked)
    made = []
    for term, effect in effects.items():
        said = _sentence(experiment, term, effect)
        if effect and effect.verdict == "undecided" and not found.diverged:
            said += _next(experiment, effect, asked_again)
        made.append(
            {
                "name": name_of(term),
                "sentence": f"{said}.",
                "effect": effect,
                "changed": _changed(design, term),
                "verdict": effect.verdict if effect else "none",
            }
        )
    return made


def _design(experiment: Experiment) -> Factorial:
    assert experiment.factorial is not None
    return experiment.factorial


def _changed(design: Factorial, term: Term) -> str:
    if len(term) == 1:
        return design.factors[term[0]].words()
    return f"how much more {term[0]} changes with {term[1]} than without"


def _next(experiment: Experiment, effect: Effect, asked_again: Again) -> str:
    """What would decide an undecided effect, and its cost: a new study with fresh seeds, as a design has one look."""
    if not effect.stdev:
        return ""
    spread = upper_stdev(effect.stdev, effect.n)
    to_see_it = seeds_needed(experiment.smallest_effect, spread, alpha=experiment.alpha)
    to_call_none = seeds_for_equivalence(experiment.smallest_effect, spread, alpha=experiment.alpha)
    if to_see_it is None or to_call_none is None:
        return "; more than 100,000 seeds would be needed"
    seeds = max(to_see_it, to_call_none, effect.n + 1)
    commands = asked_again.at_seeds(seeds, len(_design(experiment).cells))
    return f"; by an upper limit of this spread {seeds} seeds decide, in a new study with fresh seeds: {commands}"


def _sentence(experiment: Experiment, term: Term, effect: Effect | None) -> str:
    """The verdict on an effect, for people, without its full stop."""
    name = name_of(term)
    if effect is None:
        return f"{name}: no verdict, as fewer than two seeds have a value in every cell"
    size = (
        f"{signed(effect.mean)} {experiment.metric.unit} ({1 - experiment.alpha:.0%} interval {signed(effect.low)} to "
        f"{signed(effect.high)}, {effect.n} seeds, {p_value(effect.p_adjusted)})"
    )
    if effect.verdict == "not yet":
        return f"{name}: not yet, as cells are still to be run: {size}"
    if len(term) == 2:
        words = {
            "better": "together they are better than their parts say",
            "worse": "together they are worse than their parts say",
            "equivalent": "they do not depend on each other",
            "undecided": "whether they depend on each other is undecided",
        }
        return f"{name}: {words[effect.verdict]}: {size}"
    if effect.verdict == "equivalent":
        return f"{name} is equivalent, averaged over the other factors: {size}, within ±{experiment.smallest_effect:g}"
    if effect.verdict == "undecided":
        return f"{name}: undecided, averaged over the other factors: {size}"
    return f"{name} is {effect.verdict}, averaged over the other factors: {size}"


def section(experiment: Experiment, found: FactorEffects) -> dict[str, Any]:
    """What the templates show of factors.

    Args:
        experiment: the study.
        found: its effects.
    """
    design = _design(experiment)
    one_by_one = []
    for factor, effect in found.at_baseline.items():
        over_all = found.effects[factor,]
        one_by_one.append(
            {
                "name": factor,
                "alone": effect,
                "over_all": over_all,
                "agrees": effect.verdict == over_all.verdict,
            }
        )
    return {
        "design": design.words(),
        "names": list(design.factors),
        "one_by_one": one_by_one,
        "measured": found.measured,
        "agreement": agreement(experiment, found),
        "model": model_words(experiment, found),
        "cells": _cells(design, found),
        "left_out": ", ".join(map(str, found.left_out)),
    }


def agreement(experiment: Experiment, found: FactorEffects) -> str:
    """Whether one change at a time would have said the same, in sentences; "" where that is not known.

    Args:
        experiment: the study.
        found: its effects.
    """
    if not found.at_baseline:
        return ""
    differ = []
    for factor, effect in found.at_baseline.items():
        over_all = found.effects[factor,].verdict
        if effect.verdict != over_all:
            differ.append(f"{factor} is {effect.verdict} there and {over_all} over the design")
    how = "by the runs of two cells each" if found.measured else "by the model"
    start = f"One change at a time from the baseline ({how}) "
    if not differ:
        return f"{start}gives the same verdict on each of the {len(found.at_baseline)} factors."
    return f"{start}gives other verdicts: {'; '.join(differ)}."


def model_words(experiment: Experiment, found: FactorEffects) -> str:
    """The variances of the model in a sentence; "" where there is none."""
    if found.model is None:
        return ""
    unit = experiment.metric.unit
    return (
        f"Within a seed a run varies by {found.model.noise:.3g} {unit} (sd), and the effect of a single factor from seed to seed "
        f"by {found.model.varying:.3g} beyond that. Intervals are of the mixed model, or of an effect's own contrasts where "
        "those vary more; p is after Holm over single factors, and over interactions, and guarded by those contrasts."
    )


def _cells(design: Factorial, found: FactorEffects) -> list[dict[str, Any]]:
    """The rows of the table of cells, the best first where all are known."""
    table = []
    for cell, levels in design.cells.items():
        values = found.cells.get(cell) or []
        chosen = []
        for factor, level in zip(design.factors.values(), levels, strict=True):
            values_of = factor.second if level > 0 else factor.first
            chosen.append(", ".join(as_written(value) for value in values_of.values()))
        mean = sum(values) / len(values) if values else None
        table.append({"name": cell, "levels": chosen, "values": values, "mean": mean})
    return table


def draw(experiment: Experiment, found: FactorEffects) -> dict[str, Figure]:
    """The figures of a study with factors, by name; {} without two complete seeds.

    Args:
        experiment: the study.
        found: its effects.
    """
    if found.model is None:
        return {}
    figures = {"halfnormal": _half_normal(experiment, found)}
    pairs = [term for term in found.effects if len(term) == 2]
    if pairs:
        figures["interactions"] = _interactions(experiment, found, pairs)
    return figures


def _half_normal(experiment: Experiment, found: FactorEffects) -> Figure:
    """Effects in standard errors of the model against half-normal quantiles: noise lies on the line (Daniel, 1959)."""
    assert found.model is not None
    sizes = {}
    for term, effect in found.effects.items():
        error = (found.model.variance[term] / effect.n) ** 0.5
        sizes[term] = abs(effect.mean) / error if error else 0.0
    order = sorted(sizes, key=lambda term: sizes[term])
    number = len(order)
    quantiles = stats.halfnorm.ppf((np.arange(number) + 0.5) / number)
    figure, (axes,) = canvas(height=4.2)
    top = max(float(quantiles[-1]), 1.0)
    axes.plot([0, top], [0, top], color=FAINT, linewidth=1)
    for place, term in zip(quantiles, order, strict=True):
        decided = found.effects[term].verdict in ("better", "worse")
        axes.plot(
            place,
            sizes[term],
            marker="o" if len(term) == 1 else "s",
            markersize=6,
            color=RED if decided else BLUE,
        )
    for place, term in list(zip(quantiles, order, strict=True))[-6:]:
        axes.annotate(
            name_of(term),
            (place, sizes[term]),
            xytext=(-6, 4),
            textcoords="offset points",
            ha="right",
            color=INK,
            fontsize=9,
        )
    title(
        axes,
        "Half-normal plot: noise alone lies on the line; red: shown to differ from 0",
        "quantile of noise",
        "|effect| / standard error",
    )
    return figure


def _interactions(experiment: Experiment, found: FactorEffects, pairs: Sequence[Term]) -> Figure:
    """For the largest interactions, the mean at each of the four combinations of the two factors."""
    design = _design(experiment)
    shown = sorted(pairs, key=lambda term: -abs(found.effects[term].mean))[:MOST_PLOTS]
    columns = min(len(shown), 5)
    lines = -(-len(shown) // columns)
    figure, axes = canvas(lines, columns, height=0.6 + 2.1 * lines, sharey=True)
    means = np.array([np.mean(found.cells[cell]) for cell in design.cells])
    for panel, (first, second) in zip(axes, shown, strict=False):
        own, other = design.signs((first,)), design.signs((second,))
        for level, colour, words in ((-1, BLUE, "without"), (1, GOLD, "with")):
            ends = [float(means[(own == side) & (other == level)].mean()) for side in (-1, 1)]
            panel.plot(
                [0, 1], ends, marker="o", markersize=4, color=colour, label=f"{words} {second}"
            )
        panel.set_xticks([0, 1], ["without", first])
        panel.set_xlim(-0.25, 1.25)
        panel.legend(frameon=False, fontsize=7, labelcolor=INK)
        title(panel, "", "", experiment.metric.unit if panel is axes[0] else "")
    for panel in axes[len(shown) :]:
        panel.set_visible(False)
    return figure


def as_json(found: FactorEffects) -> Mapping[str, Any]:
    """The effects for programs; names are a contract.

    Args:
        found: of a study with factors.
    """
    return {
        "seeds": list(found.seeds),
        "left_out": list(found.left_out),
        "effects": {name_of(term): _plain(effect) for term, effect in found.effects.items()},
        "one_at_a_time": {name: _plain(effect) for name, effect in found.at_baseline.items()},
        "one_at_a_time_measured": found.measured,
        "cells": {cell: list(values) for cell, values in found.cells.items()},
    }


def _plain(effect: Effect) -> dict[str, Any]:
    bounds = [effect.low, effect.high]
    return {
        "mean": effect.mean,
        "interval": bounds if np.isfinite(bounds).all() else None,
        "p_adjusted": effect.p_adjusted,
        "verdict": effect.verdict,
    }
