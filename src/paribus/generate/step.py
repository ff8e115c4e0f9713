"""One step of decoding on the device alone: a token is added to every active row, and nothing waits for the host.

All that a step reads and changes lies in tensors that stay where they are, so that a CUDA graph of it (graphs.py) computes
with what they hold when it is replayed.

Shapes: R rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paribus.generate.sampling import choose, uniform
from paribus.model.cache import PrefixCache
from paribus.model.gpt import GPT

FREE = -1  # in place of a forced token: the row's next one is chosen


class Rows:
    """What the device keeps of the rows in progress."""

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        """rows: answers decoded side by side. width: tokens of the longest answer."""
        self.active = torch.zeros(rows, dtype=torch.int64, device=device)  # 1 or 0
        self.token = torch.zeros(rows, dtype=torch.int64, device=device)  # the next input
        self.stream = torch.zeros(rows, dtype=torch.int64, device=device)
        self.count = torch.zeros(rows, dtype=torch.int64, device=device)  # tokens produced
        self.limit = torch.zeros(rows, dtype=torch.int64, device=device)
        # what must come next, or FREE
        self.forced = torch.full((rows,), FREE, dtype=torch.int64, device=device)
        self.out = torch.zeros(rows, width, dtype=torch.int64, device=device)
        self.free = torch.ones(rows, width, dtype=torch.bool, device=device)  # False: forced
        # of the last step: the host has to look at the row; rounding could have chosen; the model is broken
        self.news = torch.zeros(rows, 3, dtype=torch.bool, device=device)

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows, in this order."""
        for name, tensor in vars(self).items():
            setattr(self, name, tensor[rows])

    def uniforms(self, rows: slice, count: Tensor) -> Tensor:
        """The random numbers (n, 2) of each row's token number `count` (n,)."""
        first = 2 * count[:, None]
        counters = torch.cat([first, first + 1], dim=1)
        return uniform(self.stream[rows, None], counters)


@dataclass(frozen=True)
class Step:
    """A step of these rows. Called, it changes `rows` and the device's part of `cache`."""

    model: GPT
    cache: PrefixCache
    rows: Rows
    eventful: Tensor  # (V,): tokens after which the host has to look at the row
    temperature: float
    top_k: int

    def __call__(self) -> None:
        """Forward each row's token, choose the next one, and note what the host has to know."""
        rows = self.rows
        hidden = self.model.hidden(rows.token[:, None], cache=self.cache)[:, 0]
        logits = self.model.logits(hidden)
        self.cache.advance(rows.active)
        uniforms = rows.uniforms(slice(None), rows.count)
        chosen, close = choose(logits, uniforms, self.temperature, self.top_k)
        is_free = rows.forced == FREE
        rows.token.copy_(torch.where(is_free, chosen, rows.forced))
        place = rows.count.clamp(max=rows.out.shape[1] - 1)[:, None]  # an idle row may be full
        rows.out.scatter_(1, place, rows.token[:, None])
        rows.free.scatter_(1, place, is_free[:, None])
        rows.count += rows.active
        in_progress = rows.active.bool()
        events = in_progress & (self.eventful[rows.token] | (rows.count >= rows.limit))
        broken = ~logits[:, 0].isfinite()
        rows.news.copy_(torch.stack([events, close & is_free & in_progress, broken], dim=1))


def eventful_tokens(vocab_size: int, tokens: Sequence[int], device: torch.device) -> Tensor:
    """(V,): True at `tokens`."""
    eventful = torch.zeros(vocab_size, dtype=torch.bool, device=device)
    eventful[list(tokens)] = True
    return eventful
