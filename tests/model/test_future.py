"""Heads of further tokens: what they learn from, what they cost, and that no checkpoint keeps them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from paribus.config import Architecture, Config, resolve_model
from paribus.data.tokenizer import Tokenizer
from paribus.model.accounting import flops_per_token, parameters
from paribus.model.gpt import GPT, load_checkpoint, save_checkpoint

VOCABULARY = 300


@pytest.fixture
def architecture(tiny_config: Config) -> Architecture:
    return resolve_model(dataclasses.replace(tiny_config.model, future_tokens=2))


@pytest.fixture
def model(architecture: Architecture) -> GPT:
    model = GPT(architecture, VOCABULARY)
    model.initialise(1)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("head"):
                parameter.copy_(torch.randn(parameter.shape, generator=draw) / 8)
    return model


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (3, 25), generator=torch.Generator().manual_seed(2))


def test_the_loss_is_that_of_each_token_ahead(model: GPT, rows: torch.Tensor) -> None:
    inputs, targets = rows[:, :-1], rows[:, 1:].contiguous()
    hidden = model.hidden(inputs)
    expected = F.cross_entropy(
        model.logits(hidden).flatten(0, 1), targets.flatten(), reduction="sum"
    )
    for ahead, head in enumerate(model.head_future, 1):
        further = F.rms_norm(hidden + head(hidden), (hidden.shape[-1],))[:, :-ahead]
        logits = model.logits(further).flatten(0, 1)
        wanted = targets[:, ahead:].flatten()
        expected = expected + 0.3 * F.cross_entropy(logits, wanted, reduction="sum")
    assert model(inputs, targets, future_loss=0.3).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_every_head_and_the_blocks_get_a_gradient(model: GPT, rows: torch.Tensor) -> None:
    model(rows[:, :-1], rows[:, 1:].contiguous(), future_loss=0.3).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if name.startswith("head"):
            assert parameter.grad.abs().sum() > 0, name


def test_parameters_and_flops_count_them(architecture: Architecture, model: GPT) -> None:
    plain = dataclasses.replace(architecture, future_tokens=0)
    width = architecture.width
    more = parameters(architecture, VOCABULARY)["total"] - parameters(plain, VOCABULARY)["total"]
    assert more == 2 * width**2
    assert parameters(architecture, VOCABULARY)["total"] == sum(
        p.numel() for p in model.parameters()
    )
    flops = flops_per_token(architecture, VOCABULARY) - flops_per_token(plain, VOCABULARY)
    assert flops == 6 * 2 * width * (width + VOCABULARY)


def test_a_checkpoint_is_the_model_without_them(
    model: GPT, rows: torch.Tensor, word_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    word_tokenizer.save(tmp_path / "tokenizer.json")
    save_checkpoint(tmp_path / "base", model, tmp_path / "tokenizer.json", {})
    kept = load_checkpoint(tmp_path / "base")
    assert kept.config.future_tokens == 0
    assert torch.equal(kept.hidden(rows), model.hidden(rows))
