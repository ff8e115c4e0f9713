"""Rows packed with whole conversations of several sources, none of which sees another.

Like rows of documents they are a pure function of (seed, step), whichever rank reads them. B rows of one batch, T tokens
of a row.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch

from paribus.data.chat import Messages, Rendered, render_batch
from paribus.data.loader import (
    BLOCK_ROWS,
    NOT_LEARNED,
    Batch,
    DocumentLoader,
    mix,
    part_of,
    permute,
    shares_of,
    shuffle_key,
)
from paribus.data.packing import pack
from paribus.data.tokenizer import Tokenizer
from paribus.errors import UserError

Item = tuple[str, int]  # source, index of a conversation or document row in it


class _Source:
    """The rendered conversations of one source, end to end, and their endless shuffled stream."""

    def __init__(self, name: str, rendered: Sequence[Rendered], longest: int, seed: int) -> None:
        cut = [(ids[:longest], mask[:longest]) for ids, mask in rendered]
        kept = [(ids, mask) for ids, mask in cut if any(mask)]
        self.truncated = sum(len(ids) > longest for ids, _ in rendered)
        self.dropped = len(cut) - len(kept)
        if not kept:
            raise UserError(
                f"mixture: source {name!r} has no conversation in which the assistant says anything"
                f" within the first {longest} tokens (model.seq_len + 1)"
            )
        self.name, self.seed = name, seed
        self.lengths = np.array([len(ids) for ids, _ in kept])
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.tokens = np.array([token for ids, _ in kept for token in ids], np.int32)
        self.learned = np.array([bit for _, mask in kept for bit in mask], bool)
        self.epoch_tokens = int(self.lengths.sum())
        self._order: tuple[int, np.ndarray, np.ndarray] = (-1, self.lengths, self.starts)

    def between(self, start: int, stop: int) -> np.ndarray:
        """Indices of the conversations that begin at stream tokens [start, stop); epochs are reshuffled."""
        parts = []
        for epoch in range(start // self.epoch_tokens, -(-stop // self.epoch_tokens)):
            order, begins = self._epoch(epoch)
            within = np.array([start, stop]) - epoch * self.epoch_tokens
            first, last = np.searchsorted(begins, within)
            parts.append(order[first:last])
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if self._order[0] != epoch:
            count = len(self.lengths)
            order = permute(np.arange(count), count, shuffle_key(self.seed, self.name, epoch))
            self._order = (epoch, order, np.cumsum(self.lengths[order]) - self.lengths[order])
        return self._order[1:]


class ConversationLoader:
    """Rows packed with whole conversations of a mixture of sources, loss on what the assistant writes.

    sources: name -> conversations, or a DocumentLoader (its rows stay whole and are learned throughout).
    mixture: name -> weight: sources share by weight the tokens that `epochs` leaves.
    epochs: name -> passes over that source within `tokens`, all that will be drawn (met but for what packing pads, a few %).
    attend_across: conversations see those before them in the row; else `Batch.documents` keeps them apart.
    truncated, dropped: how many conversations of each source lost their end, being longer than T + 1 tokens, or
    were left out, nothing in them being learned.

    Every row opens with <|bos|>, but document rows are as in pretraining. The endless stream is packed in blocks
    of about BLOCK_ROWS rows. Conversations are shuffled within the row: packing longest first puts the same kind
    first in every row, and a model then answers a lone question in that kind's manner.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Messages] | DocumentLoader],
        mixture: Mapping[str, float],
        tokenizer: Tokenizer,
        seq_len: int,
        seed: int,
        attend_across: bool,
        epochs: Mapping[str, float] = MappingProxyType({}),
        tokens: int = 0,
    ) -> None:
        amounts = {**mixture, **epochs}
        names = sorted(name for name, amount in amounts.items() if amount > 0)
        unknown = [name for name in names if name not in sources]
        if unknown:
            raise UserError(
                f"mixture: no source {name!r}; there are: {', '.join(sources)}" for name in unknown
            )
        self.seq_len, self.seed = seq_len, seed
        self.attend_across = attend_across
        self.pad = tokenizer.bos
        self._documents: dict[str, DocumentLoader] = {}
        self._sources: dict[str, _Source] = {}
        for name in names:
            source = sources[name]
            if isinstance(source, DocumentLoader):
                self._documents[name] = source
            else:
                rendered = render_batch(source, tokenizer)
                self._sources[name] = _Source(name, rendered, seq_len + 1, seed)
        self.truncated = {name: source.truncated for name, source in self._sources.items()}
        self.dropped = {name: source.dropped for name, source in self._sources.items()}
        passes = {name: epochs[name] for name in names if name in epochs}
        loaders = self._sources | self._documents
        epoch_tokens = {name: loaders[name].epoch_tokens for name in passes}
        self.shares = shares_of(mixture, passes, epoch_tokens, tokens)
        self._ends = [0]  # global rows before each block
        self._recent: dict[int, list[list[Item]]] = {}

    def batch(self, step: int, rows: range, batch_rows: int) -> Batch:
        """The rows `rows` of the batch of a step: inputs and targets (len(rows), T) int64.

        step: from 0. batch_rows: rows of the whole batch, all ranks together. The same for any number of ranks.
        """
        held = [self._row(step * batch_rows + row) for row in rows]
        tokens = np.full((len(rows), self.seq_len + 1), self.pad, np.int64)
        learned = np.zeros(tokens.shape, bool)
        documents = np.zeros(tokens.shape, np.int32)
        for name, loader in self._documents.items():
            places = [place for place, items in enumerate(held) if items[0][0] == name]
            if places:
                tokens[places] = loader.tokens(np.array([held[place][0][1] for place in places]))
                learned[places] = True
        for place, items in enumerate(held):
            if items[0][0] in self._sources:
                self._fill(items, tokens[place], learned[place], documents[place])
        targets = np.where(learned[:, 1:], tokens[:, 1:], NOT_LEARNED)
        ids = None if self.attend_across else torch.from_numpy(documents[:, :-1].copy())
        return Batch(torch.from_numpy(tokens[:, :-1].copy()), torch.from_numpy(targets), ids)

    def _fill(
        self, items: list[Item], tokens: np.ndarray, learned: np.ndarray, documents: np.ndarray
    ) -> None:
        """Write a row's conversations into its (T + 1,) arrays; what is left over is padding, a document of its own."""
        position = 0
        for number, (name, index) in enumerate(items):
            source = self._sources[name]
            length, start = int(source.lengths[index]), int(source.starts[index])
            here, there = slice(position, position + length), slice(start, start + length)
            tokens[here] = source.tokens[there]
            learned[here] = source.learned[there]
            documents[here] = number
            position += length
        documents[position:] = len(items)

    def _row(self, number: int) -> list[Item]:
        """What global row `number` holds. Blocks differ by a few rows: those before it are counted, once."""
        while self._ends[-1] <= number:
            self._ends.append(self._ends[-1] + len(self._block(len(self._ends) - 1)))
        block = bisect.bisect_right(self._ends, number) - 1
        return self._block(block)[number - self._ends[block]]

    def _block(self, number: int) -> list[list[Item]]:
        """The rows of a block: a pure function of (seed, number). The two read last are kept."""
        if number not in self._recent:
            while len(self._recent) > 1:
                self._recent.pop(min(self._recent, key=lambda kept: abs(kept - number) <= 1))
            self._recent[number] = self._pack_block(number)
        return self._recent[number]

    def _pack_block(self, number: int) -> list[list[Item]]:
        items: list[Item] = []
        rows: list[list[Item]] = []
        for name, share in self.shares.items():
            if name in self._documents:
                rows += [[(name, row)] for row in range(*part_of(share * BLOCK_ROWS, number))]
            else:
                tokens = range(*part_of(share * BLOCK_ROWS * (self.seq_len + 1), number))
                indices = self._sources[name].between(tokens.start, tokens.stop)
                items += [(name, index) for index in indices.tolist()]
        lengths = [int(self._sources[name].lengths[index]) for name, index in items]
        luck = mix(
            np.arange(len(items), dtype=np.uint64), shuffle_key(self.seed, "within", number)
        ).tolist()
        for packed in pack(lengths, self.seq_len + 1):
            rows.append([items[index] for index in sorted(packed, key=luck.__getitem__)])
        order = permute(np.arange(len(rows)), len(rows), shuffle_key(self.seed, "rows", number))
        return [rows[index] for index in order.tolist()]
