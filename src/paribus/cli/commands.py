"""The command line: one thin command per stage and tool, no logic. Imports are late, so that --help is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from paribus.cli import completion, questions, stages
from paribus.cli.arguments import Number, Temperature
from paribus.cli.examples import add_examples
from paribus.cli.root import (
    MOST_ITEMS,
    MOST_ROWS,
    MOST_WORKERS,
    Commands,
    commands,
    keep_dvc_private,
    run_own_code,
    run_stage,
)
from paribus.errors import UserError

__all__ = ["Commands", "commands", "main", "questions", "run_stage", "stages"]


def main() -> None:
    """The entry point."""
    run_own_code()
    keep_dvc_private()
    commands(prog_name="paribus")


@commands.command("deps")
@click.option("--check", is_flag=True, help="Change nothing; exit status 1 if dvc.yaml is stale.")
def deps(check: bool) -> None:
    """Write each stage's code into dvc.yaml: the import closure of its function.

    Run it after adding, moving or importing a module; the tests fail while dvc.yaml is stale.
    """
    from paribus.cli.deps import write_deps

    write_deps(check)


@commands.command()
@click.option("--checkpoint", help="Name below checkpoints/, or a folder.  [default: rl]")
@click.option("--web", is_flag=True, help="A page that puts checkpoints side by side.")
@click.option(
    "--checkpoints",
    help="For --web: names or folders, with commas between.  [default: base,mid,sft,rl]",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), help="For --web; 0: any that is free.  [default: 8000]"
)
@click.option(
    "--temperature",
    type=Temperature(0.01, 100),
    default=0.0,
    show_default=True,
    help="0: the likeliest token.",
)
@click.option(
    "--top-k",
    type=click.IntRange(0, MOST_ITEMS),
    default=0,
    show_default=True,
    help="Draw among the k likeliest; 0: all.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**64 - 1),
    default=0,
    show_default=True,
    help="Of what is drawn.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1, MOST_ROWS),
    default=256,
    show_default=True,
    help="Longest answer.",
)
def chat(
    checkpoint: str | None, web: bool, checkpoints: str | None, port: int | None, **drawing: Any
) -> None:
    """Talk to a checkpoint, here or on a page; a pipe works too: echo 'What is 3*4?' | paribus chat"""
    from paribus.cli.serve import chat_in_terminal, chat_page

    unused = {"--checkpoint": checkpoint} if web else {"--checkpoints": checkpoints, "--port": port}
    if wrong := [option for option, value in unused.items() if value is not None]:
        raise UserError(
            [f"{option}: only {'without' if web else 'with'} --web" for option in wrong]
        )
    if web:
        chat_page(
            (checkpoints or "base,mid,sft,rl").split(","), 8000 if port is None else port, **drawing
        )
    else:
        chat_in_terminal(checkpoint or "rl", **drawing)


@commands.command()
@click.argument("checkpoint", shell_complete=completion.checkpoints)
@click.option(
    "--to",
    "target",
    type=click.Choice(["hf", "gguf"]),
    default="hf",
    show_default=True,
    help="A folder for transformers, or a file for llama.cpp.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Default: exports/CHECKPOINT-TARGET.")
@click.option("--force", is_flag=True, help="Replace what is at --out.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def export(checkpoint: str, **options: Any) -> None:
    """Write CHECKPOINT (base, mid, sft, rl or a folder) for other tools, with tokenizer and model card."""
    from paribus.cli.exporting import export_checkpoint

    export_checkpoint(checkpoint, **options)


@commands.command()
@click.argument("pattern", default="", shell_complete=completion.keys)
def keys(pattern: str) -> None:
    """Every key of params.yaml that contains PATTERN: type, bounds, documentation, value."""
    from paribus.cli.keys import print_keys

    print_keys(pattern)


@commands.group(cls=Commands)
def profile() -> None:
    """Files of overrides under experiments/profiles/."""


@profile.command("list")
def profile_list() -> None:
    """The profiles there are, and what each is for."""
    from paribus.cli.profiles import list_profiles

    list_profiles()


@profile.command("args")
@click.argument("name", shell_complete=completion.profiles)
def profile_args(name: str) -> None:
    """Print a profile as -S arguments: dvc exp run $(paribus profile args NAME)."""
    from paribus.cli.profiles import print_profile_args

    print_profile_args(name)


@profile.command("apply")
@click.argument("name", shell_complete=completion.profiles)
def profile_apply(name: str) -> None:
    """Write a profile's values into params.yaml."""
    from paribus.cli.profiles import apply_profile

    apply_profile(name)


@commands.command()
def pause() -> None:
    """Ask every running stage of this project to save and exit 75; the next `dvc repro` goes on."""
    from paribus.cli.pausing import pause_all

    pause_all()


@commands.command()
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def clean(dry_run: bool, as_json: bool) -> None:
    """Remove the training states of finished runs whose checkpoint is in DVC's cache."""
    from paribus.cli.cleaning import clean_finished

    clean_finished(dry_run, as_json)


@commands.command()
@click.option("--gpu", is_flag=True, help="Examine the card: results, speed, memory; ten minutes.")
@click.option(
    "--device",
    type=click.Choice(["cuda", "cpu"]),
    default="cuda",
    show_default=True,
    help="For --gpu; cpu tries it all at the smallest sizes.",
)
@click.option(
    "--minutes", type=Number(0.1, 600), default=10.0, show_default=True, help="For --gpu."
)
@click.option("--peer", type=click.Path(file_okay=False), help="For --gpu: a checkout of nanochat.")
@click.option("--json", "as_json", is_flag=True, help="For --gpu: print the record, not the page.")
def doctor(gpu: bool, **options: Any) -> None:
    """Check the set-up: versions, GPU, disk, clock, git, store, remote. One line each; exit 1 if something is broken."""
    from paribus.cli import doctor as checks

    if gpu:
        sys.exit(checks.examine_card(**options))
    findings = checks.examine()
    click.echo(checks.report(findings))
    sys.exit(any(finding.state == "broken" for _, finding in findings))


@commands.command()
@click.argument("profile", required=False, shell_complete=completion.profiles)
@click.option(
    "-S", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, as in dvc exp run."
)
@click.option(
    "--device",
    help="A card of plan/devices.yaml, as 'RTX 3090' or h100, or cpu; default: this machine.",
)
@click.option("--vram", help="Memory budget, as 24GiB; default: the device's.")
@click.option(
    "--gpus",
    type=click.IntRange(1, MOST_WORKERS),
    default=1,
    show_default=True,
    help="Cards that train together.",
)
@click.option(
    "--price", type=Number(0, 1e6), help="USD an hour and card; default: typical of the card."
)
@click.option(
    "--seeds",
    type=click.IntRange(1, 1_000),
    default=1,
    show_default=True,
    help="Runs of an ablation's arm.",
)
@click.option("--probe", is_flag=True, help="Train for a minute here first, and calibrate by it.")
@click.option("--grade", is_flag=True, help="Predictions beside measurements of all runs so far.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def plan(
    profile: str | None, overrides: tuple[str, ...], grade: bool, as_json: bool, **options: Any
) -> None:
    """What params.yaml, or PROFILE, will need: memory, hours, disk, money. Needs no GPU."""
    from paribus.pages import plan as page

    if grade:
        page.grade(as_json)
        return
    from paribus.cli.profiles import parse_overrides

    page.plan(profile, parse_overrides(overrides), json_out=as_json, **options)


@commands.command()
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=5000,
    show_default=True,
    help="Port of the page.",
)
@click.option("--host", help="Address to listen at.  [default: 127.0.0.1, this machine alone]")
@click.option("--open", "browse", is_flag=True, help="Open the page in a browser.")
def ui(port: int, host: str | None, browse: bool) -> None:
    """The MLflow page of this project's runs."""
    from paribus.cli.serve import mlflow_ui

    mlflow_ui(port, host, browse)


add_examples(commands)  # when every command is there
