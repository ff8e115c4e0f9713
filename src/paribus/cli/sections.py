"""`paribus --help`: commands by what they are for, each in a line that fits a terminal."""

from __future__ import annotations

import click

# Heading -> command -> what it does, at most 58 characters.
SECTIONS: dict[str, dict[str, str]] = {
    "Stages, which dvc repro runs": {
        "corpus": "documents, conversations, problems and tasks",
        "tokenizer": "byte-level BPE",
        "tokens": "token shards",
        "pretrain": "the base model",
        "midtrain": "the chat format and the calculator",
        "sft": "supervised fine-tuning",
        "rl": "reinforcement learning",
        "eval": "CORE, word problems, reward sparsity, lm-eval tasks",
        "report": "one page about the run",
    },
    "Questions": {
        "ablate": "several ideas, several seeds: a verdict on each",
        "try": "is this change better? keep, discard or undecided",
        "ledger": "all that was tried, and what still stands",
        "judge": "a verdict on anybody's table of results",
        "noise": "what the seed alone does",
        "tune": "Optuna over any keys, within a memory budget",
        "runs": "headline figures of all runs beside each other",
        "compare": "what differs between two runs",
        "verify": "make a run again from its record, and certify it",
    },
    "Before and beside a run": {
        "plan": "memory, hours and money that a run will take",
        "doctor": "what is missing or wrong on this machine",
        "keys": "every key of params.yaml: type, bounds, meaning",
        "profile": "files of overrides: list, apply",
        "ui": "the MLflow page of this project",
        "export": "a checkpoint for transformers or llama.cpp",
        "chat": "talk to checkpoints, here or on a page",
        "pause": "have running stages save and stop",
    },
    "Upkeep": {
        "clean": "remove training states that nothing needs",
        "deps": "write each stage's code into dvc.yaml",
    },
}


def write_sections(group: click.Group, formatter: click.HelpFormatter) -> None:
    """Write the commands of a group under the headings of SECTIONS; one that none of them names comes last."""
    left = dict(group.commands)
    for heading, commands in SECTIONS.items():
        rows = [(name, words) for name, words in commands.items() if left.pop(name, None)]
        with formatter.section(heading):
            formatter.write_dl(rows)
    if left:
        rows = [(name, command.get_short_help_str(58)) for name, command in left.items()]
        with formatter.section("More"):
            formatter.write_dl(rows)
