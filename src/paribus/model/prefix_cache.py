"""A cache for several answers to each prompt: a prompt is stored once and copied to the rows that answer it.

Shapes: R rows (answers), P slots (prompts).
"""

from __future__ import annotations

import torch
from torch import Tensor

from paribus.config import Architecture
from paribus.model.layers import KVCache


class PrefixCache(KVCache):
    """Keys and values of the rows, and of the prompts that they start from."""

    def __init__(self, config: Architecture, rows: int, slots: int, samples: int, prompt_capacity: int, own_capacity: int,
                 device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, rows, prompt_capacity + own_capacity, device, dtype)
        self.prompts = KVCache(config, slots, prompt_capacity, device, dtype)
        self.slot = torch.zeros(rows, dtype=torch.int64, device=device)  # each row's prompt
        self.slots_used = 1

    def store(self, slots: Tensor, prefilled: KVCache) -> None:
        """Put the rows of a cache that holds prompts into `slots`."""
        self.prompts.copy_rows(slots, prefilled, torch.arange(len(slots), device=slots.device))

    def free_slot(self, slot: int) -> None:
        """The prompt in a slot has no answer to come."""
        self.prompts.lengths[slot] = 0

    def assign(self, rows: Tensor, slots: Tensor, places: Tensor) -> None:
        """Start answers number `places` to the prompts in `slots` in `rows`, all (n,)."""
        self.slot[rows] = slots
        self.copy_rows(rows, self.prompts, slots)

    def release(self, row: int) -> None:
        """The answer in a row is done: it lengthens nothing any more."""
        self.lengths[row] = self.slot[row] = 0
        self.extent = int(self.lengths.max())

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows, in this order."""
        chosen = self.select(rows)
        self.keys, self.values, self.lengths, self.extent = chosen.keys, chosen.values, chosen.lengths, chosen.extent
        self.slot = self.slot[rows]
