"""The rows that pretraining reads: of which corpora, how much of each, and in which order.

Each choice is a function of row numbers on top of the one below it, so that row g of a run stays a pure function of
(seed, g): rows of one corpus (`DocumentLoader`, `PackedLoader`), mixed (`MixedRows`), in another order (`OrderedRows`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from paribus.data.loader import (
    BLOCK_ROWS,
    DocumentLoader,
    RowLoader,
    part_of,
    permute,
    shares_of,
    shuffle_key,
)
from paribus.data.packing import PackedLoader
from paribus.recipe import Recipe


def document_rows(tokens: str | Path, recipe: Recipe) -> RowLoader:
    """Rows of the training documents among the shards in `tokens`, as `pretrain.*` says."""
    pretrain = recipe.pretrain
    rows = _mixed(tokens, recipe)
    if pretrain.curriculum == "none" and not pretrain.source_order:
        return rows
    total = recipe.batches("pretrain").total
    return OrderedRows(rows, total, pretrain.curriculum, pretrain.source_order)


def _mixed(tokens: str | Path, recipe: Recipe) -> RowLoader:
    """The rows of one corpus or of a mixture, shuffled."""
    pretrain, seed = recipe.pretrain, recipe.config.seed
    seq_len, unique = recipe.architecture.seq_len, pretrain.unique_fraction
    loader = PackedLoader if pretrain.packing == "best_fit" else DocumentLoader
    amounts = pretrain.mixture | pretrain.epochs
    if not amounts:
        return loader(tokens, "train", seq_len, seed, None, unique)
    names = sorted(name for name, amount in amounts.items() if amount > 0)
    sources = {name: loader(tokens, "train", seq_len, seed, name, unique) for name in names}
    passes = {name: pretrain.epochs[name] for name in names if name in pretrain.epochs}
    epoch_tokens = {name: sources[name].epoch_tokens for name in passes}
    drawn = recipe.batches("pretrain").total * seq_len
    return MixedRows(sources, shares_of(pretrain.mixture, passes, epoch_tokens, drawn), seed)


class MixedRows(RowLoader):
    """Rows of several corpora by share: every block of about BLOCK_ROWS rows has its share of each, shuffled."""

    def __init__(
        self, sources: Mapping[str, RowLoader], shares: Mapping[str, float], seed: int
    ) -> None:
        """sources, shares: by name; the shares add up to 1."""
        self.sources, self.shares, self.seed = sources, shares, seed
        self._names = list(shares)
        least = min(sources[name].rows_per_epoch / share for name, share in shares.items())
        self.rows_per_epoch = max(int(least), 1)  # until the first source begins again
        self.epoch_tokens = sum(source.epoch_tokens for source in sources.values())

    def read(self, global_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (B, T + 1) and targets (B, T) of the rows with these numbers."""
        owner, numbers = self.owners(global_rows)
        tokens: np.ndarray | None = None
        for place, name in enumerate(self._names):
            here = owner == place
            if not here.any():
                continue
            its_tokens, its_targets = self.sources[name].read(numbers[here])
            if tokens is None:
                tokens = np.empty((len(global_rows), its_tokens.shape[1]), np.int64)
                targets = np.empty((len(global_rows), its_targets.shape[1]), np.int64)
            tokens[here], targets[here] = its_tokens, its_targets
        assert tokens is not None
        return tokens, targets

    def lengths(self, global_rows: np.ndarray) -> np.ndarray:
        """(B,) tokens of the document that each row begins in."""
        owner, numbers = self.owners(global_rows)
        lengths = np.empty(len(global_rows), np.int64)
        for place, name in enumerate(self._names):
            here = owner == place
            if here.any():
                lengths[here] = self.sources[name].lengths(numbers[here])
        return lengths

    def owners(self, global_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each row the place of its source among `shares`, and its number among the rows of that source."""
        blocks = global_rows // BLOCK_ROWS
        while (
            behind := self._ends(blocks) <= global_rows
        ).any():  # blocks lack up to a row a source
            blocks = blocks + behind
        owner = np.empty(len(global_rows), np.int64)
        numbers = np.empty(len(global_rows), np.int64)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            places = global_rows[here] - self._ends(np.array([block - 1]))
            block_owner, block_numbers = self._block(block)
            owner[here], numbers[here] = block_owner[places], block_numbers[places]
        return owner, numbers

    def _ends(self, blocks: np.ndarray) -> np.ndarray:
        """Rows of the run before the end of each of these blocks."""
        ends = np.zeros(len(blocks), np.int64)
        for share in self.shares.values():
            ends += (share * BLOCK_ROWS * (blocks + 1)).astype(np.int64)
        return ends

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Sources and numbers of the rows of a block, shuffled."""
        parts = [part_of(share * BLOCK_ROWS, number) for share in self.shares.values()]
        owner = np.repeat(np.arange(len(parts)), [stop - start for start, stop in parts])
        numbers = np.concatenate([np.arange(start, stop) for start, stop in parts])
        order = permute(np.arange(len(owner)), len(owner), shuffle_key(self.seed, "mixed", number))
        return owner[order], numbers[order]


class OrderedRows(RowLoader):
    """The rows of a run, all of them and no others, in an order that is not random.

    Holds 8 bytes for each row of the run.
    """

    def __init__(
        self, rows: RowLoader, total: int, curriculum: str, source_order: Sequence[str]
    ) -> None:
        """total: rows of the run. curriculum, source_order: of `pretrain`; rows that are alike in both stay shuffled."""
        self._rows = rows
        self.rows_per_epoch, self.epoch_tokens = rows.rows_per_epoch, rows.epoch_tokens
        numbers = np.arange(total)
        keys = []  # the last one decides first
        if curriculum != "none":
            lengths = rows.lengths(numbers)
            keys.append(lengths if curriculum == "short_first" else -lengths)
        if source_order and isinstance(rows, MixedRows):
            rank = [source_order.index(name) for name in rows.shares]
            owner, _ = rows.owners(numbers)
            keys.append(np.array(rank)[owner])
        self._order = np.lexsort(keys)

    def read(self, global_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (B, T + 1) and targets (B, T) of the rows with these numbers."""
        return self._rows.read(self._moved(global_rows))

    def lengths(self, global_rows: np.ndarray) -> np.ndarray:
        """(B,) tokens of the document that each row begins in."""
        return self._rows.lengths(self._moved(global_rows))

    def _moved(self, global_rows: np.ndarray) -> np.ndarray:
        """Rows past the end of the run, which nobody trains on, stay where they are."""
        inside = global_rows < len(self._order)
        return np.where(
            inside, self._order[global_rows.clip(max=len(self._order) - 1)], global_rows
        )
