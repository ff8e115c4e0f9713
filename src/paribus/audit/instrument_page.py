"""The page of `paribus eval instrument`: tables of what evaluations can tell, and sentences."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from paribus.audit.instrument import Instrument, Looks, Resampling, Scale, Subset, instrument
from paribus.audit.lookup import find_all

if TYPE_CHECKING:
    from rich.console import RenderableType


def show(names: Sequence[str], as_json: bool) -> None:
    """Print what the evaluations of runs can tell.

    Args:
        names: of runs, or patterns.
        as_json: print JSON instead of tables.

    Raises:
        UserError: for a name that nothing has, and for runs without items.
    """
    runs = {run.name: run for name in names for run in find_all(name)}
    found = instrument(list(runs.values()))
    if as_json:
        click.echo(json.dumps(values_of(found), indent=1, allow_nan=False))
        return
    from rich.console import Console

    Console().print(*page(found), sep="\n")


def values_of(found: Instrument) -> dict[str, object]:
    """What the page shows, for programs.

    Args:
        found: of the runs.
    """
    values = dataclasses.asdict(found)
    for row, scale in zip(values["scales"], found.scales, strict=True):
        row["signal_to_noise"] = scale.signal_to_noise
    return values


def page(found: Instrument) -> list[RenderableType]:
    """Tables and sentences.

    Args:
        found: of the runs.
    """
    many = "s" if len(found.runs) > 1 else ""
    recipes = f"{found.recipes} recipe{'s' if found.recipes > 1 else ''}"
    parts: list[RenderableType] = [f"{len(found.runs)} run{many} of {recipes}"]
    parts.append(_scales(found.scales))
    parts.append(
        "detectable: a true difference that is found four times in five at p < .05, between two models on their own and item "
        "by item; the noise of seeds comes on top of it. signal: range of the recipes' means; noise: between seeds of one "
        "recipe."
    )
    parts += [_missing(found)]
    if found.subset:
        parts.append(_subset_words(found.subset))
    parts += [_resampling_words(one) for one in found.resampling]
    parts += [_looks_words(one) for one in found.looks]
    return [part for part in parts if part]


# Column -> (attribute of a scale, how it is written).
COLUMNS = {
    "items": ("items", ","),
    "score": ("score", ".4f"),
    "stderr": ("stderr", ".4f"),
    "detectable": ("detectable", ".3f"),
    "item by item": ("detectable_paired", ".3f"),
    "noise": ("noise", ".4f"),
    "signal": ("signal", ".4f"),
    "ratio": ("signal_to_noise", ".1f"),
}


def _scales(scales: Sequence[Scale]) -> RenderableType:
    """The table of evaluations and their tasks; a column without values is left out."""
    from rich import box
    from rich.table import Table

    known = {}
    for title, (name, form) in COLUMNS.items():
        if any(getattr(scale, name) is not None for scale in scales):
            known[title] = (name, form)
    table = Table(box=box.SIMPLE)
    table.add_column("", no_wrap=True)
    for title in known:
        table.add_column(title, justify="right")
    for scale in scales:
        cells = []
        for name, form in known.values():
            value = getattr(scale, name)
            cells.append("–" if value is None else format(value, form))
        table.add_row(scale.name, *cells)
    return table


def _missing(found: Instrument) -> str:
    """What more runs would show."""
    if len(found.runs) == 1:
        return "One run has no noise of seeds and no signal: name several, as 'my-study.*'."
    if found.recipes == 1:
        return "One recipe has no signal: name runs of several, as 'my-study.*'."
    if found.scales[0].noise is None:
        return "No recipe has two seeds, so the noise of seeds is unknown."
    return ""


def _subset_words(subset: Subset) -> str:
    how = (
        "chosen on every other run of each recipe, measured on the rest"
        if subset.held_out
        else "chosen and measured on the same runs, so it looks better than it is; with four seeds of each recipe it is "
        "measured on others"
    )
    return (
        f"CORE's tasks that tell these recipes apart best: {', '.join(subset.tasks)}: signal to noise {subset.ratio:.1f}, of "
        f"all tasks {subset.whole:.1f} ({how})."
    )


def _resampling_words(one: Resampling) -> str:
    share = 1 - one.without_drawing**2 / one.stderr**2 if one.stderr else 0.0
    return (
        f"{one.name}, {one.answers} sampled answers to each of {one.items:,} items: stderr {one.stderr:.4f}, of whose variance "
        f"{share:.0%} is of drawing answers; endless answers would leave {one.without_drawing:.4f}, and only more items less."
    )


def _looks_words(one: Looks) -> str:
    words = (
        f"{one.name}: the last {one.looks} looks scatter by {one.scatter:.3g} about a straight line"
    )
    if one.last is None or one.mean is None:
        return f"{words}; three seeds of a recipe show whether their mean varies less."
    seeds = f"the last look varies by {one.last:.3g} and the mean of the last {one.looks} by {one.mean:.3g}"
    return f"{words}; from seed to seed {seeds}."
