"""A cache for many answers to each prompt: the prompt's keys and values are kept, and read, once for all of them.

Decoding is bound by memory traffic: 16 answers to a prompt of 100 tokens that each read a copy of it move 16 times
the bytes. Here the queries of all answers to a prompt meet its keys in one product; each answer's own keys are a
second part; the two partial softmaxes are merged exactly (as in FlashAttention, arXiv:2205.14135; shared prefixes:
Hydragen, arXiv:2402.05099).

Shapes: R rows (answers), P slots (prompts), N answers of a prompt, H query heads, K key/value heads, G = H / K,
E head_dim, S keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paribus.config import Architecture
from paribus.model.attention import visible
from paribus.model.layers import KVCache

Partial = tuple[
    Tensor, Tensor, Tensor
]  # unnormalised output (…, E), largest score (…, 1), sum of exponentials (…, 1)
Masks = tuple[Tensor, Tensor]  # added to the scores of the prompt's keys and of the row's own


class PrefixCache:
    """Takes the place of KVCache in `GPT.hidden` for one token a row."""

    def __init__(
        self,
        config: Architecture,
        rows: int,
        slots: int,
        samples: int,
        prompt_capacity: int,
        own_capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.capacity = config.seq_len
        self.prompts = KVCache(config, slots, prompt_capacity, device, dtype)
        self.own = KVCache(config, rows, own_capacity, device, dtype)
        self.slot = torch.zeros(rows, dtype=torch.int64, device=device)  # each row's prompt
        self.place = torch.zeros(
            rows, dtype=torch.int64, device=device
        )  # and its place among the answers to it
        self.grid = torch.zeros(
            slots, samples, dtype=torch.int64, device=device
        )  # (slot, place) -> row
        self.slots_used = 1  # slots from here on have no rows at work

    @property
    def lengths(self) -> Tensor:
        """(R,) tokens cached for each row, its prompt's included."""
        return self.prompts.lengths[self.slot] + self.own.lengths

    @property
    def extent(self) -> int:
        """Longest row."""
        return int(self.lengths.max())

    def advance(self, counts: Tensor) -> None:
        """As KVCache.advance."""
        self.own.advance(counts)

    # ------------------------------------------------------------ who is where

    def store(self, slots: Tensor, prefilled: KVCache) -> None:
        """Put the rows of a cache that holds prompts into `slots`."""
        self.prompts.copy_rows(slots, prefilled, torch.arange(len(slots), device=slots.device))

    def free_slot(self, slot: int) -> None:
        """The prompt in a slot has no answer to come."""
        self.prompts.lengths[slot] = 0

    def assign(self, rows: Tensor, slots: Tensor, places: Tensor) -> None:
        """Start answers number `places` to the prompts in `slots` in `rows`, all (n,)."""
        self.slot[rows], self.place[rows] = slots, places
        self.grid[slots, places] = rows
        self.own.lengths[rows] = 0

    def release(self, row: int) -> None:
        """The answer in a row is done: it lengthens nothing any more."""
        self.own.lengths[row] = self.slot[row] = 0
        self.own.extent = int(self.own.lengths.max())

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows, in this order."""
        renumbered = torch.zeros(self.own.rows, dtype=torch.int64, device=rows.device)
        renumbered[rows] = torch.arange(len(rows), device=rows.device)
        self.grid = renumbered[self.grid]
        self.own = self.own.select(rows)
        self.slot, self.place = self.slot[rows], self.place[rows]

    # ------------------------------------------------------------ attention

    def mask(self, positions: Tensor, read: Tensor | None, window: int | None) -> Masks:
        """Keys that the next token of each row, at `positions` (R, 1), sees: (P, 1, N or 1, Sp) and (R, 1, 1, So).
        One token leaves `read` nothing to choose."""
        device, used = positions.device, self.slots_used
        prompt_keys = torch.arange(max(self.prompts.extent, 1), device=device)
        prompt = (prompt_keys < self.prompts.lengths[:used, None])[:, None, None]
        own_keys = torch.arange(self.own.extent + 1, device=device)
        own = visible(self.own.lengths[:, None], own_keys, window)[:, None]
        if window is not None:
            prompt = prompt & visible(positions[self.grid[:used], 0], prompt_keys, window)[:, None]
        return _bias(prompt), _bias(own)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Masks) -> Tensor:
        """As KVCache.attend: q (R, H, 1, E), k, v (R, K, 1, E) -> (R, H, 1, E)."""
        rows, heads, _, width = q.shape
        kv_heads, used = k.shape[1], self.slots_used
        q = (q * width**-0.5).view(rows, kv_heads, heads // kv_heads, width)
        own = _attend(q, *self._write(layer, k, v), mask[1])
        grid = self.grid[:used]
        together = q[grid].transpose(1, 2)  # (P, K, N, G, E)
        shape = together.shape
        seen, end = mask[0], mask[0].shape[-1]
        if seen.shape[2] > 1:  # with a window it differs from answer to answer
            seen = seen[:, :, :, None].expand(-1, -1, -1, shape[3], -1).flatten(2, 3)
        prompt = _attend(
            together.flatten(2, 3),
            self.prompts.keys[layer, :used, :, :end],
            self.prompts.values[layer, :used, :, :end],
            seen,
        )
        shared = [
            part.view(*shape[:4], -1)[self.slot, :, self.place] for part in prompt
        ]  # back to (R, K, G, …)
        return (
            _merge(own, (shared[0], shared[1], shared[2])).to(v.dtype).view(rows, heads, 1, width)
        )

    def _write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """As KVCache.write; one index over rows, heads and places is several times quicker than one for each."""
        rows, heads = k.shape[:2]
        first = torch.arange(rows * heads, device=k.device) * self.own.keys.shape[3]
        index = first + self.own.lengths.repeat_interleave(heads)
        keys, values = self.own.keys[layer], self.own.values[layer]
        keys.view(-1, k.shape[-1]).index_copy_(0, index, k.flatten(0, 2).to(keys.dtype))
        values.view(-1, v.shape[-1]).index_copy_(0, index, v.flatten(0, 2).to(values.dtype))
        end = self.own.extent + 1
        return keys[:, :, :end], values[:, :, :end]


def _bias(seen: Tensor) -> Tensor:
    """0 where seen, else so low that a softmax or, where nothing at all is seen, the merge gives it no weight."""
    return torch.where(seen, 0.0, -1e30)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Partial:
    """q (B, K, M, E), k, v (B, K, S, E), bias (B, 1, M or 1, S)."""
    scores = (q @ k.transpose(-1, -2)).float().add_(bias)
    largest = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(largest).exp_()
    return (weights.to(v.dtype) @ v).float(), largest, weights.sum(dim=-1, keepdim=True)


def _merge(first: Partial, second: Partial) -> Tensor:
    """The softmax over both sets of keys."""
    largest = torch.maximum(first[1], second[1])
    a, b = (first[1] - largest).exp_(), (second[1] - largest).exp_()
    return (a * first[0] + b * second[0]) / (a * first[2] + b * second[2])
