"""CORE's quick evaluation against a slow, obvious one: the same predictions, item by item."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from support.core_bundle import TASKS, tiny_model

from paribus.config import Config
from paribus.data.core_bundle import Task, read_bundle
from paribus.data.tokenizer import Tokenizer, train_tokenizer
from paribus.evaluate.core import Item, evaluate_core, evaluate_task
from paribus.evaluate.core_prompts import Prompts
from paribus.model.gpt import GPT

TIE = 1e-4  # nats: nearer options may swap


# ---------------------------------------------------------------- the protocol, one prompt at a time


def reference_prompts(rows: Any, index: int, kind: str, shots: int, delimiter: str) -> list[str]:
    others = [i for i in range(len(rows)) if i != index]
    shown = random.Random(1234 + index).sample(others, shots) if shots else []
    start = ""
    for i in shown:
        row = rows[i]
        if kind == "multiple_choice":
            start += row["query"] + delimiter + row["choices"][row["gold"]] + "\n\n"
        if kind == "schema":
            start += row["context_options"][row["gold"]] + delimiter + row["continuation"] + "\n\n"
        if kind == "language_modeling":
            start += row["context"].strip() + delimiter + row["continuation"] + "\n\n"
    row = rows[index]
    if kind == "multiple_choice":
        return [start + row["query"] + delimiter + choice for choice in row["choices"]]
    if kind == "schema":
        return [
            start + context + delimiter + row["continuation"] for context in row["context_options"]
        ]
    without = start + row["context"].strip() + delimiter
    return [without.strip(), without + row["continuation"]]


def reference_item(
    model: GPT, tokenizer: Tokenizer, task: Task, index: int
) -> tuple[bool, list[float]]:
    """(correct, mean loss of each option), by the public protocol; nan where nothing of an option can be scored."""
    prompts = reference_prompts(task.rows, index, task.kind, task.shots, task.delimiter)
    ids = [[tokenizer.bos, *tokenizer.encode(prompt)] for prompt in prompts]
    same = 0
    if task.kind == "schema":
        while same < min(map(len, ids)) and len({tokens[-1 - same] for tokens in ids}) == 1:
            same += 1
        starts = [len(tokens) - same for tokens in ids]
    else:
        while same < min(map(len, ids)) and len({tokens[same] for tokens in ids}) == 1:
            same += 1
        starts = [same] * len(ids)
    if task.kind == "language_modeling":
        ids, starts = ids[1:], starts[1:]
    losses, greedy = [], []
    for tokens, start in zip(ids, starts, strict=True):
        dropped = max(len(tokens) - model.config.seq_len, 0)
        tokens, start = tokens[dropped:], start - dropped
        if start < 1 or start == len(tokens):
            losses.append(math.nan)
            greedy.append(False)
            continue
        with torch.no_grad():
            logits = model.logits(model.hidden(torch.tensor([tokens])))[0]
        each = [
            -logits[place - 1].log_softmax(-1)[tokens[place]].item()
            for place in range(start, len(tokens))
        ]
        losses.append(sum(each) / len(each))
        greedy.append(
            all(
                logits[place - 1].argmax().item() == tokens[place]
                for place in range(start, len(tokens))
            )
        )
    if task.kind == "language_modeling":
        return greedy[0], losses
    return losses.index(min(losses)) == task.rows[index]["gold"], losses


def with_nan(losses: tuple[float | None, ...]) -> list[float]:
    return [math.nan if loss is None else loss for loss in losses]


def assert_parity(model: GPT, tokenizer: Tokenizer, task: Task, items: list[Item]) -> None:
    for item in items:
        correct, losses = reference_item(model, tokenizer, task, item.index)
        assert with_nan(item.losses) == pytest.approx(losses, abs=TIE, nan_ok=True), (
            task.label,
            item.index,
        )
        best = sorted(loss for loss in losses if not math.isnan(loss))[:2]
        tied = task.kind != "language_modeling" and len(best) == 2 and best[1] - best[0] < TIE
        if not tied:
            assert item.correct == correct, (task.label, item.index)


@pytest.fixture(scope="session")
def fitted(tiny_config: Config, word_tokenizer: Tokenizer, bundle: Path) -> GPT:
    """A model that has read some answers, so that greedy continuations are sometimes right."""
    model = tiny_model(tiny_config, word_tokenizer.vocab_size, seq_len=512)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    task = next(task for task in read_bundle(bundle).tasks if task.label == "word_shown")
    texts = [
        reference_prompts(task.rows, i, task.kind, task.shots, task.delimiter)[1] for i in range(6)
    ]
    for step in range(36):
        tokens = torch.tensor([[word_tokenizer.bos, *word_tokenizer.encode(texts[step % 6])]])
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("seq_len", [512, 96, 24])
def test_every_item_of_every_kind_as_the_reference(
    seq_len: int, fitted: GPT, word_tokenizer: Tokenizer, bundle: Path, tiny_config: Config
) -> None:
    """At 96 the few-shot prompts are truncated; at 24 even questions are."""
    short = tiny_model(tiny_config, word_tokenizer.vocab_size, seq_len)
    short.load_state_dict(fitted.state_dict())
    right = {}
    for task in read_bundle(bundle).tasks:
        items = evaluate_task(short, word_tokenizer, task, batch_size=8)
        assert [item.index for item in items] == list(range(TASKS[task.label][4]))
        assert_parity(short, word_tokenizer, task, items)
        right[task.label] = sum(item.correct for item in items)
    if seq_len == 512:
        assert 0 < right["word_shown"] < TASKS["word_shown"][4], "both outcomes must occur"


@pytest.mark.parametrize(
    "shape",
    [
        {"window_pattern": "SL", "window": 16},
        {"n_kv_heads": 1},
        {"position": "learned", "value_embeddings": "all"},
    ],
)
def test_other_architectures_as_the_reference(
    shape: dict[str, Any], word_tokenizer: Tokenizer, bundle: Path, tiny_config: Config
) -> None:
    other = tiny_model(tiny_config, word_tokenizer.vocab_size, 96, **shape)
    for task in read_bundle(bundle, max_per_task=6).tasks:
        assert_parity(
            other, word_tokenizer, task, evaluate_task(other, word_tokenizer, task, batch_size=8)
        )


def test_results_do_not_depend_on_the_batch_size(
    fitted: GPT, word_tokenizer: Tokenizer, bundle: Path
) -> None:
    one, eight, many = (
        evaluate_core(fitted, word_tokenizer, bundle, max_per_task=None, batch_size=size).items
        for size in (1, 8, 32)
    )
    for a, b, c in zip(one, eight, many, strict=True):
        assert (a.correct, a.prediction) == (b.correct, b.prediction) == (c.correct, c.prediction)
        for other in (b, c):
            assert with_nan(other.losses) == pytest.approx(with_nan(a.losses), abs=TIE, nan_ok=True)


def test_sub_sampling_keeps_the_shuffle_and_the_examples_inside(
    fitted: GPT, word_tokenizer: Tokenizer, bundle: Path
) -> None:
    """The first items after random.Random(1337).shuffle, shown only each other."""
    for task in read_bundle(bundle, max_per_task=6).tasks:
        path = bundle / "eval_data" / f"{task.label}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        random.Random(1337).shuffle(rows)
        cut = dataclasses.replace(task, rows=tuple(rows[:6]))
        items = evaluate_task(fitted, word_tokenizer, task, batch_size=8)
        assert len(items) == 6
        assert task.population == len(rows)
        assert_parity(fitted, word_tokenizer, cut, items)


def test_fewer_items_than_examples_borrow_the_next_as_examples(bundle: Path) -> None:
    task = next(
        task for task in read_bundle(bundle, max_per_task=2).tasks if task.label == "word_shown"
    )
    assert (task.n, len(task.rows)) == (2, task.shots + 1)


def test_examples_joined_from_parts_are_the_whole_text_tokenised(word_tokenizer: Tokenizer) -> None:
    """Random text around the blank line, white space of all sorts included."""
    rng, alphabet = random.Random(5), " \n\t\r,.!?'\"aZ9é中\u0301\u00a0\u2028ł-"
    rows = [
        {
            "query": "".join(rng.choices(alphabet, k=rng.randint(0, 9))),
            "gold": 0,
            "choices": ["".join(rng.choices(alphabet, k=rng.randint(0, 9))) for _ in range(2)],
        }
        for _ in range(400)
    ]
    task = Task("x", "multiple_choice", 3, " ", 0.5, tuple(rows), len(rows), len(rows), "")
    prompts = Prompts(word_tokenizer, task)
    assert prompts.joins
    whole = [
        [
            [word_tokenizer.bos, *word_tokenizer.encode(text)]
            for text in reference_prompts(rows, index, "multiple_choice", 3, " ")
        ]
        for index in range(len(rows))
    ]
    assert prompts.encode(range(len(rows))) == whole


def test_a_tokenizer_that_merges_over_blank_lines_reads_the_whole(
    word_tokenizer: Tokenizer, bundle: Path
) -> None:
    class Merging(Tokenizer):
        """Reads a blank line and the letter after it as one token."""

        def __init__(self) -> None:
            self.bos = word_tokenizer.bos

        def encode_batch(self, texts: list[str]) -> list[list[int]]:
            return [[ord(letter) for letter in text.replace("\n\nt", "\u01fe")] for text in texts]

    task = next(task for task in read_bundle(bundle).tasks if task.label == "choice")
    rows = tuple(row | {"query": "t" + row["query"]} for row in task.rows)
    prompts = Prompts(Merging(), dataclasses.replace(task, rows=rows))
    text = reference_prompts(rows, 0, task.kind, task.shots, task.delimiter)[0]
    assert prompts.encode(range(1))[0][0][1:] == Merging().encode_batch([text])[0]


@pytest.mark.parametrize("seq_len, items", [(2048, 1), (200, 3)])
def test_the_real_bundle_as_the_reference(
    seq_len: int, items: int, shared_data: Path, tiny_config: Config
) -> None:
    folder = shared_data / "eval_bundle"
    files = sorted((folder / "eval_data").rglob("*.jsonl"))
    lines = (line for file in files for line in islice(file.open(encoding="utf-8"), 60))
    tokenizer = train_tokenizer(lines, tiny_config.tokenizer)
    bundle = read_bundle(folder)
    model = tiny_model(tiny_config, tokenizer.vocab_size, seq_len)
    for task in bundle.tasks:
        asked = evaluate_task(model, tokenizer, dataclasses.replace(task, n=items), batch_size=8)
        assert_parity(model, tokenizer, task, asked)
    assert len(bundle.tasks) == 22 - len(bundle.missing)
    assert bundle.partial == bool(bundle.missing)
