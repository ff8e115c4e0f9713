"""Near-duplicates among documents: those that share most of their runs of five words with an earlier one.

MinHash (Broder 1997) with the figures of FineWeb's (arXiv:2406.17557): 112 minima in 14 bands of 8. A document is one
if a band of it is that of an earlier document: of pairs that share half of their runs 5 % are found, of those that
share 75 % 77 %, 85 % 99 %, and all that are equal but for capitals, marks and white space.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from paribus.data.contamination import word_ngrams

WORDS = 5
BANDS, ROWS = 14, 8
_RNG = np.random.Generator(np.random.PCG64(20240625))
_FACTORS = _RNG.integers(2**32, size=BANDS * ROWS, dtype=np.uint32) | np.uint32(1)
_OFFSETS = _RNG.integers(2**32, size=BANDS * ROWS, dtype=np.uint32)
_WEIGHTS = _RNG.integers(2**64, size=(BANDS, ROWS), dtype=np.uint64) | np.uint64(1)


def band_hashes(texts: list[str]) -> np.ndarray:
    """(texts, BANDS) uint64: two texts agree in one as likely as in all ROWS of its minima."""
    hashes, owner = _shingles(texts)
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    minima = np.empty((BANDS * ROWS, len(texts)), np.uint32)
    for row, factor, offset in zip(minima, _FACTORS, _OFFSETS, strict=True):
        np.minimum.reduceat(
            hashes * factor + offset, starts, out=row
        )  # wraps: a permutation of 32 bits
    with np.errstate(over="ignore"):
        bands = (minima.T.reshape(len(texts), BANDS, ROWS) * _WEIGHTS).sum(2)
    return np.asarray(bands ^ (bands >> np.uint64(32)))


def _shingles(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(hash, number of the text) by text; one with fewer than WORDS words has one, of all that it says."""
    hashes, owner = word_ngrams(texts, WORDS)
    short = np.setdiff1d(np.arange(len(texts)), owner)
    own = [
        hashlib.sha256(" ".join(texts[number].lower().split()).encode()).digest()
        for number in short
    ]
    owner = np.concatenate([owner, short])
    order = np.argsort(owner, kind="stable")
    parts = (hashes >> np.uint64(32)).astype(np.uint32), np.frombuffer(b"".join(own), "<u4")[::8]
    return np.concatenate(parts)[order], owner[order]


class Seen:
    """What documents have been met. 112 bytes of memory a document, and for moments three times that."""

    def __init__(self) -> None:
        self._runs: list[
            np.ndarray
        ] = []  # sorted, without repetition, each more than twice as long as the next
        self.documents = 0

    def duplicates(self, texts: list[str]) -> np.ndarray:
        """Which of the texts (n,) are near-duplicates of one before them, here or in an earlier call.

        The same for the same texts in the same order, however they are divided among calls.
        """
        if not texts:
            return np.zeros(0, bool)
        bands = band_hashes(texts)
        found = np.zeros(bands.shape, bool)
        for run in self._runs:
            found |= run[np.searchsorted(run, bands).clip(max=len(run) - 1)] == bands
        new, first, place = np.unique(bands, return_index=True, return_inverse=True)
        found |= (first // BANDS)[place].reshape(bands.shape) < np.arange(len(texts))[:, None]
        self._add(new)
        duplicates = found.any(1)
        self.documents += int(duplicates.sum())
        return np.asarray(duplicates)

    def _add(self, run: np.ndarray) -> None:
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.union1d(self._runs.pop(), run)
        self._runs.append(run)

    def summary(self) -> dict[str, Any]:
        """How many documents are near-duplicates of an earlier one."""
        return {"words": WORDS, "documents": self.documents}
