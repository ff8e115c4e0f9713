"""What all pages share: colours, templates, quiet axes, and figures as SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus.text import duration, number, p_value, percent, quantity, signed

if TYPE_CHECKING:
    import jinja2
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#22303c", "#8a97a3"  # INK becomes the page's text colour in SVG
BLUE, RED, GOLD, GREEN = "#3a80ba", "#c95d4b", "#d9a441", "#4f9d69"

FILTERS: dict[str, Callable[..., str]] = {
    "percent": percent,
    "number": number,
    "quantity": quantity,
    "duration": duration,
    "p_value": p_value,
    "signed": signed,
}


def templates(escape: bool = True) -> jinja2.Environment:
    """The templates of pages, with FILTERS; without `escape` for Markdown."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment


def canvas(
    rows: int = 1, columns: int = 1, height: float = 3.2, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of the page's width that belongs to no window, with quiet axes.

    Args:
        rows: of axes.
        columns: of axes.
        height: in inches.
        options: of matplotlib's `subplots`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.spines[["left", "bottom"]].set_color(FAINT)
        each.tick_params(colors=INK, color=FAINT, labelsize=9)
        each.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.7)
        each.set_axisbelow(True)
    return figure, axes


def title(axes: Axes, text: str, x: str = "", y: str = "") -> None:
    """Head of axes, at the left, and their labels.

    Args:
        axes: which.
        text: of the head.
        x: label of the horizontal axis.
        y: label of the vertical axis.
    """
    axes.set_title(text, loc="left", fontsize=10.5, color=INK, fontweight="bold", pad=10)
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)


def legend_above(axes: Axes) -> None:
    """The legend in a row between title and axes."""
    axes.set_title(
        axes.get_title(loc="left"), loc="left", fontsize=10.5, color=INK, fontweight="bold", pad=27
    )
    axes.legend(
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        loc="lower left",
        bbox_to_anchor=(-0.01, 0.99),
        ncols=3,
        borderaxespad=0,
        handlelength=1.4,
    )


def svg(figure: Figure, name: str, alt: str) -> str:
    """A figure as SVG for a page: text stays text, ids are its own, INK is the page's text colour.

    Args:
        figure: to draw.
        name: with which its ids begin.
        alt: what it shows.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": f"paribus {name}", "svg.fonttype": "none"}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", text).replace(INK, "currentColor")
    return text.replace("<svg ", f'<svg class="figure" role="img" aria-label="{alt}" ', 1)
