"""The commands of dvc.yaml's stages, and other evaluations of checkpoints."""

from __future__ import annotations

from pathlib import Path

import click

from paribus.cli.root import MOST_ITEMS, MOST_ROWS, MOST_SAMPLES, Commands, commands, run_stage
from paribus.curriculum import CHECKPOINT_NAMES


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


@evaluate.command("instrument")
@click.argument("runs", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def instrument(runs: tuple[str, ...], as_json: bool) -> None:
    """What the evaluations of RUNS can tell: noise, detectable effects, the tasks that tell most.

    RUNS are names or patterns as `paribus compare` takes them, 'my-study.*'.  [default: the workspace]
    """
    from paribus.audit.instrument_page import show

    show(runs or ("workspace",), as_json)


@evaluate.command("compare-stages")
def compare_stages() -> None:
    """Stage: word problems by stage, paired -> metrics/gsm8k.json."""
    run_stage("gsm8k")
