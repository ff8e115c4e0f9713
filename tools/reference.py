"""The generated pages of the reference: keys from the schema, commands from click, metrics, Python by mkdocstrings.

`tools/docs_site.py` puts them into the site when it is built, so none of them can be out of date.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click

from paribus.cli.commands import commands
from paribus.config import allowed, describe, flatten, load_config
from paribus.curriculum import CURVES, OPTIONAL_COLUMNS

ROOT = Path(__file__).resolve().parent.parent

# What the figures of metrics/*.json mean. A key with a star stands for several.
MEANINGS = {
    "tokenizer": {
        "vocab_size": "tokens that the tokenizer knows",
        "bytes_per_token": "bytes of held-out text for each token",
        "bytes_per_token_over_gpt2": "the same over GPT-2's on FineWeb-Edu",
    },
    "pretrain": {
        "val_bpb": "loss on held-out documents, in bits per byte of text; lower is better",
        "parameters": "of the model",
        "flops_per_token": "of a forward and a backward pass, attention in full",
        "optimizer_flops_per_step": "of Muon's products",
    },
    "training": {
        "train_loss": "mean over the last steps, in nats per token",
        "train_tokens": "tokens trained on",
        "tokens_per_second": "over the time that training took",
        "seconds": "from the first step to the end, evaluations and saves included",
        "steps": "of the optimizer",
        "nonfinite_steps": "steps that were skipped because loss or gradient was not finite",
        "rollbacks": "returns to an earlier state after a loss spike",
        "peak_memory_bytes": "of the device; on a CPU of the process",
    },
    "core": {
        "core": "mean over tasks of accuracy, centered so that guessing is 0 and all right is 1",
        "core_stderr": "its standard error over items",
        "tasks.*": "of each task: accuracy, centered, stderr, n",
        "core_subsample_stderr": "the part of it that comes from leaving items out; 0 where all were asked",
        "core_partial": "the mean over the tasks that the bundle has, where it lacks some; then `core` is null",
        "partial, missing": "whether the bundle lacks tasks, and which",
        "bundle": "where the items are from; `synthetic` is the embedded world",
    },
    "gsm8k": {
        "base.*, mid.*, sft.*, rl.*": "word problems after each stage: accuracy (greedy) with ci_low and ci_high, n, "
        "pass_at_k (sampled) with its error, formatted, tool_calls, well_formed, finished, cut_off, by_steps",
        "paired.*": "neighbouring stages on the same problems: became right, became wrong, McNemar's exact p",
        "dataset": "where the problems are from",
    },
    "rl": {
        "mean_reward_first, mean_reward_last": "over the first and the last fifth of the steps",
        "groups": "questions asked, each with several answers",
        "zero_reward_groups, all_reward_groups": "share of groups whose answers were all wrong, all right",
        "zero_gradient_groups": "share of groups that taught nothing",
        "steps_without_gradient": "share of steps in which no group taught anything",
        "effective_samples_per_second": "answers with a gradient",
        "wasted_token_fraction": "share of sampled tokens without a gradient",
        "cut_off": "share of answers that ended at the limit",
        "samples, redrawn_samples": "answers drawn; those that dynamic sampling dropped",
        "pass_at_*_before, pass_at_*_after": "of the watched questions at the first and the last look",
        "by_steps.*": "the same by difficulty, in steps of the reference solution",
    },
}  # fmt: skip

PYTHON = """# Python API

`import paribus` gives two functions, and imports what they need when they are used. [How to use them](../python-api.md).

## Judge a table

::: paribus.judge.judge

::: paribus.judge.options.Options

::: paribus.judge.verdicts.Judgement

::: paribus.judge.verdicts.Comparison

::: paribus.judge.verdicts.ArmSummary

::: paribus.judge.verdicts.Plan

## Load a finished run

::: paribus.api.load

::: paribus.api.Run

## Errors

::: paribus.errors.UserError
"""


def pages() -> dict[str, str]:
    """Path below docs/ -> the text of each generated page."""
    return {
        "reference/keys.md": keys(),
        "reference/commands.md": command_line(),
        "reference/metrics.md": metrics(),
        "reference/python.md": PYTHON,
    }


# ---------------------------------------------------------------- keys


def keys() -> str:
    """Every key of params.yaml, a table for each section."""
    values = flatten(load_config())
    lines = [
        "# Keys of params.yaml",
        "",
        "Every key, with the value in `params.yaml`, what it takes and what it means; `paribus keys NAME` prints the same. "
        "[Configuration](../configuration.md) says how the file is read.",
    ]
    section = None
    for path, hint, meta in describe():
        if path not in values:
            continue
        owner = path.rpartition(".")[0] or "top level"
        if owner != section:
            section = owner
            lines += [
                "",
                f"## {owner}",
                "",
                "| key | value | takes | meaning |",
                "| --- | --- | --- | --- |",
            ]
        options = getattr(hint, "__args__", ())
        nullable = type(None) in options
        kinds = [option for option in options if option is not type(None)]
        takes = allowed(kinds[0] if nullable else hint, meta, nullable)
        meaning = meta["doc"]
        if meta["acts_when"]:
            meaning += f" (only with {meta['acts_when'].words.replace('{here}', owner)})"
        value = json.dumps(values[path], ensure_ascii=False)
        lines.append(
            f"| `{path.rpartition('.')[2]}` | `{_cell(value)}` | {_cell(takes)} | {_cell(meaning)} |"
        )
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text that neither ends a cell nor begins markup."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("\n", " ")


# ---------------------------------------------------------------- commands


def command_line() -> str:
    """Every command, with its help and options."""
    lines = [
        "# Commands",
        "",
        "`paribus COMMAND --help` prints the same. Exit status 0: done, or yes; 1: the answer is no; 2: the input is wrong; "
        "75: paused.",
        "",
        'Tab completion: `eval "$(_PARIBUS_COMPLETE=bash_source paribus)"` in bash; `zsh_source`, `fish_source` in the others.',
    ]
    lines += _command("paribus", commands, 2)
    return "\n".join(lines) + "\n"


def _command(name: str, command: click.Command, level: int) -> Iterator[str]:
    context = click.Context(command, info_name=name)
    if name != "paribus":
        usage = " ".join(command.collect_usage_pieces(context))
        yield from ("", f"{'#' * level} {name}", "", f"    {name} {usage}", "")
        for paragraph in (command.help or "").replace("\b\n", "").split("\n\n"):
            yield _cell(paragraph.strip())
            yield ""
        yield from _options(command, context)
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            if found is not None and not found.hidden:
                yield from _command(f"{name} {inner}", found, min(level + (name != "paribus"), 4))


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    rows = []
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None:
            option, words = record
            rows.append(f"| `{option.replace('|', '/')}` | {_cell(words)} |")
    if rows:
        yield from ("| option | |", "| --- | --- |", *rows)


# ---------------------------------------------------------------- metrics


def metrics() -> str:
    """Every metrics file and curve, key by key."""
    lines = [
        "# Metrics",
        "",
        "Files and keys are a contract: they stay. Figures of a whole run end up in `metrics/*.json`, curves in `plots/*.csv`, "
        "and both in MLflow. `dvc metrics show` prints the headline. [Evaluation](../evaluation.md) says how "
        "they are measured.",
    ]
    for stage, rows in MEANINGS.items():
        title = (
            "metrics/pretrain.json, midtrain.json, sft.json"
            if stage == "training"
            else f"metrics/{stage}.json"
        )
        lines += ["", f"## {title}", "", "| key | meaning |", "| --- | --- |"]
        lines += [f"| `{key}` | {_cell(meaning)} |" for key, meaning in rows.items()]
    lines += [
        "",
        "## Curves",
        "",
        "`plots/midtrain.csv` and `plots/sft.csv` have the columns of pretraining without `val_bpb`.",
    ]
    for stage, columns in CURVES.items():
        more = OPTIONAL_COLUMNS if stage == "pretrain" else {}
        lines += ["", f"### plots/{stage}.csv", "", "| column | in MLflow |", "| --- | --- |"]
        lines += [f"| `{column}` | `{name}` |" for column, name in {**columns, **more}.items()]
    return "\n".join(lines) + "\n"
