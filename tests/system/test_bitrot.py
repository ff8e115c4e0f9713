"""A flip on the disk, with the file's times as they were, is named by whatever reads it and never used."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.talker import PROBLEMS, random_model, talker

from paribus import config
from paribus.config import Config
from paribus.data import contents, write_jsonl
from paribus.data.chat import load_sources
from paribus.data.corpus import build_corpus
from paribus.data.loader import DocumentLoader
from paribus.data.packing import PackedLoader
from paribus.data.sealed import seal
from paribus.data.shards import documents, write_shards
from paribus.data.tokenizer import Tokenizer, train_tokenizer
from paribus.errors import UserError
from paribus.evaluate.gsm8k import evaluate_gsm8k, read_result, write_items
from paribus.model.gpt import load_checkpoint, save_checkpoint


def damage(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file's bytes, its times kept."""
    times = path.stat()
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def flip(share: float) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        place = int(share * (len(data) - 1))
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    return change


DAMAGES = {
    "start": flip(0.1),
    "middle": flip(0.5),
    "end": flip(0.9),
    "half": lambda data: data[: len(data) // 2],
    "zero": lambda data: bytes(len(data)),
    "garbage": lambda data: bytes((7 * place) % 256 for place in range(len(data))),
}
damaged_in_every_way = pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [f"text number {number}" for number in range(300)]
    return train_tokenizer(
        texts,
        config.Tokenizer(
            vocab_size=300, max_digits=2, train_megabytes=1, kind="bpe", pre_split="gpt4"
        ),
    )


@pytest.fixture
def tokens(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "docs/0.jsonl", ({"text": f"text {n} " * 9} for n in range(200)))
    cfg = config.Tokens(val_fraction=0.1, shard_tokens=2_000)
    write_shards(tmp_path / "docs", tokenizer, cfg, tmp_path / "tokens")
    return tmp_path / "tokens"


@damaged_in_every_way
@pytest.mark.parametrize("name", ["train-00001.bin", "manifest.json"])
def test_token_shards(change: Callable[[bytes], bytes], name: str, tokens: Path) -> None:
    DocumentLoader(tokens, "train", 16, seed=1)
    damage(tokens / name, change)
    with pytest.raises(UserError, match=name):
        DocumentLoader(tokens, "train", 16, seed=1)


@damaged_in_every_way
def test_the_places_of_documents(change: Callable[[bytes], bytes], tokens: Path) -> None:
    PackedLoader(tokens, "train", 64, seed=1)
    damage(tokens / "train-documents.bin", change)
    with pytest.raises(UserError, match=r"train-documents\.bin"):
        PackedLoader(tokens, "train", 64, seed=1)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (b'": 280', b'": 281', "the ids of its"),
        (b'": 299', b'": 699', "the ids of its"),
        (b'"i": 80,\n', b"", "the ids of its"),
        (b'"i": 80,', b'"\xc5\xb8": 80,', "lacks some of the 256 bytes"),
        (b'"normalizer": null', b'"normalizer": {"type": "Lowercase"}', "its normalizer is"),
    ],
)
def test_a_tokenizer_that_is_json_still(
    before: bytes, after: bytes, reason: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    Tokenizer.load(path)
    assert before in path.read_bytes()
    damage(path, lambda data: data.replace(before, after, 1))
    with pytest.raises(UserError, match=rf"tokenizer\.json: damaged: .*{reason}"):
        Tokenizer.load(path)


@damaged_in_every_way
@pytest.mark.parametrize("name", ["tokenizer.json", "manifest.json"])
def test_a_trained_tokenizer(
    change: Callable[[bytes], bytes], name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save_trained(tmp_path)
    Tokenizer.load_trained(tmp_path)
    damage(tmp_path / name, change)
    with pytest.raises(UserError, match=name):
        Tokenizer.load_trained(tmp_path)


def test_a_digit_of_the_split_pattern_and_a_missing_seal_are_found_before_use(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save_trained(tmp_path)
    path = tmp_path / "tokenizer.json"
    assert b"{1,2}" in path.read_bytes()
    damage(path, lambda data: data.replace(b"{1,2}", b"{1,3}"))
    Tokenizer.load(path)  # by itself it is a tokenizer like any other
    with pytest.raises(UserError, match=r"tokenizer\.json: damaged: .*dvc checkout data/tokenizer"):
        Tokenizer.load_trained(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json"):
        Tokenizer.load_trained(tmp_path)


@pytest.fixture(scope="module")
def made(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    build_corpus(tiny_config.corpus, folder / "corpus", folder)
    return folder / "corpus"


READERS: dict[str, Callable[[Path], object]] = {
    "documents": lambda corpus: list(documents(corpus / "documents")),
    "conversations/facts.jsonl": lambda corpus: load_sources(corpus, ["facts"]),
    "problems/train.jsonl": lambda corpus: load_sources(corpus, ["problems_worked"]),
    "problems/test.jsonl": lambda corpus: list(contents.rows(corpus, "problems/test.jsonl")),
    "manifest.json": contents.read_manifest,
}


@damaged_in_every_way
@pytest.mark.parametrize("name", READERS)
def test_the_corpus(change: Callable[[bytes], bytes], name: str, made: Path) -> None:
    read = READERS[name]
    read(made)
    path = made / name
    if path.is_dir():
        path = sorted(path.iterdir())[0]
    good = path.read_bytes()
    try:
        damage(path, change)
        with pytest.raises(UserError, match=path.name):
            read(made)
    finally:
        path.write_bytes(good)


@damaged_in_every_way
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_checkpoint(
    change: Callable[[bytes], bytes], name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    save_checkpoint(tmp_path / "base", random_model(seq_len=32), tmp_path / "tokenizer.json", {})
    load_checkpoint(tmp_path / "base")
    damage(tmp_path / "base" / name, change)
    with pytest.raises(UserError, match=name):
        load_checkpoint(tmp_path / "base")


@damaged_in_every_way
@pytest.mark.parametrize(
    "name", ["items.parquet", "summary.json", "samples.json", "failures.jsonl", "prompts.json"]
)
def test_kept_word_problems(
    change: Callable[[bytes], bytes], name: str, tiny_config: Config, tmp_path: Path
) -> None:
    cfg = tiny_config.eval.gsm8k
    result = evaluate_gsm8k(talker(), PROBLEMS[:4], cfg, stage="sft", seed=1)
    (tmp_path / "prompts.json").write_text('[{"prompt": "Hello", "answer": "Hello to you"}]')
    write_items(tmp_path, result)
    assert read_result(tmp_path, "do it again") == result
    damage(tmp_path / name, change)
    with pytest.raises(UserError, match=rf"{name}: .*do it again"):
        read_result(tmp_path, "do it again")


def test_any_figure_of_a_summary_is_vouched_for(tiny_config: Config, tmp_path: Path) -> None:
    result = evaluate_gsm8k(talker(), PROBLEMS[:4], tiny_config.eval.gsm8k, stage="sft", seed=1)
    write_items(tmp_path, result)
    path = tmp_path / "summary.json"
    written = json.loads(path.read_text())
    assert "few_shot" in written
    for key, value in written.items():
        path.write_text(json.dumps(written | {key: [value]}))
        with pytest.raises(UserError, match=r"summary\.json"):
            read_result(tmp_path, "do it again")
    path.write_text(json.dumps(result.summary))
    with pytest.raises(UserError, match="key checksum is missing"):
        read_result(tmp_path, "do it again")


def test_a_summary_that_does_not_follow_from_its_items_is_refused(
    tiny_config: Config, tmp_path: Path
) -> None:
    result = evaluate_gsm8k(talker(), PROBLEMS[:4], tiny_config.eval.gsm8k, stage="sft", seed=1)
    write_items(tmp_path, result)
    summary = json.loads((tmp_path / "summary.json").read_text()) | {"accuracy": 0.99}
    (tmp_path / "summary.json").write_text(json.dumps(seal(summary)))
    with pytest.raises(UserError, match="do not follow from items.parquet"):
        read_result(tmp_path, "do it again")
