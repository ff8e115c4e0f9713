"""The matrices as decoding multiplies by them."""

from __future__ import annotations

import pytest
import torch
from support.talker import random_model

from paribus.model.gpt import GPT
from paribus.model.inference import InferenceWeights


def logits(model: GPT) -> torch.Tensor:
    tokens = torch.arange(8, 38).view(3, 10)
    with torch.no_grad():
        return model.logits(model.hidden(tokens))


@pytest.mark.parametrize("mlp", ["relu2", "swiglu"])
def test_in_bf16_products_keep_their_bits(mlp: str) -> None:
    model = random_model(mlp=mlp, qkv_bias=True, value_embeddings="all")
    model.compute_dtype = torch.bfloat16
    expected = logits(model)
    with InferenceWeights(model, torch.bfloat16):
        assert torch.equal(logits(model), expected)


def test_in_fp32_logits_differ_by_rounding_alone() -> None:
    model = random_model(mlp="relu2", mlp_bias=True)
    expected = logits(model)
    with InferenceWeights(model, torch.float32):
        difference = (logits(model) - expected).abs().max()
    assert difference < 1e-4


def test_a_model_multiplies_by_its_own_weights_again_afterwards() -> None:
    """Also where decoding was broken off: what trains next must see what it learns."""
    model = random_model()
    with pytest.raises(KeyboardInterrupt), InferenceWeights(model, torch.float32):
        raise KeyboardInterrupt
    before = logits(model)
    with torch.no_grad():
        model.head.weight.zero_()
    assert before.any()
    assert not logits(model).any()
