"""A small CORE bundle with what real ones have, and a model that ties no options."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from paribus.config import Config, resolve_model
from paribus.model.gpt import GPT

WORDS = (
    "the",
    "red",
    "fox",
    "sees",
    "a",
    "blue",
    "moon",
    "near",
    "old",
    "rivers;",
    "nine",
    "birds",
    "and",
    "42",
    "green",
    "frogs,",
    "who",
    "said",
    '"no",',
    "can't",
    "swim.",
)


def phrase(seed: int, length: int) -> str:
    return " ".join(
        WORDS[(seed * 7 + 3 * place + place * place * seed) % len(WORDS)] for place in range(length)
    )


def rows(kind: str, n: int) -> list[dict[str, Any]]:
    """Items with what real ones have: stray white space, options that repeat, begin each other, differ in length."""
    made: list[dict[str, Any]] = []
    for i in range(n):
        if kind == "multiple_choice":
            choices = [phrase(i + j, 1 + (i + j) % 4) for j in range(3)]
            if i % 5 == 1:
                choices[1] = choices[0] + " " + choices[1]
            query = " " * (i % 7 == 6) + phrase(i, 9) + " " * (i % 3 == 2)
            made.append({"query": query, "choices": choices, "gold": i % 3})
        elif kind == "schema":
            stem = phrase(i, 4)
            contexts = [f"{stem} {WORDS[i % 9]}", f"{stem} {WORDS[i % 5 + 3]} {WORDS[i % 4]}"]
            made.append(
                {"context_options": contexts, "continuation": phrase(i + 1, 3), "gold": i % 2}
            )
        else:
            answer = "red" if i % 3 else phrase(i, 2) + " " * (i % 4 == 3)
            context = "\n" * (i % 6 == 4) + f"{phrase(i, 3)}\nthe colour is:" + " " * (i % 2)
            made.append({"context": context, "continuation": answer})
    return made


# label -> kind, few-shot examples, delimiter, per cent by guessing, items
TASKS: dict[str, tuple[str, int, str, float, int]] = {
    "choice": ("multiple_choice", 3, "\nAnswer: ", 25, 14),
    "choice_zero": ("multiple_choice", 0, " ", 50, 9),
    "either": ("schema", 0, " ", 50, 12),
    "either_shown": ("schema", 2, " ", 50, 8),
    "word": ("language_modeling", 0, " ", 0, 11),
    "word_shown": ("language_modeling", 4, " ", 0, 13),
}


def make_bundle(folder: Path, tasks: dict[str, tuple[str, int, str, float, int]] = TASKS) -> Path:
    (folder / "eval_data").mkdir(parents=True)
    entries, baselines = [], ["Eval Task,Task Category,Random baseline"]
    for label, (kind, shots, delimiter, baseline, n) in tasks.items():
        entries.append(
            {
                "label": label,
                "dataset_uri": f"{label}.jsonl",
                "num_fewshot": [shots],
                "icl_task_type": kind,
                "continuation_delimiter": delimiter,
            }
        )
        baselines.append(f"{label},testing,{baseline}")
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows(kind, n)]
        (folder / "eval_data" / f"{label}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "core.yaml").write_text(json.dumps({"icl_tasks": entries}))  # JSON is YAML
    (folder / "eval_meta_data.csv").write_text("\n".join(baselines) + "\n")
    return folder


def tiny_model(config: Config, vocab_size: int, seq_len: int, seed: int = 1, **shape: Any) -> GPT:
    """Every matrix drawn: a head of zeros would tie all options."""
    shaped = dataclasses.replace(config.model, seq_len=seq_len, **shape)
    model = GPT(resolve_model(shaped), vocab_size)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
                )
    return model
