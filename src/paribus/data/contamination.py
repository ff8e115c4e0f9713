"""Test items in the training text: 13 words in a row that a document shares with a test problem or a CORE item.

The measure of GPT-3's paper (arXiv:2005.14165, appendix C): words in lower case, without punctuation. It runs on
arrays of bytes, not on words, and so costs a small part of what encoding the text costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from paribus.data import load_jsonl

WORDS = 13
_BASE = np.uint64(0x9E3779B97F4A7C15 | 1)
_STEP = np.uint64(0xBF58476D1CE4E5B9)
# Of each byte: 0 where no word goes on, else what it counts in a word's hash.
_LETTER = np.zeros(256, np.uint64)
for _byte in range(256):
    if _byte >= 128 or chr(_byte).isalnum():
        _LETTER[_byte] = ord(chr(_byte).lower()) + 1 if _byte < 128 else _byte + 1


def word_ngrams(texts: list[str], length: int = WORDS) -> tuple[np.ndarray, np.ndarray]:
    """(hash, number of the text) of every run of `length` words within one text, in order: (n,) uint64, (n,) int64."""
    encoded = [text.encode() for text in texts]
    data = np.frombuffer(b"\n".join(encoded) + b"\n", np.uint8)
    letters = _LETTER[data]
    inside = letters > 0
    edges = np.flatnonzero(np.diff(inside, prepend=False))
    starts, ends = edges[::2], edges[1::2]
    if len(starts) < length:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    with np.errstate(over="ignore"):
        words = _word_hashes(letters, starts, ends)
        count = len(words) - length + 1
        hashes = np.zeros(count, np.uint64)
        for place in range(length):
            hashes = hashes * _STEP + words[place : place + count]
    limits = np.cumsum([len(text) + 1 for text in encoded])
    owner = np.searchsorted(limits, starts, "right")
    whole = owner[:count] == owner[length - 1 :]
    return hashes[whole], owner[:count][whole]


def _word_hashes(letters: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """A polynomial hash of each word's bytes, mixed."""
    lengths = ends - starts
    powers = np.cumprod(np.full(int(lengths.max()), _BASE))
    position = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    x = np.add.reduceat(letters[letters > 0] * powers[position], np.cumsum(lengths) - lengths)
    x ^= x >> np.uint64(31)
    return np.asarray(x * _STEP ^ (x >> np.uint64(27)))


class Items:
    """The runs of words of all test items, and which ones occurred. benchmarks: name -> the texts of each item."""

    def __init__(self, benchmarks: dict[str, list[list[str]]]) -> None:
        self._sizes = {name: len(items) for name, items in benchmarks.items()}
        texts = [
            (number, text)
            for number, item in enumerate(item for items in benchmarks.values() for item in items)
            for text in item
        ]
        hashes, owner = word_ngrams([text for _, text in texts])
        items = np.array([number for number, _ in texts], np.int64)[owner]
        self._runs, place = np.unique(hashes, return_inverse=True)
        self._pairs = np.stack(
            np.divmod(np.unique(items * max(len(self._runs), 1) + place), max(len(self._runs), 1)),
            1,
        )
        self._met = np.zeros(len(self._runs), bool)
        self.documents = 0

    def contaminated(self, texts: list[str]) -> np.ndarray:
        """Which of the texts (n,) share a run of words with an item; it is noted with which."""
        found = np.zeros(len(texts), bool)
        hashes, owner = word_ngrams(texts)
        if len(hashes) and len(self._runs):
            place = np.searchsorted(self._runs, hashes).clip(max=len(self._runs) - 1)
            hit = self._runs[place] == hashes
            self._met[place[hit]] = True
            found[owner[hit]] = True
        self.documents += int(found.sum())
        return found

    def summary(self) -> dict[str, Any]:
        """How many documents, and of each benchmark how many items, share a run of words; `checked` items are long enough."""
        met = np.zeros(sum(self._sizes.values()), bool)
        checked = met.copy()
        checked[self._pairs[:, 0]] = True
        met[self._pairs[self._met[self._pairs[:, 1]], 0]] = True
        benchmarks, first = {}, 0
        for name, size in self._sizes.items():
            part = slice(first, first + size)
            benchmarks[name] = {
                "items": size,
                "checked": int(checked[part].sum()),
                "found": int(met[part].sum()),
            }
            first += size
        return {"words": WORDS, "documents": self.documents, "benchmarks": benchmarks}


def read_items(problems: Path | None, core: Path | None) -> dict[str, list[list[str]]]:
    """The test problems of a problems folder and the items of every file of a CORE bundle, each as its texts."""
    items: dict[str, list[list[str]]] = {}
    if problems is not None:
        items["problems"] = [
            [row["question"], row["answer"]] for row in load_jsonl(problems / "test.jsonl")
        ]
    for path in sorted((core / "eval_data").rglob("*.jsonl")) if core is not None else []:
        items[path.stem] = [list(_texts(row)) for row in load_jsonl(path)]
    return items


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        parts: Iterable[object] = value.values() if isinstance(value, dict) else value
        for part in parts:
            yield from _texts(part)
