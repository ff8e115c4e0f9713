"""The terms of the loss besides the plain cross-entropy: as autograd finds them from the formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from paribus.model.cross_entropy import cross_entropy

TOKENS, WIDTH, VOCAB, CHUNK = 23, 8, 31, 7


def z_loss(logits: Tensor, targets: Tensor) -> Tensor:
    squares = logits.logsumexp(-1).square()
    return F.cross_entropy(logits, targets, reduction="none") + 0.3 * squares


def smoothed(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=0.2)


def both(logits: Tensor, targets: Tensor) -> Tensor:
    return smoothed(logits, targets) + 0.3 * logits.logsumexp(-1).square()


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize(
    ("terms", "formula"),
    [
        ({"z_loss": 0.3}, z_loss),
        ({"label_smoothing": 0.2}, smoothed),
        ({"z_loss": 0.3, "label_smoothing": 0.2}, both),
    ],
)
def test_value_and_gradients_are_those_of_the_formula(
    softcap: float, terms: dict[str, Any], formula: Callable[[Tensor, Tensor], Tensor]
) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, requires_grad=True)
    weight = torch.randn(VOCAB, WIDTH, generator=generator, requires_grad=True)
    targets = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    factors = torch.rand(TOKENS, generator=generator)

    logits = hidden @ weight.T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    expected = (factors * formula(logits, targets)).sum()
    wanted = torch.autograd.grad(expected, (hidden, weight))

    found, _ = cross_entropy(
        hidden, weight, targets, factors, softcap, CHUNK, **terms, compiled=False
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for mine, theirs in zip(torch.autograd.grad(found, (hidden, weight)), wanted, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_a_token_that_is_not_learned_has_no_loss_and_no_gradient() -> None:
    hidden = torch.randn(1, WIDTH, requires_grad=True)
    weight = torch.randn(VOCAB, WIDTH)
    targets = torch.tensor([-1])
    loss, losses = cross_entropy(
        hidden, weight, targets, None, 0.0, CHUNK, z_loss=0.3, label_smoothing=0.2, compiled=False
    )
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert not gradient.any()
    assert not losses.any()


@pytest.mark.parametrize("spread", [1.0, 100.0])
@pytest.mark.parametrize("softcap", [5.0, 64.0])
def test_capped_logits_in_bf16_have_the_loss_and_the_gradients_of_fp32(
    softcap: float, spread: float
) -> None:
    """With a large spread most logits are at the cap, where the exponentials have their extremes."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(TOKENS, WIDTH, generator=generator).bfloat16()
    matrix = (spread * torch.randn(VOCAB, WIDTH, generator=generator)).bfloat16().float()
    targets = torch.randint(-1, VOCAB, (TOKENS,), generator=generator)
    factors = torch.rand(TOKENS, generator=generator)

    results = []
    for dtype in (torch.float32, torch.bfloat16):
        hidden = drawn.to(dtype).requires_grad_()
        weight = matrix.clone().requires_grad_()
        loss, each = cross_entropy(hidden, weight, targets, factors, softcap, CHUNK, compiled=False)
        results.append((each, *torch.autograd.grad(loss, (hidden, weight))))
    for exact, rounded in zip(*results, strict=True):
        assert (rounded.float() - exact).norm() <= 0.01 * exact.norm()
