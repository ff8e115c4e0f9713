"""A tiny model that has learned, in a second or two, to answer a few word problems with the calculator, not always right."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch

from paribus.config import Model, Tokenizer, load_config, resolve_model
from paribus.data.chat import problem_conversation, render
from paribus.data.tokenizer import Tokenizer as Codec
from paribus.data.tokenizer import train_tokenizer
from paribus.generate import Engine
from paribus.model.gpt import GPT

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS = 60  # enough to be right more often than not at temperature 1
SHAPE = {
    "depth": 2,
    "width": 64,
    "head_dim": 16,
    "n_heads": None,
    "n_kv_heads": 2,
    "seq_len": 96,
    "mlp": "relu2",
    "window_pattern": "L",
    "window": None,
    "value_embeddings": "none",
}


def problem(a: int, b: int, c: int | None = None) -> dict[str, str]:
    """One step, or two."""
    first = f"Mia has {a} shells and finds {b} more."
    answer = f"{a}+{b}=<<{a}+{b}={a + b}>>{a + b} shells."
    if c is None:
        return {"question": f"{first} How many now?", "answer": f"{answer}\n#### {a + b}"}
    answer += f" {a + b}*{c}=<<{a + b}*{c}={(a + b) * c}>>{(a + b) * c}."
    return {"question": f"{first} Then times {c}?", "answer": f"{answer}\n#### {(a + b) * c}"}


PROBLEMS = [problem(a, b, c) for a, b in ((3, 4), (5, 1), (2, 6), (7, 2)) for c in (None, 2, 3)]


def model_config(**changes: Any) -> Model:
    return dataclasses.replace(load_config(ROOT / "params.yaml").model, **{**SHAPE, **changes})


@functools.cache
def codec() -> Codec:
    cfg = Tokenizer(vocab_size=300, max_digits=1, train_megabytes=0.1, kind="bpe", pre_split="gpt4")
    return train_tokenizer([f"{p['question']} {p['answer']}" for p in PROBLEMS], cfg)


def random_model(seed: int = 0, std: float = 0.3, **changes: Any) -> GPT:
    """Weights large enough that every part of the model matters to the logits."""
    model = GPT(resolve_model(model_config(**changes)), codec().vocab_size)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(0, std, generator=generator)
    return model


@functools.cache
def talker() -> Engine:
    torch.manual_seed(0)
    model = GPT(resolve_model(model_config()), codec().vocab_size)
    model.initialise(0)
    rows = [render(problem_conversation(one, "worked"), codec()) for one in PROBLEMS]
    tokens = torch.zeros(len(rows), max(len(ids) for ids, _ in rows), dtype=torch.int64)
    targets = torch.full_like(tokens, -1)
    for row, (ids, mask) in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids)
        targets[row, : len(ids) - 1] = torch.where(
            torch.tensor(mask[1:]) > 0, torch.tensor(ids[1:]), -1
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(STEPS):
        loss = model(tokens, targets) / (targets >= 0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Engine(model, codec())
