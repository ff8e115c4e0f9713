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
from paribus.plan.estimate import Plan, as_json, make_plan
from paribus.plan.memory import parse_bytes
from paribus.text import count, memory_size, time_span


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
    """Print the plan of params.yaml with a profile's and then the command line's overrides."""
    problems = []
    if gpus < 1 or seeds < 1:
        problems.append(f"--gpus {gpus} --seeds {seeds}: both must be at least 1")
    if price is not None and not 0 <= price < math.inf:
        problems.append(f"--price: {price} is not a price; expected a number of 0 or more")
    at_hand = device is None or device.lower() in ("cpu", "here")
    if probe and not at_hand:
        problems.append("--probe measures the machine at hand; leave --device out")
    if problems:
        raise UserError(problems)
    if device and device.lower() == "cpu":
        overrides = overrides | {"train.device": "cpu"}
    base = profile_overrides(profile) if profile else {}
    config = load_config(overrides=base | overrides)
    if merged := merge_problems(flatten(load_config(overrides=base)), flatten(config)):
        raise UserError(merged)
    asked = list(overrides) if profile else None  # a profile's own values are for whoever wrote it
    for note in change_notes(config, asked):
        click.echo(f"paribus plan: {note}", err=True)
    chosen, dtype = choose(config, None if at_hand else device)
    if probe:
        _probe(config, chosen, dtype)
    if at_hand:
        from paribus.plan.probe import calibrated

        chosen = calibrated(config, chosen, dtype)
    made = make_plan(
        config,
        chosen,
        dtype=dtype,
        gpus=gpus,
        price=price,
        seeds=seeds,
        vram=parse_bytes(vram, "--vram") if vram else chosen.memory,
    )
    if json_out:
        click.echo(json.dumps(as_json(made), indent=1))
    else:
        Console().print(*page(made, profile), sep="\n")


def choose(config: Config, name: str | None) -> tuple[Device, str]:
    """The card asked for, else this machine's device, and the type of its products."""
    if name is None:
        from paribus.plan.probe import here

        return here(config)
    dtype: str = config.train.dtype
    if dtype == "auto":
        dtype = default_dtype(name)
    device = device_named(name, dtype)
    note = board_note(name)
    if note:
        click.echo(f"paribus plan: {note}", err=True)
    return device, dtype


def _probe(config: Config, device: Device, dtype: str) -> None:
    from paribus.plan.probe import run_probe

    found = run_probe(config, device, dtype)
    click.echo(
        f"probe: {found.seconds_per_step:.3g} s a step of pretraining, {found.correction:.2f} times the estimate; "
        f"peak memory {memory_size(found.peak_memory_bytes)}, predicted {memory_size(found.predicted_memory_bytes)}",
        err=True,
    )


# ---------------------------------------------------------------- the page

LABELS = {
    "optimizer": "optimiser state",
    "logits": "logits, loss",
    "cache": "KV cache",
    "update": "optimiser's step",
    "reserve": "framework reserve",
}


def page(made: Plan, profile: str | None) -> list[Any]:
    """What is printed, from top to bottom."""
    counts, device = made.parameters, made.device
    measured = " · calibrated by what was measured here" if device.corrections else ""
    head = (
        f"[bold]{profile or 'params.yaml'}[/bold]   {counts['total'] / 1e6:,.1f} M parameters "
        f"({counts['matrices'] / 1e6:,.1f} M in matrices)   {made.flops_per_token / 1e9:,.3g} GFLOP a token\n"
        f"{made.gpus} x {device.name}   {device.rate / 1e12:,.3g} TFLOP/s of large products in {made.dtype}   "
        f"{device.bandwidth / 1e9:,.0f} GB/s   budget {memory_size(made.vram)}{measured}"
    )
    return [
        Panel(head, title="paribus plan", expand=False),
        _time_table(made),
        _memory_table(made),
        _notes(made),
    ]


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False
    )
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="left" if column == "bound by" else "right", no_wrap=True)
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


def _memory_table(made: Plan) -> Table:
    stages = made.stages.values()
    table = _table("Memory at the peak of each stage", "", *made.stages)
    kinds = {
        name: [getattr(stage.memory, name) for stage in stages]
        for name in dataclasses.asdict(next(iter(stages)).memory)
    }
    for name, values in kinds.items():
        if any(values):
            table.add_row(
                LABELS.get(name, name), *(memory_size(value) if value else "" for value in values)
            )
    table.add_section()
    colours = ["green" if stage.memory.total <= made.vram else "red" for stage in stages]
    table.add_row(
        "[bold]total[/bold]",
        *(
            f"[bold {colour}]{memory_size(stage.memory.total)}[/]"
            for stage, colour in zip(stages, colours, strict=True)
        ),
    )
    table.add_row("device batch", *(str(stage.device_batch_size) for stage in stages))
    table.add_row(
        f"largest in {memory_size(made.vram)}",
        *(str(stage.max_device_batch_size or "[red]none[/]") for stage in stages),
    )
    return table


def _notes(made: Plan) -> str:
    bill, pretrain = made.bill, made.stages["pretrain"]
    parts = dataclasses.asdict(pretrain.work)
    whole = sum(value for name, value in parts.items() if name != "launches") or 1.0
    shares = ", ".join(
        f"{name} {value / whole:.0%}"
        for name, value in parts.items()
        if name != "launches" and value / whole >= 0.005
    )
    lines = [
        f"Pretraining's time by kind of work: {shares}.",
        f"Text {bill['text_gb']:,.3g} GB, shards {bill['shards_gb']:,.3g} GB, checkpoints {bill['checkpoints_gb']:,.3g} GB, "
        f"training states {bill['states_gb']:,.3g} GB; about {bill['energy_kwh']:,.3g} kWh.",
    ]
    alone = {
        name: stage.validation_seconds
        for name, stage in made.stages.items()
        if stage.validation_seconds > 0.01 * stage.seconds
    }
    if made.gpus > 1 and alone:
        looks = [f"{name} {time_span(seconds)}" for name, seconds in alone.items()]
        lines.append(f"Measured by the first card while the others wait: {', '.join(looks)}.")
    if bill["runs"] > 1:
        lines.append(f"{bill['runs']:.0f} seeds: {time_span(bill['hours_of_all_seeds'] * 3600)}.")
    if "cost" in bill:
        lines.append(
            f"At {bill['price_per_hour']:,.2f} USD an hour and card: {bill['cost']:,.2f} USD."
        )
    too_much = [name for name, stage in made.stages.items() if stage.memory.total > made.vram]
    for name in too_much:
        rows = made.stages[name].max_device_batch_size
        remedy = (
            f"set {'eval.gsm8k.rows' if name == 'evaluation' else name + '.device_batch_size'} to {rows} or less"
            if rows
            else "set train.activation_checkpointing, or take a smaller model"
        )
        lines.append(f"[red]{name} does not fit {memory_size(made.vram)}[/red]: {remedy}")
    return "\n".join(lines)


# ---------------------------------------------------------------- grades


def grade(json_out: bool) -> None:
    """Predicted beside measured of every finished training run in the MLflow store."""
    from paribus.tracking.store import graded_runs

    rows = graded_runs(load_config().tracking.experiment)
    errors = {kind: [row[f"{kind}_error"] for row in rows] for kind in ("memory", "seconds")}
    summary = {
        f"{kind}_median_error": statistics.median(map(abs, values))
        for kind, values in errors.items()
        if values
    }
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
        "run",
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
            row["run"][:8],
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
