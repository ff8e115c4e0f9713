"""`paribus plan`: the page for people, the JSON for scripts, the grades."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from paribus.config import (
    Config,
    change_notes,
    flatten,
    load_config,
    merge_problems,
    profile_overrides,
)
from paribus.errors import UserError
from paribus.plan.devices import Device, board_note, default_dtype, device_named
from paribus.plan.estimate import Plan, StagePlan, as_json, make_plan
from paribus.plan.memory import parse_bytes
from paribus.recipe import Recipe
from paribus.text import count, file_size, memory_size, time_span


def plan(
    profile: str | None,
    overrides: dict[str, Any],
    *,
    device: str | None,
    vram: str | None,
    gpus: int,
    price: float | None,
    seeds: int,
    probe: bool,
    json_out: bool,
) -> None:
    """Print the plan of params.yaml with a profile's and then the command line's overrides.

    Args:
        profile: its name; None: params.yaml as it is.
        overrides: dotted key -> value.
        device: a card of devices.yaml, "cpu" or "here"; None: this machine.
        vram: the memory budget, as 24GiB; None: the device's.
        gpus: how many cards.
        price: in USD, of an hour and card; None: no cost is worked out.
        seeds: how many runs the total is of.
        probe: measure some steps here first.
        json_out: print JSON instead of tables.

    Raises:
        UserError: with everything that is wrong with the options, or with the configuration.
    """
    at_hand = device is None or device.lower() in ("cpu", "here")
    problems = _option_problems(gpus, price, seeds, probe and not at_hand)
    if problems:
        raise UserError(problems)
    if device and device.lower() == "cpu":
        overrides = overrides | {"train.device": "cpu"}
    recipe = Recipe.of(_config(profile, overrides))
    chosen, dtype = choose(recipe, None if at_hand else device)
    if probe:
        _probe(recipe, chosen, dtype)
    if at_hand:
        from paribus.plan.probe import calibrated

        chosen = calibrated(recipe, chosen, dtype)
    planned = make_plan(
        recipe,
        chosen,
        dtype=dtype,
        gpus=gpus,
        price=price,
        seeds=seeds,
        vram=parse_bytes(vram, "--vram") if vram else chosen.memory,
    )
    if json_out:
        click.echo(json.dumps(as_json(planned), indent=1))
    else:
        Console().print(*page(planned, profile), sep="\n")


def _option_problems(
    gpus: int, price: float | None, seeds: int, probes_elsewhere: bool
) -> list[str]:
    problems = []
    if gpus < 1 or seeds < 1:
        problems.append(f"--gpus {gpus} --seeds {seeds}: both must be at least 1")
    if price is not None and not 0 <= price < math.inf:
        problems.append(f"--price: {price} is not a price; expected a number of 0 or more")
    if probes_elsewhere:
        problems.append("--probe measures the machine at hand; leave --device out")
    return problems


def _config(profile: str | None, overrides: dict[str, Any]) -> Config:
    """params.yaml with a profile and overrides; notes on changes without effect go to stderr. Raises UserError."""
    of_profile = profile_overrides(profile) if profile else {}
    config = load_config(overrides=of_profile | overrides)
    merged = merge_problems(flatten(load_config(overrides=of_profile)), flatten(config))
    if merged:
        raise UserError(merged)
    asked = list(overrides) if profile else None  # a profile's own values are its author's decision
    for note in change_notes(config, asked):
        click.echo(f"paribus plan: {note}", err=True)
    return config


def choose(recipe: Recipe, name: str | None) -> tuple[Device, str]:
    """The device, and the type of its products.

    Args:
        recipe: of the run.
        name: of a card; None: this machine's device.
    """
    if name is None:
        from paribus.plan.probe import here

        return here(recipe)
    dtype: str = recipe.config.train.dtype
    if dtype == "auto":
        dtype = default_dtype(name)
    device = device_named(name, dtype)
    note = board_note(name)
    if note:
        click.echo(f"paribus plan: {note}", err=True)
    return device, dtype


def _probe(recipe: Recipe, device: Device, dtype: str) -> None:
    from paribus.plan.probe import run_probe

    measured = run_probe(recipe, device, dtype)
    click.echo(
        f"probe: {measured.seconds_per_step:.3g} s a step of pretraining, {measured.correction:.2f} times the estimate; "
        f"peak memory {memory_size(measured.peak_memory_bytes)}, predicted {memory_size(measured.predicted_memory_bytes)}",
        err=True,
    )


# ---------------------------------------------------------------- the page

LABELS = {
    "optimizer": "optimizer state",
    "logits": "logits, loss",
    "cache": "KV cache",
    "update": "optimizer's step",
    "reserve": "framework reserve",
}


def page(made: Plan, profile: str | None) -> list[Any]:
    """What is printed, from top to bottom.

    Args:
        made: the plan.
        profile: its name; None: params.yaml as it is.
    """
    counts, device = made.parameters, made.device
    products = f"{_teraflops(device.rate)} TFLOP/s of large products in {made.dtype}"
    if made.fp8 and device.fp8:
        products += f", {_teraflops(device.fp8 * device.attainable)} in fp8"
    measured = " · calibrated by what was measured here" if device.corrections else ""
    head = (
        f"[bold]{profile or 'params.yaml'}[/bold]   {counts['total'] / 1e6:,.1f} M parameters "
        f"({counts['matrices'] / 1e6:,.1f} M in matrices)   {made.flops_per_token / 1e9:,.3g} GFLOP a token\n"
        f"{made.gpus} x {device.name}   {products}   "
        f"{device.bandwidth / 1e9:,.3g} GB/s   budget {memory_size(made.vram)}{measured}"
    )
    return [
        Panel(head, title="paribus plan", expand=False),
        _time_table(made),
        _memory_table(made),
        _notes(made),
    ]


def _teraflops(rate: float) -> str:
    """Three digits, or all before the point."""
    number = rate / 1e12
    return f"{number:,.0f}" if number >= 100 else f"{number:,.3g}"


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        padding=(0, 1, 0, 0),  # seven columns of figures fit 80 characters
    )
    table.add_column(columns[0], no_wrap=columns[0] == "stage")
    for column in columns[1:]:
        is_text = column in ("bound by", "hardware")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=not is_text)
    return table


def _time_table(made: Plan) -> Table:
    table = _table("Time", "stage", "tokens", "tokens/s", "time", "from", "to", "bound by")
    for name, stage in made.stages.items():
        speed = f"{stage.tokens_per_second:,.0f}" if stage.tokens_per_second else ""
        spread = made.spread_of(name)
        table.add_row(
            name,
            count(stage.tokens),
            speed,
            time_span(stage.seconds),
            time_span(stage.seconds / spread),
            time_span(stage.seconds * spread),
            stage.work.bound_by,
        )
    total = made.hours * 3600
    table.add_section()
    table.add_row(
        "[bold]all[/bold]",
        "",
        "",
        f"[bold]{time_span(total)}[/bold]",
        time_span(made.hours_low * 3600),
        time_span(made.hours_high * 3600),
        "",
    )
    return table


def _memory_table(planned: Plan) -> Table:
    stages = list(planned.stages.values())
    budget = memory_size(planned.vram)
    table = _table("Memory at the peak of each stage", "", *planned.stages)
    for kind in dataclasses.fields(stages[0].memory):
        sizes = [getattr(stage.memory, kind.name) for stage in stages]
        if any(sizes):
            cells = [memory_size(size) if size else "" for size in sizes]
            table.add_row(LABELS.get(kind.name, kind.name), *cells)
    table.add_section()
    totals = []
    for stage in stages:
        colour = "green" if stage.memory.total <= planned.vram else "red"
        totals.append(f"[bold {colour}]{memory_size(stage.memory.total)}[/]")
    largest = [str(stage.max_device_batch_size or "[red]none[/]") for stage in stages]
    table.add_row("[bold]total[/bold]", *totals)
    table.add_row("device batch", *(str(stage.device_batch_size) for stage in stages))
    table.add_row(f"largest in {budget}", *largest)
    return table


def _disk(gigabytes: float) -> str:
    return file_size(gigabytes * 1e9)


def _energy(kilowatt_hours: float) -> str:
    """In the unit that needs no leading zeros."""
    if kilowatt_hours < 1:
        return f"{1000 * kilowatt_hours:,.3g} Wh"
    return f"{kilowatt_hours:,.3g} kWh"


def _notes(planned: Plan) -> str:
    """Facts beside the tables: shares of the time, disk, energy, cost, and stages that do not fit."""
    bill = planned.bill
    lines = [
        f"Pretraining's time by kind of work: {_shares(planned.stages['pretrain'])}.",
        f"On disk: text {_disk(bill['text_gb'])}, shards {_disk(bill['shards_gb'])}, checkpoints "
        f"{_disk(bill['checkpoints_gb'])}, training states {_disk(bill['states_gb'])}. "
        f"Energy: about {_energy(bill['energy_kwh'])}.",
    ]
    alone = []
    for name, stage in planned.stages.items():
        if stage.validation_seconds > 0.01 * stage.seconds:
            alone.append(f"{name} {time_span(stage.validation_seconds)}")
    if planned.gpus > 1 and alone:
        lines.append(f"Measured by the first card while the others wait: {', '.join(alone)}.")
    if bill["runs"] > 1:
        lines.append(f"{bill['runs']:.0f} seeds: {time_span(bill['hours_of_all_seeds'] * 3600)}.")
    if "cost" in bill:
        lines.append(
            f"At {bill['price_per_hour']:,.2f} USD an hour and card: {bill['cost']:,.2f} USD."
        )
    for name, stage in planned.stages.items():
        if stage.memory.total > planned.vram:
            budget = memory_size(planned.vram)
            lines.append(f"[red]{name} does not fit {budget}[/red]: {_remedy(name, stage)}")
    return "\n".join(lines)


def _shares(stage: StagePlan) -> str:
    """The share of each kind of work in a stage's time; launches overlap with the others."""
    seconds = dataclasses.asdict(stage.work)
    del seconds["launches"]
    whole = sum(seconds.values()) or 1.0
    shares = {name: value / whole for name, value in seconds.items()}
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.005)


def _remedy(name: str, stage: StagePlan) -> str:
    """What makes a stage fit."""
    rows = stage.max_device_batch_size
    if not rows:
        return "set train.activation_checkpointing, or take a smaller model"
    key = "eval.gsm8k.rows" if name == "evaluation" else f"{name}.device_batch_size"
    return f"set {key} to {rows} or less"


# ---------------------------------------------------------------- grades


def grade(json_out: bool) -> None:
    """Predicted beside measured of every finished training run in the MLflow store."""
    from paribus.tracking.grades import graded_runs

    rows = graded_runs(load_config().tracking.experiment)
    summary = {}
    for kind in ("memory", "seconds"):
        errors = [abs(row[f"{kind}_error"]) for row in rows]
        if errors:
            summary[f"{kind}_median_error"] = statistics.median(errors)
    if json_out:
        click.echo(json.dumps({"runs": rows, **summary}, indent=1))
        return
    if not rows:
        click.echo(
            "no finished run in the store has a prediction; every training stage logs one when it starts"
        )
        return
    table = _table(
        "Predicted beside measured",
        "stage",
        "hardware",
        "memory",
        "predicted",
        "error",
        "time",
        "predicted",
        "error",
    )
    for row in rows:
        table.add_row(
            row["stage"],
            row["hardware"][:28],
            memory_size(row["memory"]),
            memory_size(row["memory_predicted"]),
            f"{row['memory_error']:+.1%}",
            time_span(row["seconds"]),
            time_span(row["seconds_predicted"]),
            f"{row['seconds_error']:+.1%}",
        )
    Console().print(table)
    click.echo(
        "  ".join(f"{name.replace('_', ' ')}: {value:.1%}" for name, value in summary.items())
    )
