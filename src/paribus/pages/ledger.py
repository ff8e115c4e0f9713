"""The page of the ledger: every try, the running best with its interval, and what is noise in grey."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paribus.files import write_atomic
from paribus.pages.drawing import BLUE, FAINT, GREEN, INK, canvas, svg, templates, title
from paribus.tries.ledger import Entry
from paribus.tries.standing import Point, StudyRow, running_best

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESULTS = Path("experiments/results")
NAME = "ledger"
ALT = "metric of every try from the first baseline, with intervals, and the running best"
LONGEST_LABEL = 24  # letters of a kept change in the picture


def write_page(
    entries: Sequence[Entry],
    studies: Sequence[StudyRow],
    data: Mapping[str, object],
    diffs: Mapping[int, str],
) -> Path:
    """Write ledger.html, ledger.json and ledger.png into experiments/results.

    Args:
        entries: every try.
        studies: every arm of the studies beside them.
        data: of the page, for programs.
        diffs: number of a try -> what it changes.

    Returns:
        The page.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    figure = draw(entries)
    page = RESULTS / f"{NAME}.html"
    write_atomic(page, html(entries, studies, data, diffs, figure))
    write_atomic(RESULTS / f"{NAME}.json", json.dumps(data, indent=1, allow_nan=False) + "\n")
    if figure is not None:
        figure.savefig(
            RESULTS / f"{NAME}.png", dpi=150, facecolor="white", metadata={"Software": None}
        )
    return page


def html(
    entries: Sequence[Entry],
    studies: Sequence[StudyRow],
    data: Mapping[str, object],
    diffs: Mapping[int, str],
    figure: Figure | None,
) -> str:
    """The page.

    Args:
        entries: every try.
        studies: every arm of the studies beside them.
        data: of the page, for programs.
        diffs: number of a try -> what it changes.
        figure: the picture.
    """
    from markupsafe import Markup

    drawn = Markup(svg(figure, NAME, ALT)) if figure is not None else ""
    page: str = (
        templates()
        .get_template("ledger.html.j2")
        .render(
            entries=entries,
            studies=studies,
            totals=data["totals"],
            diffs=diffs,
            figure=drawn,
        )
    )
    return page


# ---------------------------------------------------------------- the picture


def draw(entries: Sequence[Entry]) -> Figure | None:
    """The running best of the metric that most tries have; None before the first verdict with an effect."""
    chosen = _of_one_metric(entries)
    points = [point for point in running_best(chosen) if point.verdict]
    if not any(point.at is not None for point in points):
        return None
    from matplotlib.ticker import MaxNLocator

    begun = chosen[0].begun
    messages = {entry.number: entry.begun.message for entry in chosen}
    figure, (axes,) = canvas(height=3.8)
    _draw_best(axes, points)
    for point in points:
        _draw_point(axes, point, messages[point.number])
    title(
        axes,
        f"{begun.metric} of every try, from the first baseline ({begun.direction} is better)",
        "number of the try",
        f"difference in {begun.unit}",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _of_one_metric(entries: Sequence[Entry]) -> list[Entry]:
    metrics = [entry.begun.metric for entry in entries if entry.ended and entry.ended.seeds]
    if not metrics:
        return []
    commonest = max(dict.fromkeys(metrics), key=metrics.count)
    return [entry for entry in entries if entry.begun.metric == commonest]


def _draw_best(axes: Axes, points: Sequence[Point]) -> None:
    numbers = [point.number for point in points]
    axes.fill_between(
        numbers,
        [point.best_low for point in points],
        [point.best_high for point in points],
        step="post",
        color=BLUE,
        alpha=0.15,
        linewidth=0,
    )
    axes.step(numbers, [point.best for point in points], where="post", color=BLUE, linewidth=1.6)


def _draw_point(axes: Axes, point: Point, message: str) -> None:
    if point.at is None:
        axes.plot(point.number, point.best, marker="x", markersize=7, color=FAINT)
        return
    colour = GREEN if point.verdict == "keep" else FAINT
    if point.low is not None and point.high is not None:
        axes.plot([point.number] * 2, [point.low, point.high], color=colour, linewidth=1.6)
    marker = {"keep": "o", "discard": "v", "undecided": "s"}[point.verdict]
    axes.plot(point.number, point.at, marker=marker, markersize=6, color=colour)
    if point.verdict == "keep":
        short = message if len(message) <= LONGEST_LABEL else f"{message[: LONGEST_LABEL - 1]}…"
        axes.annotate(
            short,
            (point.number, point.at),
            xytext=(7, -3),
            textcoords="offset points",
            fontsize=8.5,
            color=INK,
        )
