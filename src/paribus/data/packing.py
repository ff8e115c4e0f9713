"""Rows packed with whole documents, each row opened by one: `pretrain.packing: best_fit`.

Best-fit packing (arXiv:2404.10830) keeps documents whole where cutting the stream into rows splits most of them. The
stream is packed in groups of neighbouring documents, always alike, and the rows of all groups are shuffled by the
seed: row g of a run is the same whichever rank reads it, after whatever restart, and is found without packing what
comes before it. T tokens of a row, B rows of a batch.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from paribus.data.loader import NOT_LEARNED, SplitRows, mix, places_of, shuffle_key
from paribus.errors import UserError

GROUP_ROWS = 128  # packed together: 99 % and more of the places are filled, and one row costs under a millisecond
KEPT_GROUPS = 256


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of indices whose lengths sum to at most `capacity`: longest first, each where it fits tightest."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free places, row), sorted
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        found = bisect.bisect_left(room, (lengths[index], 0))
        if found < len(room):
            free, row = room.pop(found)
        else:
            free, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        bisect.insort(room, (free - lengths[index], row))
    return rows


class PackedLoader(SplitRows):
    """Batches of packed rows; every token but <|bos|> is a target once an epoch, padding is none.

    A document longer than a row goes on in another, after a <|bos|> of its own. As with rows cut from the stream,
    the documents of a row see those before them.
    """

    layout = ("packed",)

    def _lay_out(self) -> int:
        if self._stop <= self._start:
            raise UserError(f"{self._named} has no tokens{self._of_source}")
        first = np.empty(1, self.shards.dtype)
        self.shards.read(0, first)
        self.bos = int(first[0])
        begins = self.shards.document_starts()
        self._begins = begins[(begins >= self._start) & (begins < self._stop)]
        group_tokens = GROUP_ROWS * (self.seq_len + 1)
        groups = -(-(self._stop - self._start) // group_tokens)
        bounds = self._start + np.arange(groups + 1) * group_tokens
        self._firsts = np.searchsorted(self._begins, bounds)
        self._group = lru_cache(KEPT_GROUPS)(self._pack_group)
        self._ends = np.cumsum([len(self._pack_group(group)) for group in range(groups)])
        return int(self._ends[-1])

    def read(self, global_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (B, T + 1) and targets (B, T) of the rows with these numbers; -1 where a row is padded."""
        places = places_of(global_rows, self.rows, self.rows_per_epoch, self._key_of)
        tokens = np.full((len(places), self.seq_len + 1), self.bos, np.int64)
        targets = np.full(tokens.shape, NOT_LEARNED, np.int64)
        for row, place in enumerate(places.tolist()):
            filled = self._fill(place, tokens[row])
            targets[row, :filled] = tokens[row, :filled]
        return tokens, targets[:, 1:]

    def lengths(self, global_rows: np.ndarray) -> np.ndarray:
        """(B,) tokens of the longest piece of each row, which is a whole document but where that is longer than a row."""
        places = places_of(global_rows, self.rows, self.rows_per_epoch, self._key_of)
        return np.array([int(self._pieces(place)[:, 1].max()) for place in places.tolist()])

    def _pieces(self, number: int) -> np.ndarray:
        """The pieces (n, 2) of packed row `number`."""
        group = int(np.searchsorted(self._ends, number, "right"))
        return self._group(group)[number - (int(self._ends[group - 1]) if group else 0)]

    def _fill(self, number: int, row: np.ndarray) -> int:
        """Write packed row `number` into `row` (T + 1,), <|bos|> throughout; how many of its places are taken."""
        pieces = self._pieces(number)
        luck = mix(
            pieces[:, 0].astype(np.uint64), shuffle_key(self.seed, "within")
        )  # else the longest came first in every row
        filled = 0
        for start, length in pieces[np.argsort(luck, kind="stable")].tolist():
            self.shards.read(
                start + 1, row[filled + 1 : filled + length]
            )  # after the <|bos|> that is there
            filled += length
        return filled

    def _pack_group(self, group: int) -> list[np.ndarray]:
        """The rows of a group: of each the pieces (n, 2) int64, the place before its text and its length with <|bos|>."""
        first, last = self._firsts[group : group + 2].tolist()
        begins = self._begins[first:last]
        ends = np.append(
            self._begins[first + 1 : last + 1],
            [self._stop] if last == len(self._begins) else [],
        )
        text = (ends - begins - 1).astype(np.int64)  # tokens without <|bos|>
        counts = np.maximum(-(-text // self.seq_len), 1)
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        places = np.repeat(begins, counts) + within * self.seq_len
        lengths = np.minimum(np.repeat(text, counts) - within * self.seq_len, self.seq_len) + 1
        pieces = np.stack([places, lengths], 1)
        return [pieces[row] for row in pack(lengths.tolist(), self.seq_len + 1)]
