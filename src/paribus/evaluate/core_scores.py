"""Scores of options: forward passes in which options that share a prefix share one cached copy of it.

Shapes: B units, T tokens, R places that are read, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from paribus.model.cache import KVCache
from paribus.model.gpt import GPT

READ_CHUNK = 512  # places whose logits exist at once
CPU_TOKENS = (
    2048  # of one forward pass on a CPU, whose caches a larger batch outgrows (benchmarks/core.py)
)

OptionScore = tuple[float, bool]  # mean loss in nats a token, every token the likeliest
Scores = dict[tuple[int, int], OptionScore]  # by (item, option)


@dataclass(frozen=True)
class Unit:
    """Options of one item that share a prefix: `tails` has (option, tokens to score)."""

    item: int
    prefix: list[int]
    tails: list[tuple[int, list[int]]]

    @property
    def trunk(self) -> list[int]:
        """What is forwarded once: the prefix, and an only tail with it. The last token of a tail predicts nothing."""
        return self.prefix if len(self.tails) > 1 else self.prefix + self.tails[0][1][:-1]

    @property
    def asked(self) -> int:
        """Places read at the end of the trunk."""
        return 1 if len(self.tails) > 1 else len(self.tails[0][1])

    @property
    def branches(self) -> list[list[int]]:
        """What is forwarded behind the trunk, for each of several tails."""
        return [tail[:-1] for _, tail in self.tails] if len(self.tails) > 1 else []


def units_of(item: int, options: list[tuple[list[int], int]], limit: int) -> list[Unit]:
    """Group an item's options by prefix, after dropping tokens on the left until each fits `limit`.

    Nothing to score, or no token left before it: the option is in no unit, and has no loss.
    """
    groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for option, (tokens, start) in enumerate(options):
        cut = max(len(tokens) - limit, 0)
        if cut < start < len(tokens):
            groups.setdefault(tuple(tokens[cut:start]), []).append((option, tokens[start:]))
    # Longest tails first: the n-th tails of several items then differ least in length, and need least padding.
    return [
        Unit(item, list(prefix), sorted(tails, key=lambda tail: -len(tail[1])))
        for prefix, tails in groups.items()
    ]


def batches(units: list[Unit], rows: int, tokens: int, limit: int) -> Iterator[list[Unit]]:
    """Units of like length together.

    rows: most units of a batch. tokens: most tokens of their trunks, padding included; a unit alone may have more.
    limit: most tokens of a trunk and its longest branch.
    """
    batch: list[Unit] = []
    reach = 0
    for unit in sorted(units, key=lambda unit: len(unit.trunk)):
        width, own = len(unit.trunk), max(map(len, unit.branches), default=0)
        reach = max(reach, own)
        if batch and (
            len(batch) == rows or (len(batch) + 1) * width > tokens or width + reach > limit
        ):
            yield batch
            batch, reach = [], own
        batch.append(unit)
    if batch:
        yield batch


def score_units(model: GPT, units: list[Unit]) -> Scores:
    """(item, option) -> mean loss in nats per token, and whether every token was the likeliest.

    Args:
        model: to ask.
        units: of one batch.
    """
    trunk, branches = forward_units(model, units)
    hidden: list[Tensor] = []
    for row, unit in enumerate(units):
        for place, (_, tail) in enumerate(unit.tails):
            hidden.append(trunk[row, -unit.asked :])
            if unit.branches:
                hidden.append(branches[place][row, : len(tail) - 1])
    tails = [((unit.item, option), tail) for unit in units for option, tail in unit.tails]
    losses, hits = read_tokens(
        model, torch.cat(hidden), [token for _, tail in tails for token in tail]
    )
    scores: Scores = {}
    start = 0
    for owner, tail in tails:
        end = start + len(tail)
        scores[owner] = sum(losses[start:end]) / len(tail), all(hits[start:end])
        start = end
    return scores


def forward_units(model: GPT, units: list[Unit]) -> tuple[Tensor, list[Tensor]]:
    """Hidden states of the places whose next token is scored.

    Returns those at the last R places asked of each trunk, (B, R, D), and for each n those of every unit's n-th branch,
    (B, T, D).

    Args:
        model: to ask.
        units: B of them: each a trunk of tokens and branches that continue it.
    """
    trunks = [unit.trunk for unit in units]
    # the n-th branches of all units are forwarded together; a unit without one has an empty row
    levels = [[*level] for level in zip_longest(*(unit.branches for unit in units), fillvalue=[])]
    reach = max((len(branch) for level in levels for branch in level), default=0)
    lengths = torch.tensor([len(trunk) for trunk in trunks], device=model.device)
    asked = max(unit.asked for unit in units)
    places = (lengths[:, None] + torch.arange(-asked, 0, device=model.device)).clamp(min=0)
    cache = None
    if reach:
        capacity = max(map(len, trunks)) + reach
        cache = KVCache(model.config, len(units), capacity, model.device, model.compute_dtype)
    trunk = model.hidden(pad(trunks, model.device), cache=cache, read=places)
    nothing = trunk[:, :0]
    if cache is None:
        return trunk, [nothing] * len(levels)
    cache.advance(lengths)
    # Every branch starts behind the trunk: the cache does not advance, each is written over the one before.
    branches = []
    for level in levels:
        hidden = model.hidden(pad(level, model.device), cache=cache) if any(level) else nothing
        branches.append(hidden)
    return trunk, branches


def read_tokens(model: GPT, hidden: Tensor, targets: list[int]) -> tuple[list[float], list[bool]]:
    """Cross-entropy in nats of each of N targets, and whether it is the likeliest token.

    Args:
        model: whose head reads them.
        hidden: states of the places before the targets, (N, D).
        targets: N token ids.
    """
    losses: list[float] = []
    hits: list[bool] = []
    wanted = torch.tensor(targets, device=model.device)
    for part, target in zip(hidden.split(READ_CHUNK), wanted.split(READ_CHUNK), strict=True):
        logits = model.logits(part)
        losses += torch.nn.functional.cross_entropy(logits, target, reduction="none").tolist()
        hits += (logits.argmax(dim=-1) == target).tolist()
    return losses, hits


def pad(rows: list[list[int]], device: torch.device) -> Tensor:
    """(B, T) int64, filled with 0 on the right: causal attention never looks there.

    Args:
        rows: B lists of token ids, the longest of T.
        device: where the tensor goes.
    """
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
