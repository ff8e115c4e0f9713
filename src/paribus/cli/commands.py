"""The command line: one thin command per stage and tool, no logic. Imports are late, so that --help is quick."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

import paribus
from paribus.cli.arguments import Cards, EngineName, Number, Temperature
from paribus.cli.judge import judge_command
from paribus.cli.sections import write_sections
from paribus.curriculum import CHECKPOINT_NAMES, TRAINING_STAGES
from paribus.errors import UserError, explained
from paribus.launched import launched

# Upper bounds of counts: above them a number is a slip of the keyboard.
MOST_ITEMS = 1_000_000  # questions, items, tokens to draw among
MOST_SAMPLES = 10_000  # answers to one question
MOST_ROWS = 2**20  # rows side by side, tokens of an answer
MOST_WORKERS = 1_024  # cards, runs side by side
BROKEN_TOOL = "Commit it, check out the baseline, and name the commit: paribus try COMMIT"


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


def main() -> None:
    """The entry point."""
    run_own_code()
    keep_dvc_private()
    commands()


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


_engine = click.option(
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
    getattr(import_module(module), function)(*arguments)


def _stage(name: str, help: str) -> None:
    @commands.command(name, help=help, short_help=help)
    def command() -> None:
        run_stage(name)


_stage("corpus", "Stage: documents, conversations, problems and tasks -> data/corpus.")
_stage("tokenizer", "Stage: byte-level BPE -> data/tokenizer.")
_stage("tokens", "Stage: token shards -> data/tokens.")
_stage("pretrain", "Stage: train the base model -> checkpoints/base.")
_stage("midtrain", "Stage: chat format and tool -> checkpoints/mid.")
_stage("sft", "Stage: supervised fine-tuning -> checkpoints/sft.")
_stage("rl", "Stage: reinforcement learning -> checkpoints/rl.")
_stage("report", "Stage: report/report.html.")


@commands.group("eval", cls=Commands)
def evaluate() -> None:
    """Evaluate checkpoints."""


@evaluate.command("core")
def core() -> None:
    """Stage: CORE of checkpoints/base -> evals/core."""
    run_stage("core")


@evaluate.command("gsm8k")
@click.argument("stage", type=click.Choice(CHECKPOINT_NAMES))
def gsm8k(stage: str) -> None:
    """Stage: word problems answered by one checkpoint -> evals/gsm8k/STAGE."""
    run_stage("gsm8k_stage", stage)


@evaluate.command("sparsity")
@click.argument("checkpoint", type=click.Path(file_okay=False), default="checkpoints/sft")
@click.option(
    "--questions",
    type=click.IntRange(1, MOST_ITEMS),
    default=64,
    show_default=True,
    help="Validation problems.",
)
@click.option(
    "--samples",
    type=click.IntRange(2, MOST_SAMPLES),
    default=16,
    show_default=True,
    help="Sampled answers to each.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def sparsity(checkpoint: str, questions: int, samples: int, as_json: bool) -> None:
    """Would RL learn anything from CHECKPOINT? Samples, without training."""
    from paribus.cli.sparsity import evaluate_sparsity

    evaluate_sparsity(checkpoint, questions, samples, as_json)


@evaluate.command("lm")
@click.option(
    "--tasks",
    required=True,
    help="Tasks, groups or tags of lm-evaluation-harness, with commas between.",
)
@click.option(
    "--checkpoint", default="base", show_default=True, help="Name below checkpoints/, or a folder."
)
@click.option(
    "--include-path",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of task files (YAML) of your own.",
)
@click.option("--limit", type=click.IntRange(1, MOST_ITEMS), help="Items of each task.")
@click.option("--num-fewshot", type=click.IntRange(0, 1_000), help="Examples before each item.")
@click.option(
    "--batch-size",
    type=click.IntRange(1, MOST_ROWS),
    default=16,
    show_default=True,
    help="Rows of one forward pass.",
)
def lm(
    tasks: str,
    checkpoint: str,
    include_path: Path | None,
    limit: int | None,
    num_fewshot: int | None,
    batch_size: int,
) -> None:
    """Tasks of lm-evaluation-harness -> a table, evals/lm, a run in MLflow."""
    from paribus.cli.lm import evaluate_lm

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    evaluate_lm(
        checkpoint,
        names,
        include_path=include_path,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size,
    )


@evaluate.command("compare-stages")
def compare_stages() -> None:
    """Stage: word problems by stage, paired -> metrics/gsm8k.json."""
    run_stage("gsm8k")


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
    help="For --web: names or folders, with commas between.  [default: base,sft,rl]",
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
            (checkpoints or "base,sft,rl").split(","), 8000 if port is None else port, **drawing
        )
    else:
        chat_in_terminal(checkpoint or "rl", **drawing)


@commands.command()
@click.argument("pattern", default="")
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
@click.argument("name")
def profile_args(name: str) -> None:
    """Print a profile as -S arguments: dvc exp run $(paribus profile args NAME)."""
    from paribus.cli.profiles import print_profile_args

    print_profile_args(name)


@profile.command("apply")
@click.argument("name")
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
def doctor() -> None:
    """Check the set-up: versions, GPU, disk, clock, git, store, remote. One line each; exit 1 if something is broken."""
    from paribus.cli import doctor as checks

    findings = checks.examine()
    click.echo(checks.report(findings))
    sys.exit(any(finding.state == "broken" for _, finding in findings))


@commands.command()
@click.argument("profile", required=False)
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


@commands.group(cls=Commands)
def tune() -> None:
    """Optuna over any dotted keys within a memory budget; studies are experiments/tune/NAME.yaml."""


@tune.command("run")
@click.argument("name")
@click.option(
    "--storage", "url", help="Optuna storage, as postgresql://host/db; default: sqlite in .paribus."
)
@click.option("--trials", type=click.IntRange(1, 1_000_000), help="In place of the file's.")
@click.option(
    "--worker", is_flag=True, help="One of several on the same storage: no re-test, no report."
)
@_engine
@click.option(
    "--workers",
    type=click.IntRange(1, MOST_WORKERS),
    help="With --engine ray; default: one a machine.",
)
def tune_run(name: str, **options: Any) -> None:
    """Run, or go on with, the study NAME; then re-test its best and report."""
    from paribus.tune import search as tune

    tune.run(name, **options)


@tune.command("report")
@click.argument("name")
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


@ablate.command("check")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, diffs included.")
def ablate_check(name: str, as_json: bool) -> None:
    """Refuse NAME as `run` does, without running anything; print what its arms change, of code too."""
    from paribus.cli import ablation_check

    ablation_check.check(name, as_json)


@ablate.command("run")
@click.argument("name")
@click.option(
    "--workers",
    type=click.IntRange(1, MOST_WORKERS),
    help="Runs side by side; default: the file's, or one a card of --gpus.",
)
@click.option("--gpus", type=Cards(), help="Cards for the runs, as 0,1; default: all.")
@click.option("--retry", is_flag=True, help="Try again what was given up.")
@_engine
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

    ablation.run(name, **options)


@ablate.command("plan")
@click.argument("name")
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
@click.argument("name")
@click.option("--watch", is_flag=True, help="Until all runs are done.")
def ablate_status(name: str, watch: bool) -> None:
    """Every run of NAME: stage, step, time left; when all will be done."""
    from paribus.cli import ablation

    ablation.status(name, watch)


@ablate.command("stop")
@click.argument("name")
def ablate_stop(name: str) -> None:
    """Have the runs of NAME save and end; `ablate run` goes on."""
    from paribus.cli import ablation

    ablation.stop(name)


@ablate.command("report")
@click.argument("name")
@click.option("--force", is_flag=True, help="Replace a page that rests on more runs.")
def ablate_report(name: str, force: bool) -> None:
    """Judge what is done of NAME -> experiments/results/NAME.html and .md, and MLflow."""
    from paribus.cli import ablation

    ablation.report(name, force)


@commands.command()
@click.argument("profile")
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
@_engine
def noise(profile: str, **options: Any) -> None:
    """The noise floor of PROFILE over seeds, and how many seeds an effect needs -> experiments/results."""
    from paribus.cli import ablation

    ablation.noise(profile, **options)


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
@click.option(
    "--workers",
    type=click.IntRange(1, MOST_WORKERS),
    default=1,
    show_default=True,
    help="Runs side by side.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the entry of the ledger as JSON.")
def try_change(
    commit: str | None,
    message: str | None,
    as_one: str | None,
    again: bool,
    workers: int,
    as_json: bool,
    **given: Any,
) -> None:
    """Is this change better? COMMIT, or what is not committed, against the baseline of experiments/try.yaml.

    Both run at matched seeds until there is a verdict. Exit status 0: keep; 1: discard; 3: undecided; 2: it cannot run.
    """
    try:
        from paribus.cli import trying

        status = trying.run(commit, message, as_one, again, workers, as_json, given)
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


@commands.command()
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=5000,
    show_default=True,
    help="Port of the page.",
)
@click.option("--host", help="Address to listen at.  [default: 127.0.0.1, this machine alone]")
def ui(port: int, host: str | None) -> None:
    """The MLflow page of this project's store, with two processes instead of fifteen."""
    from paribus.cli.serve import mlflow_ui

    mlflow_ui(port, host)
