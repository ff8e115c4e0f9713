"""Bits per byte: a loss that does not depend on the tokenizer, so that runs with different vocabularies compare.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from paribus.data.loader import Batch, DocumentLoader
from paribus.errors import UserError
from paribus.model.gpt import GPT
from paribus.recipe import Recipe


class BitsPerByte(NamedTuple):
    """`bpb` bits per byte of text, over `tokens` scored tokens whose text has `bytes` bytes."""

    bpb: float
    tokens: int
    bytes: int


@torch.no_grad()
def bits_per_byte(model: GPT, batches: Iterable[Batch], token_bytes: np.ndarray) -> BitsPerByte:
    """Sum of nats over the tokens that have text / (ln 2 x their bytes).

    How the rows are cut into batches changes nothing but rounding (1e-6).
    Raises UserError when no token has text.

    Args:
        model: to measure.
        batches: pairs of tokens and targets, (B, T) int64 each. Targets of -1 do not count, and serve as context.
        token_bytes: UTF-8 bytes of each token, (V,). Special tokens have 0, and do not count either.
    """
    widths = torch.as_tensor(token_bytes, dtype=torch.int64, device=model.device)
    nats, tokens, total = 0.0, 0, 0
    for batch in batches:
        targets = batch.targets.to(model.device).flatten()
        documents = None if batch.documents is None else batch.documents.to(model.device)
        hidden = model.hidden(batch.inputs.to(model.device), documents).flatten(0, 1)
        counted = (targets >= 0) & (widths[targets.clamp(min=0)] > 0)
        nats += model.losses(hidden[counted], targets[counted]).double().sum().item()
        tokens += int(counted.sum())
        total += int(widths[targets[counted]].sum())
    if not total:
        raise UserError("bits per byte: the validation batches hold no token that stands for text")
    return BitsPerByte(nats / (math.log(2) * total), tokens, total)


class HeldOut:
    """Bits per byte of a model that is in training, on the held-out documents."""

    def __init__(
        self,
        model: GPT,
        tokens: str | Path,
        token_bytes: np.ndarray,
        recipe: Recipe,
        within: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """tokens: the folder of shards. token_bytes (V,): UTF-8 bytes of each token.

        within("validation rows", done, total): called before every batch; may raise to give the measurement up.
        """
        seq_len, seed = recipe.architecture.seq_len, recipe.config.seed
        self.model, self.token_bytes, self.within = model, token_bytes, within
        self.seq_len = seq_len
        self.batch_rows = recipe.pretrain.device_batch_size
        self.documents = DocumentLoader(tokens, "val", seq_len, seed)

    def bits_per_byte(self, max_tokens: int | None) -> float:
        """Of the first `max_tokens` tokens; None: of all."""
        rows = self._told(max_tokens)
        return bits_per_byte(self.model, rows, self.token_bytes).bpb

    def _told(self, max_tokens: int | None) -> Iterator[Batch]:
        """The batches of a validation; reports progress as they are read."""
        there = len(self.documents.shards)
        total = -(-min(there, max_tokens or there) // self.seq_len)
        done = 0
        for batch in self.documents.validation_rows(self.batch_rows, max_tokens):
            if self.within is not None:
                self.within("validation rows", done, total)
            yield batch
            done += len(batch.inputs)
