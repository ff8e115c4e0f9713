"""Token shards and the document loader: exact, checked, a pure function of (seed, step)."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkout import paribus
from support.project import Project

from paribus import config
from paribus.data import write_jsonl
from paribus.data.loader import DocumentLoader, Prefetcher, permute
from paribus.data.shards import TokenShards, check_tokenizer, documents, split_of, write_shards
from paribus.data.tokenizer import Tokenizer, train_tokenizer
from paribus.errors import UserError

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "by",
    "mat",
    "hill",
    "and",
    "then",
    "so",
    "7",
    "12",
]
TEXTS = [
    " ".join(random.Random(n).choices(WORDS, k=20 + n % 60)) + f" number {n}." for n in range(400)
]
CONFIG = config.Tokens(val_fraction=0.1, shard_tokens=1000)
SEQ_LEN = 32


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(
        TEXTS,
        config.Tokenizer(
            vocab_size=300, max_digits=2, train_megabytes=1, kind="bpe", pre_split="gpt4"
        ),
    )


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    write_jsonl(root / "documents/0.jsonl", ({"text": text} for text in TEXTS))
    write_shards(root / "documents", tokenizer, CONFIG, root / "tokens")
    return root / "tokens"


def all_tokens(folder: Path, split: str) -> np.ndarray:
    shards = TokenShards(folder, split, verify=True)
    tokens = np.empty(len(shards), np.int64)
    shards.read(0, tokens)
    return tokens


def test_shards_hold_every_document_after_bos(folder: Path, tokenizer: Tokenizer) -> None:
    for split in ("train", "val"):
        found = tokenizer.decode(all_tokens(folder, split)).split("<|bos|>")
        assert found == [
            "",
            *(text for text in TEXTS if split_of(text, CONFIG.val_fraction) == split),
        ]
        entry = TokenShards(folder, split).manifest[split]
        assert entry["bytes"] == sum(len(text.encode()) for text in found)
        sizes = [shard["tokens"] for shard in entry["shards"]]
        assert set(sizes[:-1]) == {CONFIG.shard_tokens}
        assert 0 < sizes[-1] <= CONFIG.shard_tokens


def test_the_split_does_not_depend_on_order(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "documents/0.jsonl", ({"text": text} for text in reversed(TEXTS)))
    write_shards(tmp_path / "documents", tokenizer, CONFIG, tmp_path / "tokens")
    there, here = (
        tokenizer.decode(all_tokens(path, "val")).split("<|bos|>")
        for path in (tmp_path / "tokens", folder)
    )
    assert there[1:] == here[:0:-1]
    assert 10 < len(here) < 80


def test_no_validation_document_is_said_and_leaves_nothing(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "documents/0.jsonl", [{"text": "only one"}])
    with pytest.raises(UserError, match="of 1 documents none fell into"):
        write_shards(tmp_path / "documents", tokenizer, CONFIG, tmp_path / "tokens")
    assert [path.name for path in tmp_path.iterdir()] == ["documents"]


def test_every_bad_shard_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "documents/0.jsonl", ({"text": text} for text in TEXTS))
    folder = tmp_path / "tokens"
    write_shards(tmp_path / "documents", tokenizer, CONFIG, folder)
    flipped = bytearray((folder / "train-00001.bin").read_bytes())
    flipped[5] ^= 1
    (folder / "train-00001.bin").write_bytes(flipped)
    TokenShards(folder, "train")  # sizes agree
    with pytest.raises(UserError, match="train-00001.bin: its sha256") as error:
        TokenShards(folder, "train", verify=True)
    assert len(error.value.problems) == 1
    (folder / "train-00000.bin").unlink()
    with (folder / "train-00002.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError) as error:
        TokenShards(folder, "train")
    named = [problem.split("/")[-1].split(":")[0] for problem in error.value.problems]
    assert named == ["train-00000.bin", "train-00002.bin"]


def swapped() -> Tokenizer:
    """A tokenizer with as many tokens as the module's, and other ones."""
    settings = config.Tokenizer(
        vocab_size=300, max_digits=2, train_megabytes=1, kind="bpe", pre_split="gpt4"
    )
    return train_tokenizer([text.upper() for text in TEXTS], settings)


def test_shards_name_the_tokenizer_that_wrote_them(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    read = Tokenizer.load(tmp_path / "tokenizer.json")
    check_tokenizer(folder, read, tmp_path / "tokenizer.json")
    other = swapped()
    assert other.vocab_size == tokenizer.vocab_size
    with pytest.raises(UserError) as error:
        check_tokenizer(folder, other, tmp_path / "other.json")
    [problem] = error.value.problems
    for named in (folder / "manifest.json", tokenizer.sha256[:12], "other.json", other.sha256[:12]):
        assert str(named) in problem


def test_pretraining_refuses_a_tokenizer_that_was_swapped(
    tiny_data: Path, project_root: Path, tmp_path: Path
) -> None:
    made = Project(tmp_path / "project", project_root)
    shutil.copytree(tiny_data, made.root / "data")
    manifest = json.loads((made.root / "data/tokenizer/manifest.json").read_text())
    settings = config.Tokenizer(
        manifest["vocab_size"], max_digits=1, train_megabytes=1, kind="bpe", pre_split="gpt4"
    )
    texts = list(documents(made.root / "data/corpus/documents"))
    train_tokenizer([text.upper() for text in texts], settings).save_trained(
        made.root / "data/tokenizer"
    )
    done = paribus("pretrain", cwd=made.root)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "data/tokenizer/tokenizer.json is " in done.stderr
    assert not (made.root / "checkpoints").exists()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 4099])
def test_permute_is_a_permutation(size: int) -> None:
    assert sorted(permute(np.arange(size), size, 1).tolist()) == list(range(size))


@pytest.mark.parametrize("size", [64, 1000, 4099])
def test_permute_shuffles_and_depends_on_the_key(size: int) -> None:
    one, two = (permute(np.arange(size), size, key) for key in (1, 2))
    assert (one != two).mean() > 0.9
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.3


def test_an_epoch_sees_every_row_once_and_the_next_in_another_order(folder: Path) -> None:
    loader = DocumentLoader(folder, "train", SEQ_LEN, seed=3)
    tokens = all_tokens(folder, "train")
    count = loader.rows_per_epoch
    assert count == (len(tokens) - 1) // SEQ_LEN
    expected = Counter(
        tuple(tokens[row * SEQ_LEN : (row + 1) * SEQ_LEN + 1]) for row in range(count)
    )
    epochs = []
    for epoch in (0, 1):
        batch = loader.batch(epoch, range(count), count)
        rows = torch.cat([batch.inputs, batch.targets[:, -1:]], 1)
        assert (batch.inputs[:, 1:] == batch.targets[:, :-1]).all()
        epochs.append([tuple(row) for row in rows.tolist()])
    assert Counter(epochs[0]) == Counter(epochs[1]) == expected
    assert sum(a == b for a, b in zip(*epochs, strict=True)) < count / 4


def test_a_batch_is_the_same_for_any_ranks_and_after_any_steps(folder: Path) -> None:
    loader = DocumentLoader(folder, "train", SEQ_LEN, seed=3)
    for step in (0, 90, 17):  # 90 x 8 is beyond the first epoch
        whole = DocumentLoader(folder, "train", SEQ_LEN, seed=3).batch(step, range(8), 8)
        for ranks in (2, 4):
            share = 8 // ranks
            parts = [
                loader.batch(step, range(rank * share, (rank + 1) * share), 8)
                for rank in range(ranks)
            ]
            assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
            assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    assert not torch.equal(
        DocumentLoader(folder, "train", SEQ_LEN, seed=4).batch(0, range(8), 8).inputs,
        loader.batch(0, range(8), 8).inputs,
    )


@pytest.mark.parametrize("limit", [None, 100, 7])
def test_validation_covers_each_token_once_in_order(folder: Path, limit: int | None) -> None:
    tokens = all_tokens(folder, "val")
    batches = list(DocumentLoader(folder, "val", SEQ_LEN, seed=0).validation_rows(5, limit))
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    assert targets[targets >= 0].tolist() == tokens[1 : 1 + (limit or len(tokens))].tolist()
    assert max(len(batch.inputs) for batch in batches) <= 5
    assert min(batch.inputs.min() for batch in batches) >= 0


def test_too_few_tokens_for_a_row_are_said(folder: Path) -> None:
    with pytest.raises(UserError, match="fewer than one row of model.seq_len"):
        DocumentLoader(folder, "val", 100_000, seed=0)


def test_prefetcher_keeps_order_and_stops_early() -> None:
    made: list[int] = []
    threads = threading.active_count()

    def make(step: int) -> int:
        made.append(step)
        return step * 10

    with Prefetcher(make, 3, 1000, depth=2) as batches:
        assert [next(batches) for _ in range(4)] == [(3, 30), (4, 40), (5, 50), (6, 60)]
    assert threading.active_count() == threads
    assert len(made) <= 8
    assert list(Prefetcher(lambda step: step, 5, 7)) == [(5, 5), (6, 6)]


def test_prefetcher_raises_at_the_step_that_failed() -> None:
    threads = threading.active_count()
    batches = Prefetcher(lambda step: 1 // (2 - step), 0, 9)
    assert [next(batches), next(batches)] == [(0, 0), (1, 1)]
    with pytest.raises(ZeroDivisionError):
        next(batches)
    assert threading.active_count() == threads
