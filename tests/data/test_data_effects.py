"""Every key about text acts on what is trained on, or is listed as one that must not: proved by flipping each."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkout import ROOT
from support.tiny import TINY

from paribus.config import Config, describe, load_config
from paribus.data import write_jsonl
from paribus.data.contents import CONTENTS
from paribus.data.corpus import build_corpus
from paribus.data.mixture import document_rows
from paribus.data.shards import sample_documents, write_shards
from paribus.data.tokenizer import Tokenizer, train_tokenizer
from paribus.recipe import Recipe
from paribus.train.trainer import next_token

# Of the package's English and two files beside it, mixed.
SMALL: dict[str, Any] = TINY | {
    "corpus.source": "text",
    "corpus.megabytes": 0.2,
    "corpus.texts": {"mine": "mine.jsonl", "twice": "twice.jsonl"},
    "pretrain.mixture": {"main": 1.0, "mine": 1.0, "twice": 1.0},
}
CORPUS: dict[str, dict[str, Any]] = {
    "corpus.source": {"corpus.source": "local", "corpus.paths": ["mine.jsonl"]},
    "corpus.paths": {"corpus.source": "local", "corpus.paths": ["twice.jsonl"]},
    "corpus.text_column": {"corpus.text_column": "other"},
    "corpus.megabytes": {"corpus.megabytes": 0.1},
    "corpus.texts": {"corpus.texts": {"mine": "mine.jsonl", "twice": "mine.jsonl"}},
    "corpus.drop_contaminated": {"corpus.drop_contaminated": True, "corpus.problems": "problems"},
    "corpus.drop_near_duplicates": {"corpus.drop_near_duplicates": True},
    "corpus.conversations": {"corpus.conversations": {"talk": "talk.jsonl"}},
    "corpus.problems": {"corpus.problems": "problems"},
    "corpus.validation_problems": {"corpus.validation_problems": 9},
    "corpus.world.seed": {"corpus.world.seed": 2},
    "corpus.world.megabytes": {"corpus.source": "world", "corpus.world.megabytes": 0.1},
    "corpus.world.problems": {"corpus.world.problems": 50},
    "corpus.world.test_problems": {"corpus.world.test_problems": 12},
    "corpus.world.conversations": {"corpus.world.conversations": 30},
    "corpus.world.core_items": {"corpus.world.core_items": 9},
}
NUMBERS = {
    "corpus.source": "local",
    "corpus.paths": ["mine.jsonl"],
    "corpus.texts": {},
    "pretrain.mixture": {},
    "tokenizer.vocab_size": 340,
}
# What the flip is compared with, where that is another configuration than SMALL.
BESIDE: dict[str, dict[str, Any]] = {
    "tokenizer.max_digits": NUMBERS,
    "pretrain.short_fraction": {"pretrain.short_context": 16},
    "pretrain.growth_fraction": {"pretrain.first_batch_tokens": 64},
    "pretrain.growth": {"pretrain.first_batch_tokens": 64},
    "corpus.paths": CORPUS["corpus.source"],
    "corpus.drop_contaminated": {"corpus.problems": "problems"},
    "corpus.world.megabytes": {"corpus.source": "world"},
}
ROWS: dict[str, dict[str, Any]] = {
    "tokenizer.kind": {"tokenizer.kind": "unigram"},
    "tokenizer.vocab_size": {"tokenizer.vocab_size": 420},
    "tokenizer.pre_split": {"tokenizer.pre_split": "gpt2"},
    "tokenizer.max_digits": NUMBERS | {"tokenizer.max_digits": 1},
    "tokenizer.train_megabytes": {"tokenizer.train_megabytes": 0.05},
    "tokens.val_fraction": {"tokens.val_fraction": 0.2},
    "seed": {"seed": 8},
    "pretrain.packing": {"pretrain.packing": "best_fit"},
    "pretrain.mixture": {"pretrain.mixture": {"main": 1.0, "mine": 2.0}},
    "pretrain.epochs": {"pretrain.epochs": {"twice": 0.05}, "pretrain.mixture": {"main": 1.0}},
    "pretrain.unique_fraction": {"pretrain.unique_fraction": 0.1},
    "pretrain.curriculum": {"pretrain.curriculum": "short_first"},
    "pretrain.source_order": {"pretrain.source_order": ["twice", "main", "mine"]},
    "pretrain.short_context": {"pretrain.short_context": 16},
    "pretrain.short_fraction": {"pretrain.short_context": 16, "pretrain.short_fraction": 0.2},
    "pretrain.first_batch_tokens": {"pretrain.first_batch_tokens": 64},
    "pretrain.growth_fraction": {
        "pretrain.first_batch_tokens": 64,
        "pretrain.growth_fraction": 0.9,
    },
    "pretrain.growth": {"pretrain.first_batch_tokens": 64, "pretrain.growth": "doubling"},
    "pretrain.batch_tokens": {"pretrain.batch_tokens": 512},
}
MUST_NOT = {"tokens.shard_tokens": {"tokens.shard_tokens": 5_000}}
ELSEWHERE = {"corpus.core"}  # its tasks come from files: tests/data/test_data_corpus.py


def config_of(changes: dict[str, Any]) -> Config:
    return load_config(ROOT / "params.yaml", SMALL | changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("effects")
    names = [f"q{chr(97 + n % 26)}{chr(97 + n // 26)}z" for n in range(60)]
    texts = [
        f"In 1999, on day {n}, {name} the cat counted {n * 37} birds in camelCase " * 8
        for n, name in enumerate(names)
    ]
    rows = [{"text": text, "other": text.upper()} for text in texts]
    write_jsonl(root / "mine.jsonl", rows)
    write_jsonl(root / "twice.jsonl", [*rows[:30], *rows[:29]])
    asked = [{"question": text, "answer": f"It is so.\n#### {n}"} for n, text in enumerate(texts)]
    write_jsonl(root / "problems/train.jsonl", asked[20:])
    write_jsonl(root / "problems/test.jsonl", asked[:20])
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    write_jsonl(root / "talk.jsonl", [{"messages": talk}] * 8)
    return root


class Chain:
    """The stages before training, each made once for the keys that it reads."""

    def __init__(self, root: Path) -> None:
        self.root, self._made = root, dict[str, Any]()

    def corpus(self, config: Config) -> Path:
        folder = self._place("corpus", config.corpus)
        if not folder.exists():
            build_corpus(config.corpus, folder, self.root)
        return folder

    def tokenizer(self, config: Config) -> Tokenizer:
        key = str(self._place("tokenizer", config.corpus, config.tokenizer))
        if key not in self._made:
            documents = self.corpus(config) / "documents"
            texts = sample_documents(documents, config.tokenizer.train_megabytes)
            self._made[key] = train_tokenizer(texts, config.tokenizer)
        tokenizer: Tokenizer = self._made[key]
        return tokenizer

    def tokens(self, config: Config) -> Path:
        folder = self._place("tokens", config.corpus, config.tokenizer, config.tokens)
        if not folder.exists():
            documents = self.corpus(config) / "documents"
            write_shards(documents, self.tokenizer(config), config.tokens, folder)
        return folder

    def rows(self, config: Config) -> str:
        """A digest of everything that pretraining reads."""
        recipe = Recipe.of(config, self.tokenizer(config).vocab_size)
        objective = next_token(document_rows(self.tokens(config), recipe), recipe, "pretrain")
        digest = hashlib.sha256()
        for step in range(recipe.steps("pretrain")):
            for micro in objective.work(step).micro_batches:
                for tensor in (micro.tokens, micro.targets):
                    digest.update(str(tuple(tensor.shape)).encode())
                    digest.update(np.ascontiguousarray(tensor.numpy()).tobytes())
        return digest.hexdigest()

    def contents(self, config: Config) -> dict[str, str]:
        """Path -> sha256 of every file of the corpus."""
        manifest = json.loads((self.corpus(config) / "manifest.json").read_text())
        contents: dict[str, str] = manifest[CONTENTS]
        return contents

    def _place(self, stage: str, *sections: Any) -> Path:
        values = repr([dataclasses.asdict(section) for section in sections])
        return self.root / stage / hashlib.sha256(values.encode()).hexdigest()[:12]


@pytest.fixture(scope="module")
def chain(root: Path) -> Chain:
    return Chain(root)


def test_every_key_of_the_data_is_flipped() -> None:
    sections = ("corpus.", "tokenizer.", "tokens.")
    leaves = [path for path, *_ in describe() if path.startswith(sections)]
    expected = {path for path in leaves if path != "corpus.world"}
    flipped = {key for key in (*CORPUS, *ROWS, *MUST_NOT) if key.startswith(sections)}
    assert flipped | ELSEWHERE == expected


@pytest.mark.parametrize("key", CORPUS)
def test_a_key_of_the_corpus_changes_its_files(key: str, chain: Chain) -> None:
    before = chain.contents(config_of(BESIDE.get(key, {})))
    assert chain.contents(config_of(CORPUS[key])) != before


@pytest.mark.parametrize("key", ROWS)
def test_a_key_changes_what_pretraining_reads(key: str, chain: Chain) -> None:
    assert chain.rows(config_of(ROWS[key])) != chain.rows(config_of(BESIDE.get(key, {})))


@pytest.mark.parametrize("key", MUST_NOT)
def test_a_key_that_must_not_changes_nothing_that_pretraining_reads(key: str, chain: Chain) -> None:
    assert chain.rows(config_of(MUST_NOT[key])) == chain.rows(config_of({}))


SAME: dict[str, Callable[[Config, Chain], Any]] = {
    "corpus": lambda config, chain: chain.contents(config),
    "rows": lambda config, chain: chain.rows(config),
}


@pytest.mark.parametrize("what", SAME)
def test_the_same_configuration_makes_the_same(what: str, root: Path, tmp_path: Path) -> None:
    for file in ("mine.jsonl", "twice.jsonl"):
        (tmp_path / file).write_bytes((root / file).read_bytes())
    made = [
        SAME[what](config_of({"tokenizer.kind": "unigram"}), Chain(place))
        for place in (root, tmp_path)
    ]
    assert made[0] == made[1]
