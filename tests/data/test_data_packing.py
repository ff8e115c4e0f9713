"""Packed documents: each token once, every row opened by a document, a pure function of (seed, step), little memory."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from paribus import config
from paribus.data import write_jsonl
from paribus.data.mixture import document_rows
from paribus.data.packing import PackedLoader
from paribus.data.shards import TokenShards, split_of, write_shards
from paribus.data.tokenizer import Tokenizer, train_tokenizer
from paribus.recipe import Recipe

TEXTS = [
    " ".join(
        random.Random(n).choices(
            ["cat", "dog", "sat", "ran", "mat", "hill", "and", "7"], k=1 + n * n % 97
        )
    )
    for n in range(900)
]
SEQ_LEN = 32


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(
        TEXTS,
        config.Tokenizer(
            vocab_size=280, max_digits=2, train_megabytes=1, kind="bpe", pre_split="gpt4"
        ),
    )


@pytest.fixture(scope="module")
def root(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packing")
    write_jsonl(root / "documents/0.jsonl", ({"text": text} for text in TEXTS))
    write_shards(root / "documents", tokenizer, config.Tokens(0.1, 5000), root / "data/tokens")
    return root


@pytest.fixture
def folder(root: Path) -> Path:
    return root / "data/tokens"


def epoch(loader: PackedLoader, number: int = 0) -> torch.Tensor:
    """All rows of an epoch, (rows, T + 1); -1 where nothing is."""
    batch = loader.batch(number, range(loader.rows_per_epoch), loader.rows_per_epoch)
    assert (batch.inputs[:, 1:] == batch.targets[:, :-1])[batch.targets[:, :-1] >= 0].all()
    return torch.cat([batch.inputs[:, :1], batch.targets], 1)


def test_the_index_says_where_documents_begin(folder: Path, tokenizer: Tokenizer) -> None:
    shards = TokenShards(folder, "train")
    tokens = np.empty(len(shards), np.int64)
    shards.read(0, tokens)
    assert shards.document_starts().tolist() == np.flatnonzero(tokens == tokenizer.bos).tolist()
    assert len(shards.document_starts()) == sum(split_of(text, 0.1) == "train" for text in TEXTS)


def test_every_row_opens_with_a_document_and_every_token_comes_once(
    folder: Path, tokenizer: Tokenizer
) -> None:
    rows = epoch(PackedLoader(folder, "train", SEQ_LEN, seed=3))
    assert (rows[:, 0] == tokenizer.bos).all()
    found: Counter[str] = Counter()
    for row in rows.tolist():
        found.update(tokenizer.decode([token for token in row if token >= 0]).split("<|bos|>")[1:])
    expected: Counter[str] = Counter()
    for text in TEXTS:
        ids = tokenizer.encode(text)
        if split_of(text, 0.1) == "train":
            expected.update(
                tokenizer.decode(ids[start : start + SEQ_LEN])
                for start in range(0, len(ids), SEQ_LEN)
            )
    assert found == expected
    assert (rows >= 0).float().mean() > 0.97


def test_packed_batches_are_the_same_for_any_ranks_and_after_any_steps(folder: Path) -> None:
    used = PackedLoader(folder, "train", SEQ_LEN, seed=3)
    beyond = used.rows_per_epoch // 8 + 5
    for step in (0, beyond, 17):
        whole = PackedLoader(folder, "train", SEQ_LEN, seed=3).batch(step, range(8), 8)
        for ranks in (2, 4):
            share = 8 // ranks
            parts = [
                used.batch(step, range(rank * share, (rank + 1) * share), 8)
                for rank in range(ranks)
            ]
            assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
            assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)


def test_epochs_and_seeds_differ_in_order_only(folder: Path) -> None:
    loader = PackedLoader(folder, "train", SEQ_LEN, seed=3)
    first, second, other = (
        epoch(loader),
        epoch(loader, 1),
        epoch(PackedLoader(folder, "train", SEQ_LEN, seed=4)),
    )
    for rows in (second, other):
        assert not torch.equal(rows, first)
        assert torch.equal(rows.flatten().sort()[0], first.flatten().sort()[0])


def test_packing_takes_effect(root: Path, tiny_config: config.Config) -> None:
    model = dataclasses.replace(tiny_config.model, seq_len=SEQ_LEN)
    batches = []
    for packing in ("concatenate", "best_fit"):
        pretrain = dataclasses.replace(tiny_config.pretrain, packing=packing)
        settings = dataclasses.replace(tiny_config, model=model, pretrain=pretrain)
        rows = document_rows(root / "data/tokens", Recipe.of(settings))
        batches.append(rows.batch(0, range(8), 8))
    assert not torch.equal(batches[0].inputs, batches[1].inputs)


def test_a_hundred_gigabytes_of_shards_need_less_than_one_of_memory(tmp_path: Path) -> None:
    """Sparse files as large as 50 billion tokens; a process that reads batches all over them, one process for its memory."""
    shards = [{"file": f"train-{n:05d}.bin", "tokens": 10**9, "sha256": ""} for n in range(50)]
    for shard in shards:
        with (tmp_path / str(shard["file"])).open("wb") as file:
            file.truncate(2 * 10**9)
    split = {"documents": 1, "tokens": 50 * 10**9, "bytes": 1, "shards": shards}
    (tmp_path / "manifest.json").write_text(
        json.dumps({"dtype": "<u2", "vocab_size": 65536, "train": split})
    )
    script = (
        "import sys; import torch; from paribus.train.loop import peak_memory_bytes; from paribus.data import shards;"
        "from paribus.data.loader import DocumentLoader;"
        "shards.RELEASE_BYTES = 20_000_000;"
        "loader = DocumentLoader(sys.argv[1], 'train', 2048, 1);"
        "peak = lambda: peak_memory_bytes(torch.device('cpu')) // 1024;"
        "before = peak();"
        "[loader.batch(step, range(128), 128) for step in range(10)];"
        "print(before, peak())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    assert after < 1_000_000
    assert after - before < 60_000
