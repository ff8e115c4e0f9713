"""The figures of an ablation's report: effects with their intervals, the difference over training, one dial at equal compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from paribus.pages.drawing import BLUE, FAINT, GOLD, GREEN, INK, RED, canvas, title
from paribus.study.experiment import Experiment
from paribus.study.scaling import Scaling
from paribus.study.verdict import ArmVerdict
from paribus.text import quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"better": GREEN, "worse": RED, "equivalent": BLUE, "undecided": FAINT, "not yet": FAINT}
LINES = (BLUE, RED, GOLD, GREEN, "#7d5ba6", "#5c7080")


def draw(
    experiment: Experiment, found: Sequence[ArmVerdict], profile: Scaling | None
) -> dict[str, Figure]:
    """The figures of a report, by name.

    Args:
        experiment: the study.
        found: the verdicts, the baseline left out.
        profile: the parabola of one dial, where there is one.

    Returns:
        forest: effects with intervals; curve: the difference over training, where it was measured; scaling: of one dial.
    """
    figures = {}
    if any(arm.effect for arm in found):
        figures["forest"] = _draw_forest(experiment, [arm for arm in found if arm.effect])
    if any(arm.over_training for arm in found):
        figures["curve"] = _draw_curves(found, "bytes" if experiment.equal == "bytes" else "tokens")
    if profile:
        figures["scaling"] = _draw_scaling(experiment, profile)
    return figures


def _draw_forest(experiment: Experiment, found: Sequence[ArmVerdict]) -> Figure:
    figure, (axes,) = canvas(height=1.5 + 0.5 * len(found))
    axes.axvspan(
        -experiment.smallest_effect,
        experiment.smallest_effect,
        color=FAINT,
        alpha=0.18,
        linewidth=0,
    )
    axes.axvline(0, color=INK, linewidth=1)
    for place, arm in enumerate(reversed(found)):
        effect = arm.effect
        assert effect is not None
        colour = COLOURS[effect.verdict]
        for base, value in zip(arm.baseline, arm.values, strict=True):
            axes.plot(value - base, place - 0.22, marker="|", markersize=7, color=FAINT)
        if abs(effect.low) != float("inf"):
            axes.plot([effect.low, effect.high], [place, place], color=colour, linewidth=2.4)
        axes.plot(effect.mean, place, marker="s", markersize=7, color=colour)
        axes.annotate(
            effect.verdict,
            (effect.mean, place),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=9,
        )
    axes.set_yticks(range(len(found)), [arm.name for arm in reversed(found)])
    axes.set_ylim(-0.6, len(found) - 0.3)
    axes.grid(visible=False, axis="y")
    better = {"lower": "left", "higher": "right"}[experiment.direction]
    title(
        axes,
        f"{experiment.metric.name}: arm − baseline",
        f"{experiment.metric.unit}; {better} of 0 is better; grey: too small to matter; ticks: single seeds",
    )
    return figure


def _draw_curves(found: Sequence[ArmVerdict], amount: str) -> Figure:
    """The differences over training. amount: what the left one is over, tokens or bytes."""
    figure, (left, right) = canvas(columns=2, height=3.8)
    for axes, kind, heading, axis in (
        (left, "over_training", f"At equal {amount}", f"pretraining {amount}"),
        (right, "over_seconds", "At equal time", "seconds of pretraining"),
    ):
        for arm, colour in zip(found, LINES * len(found), strict=False):
            curve = getattr(arm, kind)
            if curve is not None:
                axes.fill_between(
                    curve.steps,
                    curve.band_low,
                    curve.band_high,
                    color=colour,
                    alpha=0.18,
                    linewidth=0,
                )
                axes.plot(
                    curve.steps,
                    curve.mean,
                    color=colour,
                    linewidth=1.8,
                    marker="o",
                    markersize=3.5,
                    label=arm.name,
                )
        _zero(axes)
        title(
            axes,
            heading,
            axis,
            "bits per byte, arm − baseline" if axes is left else "",
        )
    _show_means(right, left)
    left.xaxis.set_major_formatter(lambda value, _: quantity(value))
    figure.legend(
        *left.get_legend_handles_labels(),
        loc="outside lower center",  # within the axes it would lie on curves of many arms
        ncols=4,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    return figure


def _show_means(axes: Axes, beside: Axes) -> None:
    """Bound the vertical axis by the means and by the axes beside it: the bands of runs of unequal speed hide them."""
    drawn = [float(value) for line in axes.get_lines() for value in np.atleast_1d(line.get_ydata())]
    known = [value for value in drawn if np.isfinite(value)]
    if not known:
        return
    low, high = min([*known, beside.get_ylim()[0]]), max([*known, beside.get_ylim()[1]])
    room = 0.1 * (high - low)
    before = axes.get_ylim()
    axes.set_ylim(max(low - room, before[0]), min(high + room, before[1]))
    if before[0] < low - room or before[1] > high + room:
        axes.set_title(
            "At equal time; bands are cut",
            loc="left",
            fontsize=10.5,
            color=INK,
            fontweight="bold",
            pad=10,
        )


def _draw_scaling(experiment: Experiment, profile: Scaling) -> Figure:
    figure, (axes,) = canvas(height=3.4)
    for row in profile.values:
        axes.plot(profile.sizes, row, marker="o", markersize=4, linestyle="", color=FAINT)
    between = np.geomspace(profile.sizes[0], profile.sizes[-1], 100)
    axes.plot(between, profile.at(between), color=BLUE, linewidth=1.8)
    if profile.best:
        best, low, high = profile.best
        axes.axvspan(low, high, color=GREEN, alpha=0.15, linewidth=0)
        axes.plot(best, profile.at(best), marker="D", markersize=7, color=GREEN)
    for size, value, mean in zip(
        profile.sizes, profile.dial, profile.values.mean(axis=0), strict=True
    ):
        axes.annotate(
            f"{profile.key.rpartition('.')[2]} {value:g}",
            (size, mean),
            xytext=(6, 8),
            textcoords="offset points",
            color=INK,
            fontsize=9,
        )
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(profile.sizes, [quantity(size) for size in profile.sizes])
    axes.margins(x=0.08, y=0.12)
    title(axes, f"{experiment.metric.name} at equal FLOPs", "parameters", experiment.metric.unit)
    return figure


def _zero(axes: Axes) -> None:
    axes.axhline(0, color=INK, linewidth=1)
    axes.locator_params(axis="x", nbins=5)
