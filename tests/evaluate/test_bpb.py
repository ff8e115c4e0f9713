"""Bits per byte: the definition, and independence of how rows are cut into batches."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from paribus.config import Config, resolve_model
from paribus.data.loader import Batch
from paribus.errors import UserError
from paribus.evaluate.bpb import bits_per_byte
from paribus.model.gpt import GPT

VOCAB = 50
BYTES = np.array([0, 0] + [1 + i % 5 for i in range(VOCAB - 2)], np.int32)  # two special tokens


@pytest.fixture(scope="module")
def model(tiny_config: Config) -> GPT:
    model = GPT(resolve_model(dataclasses.replace(tiny_config.model, seq_len=16)), VOCAB)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def text() -> torch.Tensor:
    return torch.randint(0, VOCAB, (13, 17), generator=torch.Generator().manual_seed(1))


def cut(text: torch.Tensor, rows: int) -> list[Batch]:
    return [Batch(part[:, :-1], part[:, 1:], None) for part in text.split(rows)]


def test_bits_per_byte_is_nats_over_bytes_of_text(model: GPT, text: torch.Tensor) -> None:
    nats, tokens, total = 0.0, 0, 0
    with torch.no_grad():
        for row in text:
            logits = model.logits(model.hidden(row[None, :-1]))[0]
            for place, target in enumerate(row[1:].tolist()):
                if BYTES[target]:
                    nats -= logits[place].log_softmax(-1)[target].item()
                    tokens, total = tokens + 1, total + int(BYTES[target])
    result = bits_per_byte(model, cut(text, 4), BYTES)
    assert (result.tokens, result.bytes) == (tokens, total)
    assert result.bpb == pytest.approx(nats / math.log(2) / total, rel=1e-6)


def test_bits_per_byte_does_not_depend_on_the_batch_size(model: GPT, text: torch.Tensor) -> None:
    one, four, all_rows = (bits_per_byte(model, cut(text, rows), BYTES) for rows in (1, 4, 13))
    assert one[1:] == four[1:] == all_rows[1:]
    assert four.bpb == pytest.approx(one.bpb, rel=1e-6)
    assert all_rows.bpb == pytest.approx(one.bpb, rel=1e-6)


def test_targets_not_learned_do_not_count(model: GPT, text: torch.Tensor) -> None:
    batch = cut(text, 13)[0]
    masked = batch.targets.clone()
    masked[:, ::2] = -1
    result = bits_per_byte(model, [Batch(batch.inputs, masked, None)], BYTES)
    assert result.bytes == int(BYTES[batch.targets[:, 1::2]].sum())


def test_no_text_to_score_is_an_error(model: GPT) -> None:
    special = torch.zeros((2, 17), dtype=torch.int64)
    with pytest.raises(UserError, match="no token that stands for text"):
        bits_per_byte(model, cut(special, 2), BYTES)
