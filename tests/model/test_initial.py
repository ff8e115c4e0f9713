"""Initial values: named by (seed, tensor), at a scale no other choice changes, and what two arms share of them is exact."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from paribus.config import Config, Model, resolve_model
from paribus.model.gpt import GPT
from paribus.model.initial import SharedInitial, parameter_shapes, shared_initial_tensors

VOCAB = 97

ARMS: dict[str, dict[str, Any]] = {
    "itself": {},
    "kv heads": {"n_kv_heads": 1},
    "tied head": {"tied_head": True},
    "depth alone": {"depth": 4, "width": 64},
    "depth and width": {"depth": 4},
    "relu2": {"mlp": "relu2"},
    "head_dim": {"head_dim": 8},
    "alternate": {"value_embeddings": "alternate"},
    "no value embeddings": {"value_embeddings": "none"},
    "learned positions": {"position": "learned"},
    "no scalars": {"x0_scalars": False, "residual_scalars": False},
}


@pytest.fixture(scope="module")
def config(tiny_config: Config) -> Model:
    return dataclasses.replace(tiny_config.model, depth=3, width=64, head_dim=16)


def initial(model: Model, vocab_size: int = VOCAB) -> dict[str, torch.Tensor]:
    gpt = GPT(resolve_model(model), vocab_size)
    gpt.initialise(7)
    return {name: parameter.detach() for name, parameter in gpt.named_parameters()}


def shared(a: Model, b: Model, vocab_size_b: int = VOCAB) -> SharedInitial:
    return shared_initial_tensors(resolve_model(a), VOCAB, resolve_model(b), vocab_size_b)


@pytest.mark.parametrize("arm", ARMS)
def test_shapes_without_torch_are_those_of_the_model(config: Model, arm: str) -> None:
    model = dataclasses.replace(config, **ARMS[arm])
    real = {name: tuple(tensor.shape) for name, tensor in initial(model).items()}
    found = parameter_shapes(resolve_model(model), VOCAB)
    assert found == real
    assert list(found) == list(real)


@pytest.mark.parametrize("arm", ARMS)
def test_what_two_arms_share_is_what_their_tensors_say(config: Model, arm: str) -> None:
    other = dataclasses.replace(config, **ARMS[arm])
    a, b = initial(config), initial(other)
    in_both = [name for name in a if name in b]
    equal = [name for name in in_both if torch.equal(a[name], b[name])]
    alike = [name for name in in_both if a[name].shape == b[name].shape]
    found = shared(config, other)
    assert found.same.tensors + found.constant.tensors == len(equal)
    assert found.same.numbers == sum(a[name].numel() for name in equal if len(a[name].unique()) > 1)
    assert found.rescaled_names == tuple(name for name in alike if name not in equal)
    assert found.name_only_names == tuple(name for name in in_both if name not in alike)
    assert found.absent_from_b.tensors == len(a.keys() - b.keys())
    assert found.absent_from_a.tensors == len(b.keys() - a.keys())


def test_a_tied_head_rescales_the_embedding_and_nothing_else(config: Model) -> None:
    tied = dataclasses.replace(config, tied_head=True)
    found = shared(config, tied)
    assert found.rescaled_names == ("embedding.weight",)
    a, b = initial(config)["embedding.weight"], initial(tied)["embedding.weight"]
    assert torch.allclose(a * 0.02, b)


def test_other_widths_and_vocabularies_share_only_names(config: Model) -> None:
    wide = dataclasses.replace(config, width=128)
    assert shared(config, wide).same.tensors == 0
    words = shared(config, config, VOCAB + 1)
    assert "embedding.weight" in words.name_only_names
    assert 0 < words.same_fraction < 1
    assert shared(config, config).same_fraction == 1


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_value_embeddings_start_at_one_scale_whatever_the_kv_heads(
    config: Model, kv_heads: int
) -> None:
    tensors = initial(dataclasses.replace(config, n_kv_heads=kv_heads))
    std = float(tensors["blocks.0.attention.value_embedding.weight"].std())
    assert std == pytest.approx(1 / math.sqrt(64), rel=0.1)
