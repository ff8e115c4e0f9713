"""The English that comes with the package."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from paribus.config import Config
from paribus.data import english
from paribus.data.corpus import build_corpus
from paribus.data.shards import documents


def rows(path: Path) -> list[dict[str, str]]:
    text = zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read().decode()
    return [json.loads(line) for line in text.splitlines()]


def test_it_is_as_large_as_it_says() -> None:
    texts = [row["text"] for _, path in english.files() for row in rows(path)]
    size = sum(len(text.encode()) for text in texts)
    assert size / 1e6 == pytest.approx(english.MEGABYTES, abs=0.005)


def test_each_file_is_a_sample_of_all_sources() -> None:
    for name, path in english.files():
        found = Counter(row["source"] for row in rows(path))
        assert len(found) == 5, name
        assert min(found.values()) > 5, name


def test_a_corpus_takes_its_first_megabytes(tiny_config: Config, tmp_path: Path) -> None:
    corpus = replace(tiny_config.corpus, source="text", megabytes=1.0)
    manifest = build_corpus(corpus, tmp_path / "corpus", tmp_path)
    taken = list(documents(tmp_path / "corpus/documents"))
    assert taken == [row["text"] for row in rows(english.files()[0][1])[: len(taken)]]
    assert 1e6 <= manifest["documents"]["bytes"] < 1.1e6


def test_near_duplicates_are_few(tiny_config: Config, tmp_path: Path) -> None:
    corpus = replace(tiny_config.corpus, source="text")
    manifest = build_corpus(corpus, tmp_path / "corpus", tmp_path)
    assert manifest["documents"]["near_duplicates"]["documents"] < 10
