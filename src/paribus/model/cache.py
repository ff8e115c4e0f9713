"""Keys and values of what was forwarded before, so that the next tokens need only their own forward pass.

`KVCache` holds rows of their own lengths. `PrefixCache` serves many answers to each prompt: the prompt's keys and
values are kept, and read, once for all answers. Decoding is bound by memory traffic: 16 answers to a prompt of 100
tokens that each read a copy of it move 16 times the bytes. In a prefix cache the queries of all answers to a prompt
meet its keys in one product; each answer's own keys are a second part; the two partial softmaxes are merged exactly
(as in FlashAttention, arXiv:2205.14135; shared prefixes: Hydragen, arXiv:2402.05099).

Shapes: B or R rows (answers), P slots (prompts), N answers of a prompt, T tokens, H query heads, K key/value heads,
G = H / K, E head_dim, S keys. Bytes: `footprint.cache`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from paribus.config import Architecture
from paribus.model.attention import at, attend, visible
from paribus.model.shapes import applied_blocks

# Of one part of a row's keys: unnormalised output (..., E), largest score (..., 1), sum of exponentials (..., 1). Scores are
# logarithms to the base 2: torch's exp takes 3 to 7 times as long as its exp2 on a CPU (measured on 123,000 scores, 0.10 and
# 0.037 ms of processor time; 0.28 and 0.041 where a sixth of them is masked).
Partial = tuple[Tensor, Tensor, Tensor]
LOG2_E = math.log2(math.e)
# Rounded lengths are multiples of it. What a step reads too much is half of it on average, at depth 12 in bf16 for 16 rows 38 MB
# (16 x 64 x 2 x 12 x 768 x 2), a sixth of the weights, which it reads as well; and a graph serves that many tokens at least.
ROUND_KEYS = 128


@dataclass(frozen=True)
class Seen:
    """What the layers of one step share: what their scores are raised by, and where they write."""

    prompt: Tensor  # added to the scores of the prompts' keys, (P, 1, N or 1, Sp)
    own: Tensor  # added to the scores of the rows' own keys, (R, 1, 1, So)
    index: Tensor  # (R x K,) of the new keys among all of a layer's


@dataclass(frozen=True)
class Reach:
    """How far one step reads: with the number of rows, all its sizes."""

    slots: int  # prompts
    prompt: int  # keys of each
    own: int  # keys of each row's own, the new one among them


class Cache(Protocol):
    """What the model needs of a cache; KVCache documents each part."""

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens cached for each row."""

    @property
    def capacity(self) -> int:
        """Tokens that a row can hold."""

    @property
    def extent(self) -> int:
        """Tokens of the longest row, at most; on the host."""

    def mask(self, positions: Tensor, read: Tensor | None, window: int | None) -> Any:
        """Whatever this cache's own `attend` takes.

        Args:
            positions: of the new tokens (B, T).
            read: the only places that ask (B, R); None: all.
            window: keys that a query sees; None: all before it.
        """

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        """The new tokens' attention output; see `KVCache.attend`.

        Args:
            layer: number of the block.
            q: of the new tokens.
            k: of the new tokens.
            v: of the new tokens.
            mask: as this cache's `mask` made it.
        """


class KVCache:
    """Keys and values of `rows` sequences, each with its own length.

    A forward pass writes behind each row and reads up to there; `advance` then says how many of the written tokens
    were real. Right padding is therefore harmless: the next write goes over it.
    """

    def __init__(
        self,
        config: Architecture,
        rows: int,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """rows: sequences side by side. capacity: tokens that each can hold. dtype: of keys and values."""
        shape = (applied_blocks(config), rows, config.n_kv_heads, capacity, config.head_dim)
        self.softcap = config.attention_softcap
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.extent = 0  # longest row, on the host: no device sync to know how far to read

    @property
    def rows(self) -> int:
        """Sequences side by side, B."""
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        """Most tokens of a sequence."""
        return self.keys.shape[3]

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, K, T, E) of block `layer` behind each row.

        Returns the block's keys and values up to the longest row, each (B, K, S, E).
        """
        positions = self.lengths[:, None] + torch.arange(k.shape[2], device=k.device)
        row = torch.arange(self.rows, device=k.device)[:, None]
        self.keys[layer][row, :, positions] = k.transpose(1, 2).to(self.keys.dtype)
        self.values[layer][row, :, positions] = v.transpose(1, 2).to(self.values.dtype)
        end = self.extent + k.shape[2]
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def mask(self, positions: Tensor, read: Tensor | None, window: int | None) -> Tensor | None:
        """Which keys the tokens about to be written see, (B, 1, T or R, S); None: plain causal.

        Args:
            positions: of those tokens, (B, T).
            read: (B, R), the only places of T that ask; None: all do.
            window: keys that a token sees, itself included; None: all before it.
        """
        if self.extent == 0 and read is None and window is None:
            return None
        keys = torch.arange(self.extent + positions.shape[1], device=positions.device)
        return visible(at(positions, read), keys, window)[:, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Write k, v (B, K, T, E) of block `layer`, then let q (B, H, T or R, E) attend to all that `mask` shows it.

        mask: from `mask`. Returns (B, H, T or R, E).
        """
        keys, values = self.write(layer, k, v)
        return attend(q, keys.to(q.dtype), values.to(q.dtype), mask, self.softcap)

    def advance(self, counts: Tensor) -> None:
        """Keep the first `counts` (B,) of the tokens just written in each row."""
        self.lengths += counts
        self.extent = int(self.lengths.max())

    def select(self, index: Tensor) -> KVCache:
        """A copy holding the rows `index`, in that order, repeated where repeated."""
        chosen = object.__new__(KVCache)
        chosen.softcap = self.softcap
        chosen.keys, chosen.values = self.keys[:, index], self.values[:, index]
        chosen.lengths = self.lengths[index]
        chosen.extent = int(chosen.lengths.max()) if len(index) else 0
        return chosen

    def copy_rows(self, destination: Tensor, source: KVCache, index: Tensor) -> None:
        """Put rows `index` of `source` into rows `destination` of this cache."""
        end = source.extent
        self.keys[:, destination, :, :end] = source.keys[:, index, :, :end]
        self.values[:, destination, :, :end] = source.values[:, index, :, :end]
        self.lengths[destination] = source.lengths[index]
        self.extent = int(self.lengths.max())


class PrefixCache:
    """The cache of many answers to each prompt. Takes the place of KVCache in `GPT.hidden` for one token a row."""

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
        rounded: bool = False,
    ) -> None:
        """rows: answers decoded side by side, R. slots: prompts that are kept, P.

        samples: most answers to a prompt, N. prompt_capacity, own_capacity: most tokens of a prompt and of an answer. dtype: of
        keys and values. rounded: whether steps read up to a few sizes only (`reach`).
        """
        self.rounded = rounded
        self.capacity, self.softcap = config.seq_len, config.attention_softcap
        self.prompts = KVCache(config, slots, prompt_capacity, device, dtype)
        self.own = KVCache(config, rows, own_capacity, device, dtype)
        # each row's prompt, its place among the answers to it, and back: (slot, place) -> row
        self.slot = torch.zeros(rows, dtype=torch.int64, device=device)
        self.place = torch.zeros(rows, dtype=torch.int64, device=device)
        self.grid = torch.zeros(slots, samples, dtype=torch.int64, device=device)
        self.slots_used = 1  # slots from here on have no active rows

    @property
    def lengths(self) -> Tensor:
        """(R,) tokens cached for each row, its prompt's included."""
        return self.prompts.lengths[self.slot] + self.own.lengths

    @property
    def extent(self) -> int:
        """Longest row, at most. Whoever decodes ends each row with the context, so that one more token fits."""
        return min(self.prompts.extent + self.own.extent, self.capacity - 1)

    def advance(self, counts: Tensor) -> None:
        """As KVCache.advance, on the device alone: the host says `extend`."""
        self.own.lengths += counts

    def extend(self) -> None:
        """The longest row is one of those that advanced."""
        self.own.extent += 1

    def reach(self) -> Reach:
        """How far the next step reads: to the longest, or rounded up. What is beyond it is masked."""
        slots, prompt, own = self.slots_used, max(self.prompts.extent, 1), self.own.extent + 1
        if self.rounded:
            slots = min(1 << (slots - 1).bit_length(), self.prompts.rows)
            prompt = min(_up(prompt), self.prompts.capacity)
            own = min(_up(own), self.own.capacity)
        return Reach(slots, prompt, own)

    # ------------------------------------------------------------ who is where

    def store(self, slots: Tensor, prefilled: KVCache) -> None:
        """Put the rows of a cache that holds prompts into `slots`.

        prefilled: the cache of a forward pass over the prompts.
        """
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

    def mask(self, positions: Tensor, read: Tensor | None, window: int | None) -> Seen:
        """The keys that the next token of each row sees, of its prompt and of its own.

        Args:
            positions: (R, 1), those of the tokens.
            read: of no effect, as one token leaves nothing to choose.
            window: as in KVCache.mask.
        """
        device, reach = positions.device, self.reach()
        used = reach.slots
        prompt_keys = torch.arange(reach.prompt, device=device)
        prompt = (prompt_keys < self.prompts.lengths[:used, None])[:, None, None]
        own_keys = torch.arange(reach.own, device=device)
        own = visible(self.own.lengths[:, None], own_keys, window)[:, None]
        if window is not None:
            prompt = prompt & visible(positions[self.grid[:used], 0], prompt_keys, window)[:, None]
        return Seen(_bias(prompt), _bias(own), self._index())

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Seen) -> Tensor:
        """As KVCache.attend, for one token a row: q (R, H, 1, E), k, v (R, K, 1, E) -> (R, H, 1, E).

        layer: number of the block. mask: as this cache's `mask` made it.
        """
        rows, heads, _, width = q.shape
        kv_heads = k.shape[1]
        q = (q * width**-0.5).view(rows, kv_heads, heads // kv_heads, width)
        own = _attend(q, *self._write(layer, k, v, mask), mask.own, self.softcap)
        prompt = self._attend_to_prompts(layer, q, mask.prompt)
        return _merge(own, prompt).to(v.dtype).view(rows, heads, 1, width)

    def _attend_to_prompts(self, layer: int, q: Tensor, bias: Tensor) -> Partial:
        """The part of each row's softmax over its prompt, (R, K, G, ...).

        q: (R, K, G, E). bias: (P, 1, N or 1, Sp).
        """
        used, end = bias.shape[0], bias.shape[-1]
        by_prompt = q[self.grid[:used]].transpose(1, 2)  # (P, K, N, G, E)
        slots, kv_heads, answers, group, _ = by_prompt.shape
        if bias.shape[2] > 1:  # with a window it differs from answer to answer
            bias = bias[:, :, :, None].expand(-1, -1, -1, group, -1).flatten(2, 3)
        output, largest, total = _attend(
            by_prompt.flatten(2, 3),
            self.prompts.keys[layer, :used, :, :end],
            self.prompts.values[layer, :used, :, :end],
            bias,
            self.softcap,
        )

        def of_rows(part: Tensor) -> Tensor:
            by_answer = part.view(slots, kv_heads, answers, group, -1)
            return by_answer[self.slot, :, self.place]

        return of_rows(output), of_rows(largest), of_rows(total)

    def _index(self) -> Tensor:
        """(R x K,): where the next keys go, among those of all rows and heads of a layer."""
        _layers, rows, heads, capacity, _width = self.own.keys.shape
        first = torch.arange(rows * heads, device=self.own.keys.device) * capacity
        return first + self.own.lengths.repeat_interleave(heads)

    def _write(self, layer: int, k: Tensor, v: Tensor, mask: Seen) -> tuple[Tensor, Tensor]:
        """As KVCache.write; one index over rows, heads and places is several times quicker than one for each.

        mask: where to write, and how many keys are seen.
        """
        index, end = mask.index, mask.own.shape[-1]
        keys, values = self.own.keys[layer], self.own.values[layer]
        keys.view(-1, k.shape[-1]).index_copy_(0, index, k.flatten(0, 2).to(keys.dtype))
        values.view(-1, v.shape[-1]).index_copy_(0, index, v.flatten(0, 2).to(values.dtype))
        return keys[:, :, :end], values[:, :, :end]


def _up(length: int) -> int:
    """A number of keys, rounded up."""
    return -(-length // ROUND_KEYS) * ROUND_KEYS


def _bias(seen: Tensor) -> Tensor:
    """0 where seen, else so low that a softmax or, where nothing at all is seen, the merge gives it no weight."""
    return torch.where(seen, 0.0, -1e30)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, softcap: float) -> Partial:
    """The part of a softmax over these keys: q (B, K, M, E), k, v (B, K, S, E), bias (B, 1, M or 1, S)."""
    scores = (q @ k.transpose(-1, -2)).float()
    if softcap:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    scores = torch.add(bias, scores, alpha=LOG2_E)
    largest = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(largest).exp2_()
    return (weights.to(v.dtype) @ v).float(), largest, weights.sum(dim=-1, keepdim=True)


def _merge(first: Partial, second: Partial) -> Tensor:
    """The output of the softmax over both parts of the keys."""
    first_output, first_largest, first_sum = first
    second_output, second_largest, second_sum = second
    largest = torch.maximum(first_largest, second_largest)
    a, b = (first_largest - largest).exp2_(), (second_largest - largest).exp2_()
    return (a * first_output + b * second_output) / (a * first_sum + b * second_sum)
