"""Bits per byte: a loss that does not depend on the tokenizer, so that runs with different vocabularies compare.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from paribus.data.loader import Batch
from paribus.errors import UserError
from paribus.model.gpt import GPT


class BitsPerByte(NamedTuple):
    """`bpb` bits per byte of text, over `tokens` scored tokens that stand for `bytes` bytes."""

    bpb: float
    tokens: int
    bytes: int


@torch.no_grad()
def bits_per_byte(model: GPT, batches: Iterable[Batch], token_bytes: np.ndarray) -> BitsPerByte:
    """Sum of nats over the tokens that stand for text / (ln 2 x their bytes).

    token_bytes (V,): UTF-8 bytes of each token. Special tokens have 0 and do not count, neither do targets of -1;
    both still serve as context. How the rows are cut into batches changes nothing but rounding (1e-6).
    Raises UserError when no token stands for text.
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
