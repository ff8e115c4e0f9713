"""The group that all commands belong to: how errors reach a person, whose code runs, how a stage is started."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import NoReturn

import click

import paribus
from paribus.cli.arguments import EngineName
from paribus.cli.sections import write_sections
from paribus.errors import UserError, explained
from paribus.launched import is_launched, launched

# Upper bounds of counts: above them a number is a slip of the keyboard.
MOST_ITEMS = 1_000_000  # questions, items, tokens to draw among
MOST_SAMPLES = 10_000  # answers to one question
MOST_ROWS = 2**20  # rows side by side, tokens of an answer
MOST_WORKERS = 1_024  # cards, runs side by side


class Commands(click.Group):
    """Prints a UserError as lines for people and exits with its status; what the machine refused is one as well."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command of `ctx`; turn a UserError, or what the machine refused, into lines and an exit status."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            _refuse(error)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            refusal = explained(error)
            if refusal is None:
                raise
            _refuse(refusal)


class Root(Commands):
    """The group of all commands."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by what they are for."""
        write_sections(self, formatter)


def _refuse(error: UserError) -> NoReturn:
    for problem in error.problems:
        click.echo(f"paribus: {_process()}{problem}", err=True)
    if "PARIBUS_SAY" in os.environ:  # a run asks why its stage ended
        from paribus.execute.run import say_why

        say_why(error)
    sys.exit(error.exit_status)


def _process() -> str:
    """Which of several processes speaks; nothing for the first, which speaks for all."""
    rank = launched().rank
    return f"process {rank}: " if rank else ""


def run_own_code() -> None:
    """In a checkout other than the installed one (a queued experiment's clone), start again from its own code."""
    here = Path("src/paribus/__init__.py")
    if here.is_file() and not here.samefile(paribus.__file__):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(Path("src").resolve()), os.environ.get("PYTHONPATH")])
            )
        }
        os.execve(sys.executable, [sys.executable, "-m", "paribus", *sys.argv[1:]], environment)


def keep_dvc_private() -> None:
    """Name the checkout's own folder to every DVC that this command runs, wherever that one stands.

    DVC unpickles what lies in its site cache, by default /var/tmp/dvc, where every user of the machine may write.
    """
    if os.environ.get("DVC_SITE_CACHE_DIR"):
        return
    here = Path.cwd()
    for folder in (here, *here.parents):
        site = folder / ".dvc-site-cache"
        if (site / "repo").is_dir() and (folder / ".dvc").is_dir():
            os.environ["DVC_SITE_CACHE_DIR"] = str(site)
            return


@click.group(cls=Root, name="paribus", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="paribus", prog_name="paribus")
def commands() -> None:
    """Change one thing, keep all else equal, and trust the answer.

    \b
    dvc repro                                   the whole curriculum
    dvc exp run -S model.depth=6                the same with one thing changed
    paribus try -m "no soft cap"                is my edit better?
    paribus ablate run muon-vs-adamw            a verdict with error bars
    """  # noqa: D301 -- click reads the backspace


engine_option = click.option(
    "--engine",
    type=EngineName(),
    default="local",
    show_default=True,
    help="What computes: local, or the machines of a Ray cluster: ray, ray:HOST:PORT.",
)


def run_stage(stage: str, *arguments: str) -> None:
    """Run a stage of dvc.yaml in this process."""
    from importlib import import_module

    from paribus.graph import ENTRY_POINTS, stage_definitions
    from paribus.machine.interrupt import leave_on_signals
    from paribus.places import outside_problem

    module, _, function = ENTRY_POINTS[stage].partition(":")
    leave_on_signals(" ".join([stage, *arguments]))
    named = os.environ.get("DVC_STAGE")  # by DVC, which started this process
    definition = stage_definitions().get(named) if named else None
    problem = outside_problem(definition.outs) if definition else None
    if problem:
        raise UserError(problem)
    began = time.monotonic()
    getattr(import_module(module), function)(*arguments)
    if not is_launched():  # the process that started several speaks for them
        from paribus.cli.endings import print_ending

        print_ending(stage, arguments, time.monotonic() - began)
