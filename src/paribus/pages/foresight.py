"""`paribus ablate plan`: what a study can find and what it costs, for people and for scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from paribus.pages.plan import choose
from paribus.recipe import Recipe
from paribus.study.experiment import Experiment
from paribus.study.foresight import Outlook, Spread, as_json, cost_of_a_seed, outlook, spread_of
from paribus.study.outcomes import Outcomes
from paribus.study.settled import Study
from paribus.text import duration, number, quantity


def foresee(
    study: Study,
    outcomes: Outcomes,
    *,
    device: str | None,
    gpus: int,
    price: float | None,
    json_out: bool,
) -> None:
    """Print what a study can find after each look, and what that costs.

    Args:
        study: its runs.
        outcomes: how those ended that have.
        device: a card of devices.yaml; None: this machine's.
        gpus: of a run.
        price: in USD, of an hour and card; None: typical of the card.
        json_out: print JSON instead of a table.
    """
    experiment = study.experiment
    at_hand = device is None or device.lower() in ("cpu", "here")
    chosen, dtype = choose(Recipe.of(experiment.config()), None if at_hand else device)
    if at_hand:
        from paribus.plan.probe import calibrated

        chosen = calibrated(Recipe.of(experiment.config()), chosen, dtype)
    spread = spread_of(experiment, outcomes)
    cost = cost_of_a_seed(study, chosen, dtype, gpus, price)
    rows = outlook(experiment, cost, spread, len(study.groups_planned()))
    if json_out:
        click.echo(json.dumps(as_json(experiment, chosen, rows, spread), indent=1))
        return
    click.echo(page(experiment, chosen.name, rows, spread))


def page(
    experiment: Experiment, device: str, rows: Sequence[Outlook], spread: Spread | None
) -> str:
    """The outlook of a study as text.

    Args:
        experiment: the study.
        device: its name.
        rows: one for each look.
        spread: that it is planned with; None: none is known.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    unit = experiment.metric.unit
    arms = len(experiment.arms)
    table = Table(box=box.SIMPLE, title=f"{experiment.name} on {device}", title_justify="left")
    columns = ("seeds", "runs", "finds, sd", f"finds, {unit}", "power", "time", "USD", "GB")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row.seeds),
            str(row.runs),
            f"{row.detectable_sd:.2f}",
            number(row.detectable, 4),
            "–" if row.power is None else f"{row.power:.0%}",
            duration(row.hours * 3600),
            "–" if row.usd is None else f"{row.usd:.2f}",
            f"{row.disk_gb:.2f}",
        )
    console = Console(width=100)
    with console.capture() as captured:
        console.print(table)
    several = "s" if arms > 1 else ""
    after = "; looks go on after the last one shown" if experiment.seeds.open else ""
    of_what = f"of {arms} arm{several} (Holm)"
    if experiment.factorial is not None:
        of_what = "of a single factor, averaged over the others"
    lines = [
        captured.get().rstrip(),
        f"finds: the smallest effect found with power .8 by then, {of_what}; sd: of differences",
        f"power: of the smallest effect that matters, {experiment.smallest_effect:g} {unit}",
        f"time: of the runs one after another{after}",
    ]
    if experiment.factorial is not None:
        lines.append(f"design: {experiment.factorial.words()}")
    if experiment.tune is not None:
        lines.append(
            f"tuning: {experiment.tune.runs} runs of each arm and of the baseline come first, and all run untuned as well; both "
            "are counted"
        )
    if spread is None:
        how = (
            f"`paribus noise {experiment.profile}`"
            if experiment.profile
            else "`paribus noise PROFILE`"
        )
        lines.append(f"spread: not known, so that effects are in sd alone; {how} measures it")
    else:
        lines.append(f"spread: {spread.stdev:.3g} {unit}, from {spread.source}")
    return "\n".join([*lines, *conditions(experiment)])


def conditions(experiment: Experiment) -> list[str]:
    """The sizes and lengths at which a study runs, in lines.

    Args:
        experiment: the study.
    """
    lines = []
    if experiment.ladder is not None:
        ladder = experiment.ladder
        lines.append(f"ladder: {ladder.rule()}")
        for rung in (*ladder.rungs, ladder.beyond):
            trained = " (not trained: predicted)" if rung is ladder.beyond else ""
            lines.append(
                f"  {ladder.key} {rung.value:g}: {quantity(rung.parameters)} parameters, {quantity(rung.tokens)} tokens, "
                f"{quantity(rung.flops)} FLOPs{trained}"
            )
    if experiment.horizons is not None:
        lines.append(f"horizons: {experiment.horizons.words()}")
    return lines
