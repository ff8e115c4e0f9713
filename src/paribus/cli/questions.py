"""The commands that answer a question about an idea, a value or two runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from paribus.cli import completion
from paribus.cli.arguments import Cards, Number
from paribus.cli.judge import judge_command
from paribus.cli.root import MOST_WORKERS, Commands, commands, engine_option
from paribus.curriculum import TRAINING_STAGES
from paribus.errors import UserError, explained

BROKEN_TOOL = "Commit it, check out the baseline, and name the commit: paribus try COMMIT"


@commands.group(cls=Commands)
def tune() -> None:
    """Optuna over any dotted keys within a memory budget; studies are experiments/tune/NAME.yaml."""


@tune.command("run")
@click.argument("name", shell_complete=completion.tuning_studies)
@click.option(
    "--storage", "url", help="Optuna storage, as postgresql://host/db; default: sqlite in .paribus."
)
@click.option("--trials", type=click.IntRange(1, 1_000_000), help="In place of the file's.")
@click.option(
    "--worker", is_flag=True, help="One of several on the same storage: no re-test, no report."
)
@engine_option
@click.option(
    "--workers",
    type=click.IntRange(1, MOST_WORKERS),
    help="With --engine ray; default: one a machine.",
)
def tune_run(name: str, **options: Any) -> None:
    """Run, or go on with, the study NAME; then re-test its best and report."""
    from paribus.tune import search as tune

    tune.run(name, **options)


@tune.command("new")
@click.argument("name")
def tune_new(name: str) -> None:
    """Write experiments/tune/NAME.yaml, a commented template to edit."""
    from paribus.cli import studies

    studies.new_tuning(name)


@tune.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def tune_list(as_json: bool) -> None:
    """Every study, the keys that it varies, and how it stands in this checkout."""
    from paribus.tune.standing import list_studies

    list_studies(as_json)


@tune.command("status")
@click.argument("name", shell_complete=completion.tuning_studies)
@click.option("--storage", "url", help="Where the study is.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def tune_status(name: str, url: str | None, as_json: bool) -> None:
    """How the study NAME stands: trials done and under way, the best so far."""
    from paribus.tune.standing import status

    status(name, url, as_json)


@tune.command("report")
@click.argument("name", shell_complete=completion.tuning_studies)
@click.option("--storage", "url", help="Where the study is.")
def tune_report(name: str, url: str | None) -> None:
    """Figures, summary and profile of the study NAME as it stands."""
    from paribus.tune import search as tune

    tune.report(name, url)


@tune.command("batch")
@click.option("--memory", help="Budget, as 24GiB; default: what the device has.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def tune_batch(memory: str | None, as_json: bool) -> None:
    """The fastest device batch that fits, tokens per step kept."""
    from paribus.tune.batch import batch

    batch(memory, json_out=as_json)


@commands.command()
@click.argument("patterns", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def runs(patterns: tuple[str, ...], as_json: bool) -> None:
    """Headline figures of the workspace and of every experiment; of those that fit PATTERNS, as 'muon*'."""
    from paribus.cli.runs import show_runs

    show_runs(patterns, as_json)


@commands.command()
@click.argument("a")
@click.argument("b")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def compare(a: str, b: str, as_json: bool) -> None:
    """What differs between A and B: experiments, revisions, checkpoints, MLflow runs, or patterns: 'adamw-s*' 'muon-s*'"""
    from paribus.audit import compare

    compare.compare(a, b, as_json)


@commands.command()
@click.argument("run", required=False)
@click.option("--study", help="Every run of this ablation; without --steps its records alone.")
@click.option(
    "--stage",
    type=click.Choice(TRAINING_STAGES),
    help="Of an experiment or revision.",
)
@click.option(
    "--steps",
    type=click.IntRange(0, 10_000_000),
    help="Only the first so many; 0: compare records, run nothing.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the certificate."
)
def verify(run: str | None, study: str | None, **options: Any) -> None:
    """Make RUN again from its record in a clean clone, and certify that it is the same; exit 1 if it is not, and why."""
    from paribus.audit import verify, verify_study

    if (run is None) == (study is None):
        raise UserError("verify: name one run, or one study with --study NAME")
    if study is not None:
        if options["stage"]:
            raise UserError("--stage: a study's runs are certified stage by stage; leave it out")
        sys.exit(verify_study.verify_study(study, options["steps"], options["out"]))
    sys.exit(verify.verify(str(run), **options))


# ---- ablations


@commands.group(cls=Commands)
def ablate() -> None:
    """Arms x seeds with a verdict; ablations are experiments/NAME.yaml."""


@ablate.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def ablate_list(as_json: bool) -> None:
    """Every ablation of this project: its question, and how it stands."""
    from paribus.cli import studies

    studies.list_studies(as_json)


@ablate.command("new")
@click.argument("name")
@click.option(
    "--like",
    metavar="STUDY",
    shell_complete=completion.studies,
    help="Ask this study's question again, at fresh seeds.",
)
@click.option("--arm", "arms", multiple=True, help="With --like: only this arm; may be repeated.")
@click.option(
    "--seeds", type=click.IntRange(2, 100_000), help="With --like: one look, after so many."
)
def ablate_new(name: str, like: str | None, arms: tuple[str, ...], seeds: int | None) -> None:
    """Write experiments/NAME.yaml, a commented template to edit."""
    from paribus.cli import studies

    studies.new_ablation(name, like, arms, seeds)


@ablate.command("check")
@click.argument("name", shell_complete=completion.studies)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, diffs included.")
def ablate_check(name: str, as_json: bool) -> None:
    """Refuse NAME as `run` does, without running anything; print what its arms change, of code too."""
    from paribus.cli import ablation_check

    ablation_check.check(name, as_json)


@ablate.command("run")
@click.argument("name", shell_complete=completion.studies)
@click.option(
    "--workers",
    type=click.IntRange(1, MOST_WORKERS),
    help="Runs side by side; default: the file's, or one a card of --gpus.",
)
@click.option("--gpus", type=Cards(), help="Cards for the runs, as 0,1; default: all.")
@click.option("--retry", is_flag=True, help="Try again what was given up.")
@engine_option
@click.option(
    "--looks",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="Of a study with `seeds: open`: how many looks to take, unless every arm has its verdict before.",
)
def ablate_run(name: str, **options: Any) -> None:
    """Run, or go on with, the ablation NAME, an open one to its next look; then report. Kill it, and call it again."""
    from paribus.cli import ablation

    ablation.run(name, ablation.How(**options))


@ablate.command("plan")
@click.argument("name", shell_complete=completion.studies)
@click.option("--device", help="A card of plan/devices.yaml, as 'RTX 3090'; default: this machine.")
@click.option("--gpus", type=click.IntRange(1, MOST_WORKERS), default=1, help="Cards of a run.")
@click.option(
    "--price", type=Number(0, 1e6), help="USD an hour and card; default: typical of the card."
)
@click.option("--json", "json_out", is_flag=True, help="For scripts.")
def ablate_plan(name: str, **options: Any) -> None:
    """Before the first run of NAME: what it can find after each look, and what that costs."""
    from paribus.cli import ablation

    ablation.plan(name, **options)


@ablate.command("status")
@click.argument("name", shell_complete=completion.studies)
@click.option("--watch", is_flag=True, help="Until all runs are done.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def ablate_status(name: str, watch: bool, as_json: bool) -> None:
    """Every run of NAME: stage, step, time left; when all will be done."""
    from paribus.cli import ablation_status

    ablation_status.status(name, watch, as_json)


@ablate.command("stop")
@click.argument("name", shell_complete=completion.studies)
def ablate_stop(name: str) -> None:
    """Have the runs of NAME save and end; `ablate run` goes on."""
    from paribus.cli import ablation_status

    ablation_status.stop(name)


@ablate.command("report")
@click.argument("name", shell_complete=completion.studies)
@click.option("--force", is_flag=True, help="Replace a page that rests on more runs.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdicts as JSON.")
def ablate_report(name: str, force: bool, as_json: bool) -> None:
    """Judge what is done of NAME -> experiments/results/NAME.html and .md, and MLflow."""
    from paribus.cli import ablation

    ablation.report(name, force, as_json)


@commands.command()
@click.argument("profile", shell_complete=completion.profiles)
@click.option(
    "--seeds", type=click.IntRange(3, 1_000), default=5, show_default=True, help="Runs, at least 3."
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    help="As in an ablation's file; may be repeated.  [default: val_bpb]",
)
@click.option("--workers", type=click.IntRange(1, MOST_WORKERS), help="Runs side by side.")
@click.option("--gpus", type=Cards(), help="Cards for the workers in turn, as 0,1; default: all.")
@engine_option
def noise(profile: str, seeds: int, metrics: tuple[str, ...], **options: Any) -> None:
    """The noise floor of PROFILE over seeds, and how many seeds an effect needs -> experiments/results."""
    from paribus.cli import ablation

    ablation.noise(profile, seeds, metrics, ablation.How(**options))


# ---- tries


@commands.command("try")
@click.argument("commit", required=False)
@click.option("-m", "--message", help="What is tried.  [default: the commit's subject]")
@click.option("--budget", help="Of each run: 5min, 200ktokens or 3e12flops.")
@click.option(
    "--baseline", help="Branch, tag or commit; in place of the file's and of what was kept."
)
@click.option("--stage", help="Of dvc.yaml; what it depends on runs too.")
@click.option("--metric", help="As in an ablation's file.")
@click.option("--smallest-effect", type=Number(0, min_open=True), help="In the metric's unit.")
@click.option("--seeds", help="Of the first look and the last, as 3..8.")
@click.option("--as-one", help="What one thing a change of evaluation or data is.")
@click.option("--again", is_flag=True, help="Try once more, at other seeds, what has a verdict.")
@engine_option
@click.option(
    "--workers",
    type=click.IntRange(1, MOST_WORKERS),
    help="Runs side by side.  [default: 1; of a cluster as many as fit]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the entry of the ledger as JSON.")
def try_change(
    commit: str | None,
    message: str | None,
    as_one: str | None,
    again: bool,
    workers: int | None,
    as_json: bool,
    engine: str,
    **given: Any,
) -> None:
    """Is this change better? COMMIT, or what is not committed, against the baseline of experiments/try.yaml.

    Both run at matched seeds until there is a verdict. Exit status 0: keep; 1: discard; 3: undecided; 2: it cannot run.
    """
    try:
        from paribus.cli import trying

        status = trying.run(commit, message, as_one, again, workers, as_json, given, engine)
    except (UserError, click.ClickException):
        raise
    except Exception as error:
        if explained(error) is not None:
            raise
        import traceback

        traceback.print_exc()
        click.echo("paribus: the command itself fails; is it the change? " + BROKEN_TOOL, err=True)
        status = 2  # Python's own 1 would be a verdict
    sys.exit(status)


@commands.group("ledger", cls=Commands, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--page", is_flag=True, help="Write experiments/results/ledger.html, .json and .png.")
@click.pass_context
def ledger(ctx: click.Context, as_json: bool, page: bool) -> None:
    """Everything that was tried, and what of it still stands."""
    if ctx.invoked_subcommand is not None:
        return
    from paribus.cli import ledger as pages

    pages.show(as_json, page)


@ledger.command("audit")
@click.option(
    "--seeds",
    type=click.IntRange(3, 100),
    default=8,
    show_default=True,
    help="Fresh ones, of each side.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, MOST_WORKERS),
    default=1,
    show_default=True,
    help="Runs side by side.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def ledger_audit(seeds: int, workers: int, as_json: bool) -> None:
    """Everything that was kept against the first baseline at fresh seeds, and without each of its parts.

    Exit status 0: the stack is better; 1: that is not shown.
    """
    from paribus.cli import ledger as pages

    sys.exit(pages.audit(seeds, workers, as_json))


# ---- the rest


commands.add_command(judge_command)
