"""Batches as pure functions of (seed, step): documents cut end to end into rows, and batches made ahead of time.

B rows of one batch, T tokens of a row. Global row g = step x batch_rows + r is the same whichever rank reads
it, after whatever restart: the order of the data is part of what a run is.
"""

from __future__ import annotations

import hashlib
import math
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch

from paribus.data.shards import TokenShards
from paribus.errors import UserError

NOT_LEARNED = -1
WAITING_SECONDS = 1.0  # between two words of who waits for a batch
BLOCK_ROWS = (
    512  # rows mixed or packed together: enough to fill them well, few enough to do it in a moment
)
FILLED = 0.01  # of a stage's tokens: epochs alone may miss its end by so much
MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)
SHIFTS = np.array([30, 27, 31], np.uint64)
T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """inputs (B, T) int64; targets (B, T) int64, -1 where nothing is learned; documents (B, T) int32 or None.

    targets are the inputs one place on. Positions of a row with the same number in `documents` belong to one
    conversation and may attend to each other; None: the whole row is one.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    documents: torch.Tensor | None

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device; from pinned memory the copy does not block."""
        inputs, targets = (x.to(device, non_blocking=True) for x in (self.inputs, self.targets))
        documents = None if self.documents is None else self.documents.to(device, non_blocking=True)
        return Batch(inputs, targets, documents)


# ---------------------------------------------------------------- order


def shuffle_key(*parts: object) -> int:
    """64 bits that name a shuffle."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "little")


def mix(values: np.ndarray, key: int) -> np.ndarray:
    """64 well-mixed bits of each value under a key, (n,) uint64: splitmix64's finaliser (Steele et al. 2014).

    Args:
        values: (n,) uint64.
        key: of 64 bits.
    """
    x = (values ^ np.uint64(key)) * MULTIPLIERS[0]
    x = (x ^ (x >> SHIFTS[0])) * MULTIPLIERS[1]
    x = (x ^ (x >> SHIFTS[1])) * MULTIPLIERS[2]
    return np.asarray(x ^ (x >> SHIFTS[2]))


def permute(indices: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where a keyed permutation of range(size) sends `indices` (n,): O(n) time, no memory of `size`.

    A Feistel network on pairs (high, low) with high x low just over `size`, walked along its cycle in the rare
    case that it leads out of range (Black and Rogaway 2002): a billion rows shuffle as easily as ten.

    Args:
        indices: each below `size`, (n,).
        size: of the range.
        key: of 64 bits; another key, another permutation.
    """
    high = math.isqrt(size - 1) + 1
    low = -(-size // high)
    highs, lows, limit = np.uint64(high), np.uint64(low), np.uint64(size)
    rounds = [shuffle_key(key, number) for number in range(6)]

    def network(x: np.ndarray) -> np.ndarray:
        left: np.ndarray = x // lows
        right: np.ndarray = x % lows
        for odd, even in zip(rounds[::2], rounds[1::2], strict=True):
            left = (left + mix(right, odd) % highs) % highs
            right = (right + mix(left, even) % lows) % lows
        return np.asarray(left * lows + right)

    result = network(indices.astype(np.uint64))
    while (outside := np.flatnonzero(result >= limit)).size:
        result[outside] = network(result[outside])
    return result.astype(np.int64)


# ---------------------------------------------------------------- documents


class RowLoader(ABC):
    """Batches of numbered rows of documents: row g of a run is the same in whatever batch, on whatever rank."""

    rows_per_epoch: int  # after so many the same rows come again, in another order
    epoch_tokens: int  # targets of an epoch

    @abstractmethod
    def read(self, global_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (B, T + 1) and targets (B, T) of the rows with these numbers, counted on from epoch to epoch."""

    @abstractmethod
    def lengths(self, global_rows: np.ndarray) -> np.ndarray:
        """(B,) tokens of the document that each row begins in."""

    def batch(self, step: int, rows: range, batch_rows: int) -> Batch:
        """The rows `rows` of the batch of a step: inputs and targets (len(rows), T) int64.

        step: from 0. batch_rows: rows of the whole batch, all ranks together. The same for any number of ranks.
        """
        first = step * batch_rows
        tokens, targets = self.read(np.arange(first + rows.start, first + rows.stop, rows.step))
        inputs = torch.from_numpy(tokens[:, :-1].astype(np.int64))
        return Batch(inputs, torch.from_numpy(targets.astype(np.int64)), None)


def places_of(
    global_rows: np.ndarray, rows: int, unique: int, key_of_epoch: Callable[[int], int]
) -> np.ndarray:
    """Where the rows with these numbers are among the `rows` of a split; each epoch reads all `unique` ones anew.

    Args:
        global_rows: numbers of rows since the run began, (n,).
        rows: of the split.
        unique: rows of the split that are read. Which ones they are does not depend on the seed.
        key_of_epoch: epoch -> the key of its permutation.
    """
    epochs, places = np.divmod(global_rows, unique)
    for epoch in range(int(epochs.min()), int(epochs.max()) + 1):
        here = epochs == epoch
        places[here] = permute(places[here], unique, key_of_epoch(epoch))
    return places if unique == rows else permute(places, rows, shuffle_key("unique", rows))


class SplitRows(RowLoader):
    """The rows that a split's token shards are laid out in, in an order reshuffled every epoch."""

    layout: tuple[str, ...] = ()  # names the order of rows where they are not cut end to end

    def __init__(
        self,
        folder: str | Path,
        split: str,
        seq_len: int,
        seed: int,
        source: str | None = None,
        unique_fraction: float = 1.0,
    ) -> None:
        """source: the corpus whose documents are read; None: those of all. unique_fraction: share of rows that is read."""
        self.shards = TokenShards(folder, split, verify=True)
        self.split, self.seq_len, self.seed, self.source = split, seq_len, seed, source
        self._named = f"{folder}: {split}"
        self._of_source = f" of {source}" if source else ""
        self._start, self._stop = self.shards.extent(source)
        self.rows = self._lay_out()
        self.rows_per_epoch = max(round(unique_fraction * self.rows), 1)
        self.epoch_tokens = self.rows_per_epoch * seq_len

    @abstractmethod
    def _lay_out(self) -> int:
        """Find the rows of the split, and return how many there are. Raises UserError where it has too few tokens."""

    def _key_of(self, epoch: int) -> int:
        named = () if self.source is None else (self.source,)
        return shuffle_key(self.seed, self.split, *named, *self.layout, epoch)


class DocumentLoader(SplitRows):
    """Rows of T tokens cut end to end from a split's token shards, in an order reshuffled every epoch.

    Rows overlap in one token only (the last target of one is the first input of the next), so an epoch sees
    each token once as a target. The tail that fills no row is left out of training, not of validation.
    """

    def _lay_out(self) -> int:
        rows = (self._stop - self._start - 1) // self.seq_len
        if rows < 1:
            raise UserError(
                f"{self._named} has {self._stop - self._start:,} tokens{self._of_source}, fewer than one row of "
                f"model.seq_len ({self.seq_len}) + 1; give more text or change tokens.val_fraction"
            )
        return rows

    def read(self, global_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (B, T + 1) and targets (B, T) of the rows with these numbers."""
        tokens = self.tokens(global_rows)
        return tokens, tokens[:, 1:]

    def tokens(self, global_rows: np.ndarray) -> np.ndarray:
        """(B, T + 1) token ids of the shuffled rows with these numbers, counted on from epoch to epoch."""
        out = np.empty((len(global_rows), self.seq_len + 1), self.shards.dtype)
        for row, start in zip(out, self._starts(global_rows).tolist(), strict=True):
            self.shards.read(start, row)
        return out

    def lengths(self, global_rows: np.ndarray) -> np.ndarray:
        """(B,) tokens of the document that each row begins in."""
        begins = np.append(self.shards.document_starts(), len(self.shards))
        document = np.searchsorted(begins, self._starts(global_rows), "right") - 1
        return np.asarray(begins[document + 1] - begins[document])

    def _starts(self, global_rows: np.ndarray) -> np.ndarray:
        """(B,) where the rows with these numbers begin, in tokens of the split."""
        places = places_of(global_rows, self.rows, self.rows_per_epoch, self._key_of)
        return self._start + places * self.seq_len

    def validation_rows(self, rows: int, max_tokens: int | None = None) -> Iterator[Batch]:
        """The split in its own order, `rows` rows at a time, until `max_tokens` targets (None: all) are covered.

        Of several corpora each gives its share of those. The last row of each is padded with targets of -1, so that a
        full pass sees every token.
        """
        for start, stop in self.shards.parts():
            there = stop - start
            share = None if max_tokens is None else max(max_tokens * there // len(self.shards), 1)
            yield from self._part_in_order(start, stop, rows, share)

    def _part_in_order(
        self, start: int, stop: int, rows: int, max_tokens: int | None
    ) -> Iterator[Batch]:
        """The tokens [start, stop) of the split."""
        targets = min(stop - start - 1, max_tokens or stop - start)
        firsts = range(0, targets, self.seq_len)
        for first in range(0, len(firsts), rows):
            here = firsts[first : first + rows]
            tokens = np.full((len(here), self.seq_len + 1), NOT_LEARNED, np.int64)
            for row, place in zip(tokens, here, strict=True):
                self.shards.read(start + place, row[: min(self.seq_len, targets - place) + 1])
            inputs = torch.from_numpy(tokens[:, :-1].clip(0))
            yield Batch(inputs, torch.from_numpy(tokens[:, 1:].copy()), None)


def shares_of(
    mixture: Mapping[str, float],
    epochs: Mapping[str, float],
    epoch_tokens: Mapping[str, int],
    tokens: int,
) -> dict[str, float]:
    """Source -> its share of the tokens, of those that have one.

    Raises UserError where the passes do not fit.

    Args:
        mixture: weights.
        epochs: passes over a source; the others share what these leave.
        epoch_tokens: of one pass over each of these.
        tokens: all that will be drawn.
    """
    wanted = {name: passes * epoch_tokens[name] for name, passes in epochs.items()}
    weights = {name: weight for name, weight in mixture.items() if weight > 0}
    if not wanted:
        total = sum(weights.values())
        return {name: weights[name] / total for name in sorted(weights)}
    left = tokens - sum(wanted.values())
    if left < 0 or (not weights and left > FILLED * tokens):
        asked = ", ".join(f"{passes:g} of {name}" for name, passes in epochs.items())
        cure = "ask for fewer" if left < 0 else "give another source a weight"
        raise UserError(
            f"epochs: {asked} are {sum(wanted.values()):,.0f} tokens, and the stage draws {tokens:,}; "
            f"change its steps, or {cure}"
        )
    shares = {name: amount / tokens for name, amount in wanted.items()}
    for name, weight in weights.items():
        shares.setdefault(name, weight / sum(weights.values()) * left / tokens)
    return dict(sorted(shares.items()))


def part_of(amount: float, number: int) -> tuple[int, int]:
    """Part `number` of an endless count cut in parts of `amount`, which need not be whole."""
    return int(number * amount), int((number + 1) * amount)


# ---------------------------------------------------------------- ahead of time


class Prefetcher(Generic[T]):
    """Iterator of (step, make_batch(step)) for steps [start, stop), made by one thread up to `depth` ahead.

    An exception in make_batch is raised here, at its step. `waited`: seconds the consumer stood waiting. Use it
    as a context manager, or call close(), so that the thread ends when the consumer stops early.
    """

    def __init__(
        self,
        make_batch: Callable[[int], T],
        start: int,
        stop: int,
        depth: int = 2,
        waiting: Callable[[], None] | None = None,
        call_off: Callable[[], None] | None = None,
    ) -> None:
        """waiting: called every second while the consumer waits; may raise.

        call_off: called by close, for make_batch to end early.
        """
        self._waiting, self._call_off = waiting, call_off
        self.waited = 0.0
        self._left = max(stop - start, 0)
        self._queue: queue.Queue[tuple[int, T | BaseException]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._work, args=(make_batch, range(start, stop)), daemon=True
        )
        self._thread.start()

    def _work(self, make_batch: Callable[[int], T], steps: range) -> None:
        for step in steps:
            if self._closed.is_set():
                return
            item: T | BaseException
            try:
                item = make_batch(step)
            except BaseException as error:
                item = error
            self._put((step, item))
            if isinstance(item, BaseException):
                return

    def _put(self, entry: tuple[int, T | BaseException]) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return

    def __iter__(self) -> Iterator[tuple[int, T]]:
        return self

    def __next__(self) -> tuple[int, T]:
        if not self._left or self._closed.is_set():
            raise StopIteration
        began = time.perf_counter()
        step, item = self._get()
        self.waited += time.perf_counter() - began
        if isinstance(item, BaseException):
            self.close()
            raise item
        self._left -= 1
        return step, item

    def _get(self) -> tuple[int, T | BaseException]:
        while True:
            try:
                return self._queue.get(timeout=WAITING_SECONDS)
            except queue.Empty:
                if self._waiting is not None:
                    self._waiting()

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._closed.set()
        if self._call_off is not None:
            self._call_off()
        self._thread.join()

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
