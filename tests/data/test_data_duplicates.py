"""Near-duplicates among documents: found as often as the theory says, the first one kept, nothing depends on batches."""

from __future__ import annotations

import dataclasses
import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from paribus import config
from paribus.data.corpus import build_corpus
from paribus.data.duplicates import BANDS, ROWS, Seen
from paribus.data.shards import documents

WORDS = 400


def page(seed: int) -> list[str]:
    rng = random.Random(seed)
    return [f"w{rng.randrange(10**6)}" for _ in range(WORDS)]


def changed(words: list[str], count: int, seed: int) -> list[str]:
    """`count` words replaced, far enough apart that each costs five runs of five."""
    words = list(words)
    for place in range(10, 10 + 10 * count, 10):
        words[place] = f"new{seed}x{place}"
    return words


@pytest.mark.parametrize("count", [0, 4, 12, 28])
def test_pairs_are_found_as_often_as_they_are_alike(count: int) -> None:
    kept = WORDS - 4 - 5 * count
    alike = kept / (2 * (WORDS - 4) - kept)
    pairs = 120
    texts = [
        " ".join(words)
        for seed in range(pairs)
        for words in (page(seed), changed(page(seed), count, seed))
    ]
    found = Seen().duplicates(texts)
    expected = 1 - (1 - alike**ROWS) ** BANDS
    assert not found[::2].any()
    assert found[1::2].mean() == pytest.approx(
        expected, abs=4 * np.sqrt(max(expected * (1 - expected), 0.0005) / pairs)
    )


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("The cat sat; on the MAT -- again!", "the cat  sat on the mat again", True),
        ("Hello  there", "hello there", True),
        ("hello there", "hello you", False),
        ("...", "!!!", False),
        ("...", "...", True),
    ],
)
def test_short_ones_have_to_say_the_same(first: str, second: str, expected: bool) -> None:
    assert Seen().duplicates([first, second]).tolist() == [False, expected]


def test_what_is_found_does_not_depend_on_how_documents_are_divided_among_calls() -> None:
    rng = random.Random(4)
    texts = [
        " ".join(changed(page(rng.randrange(60)), rng.randrange(5), rng.randrange(3)))
        for _ in range(400)
    ]
    whole = Seen().duplicates(texts)
    seen, parts, place = Seen(), [], 0
    while place < len(texts):
        size = rng.randrange(40)
        parts += seen.duplicates(texts[place : place + size]).tolist()
        place += size
    assert parts == whole.tolist()
    assert seen.documents == whole.sum() > 300


def test_memory_is_that_of_the_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """112 bytes a document; the number of sorted runs stays small, so that a look-up stays quick."""
    seen = Seen()
    for first in range(0, 6000, 50):
        seen.duplicates(
            [
                f"document {number} {number * 7} x{number} y{number} z{number}"
                for number in range(first, first + 50)
            ]
        )
    assert len(pickle.dumps(seen)) <= 6000 * BANDS * 8 + 2000
    looked_up: list[int] = []
    real = np.searchsorted

    def counted(run: np.ndarray, bands: np.ndarray) -> np.ndarray:
        looked_up.append(len(run))
        return np.asarray(real(run, bands))

    monkeypatch.setattr(np, "searchsorted", counted)
    seen.duplicates(["one more document"])
    assert 0 < len(looked_up) < 10


@pytest.mark.parametrize("drop", [False, True])
def test_a_corpus_reports_near_duplicates_and_drops_them_if_asked(
    tiny_config: config.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], drop: bool
) -> None:
    texts = [
        " ".join(words) for words in (page(1), page(2), changed(page(1), 1, 0), page(3), page(2))
    ]
    (tmp_path / "own.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts)
    )
    cfg = dataclasses.replace(
        tiny_config.corpus, source="local", paths=["own.jsonl"], drop_near_duplicates=drop
    )
    manifest = build_corpus(cfg, tmp_path / "corpus", tmp_path)
    assert list(documents(tmp_path / "corpus/documents")) == (
        [texts[n] for n in (0, 1, 3)] if drop else texts
    )
    assert manifest["documents"]["near_duplicates"] == {"words": 5, "documents": 2, "dropped": drop}
    assert manifest["documents"]["documents"] == (3 if drop else 5)
    shown = capsys.readouterr().err
    assert "2 documents are near-duplicates" in shown
    assert ("left out" in shown) == drop
