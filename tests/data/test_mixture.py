"""Rows of several corpora: shares, passes, subsets and orders, each a pure function of (seed, row)."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paribus import config
from paribus.data import write_jsonl
from paribus.data.corpus import build_corpus
from paribus.data.loader import DocumentLoader, RowLoader
from paribus.data.mixture import MixedRows, document_rows
from paribus.data.shards import TokenShards, write_shards
from paribus.data.tokenizer import Tokenizer, train_tokenizer
from paribus.errors import UserError
from paribus.evaluate.bpb import HeldOut
from paribus.model.gpt import GPT
from paribus.recipe import Recipe

SEQ_LEN = 16
WORDS = {
    "main": ["cat", "dog", "sat", "ran"],
    "code": ["x", "y", "=", "+"],
    "verse": ["rose", "thorn", "moon"],
}


def texts_of(source: str) -> list[str]:
    draw = random.Random(source)
    return [
        " ".join(draw.choices(WORDS[source], k=5 + n % 60)) + f" {source}{n}" for n in range(150)
    ]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [text for source in WORDS for text in texts_of(source)]
    settings = config.Tokenizer(290, 2, 1.0, "bpe", "gpt4")
    return train_tokenizer(texts, settings)


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mixture")
    for source in WORDS:
        place = root / "documents" / ("" if source == "main" else source)
        write_jsonl(place / "0.jsonl", ({"text": text} for text in texts_of(source)))
    write_shards(root / "documents", tokenizer, config.Tokens(0.2, 2000), root / "tokens")
    return root / "tokens"


@pytest.fixture
def recipe_with(tiny_config: config.Config) -> Any:
    """pretrain's changes -> a recipe of 30 steps of 32 rows."""

    def recipe(**changes: Any) -> Recipe:
        model = dataclasses.replace(tiny_config.model, seq_len=SEQ_LEN, window=8)
        schedule = {"steps": 30, "batch_tokens": 32 * SEQ_LEN, **changes}
        pretrain = dataclasses.replace(tiny_config.pretrain, **schedule)
        texts = {"code": "c.jsonl", "verse": "v.jsonl"}
        corpus = dataclasses.replace(tiny_config.corpus, texts=texts)
        return Recipe.of(
            dataclasses.replace(tiny_config, model=model, pretrain=pretrain, corpus=corpus)
        )

    return recipe


def all_rows(rows: RowLoader, count: int = 960) -> np.ndarray:
    return rows.read(np.arange(count))[0]


def sources_of(tokens: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """The source whose words each row has most of."""
    found = []
    for row in tokens:
        text = tokenizer.decode(row.tolist())
        found.append(max(WORDS, key=lambda source: sum(text.count(word) for word in WORDS[source])))
    return found


def test_each_corpus_has_its_own_part_of_the_shards(folder: Path, tokenizer: Tokenizer) -> None:
    shards = TokenShards(folder, "train", verify=True)
    bounds = [shards.extent(source) for source in ("main", "code", "verse")]
    assert bounds[0][0] == 0
    assert [stop for _, stop in bounds[:-1]] == [start for start, _ in bounds[1:]]
    assert bounds[-1][1] == len(shards)
    for source in WORDS:
        rows = DocumentLoader(folder, "train", SEQ_LEN, 7, source)
        assert set(sources_of(all_rows(rows, 40), tokenizer)) == {source}


def test_a_mixture_has_its_shares_and_no_other_source(
    folder: Path, tokenizer: Tokenizer, recipe_with: Any
) -> None:
    rows = document_rows(folder, recipe_with(mixture={"main": 3.0, "code": 1.0, "verse": 0.0}))
    found = sources_of(all_rows(rows), tokenizer)
    assert found.count("code") == pytest.approx(240, abs=15)
    assert "verse" not in found


def test_epochs_read_a_source_so_often(folder: Path, recipe_with: Any) -> None:
    rows = document_rows(folder, recipe_with(epochs={"verse": 2.0}, mixture={"main": 1.0}))
    assert isinstance(rows, MixedRows)
    owner, numbers = rows.owners(np.arange(960))
    of_verse = numbers[owner == list(rows.shares).index("verse")]
    passes = len(of_verse) / rows.sources["verse"].rows_per_epoch
    assert passes == pytest.approx(2.0, abs=0.05)
    assert len(set(of_verse.tolist())) == len(of_verse)


def test_passes_that_do_not_fit_are_refused(folder: Path, recipe_with: Any) -> None:
    with pytest.raises(UserError, match="epochs: 900 of verse"):
        document_rows(folder, recipe_with(epochs={"verse": 900.0}, mixture={"main": 1.0}))


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mixture": {"main": 1.0, "code": 2.0}},
        {"mixture": {"main": 1.0, "code": 2.0}, "curriculum": "long_first"},
        {"unique_fraction": 0.2},
    ],
    ids=["plain", "mixed", "ordered", "subset"],
)
def test_a_row_is_the_same_in_every_batch_on_every_rank(
    changes: dict[str, Any], packing: str, folder: Path, recipe_with: Any
) -> None:
    rows = document_rows(folder, recipe_with(packing=packing, **changes))
    whole = rows.batch(3, range(32), 32)
    again = document_rows(folder, recipe_with(packing=packing, **changes))
    second_rank = again.batch(3, range(1, 32, 2), 32)
    assert whole.inputs[1::2].equal(second_rank.inputs)
    assert whole.targets[1::2].equal(second_rank.targets)


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_a_curriculum_reads_the_same_rows_in_order_of_length(
    packing: str, folder: Path, recipe_with: Any
) -> None:
    shuffled = document_rows(folder, recipe_with(packing=packing))
    short_first = document_rows(folder, recipe_with(packing=packing, curriculum="short_first"))
    long_first = document_rows(folder, recipe_with(packing=packing, curriculum="long_first"))
    numbers = np.arange(960)
    assert (np.diff(short_first.lengths(numbers)) >= 0).all()
    assert (np.diff(long_first.lengths(numbers)) <= 0).all()
    as_sorted = [sorted(map(tuple, all_rows(one).tolist())) for one in (shuffled, short_first)]
    assert as_sorted[0] == as_sorted[1]


def test_sources_come_one_after_another(
    folder: Path, tokenizer: Tokenizer, recipe_with: Any
) -> None:
    mixture = {"main": 1.0, "code": 1.0}
    rows = document_rows(folder, recipe_with(mixture=mixture, source_order=["code", "main"]))
    found = sources_of(all_rows(rows), tokenizer)
    assert found == sorted(found)


def test_a_subset_is_the_same_for_every_seed_and_is_repeated(
    folder: Path, recipe_with: Any
) -> None:
    sets = []
    for seed in (1, 2):
        recipe = recipe_with(unique_fraction=0.25)
        recipe = Recipe.of(dataclasses.replace(recipe.config, seed=seed))
        rows = document_rows(folder, recipe)
        read = all_rows(rows, 3 * rows.rows_per_epoch)
        sets.append({tuple(row) for row in read.tolist()})
        assert len(sets[-1]) <= rows.rows_per_epoch
    assert sets[0] == sets[1]


def test_bits_per_byte_are_of_every_corpus_in_its_share(
    folder: Path, tokenizer: Tokenizer, recipe_with: Any
) -> None:
    recipe = recipe_with()
    model = GPT(recipe.architecture, tokenizer.vocab_size)
    held_out = HeldOut(model, folder, tokenizer.token_bytes, recipe)
    rows = [row for batch in held_out.documents.validation_rows(4, 300) for row in batch.inputs]
    assert set(sources_of(np.stack(rows), tokenizer)) == set(WORDS)
    targets = sum(int((b.targets >= 0).sum()) for b in held_out.documents.validation_rows(4))
    assert targets == len(held_out.documents.shards) - len(WORDS)


def test_a_corpus_is_built_of_its_texts(tmp_path: Path, tiny_config: config.Config) -> None:
    write_jsonl(tmp_path / "c.jsonl", ({"text": text} for text in texts_of("code")))
    corpus = dataclasses.replace(tiny_config.corpus, texts={"code": "c.jsonl"})
    manifest = build_corpus(corpus, tmp_path / "corpus", tmp_path)
    assert manifest["documents"]["texts"]["code"]["documents"] == 150
    assert (tmp_path / "corpus/documents/code/00000.jsonl").is_file()


def test_texts_that_are_not_there_are_refused_by_their_key(
    tmp_path: Path, tiny_config: config.Config
) -> None:
    corpus = dataclasses.replace(tiny_config.corpus, texts={"code": "nowhere.jsonl"})
    with pytest.raises(UserError, match=r"corpus\.texts\.code: nowhere\.jsonl"):
        build_corpus(corpus, tmp_path / "corpus", tmp_path)
