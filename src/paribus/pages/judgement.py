"""The page of `paribus judge`: one offline HTML file with the answer first, the effects, and the published rules beside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus.files import write_atomic
from paribus.judge.terminal import shortened
from paribus.judge.verdicts import Comparison, Judgement
from paribus.judge.words import as_json, change, digits_of, interval_words, sentence, summary
from paribus.pages.drawing import FAINT, INK, canvas, svg, templates, title
from paribus.pages.verdict_figures import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALT = "difference of every arm from the one it is compared with, with its interval"
MOST_DRAWN = 60  # arms in one figure


def write_page(judgement: Judgement, path: Path) -> None:
    """Write the page.

    Args:
        judgement: of a table.
        path: of the HTML file.
    """
    write_atomic(path, html(judgement))


def html(judgement: Judgement) -> str:
    """The page as HTML.

    Args:
        judgement: of a table.
    """
    from markupsafe import Markup

    figure = forest(judgement)
    values: dict[str, Any] = as_json(judgement)
    digits = digits_of(judgement)
    rows = []
    for one, said in zip(judgement.comparisons, values["comparisons"], strict=True):
        interval = "–"
        if one.low is not None:
            interval = interval_words(one, judgement.options, digits).partition("interval ")[2]
        rows.append(
            said
            | {
                "difference": change(one.difference, digits),
                "interval": interval,
                "sentence": sentence(one, judgement),
            }
        )
    return (
        templates()
        .get_template("judgement.html.j2")
        .render(
            title=f"{values['metric']} of {Path(judgement.source).name}",
            answer=summary(judgement),
            values=values,
            rows=rows,
            digits=digits,
            options=judgement.options,
            figure=Markup(svg(figure, "forest", ALT)) if figure else "",
        )
    )


def forest(judgement: Judgement) -> Figure | None:
    """Every difference with its interval; None where no difference is known.

    Args:
        judgement: of a table.
    """
    shown = [one for one in judgement.comparisons if math.isfinite(one.difference)][:MOST_DRAWN]
    if not shown:
        return None
    options = judgement.options
    figure, (axes,) = canvas(height=1.4 + 0.34 * len(shown))
    if options.smallest_effect is not None:
        edge = options.smallest_effect
        axes.axvspan(-edge, edge, color=FAINT, alpha=0.18, linewidth=0)
    axes.axvline(0, color=INK, linewidth=1)
    left, right = _limits(shown)
    for place, one in enumerate(reversed(shown)):
        colour = COLOURS[one.verdict]
        if one.low is not None and one.high is not None:
            ends = [max(one.low, left), min(one.high, right)]
            axes.plot(ends, [place, place], color=colour, linewidth=2.4)
        axes.plot(one.difference, place, marker="s", markersize=6, color=colour)
    axes.set_xlim(left, right)
    axes.set_yticks(range(len(shown)), [shortened(one.arm) for one in reversed(shown)])
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.grid(visible=False, axis="y")
    against = "the arm before it" if options.chain else options.baseline
    better = {"lower": "left", "higher": "right"}[options.result_direction]
    grey = "; grey band: too small to matter" if options.smallest_effect is not None else ""
    title(axes, f"difference from {against}", f"{better} of 0 is better{grey}")
    return figure


def _limits(shown: Sequence[Comparison]) -> tuple[float, float]:
    """What the horizontal axis goes from and to: past 0, every difference and every finite end of an interval."""
    drawn = [0.0]
    for one in shown:
        drawn.append(one.difference)
        drawn += [end for end in (one.low, one.high) if end is not None and math.isfinite(end)]
    left, right = min(drawn), max(drawn)
    room = 0.06 * ((right - left) or 1.0)
    return left - room, right + room
