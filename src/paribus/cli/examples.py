"""What `--help` adds to each command: a summary that fits its group's list, and examples that can be copied."""

from __future__ import annotations

import click

# Command -> its summary in the list of its group, at most 58 characters.
SUMMARIES = {
    "ablate list": "every ablation: its question, and how it stands",
    "ablate new": "write a commented template to edit",
    "ablate check": "what its arms change, and what would be refused",
    "ablate plan": "what it can find after each look, and its cost",
    "ablate run": "run what is missing, then judge",
    "ablate status": "every run: stage, step, time left",
    "ablate stop": "have its runs save and end",
    "ablate report": "judge what is done, write the pages",
    "tune new": "write a commented template to edit",
    "tune list": "every study: its keys, and how it stands",
    "tune run": "run trials, re-test the best, report",
    "tune status": "trials done and under way, the best so far",
    "tune report": "figures, summary and profile as it stands",
    "tune batch": "the fastest device batch that fits",
    "ledger audit": "what was kept, measured again at fresh seeds",
    "profile list": "the profiles there are, and what each is for",
    "profile args": "a profile as -S arguments for dvc exp run",
    "profile apply": "write a profile's values into params.yaml",
    "eval core": "stage: CORE of the base model",
    "eval gsm8k": "stage: word problems of one checkpoint",
    "eval compare-stages": "stage: word problems by stage, paired",
    "eval sparsity": "would RL learn anything from a checkpoint?",
    "eval lm": "tasks of lm-evaluation-harness",
    "eval instrument": "noise, and the smallest effect it can tell",
}

# Command -> examples. A comment after two spaces and a # is part of none.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "corpus": ("dvc repro corpus", "paribus corpus"),
    "tokenizer": ("dvc repro tokenizer", "paribus tokenizer"),
    "tokens": ("dvc repro tokens", "paribus tokens"),
    "pretrain": ("dvc repro pretrain", "paribus pretrain"),
    "midtrain": ("dvc repro midtrain", "paribus midtrain"),
    "sft": ("dvc repro sft", "paribus sft"),
    "rl": ("dvc repro rl", "paribus rl"),
    "report": ("dvc repro report", "paribus report"),
    "eval core": ("dvc repro core", "paribus eval core"),
    "eval gsm8k": ("dvc repro gsm8k_stage@rl", "paribus eval gsm8k rl"),
    "eval compare-stages": ("dvc repro gsm8k", "paribus eval compare-stages"),
    "eval sparsity": ("paribus eval sparsity", "paribus eval sparsity checkpoints/mid --questions 128"),
    "eval lm": ("paribus eval lm --tasks arc_easy,piqa --limit 100",),
    "eval instrument": ("paribus eval instrument", "paribus eval instrument 'qk-norm.*' --json"),
    "ablate list": ("paribus ablate list", "paribus ablate list --json"),
    "ablate new": (
        "paribus ablate new my-idea",
        "paribus ablate new my-idea-2 --like my-idea --arm wide  # again, at fresh seeds",
    ),
    "ablate check": ("paribus ablate check muon-vs-adamw",),
    "ablate plan": ("paribus ablate plan muon-vs-adamw", "paribus ablate plan muon-vs-adamw --device h100"),
    "ablate run": ("paribus ablate run muon-vs-adamw", "paribus ablate run muon-vs-adamw --workers 2 --looks 3"),
    "ablate status": ("paribus ablate status muon-vs-adamw --watch",),
    "ablate stop": ("paribus ablate stop muon-vs-adamw",),
    "ablate report": ("paribus ablate report muon-vs-adamw", "paribus ablate report muon-vs-adamw --json"),
    "try": ('paribus try -m "no soft cap"', "paribus try my-branch --budget 5min --seeds 3..8"),
    "ledger": ("paribus ledger", "paribus ledger --page"),
    "ledger audit": ("paribus ledger audit --seeds 8 --workers 2",),
    "judge": (
        "paribus judge results.csv --arm recipe --metric val_loss --pair-by seed",
        "paribus judge mlflow:sweep --arm params.depth --metric metrics.val_loss",
    ),
    "noise": ("paribus noise default --seeds 5", "paribus noise default --metric core --workers 2"),
    "tune new": ("paribus tune new my-rates",),
    "tune list": ("paribus tune list", "paribus tune list --json"),
    "tune run": ("paribus tune run tiny", "paribus tune run tiny --trials 60"),
    "tune status": ("paribus tune status tiny",),
    "tune report": ("paribus tune report tiny",),
    "tune batch": ("paribus tune batch --memory 24GiB",),
    "runs": ("paribus runs", "paribus runs workspace 'qk-norm.*' --json"),
    "compare": ("paribus compare workspace HEAD", "paribus compare 'study.adamw.*' 'study.baseline.*'"),
    "verify": ("paribus verify workspace --steps 20", "paribus verify --study qk-norm"),
    "plan": ("paribus plan", "paribus plan d16-rtx3090 --device 'RTX 3090' --seeds 5", "paribus plan -S model.depth=16 --json"),
    "doctor": ("paribus doctor", "paribus doctor --gpu --minutes 10"),
    "keys": ("paribus keys optimizer", "paribus keys qk_norm"),
    "profile list": ("paribus profile list",),
    "profile args": ("dvc exp run $(paribus profile args laptop)", "paribus profile args laptop"),
    "profile apply": ("paribus profile apply laptop",),
    "ui": ("paribus ui", "paribus ui --port 5001"),
    "export": ("paribus export rl", "paribus export sft --to gguf --out sft.gguf"),
    "chat": ("paribus chat", "paribus chat --web", "echo 'What is 3*4?' | paribus chat --checkpoint sft"),
    "pause": ("paribus pause",),
    "clean": ("paribus clean --dry-run",),
    "deps": ("paribus deps", "paribus deps --check"),
}  # fmt: skip


def add_examples(group: click.Group, path: str = "") -> None:
    """Give every command of a group its summary and its examples.

    Args:
        group: of commands.
        path: of the group, as it is typed; "" for the first.
    """
    for name, command in group.commands.items():
        place = f"{path} {name}".strip()
        command.short_help = SUMMARIES.get(place, command.short_help)
        if place in EXAMPLES:
            lines = "\n".join(f"  {example}" for example in EXAMPLES[place])
            command.epilog = f"\b\nExamples:\n{lines}"
        if isinstance(command, click.Group):
            add_examples(command, place)
