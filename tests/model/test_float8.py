"""Products of 8-bit floats: near those of bf16, refused where a card or a shape cannot, and taken by a whole model."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from support.checkout import ROOT
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from paribus.config import Config, load_config, resolve_model
from paribus.errors import UserError
from paribus.machine.hardware import detect_hardware
from paribus.model import float8
from paribus.model.gpt import GPT

SMALL: dict[str, Any] = {
    "train.dtype": "bfloat16",
    "train.fp8": True,
    "model.depth": 2,
    "model.width": 48,
    "model.head_dim": 16,
    "model.seq_len": 16,
    "model.window": 4,
    "rl.max_new_tokens": 8,
    "eval.gsm8k.max_new_tokens": 8,
}


def config_of(**changes: Any) -> Config:
    return load_config(ROOT / "params.yaml", SMALL | changes)


def gradients(function: Any, rows: int) -> list[torch.Tensor]:
    """Result and gradients of a product of random factors. rows: of the input."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, rows, 64, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(48, 64, generator=generator).requires_grad_()
    y = function(x, weight)
    y.backward(torch.randn(y.shape, generator=generator).bfloat16())
    assert x.grad is not None
    assert weight.grad is not None
    return [y.detach(), x.grad, weight.grad]


@pytest.mark.parametrize("rows", [16, 7])
def test_a_product_and_its_gradients_are_near_those_of_bfloat16(rows: int) -> None:
    near = gradients(float8.linear, rows)
    exact = gradients(lambda x, weight: F.linear(x, weight.to(x.dtype)), rows)
    for one, other in zip(near, exact, strict=True):
        assert one.dtype == other.dtype
        error = (one.float() - other.float()).norm() / other.float().norm()
        assert 0.001 < error < 0.1  # of 3 and 2 bits of mantissa, and not zero


def test_zeros_stay_zeros() -> None:
    assert not float8.linear(torch.zeros(1, 16, 32).bfloat16(), torch.ones(16, 32)).any()


def test_every_product_is_one_that_torch_takes_on_a_card() -> None:
    """On tensors without memory: torch checks the shapes, strides and types of its kernel there too."""
    with FakeTensorMode():
        x = torch.empty(7, 64, device="cuda", dtype=torch.bfloat16)
        weight = torch.empty(48, 64, device="cuda", dtype=torch.bfloat16)
        y = float8.product(x, weight)
        grad_x = float8.product(y, weight.t(), float8.BACKWARD)
        grad_weight = float8.product(float8.whole(y).t(), float8.whole(x).t(), float8.BACKWARD)
    for result, shape in ((y, (7, 48)), (grad_x, (7, 64)), (grad_weight, (48, 64))):
        assert (tuple(result.shape), result.device.type) == (shape, "cuda")


@pytest.mark.parametrize("mlp", ["relu2", "swiglu"])
def test_every_block_matrix_learns_through_it(mlp: str) -> None:
    config = config_of(**{"model.mlp": mlp, "model.initialisation": "gpt2"})
    grads = []
    for fp8 in (False, True):
        model = GPT(resolve_model(config.model), 50, torch.bfloat16)
        model.initialise(1)
        if fp8:
            model.use_float8()
        tokens = torch.arange(32).view(2, 16) % 50
        model(tokens, tokens).backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name in grads[0]:
        if name.startswith("blocks") and name.endswith(("up.weight", "down.weight", "q.weight")):
            error = (grads[0][name] - grads[1][name]).norm() / grads[0][name].norm()
            assert 0 < error < 0.3, name


def test_training_rounds_and_evaluation_does_not() -> None:
    config = config_of(**{"model.initialisation": "gpt2"})
    tokens = torch.arange(32).view(2, 16) % 50
    losses = {}
    for fp8 in (False, True):
        model = GPT(resolve_model(config.model), 50, torch.bfloat16)
        model.initialise(1)
        if fp8:
            model.use_float8()
        for train in (False, True):
            losses[fp8, train] = float(model.train(train)(tokens, tokens).detach())
    assert losses[True, False] == losses[False, False] == losses[False, True]
    assert losses[True, True] != losses[False, True]
    assert losses[True, True] == pytest.approx(losses[False, True], rel=0.05)


def test_a_machine_without_such_a_card_refuses_it() -> None:
    train = dataclasses.replace(config_of().train, device="cpu")
    with pytest.raises(
        UserError, match=r"train\.fp8: true is for CUDA cards, and this machine computes on cpu"
    ):
        detect_hardware(train)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.dtype": "float32"}, "train.fp8: true is for train.dtype: bfloat16"),
        ({"train.device": "cpu"}, "train.fp8: true is for CUDA cards, and train.device is cpu"),
        ({"model.width": 24, "model.head_dim": 24}, "train.fp8: the width: 24 is not a multiple of 16"),
        ({"model.mlp_ratio": 0.75}, "train.fp8: the MLP's hidden width: 24 is not a multiple of 16"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_multiplied_so_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        config_of(**changes)
    assert said in "\n".join(caught.value.problems)
