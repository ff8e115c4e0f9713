"""The GPT: counts, gradients, every switch takes effect, cached equals uncached, checkpoints are whole or refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from paribus.config import Config, Model, load_config, resolve_model
from paribus.errors import UserError
from paribus.model import gpt as gpt_module
from paribus.model import layers
from paribus.model.accounting import (
    flops_per_token,
    keys_per_query,
    optimizer_flops_per_step,
    parameters,
    step_flops,
)
from paribus.model.attention import visible
from paribus.model.cache import KVCache
from paribus.model.gpt import GPT, load_checkpoint, save_checkpoint
from paribus.model.shapes import window_of
from paribus.train.optim import MuonAdamW

VOCAB = 97
SAVED_VOCAB = 300  # the least that params.yaml allows


def build(config: Model, seed: int = 1, vocab: int = VOCAB, **changes: Any) -> GPT:
    """A model in which every tensor is non-zero, so that every part shows in the output."""
    model = GPT(resolve_model(dataclasses.replace(config, **changes)), vocab)
    model.initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any() or parameter.dim() < 2:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.fixture(scope="module")
def config(tiny_config: Config) -> Model:
    return dataclasses.replace(tiny_config.model, depth=3, width=32, head_dim=8)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, VOCAB, (3, 24), generator=torch.Generator().manual_seed(0))


# Each changes one field from the default of tiny_config.
SWITCHES: dict[str, dict[str, Any]] = {
    "depth": {"depth": 4},
    "heads": {"head_dim": 16},
    "n_kv_heads": {"n_kv_heads": 2},
    "gelu": {"mlp": "gelu"},
    "relu2": {"mlp": "relu2"},
    "mlp_ratio": {"mlp_ratio": 2.0},
    "norm": {"norm": "layer"},
    "qk_norm": {"qk_norm": False},
    "learned": {"position": "learned"},
    "none": {"position": "none"},
    "rope_base": {"rope_base": 100.0},
    "window": {"window_pattern": "S", "window": 4},
    "value_alternate": {"value_embeddings": "alternate"},
    "value_none": {"value_embeddings": "none"},
    "x0": {"x0_scalars": False},
    "residual": {"residual_scalars": False},
    "tied": {"tied_head": True},
    "softcap": {"softcap": 0.0},
    "recurrence": {"recurrence": 2},
    "relu": {"mlp": "relu"},
    "leaky_relu2": {"mlp": "leaky_relu2"},
    "geglu": {"mlp": "geglu"},
    "mlp_bias": {"mlp_bias": True},
    "qkv_bias": {"qkv_bias": True},
    "out_bias": {"out_bias": True},
    "parallel": {"parallel_blocks": True},
    "post": {"norm_position": "post"},
    "sandwich": {"norm_position": "sandwich"},
    "qk_norm_before": {"qk_norm_position": "before_rotary", "norm": "layer"},
    "attention_softcap": {"attention_softcap": 0.5},
    "attention_gate": {"attention_gate": "head"},
    "value_residual": {"value_residual": True},
    "rotary_fraction": {"rotary_fraction": 0.5},
    "embedding_as_it_is": {"embedding_norm": False, "embedding_scale": 2.0},
    "norm_gain": {"norm_gain": True},
    "norm_bias": {"norm_gain": True, "norm_bias": True},
    "qk_gain": {"qk_gain": True},
    "head_gain": {"head_gain": True},
    "gpt2": {"initialisation": "gpt2"},
    "depth_scaled": {"initialisation": "depth_scaled"},
    "orthogonal": {"initialisation": "orthogonal"},
}


@pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES.keys())
def test_every_switch_takes_effect(
    config: Model, tokens: torch.Tensor, changes: dict[str, Any]
) -> None:
    default, changed = build(config), build(config, **changes)
    with torch.no_grad():
        assert not torch.allclose(
            default.logits(default.hidden(tokens)), changed.logits(changed.hidden(tokens))
        )


@pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES.keys())
def test_parameters_are_counted_without_building(config: Model, changes: dict[str, Any]) -> None:
    model = build(config, **changes)
    assert parameters(model.config, VOCAB)["total"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES.keys())
def test_cached_equals_uncached(
    config: Model, tokens: torch.Tensor, changes: dict[str, Any]
) -> None:
    model = build(config, **changes)
    cache = KVCache(model.config, 3, 40)
    with torch.no_grad():
        parts = [model.hidden(tokens[:, :9], cache=cache)]
        cache.advance(torch.full((3,), 9))
        for place in range(9, 24):
            parts.append(model.hidden(tokens[:, place : place + 1], cache=cache))
            cache.advance(torch.ones(3, dtype=torch.int64))
        assert torch.allclose(torch.cat(parts, 1), model.hidden(tokens), atol=1e-5)


def test_right_padding_in_the_cache_is_harmless(config: Model, tokens: torch.Tensor) -> None:
    model = build(config)
    cache = KVCache(model.config, 2, 40)
    lengths = torch.tensor([4, 9])
    with torch.no_grad():
        model.hidden(tokens[:2, :9], cache=cache)  # row 0 is real for 4 tokens only
        cache.advance(lengths)
        after = model.hidden(tokens[:2, 9:10], cache=cache)
        alone = model.hidden(torch.cat([tokens[:1, :4], tokens[:1, 9:10]], 1))
    assert torch.allclose(after[0, -1], alone[0, -1], atol=1e-5)


@pytest.mark.parametrize("softcap", [0.0, 15.0])
@pytest.mark.parametrize("chunk_tokens", [7, 10_000])
def test_chunked_cross_entropy_is_the_plain_one(
    config: Model,
    tokens: torch.Tensor,
    softcap: float,
    chunk_tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpt_module, "logit_rows", lambda vocab_size, device_type: chunk_tokens)
    model = build(config, softcap=softcap)
    generator = torch.Generator().manual_seed(3)
    unlearned = torch.rand(tokens.shape, generator=generator) < 0.2
    targets = tokens.roll(-1, 1).masked_fill(unlearned, -1)
    weights = torch.randn(tokens.shape, generator=generator)
    losses = F.cross_entropy(
        model.logits(model.hidden(tokens)).flatten(0, 1),
        targets.flatten(),
        ignore_index=-1,
        reduction="none",
    )
    plain = (losses * weights.flatten()).sum()
    expected = torch.autograd.grad(plain, list(model.parameters()))
    loss = model(tokens, targets, weights=weights)
    found = torch.autograd.grad(loss, list(model.parameters()))
    assert torch.allclose(loss, plain, rtol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(expected, found, strict=True))


def test_inference_computes_what_training_does(config: Model, tokens: torch.Tensor) -> None:
    """Without gradients relu² and the soft-cap work in place, the soft-cap by another formula."""
    model = build(config)
    hidden = model.hidden(tokens)
    logits = model.logits(hidden)
    with torch.no_grad():
        again = model.hidden(tokens)
        assert torch.equal(again, hidden)
        assert torch.allclose(model.logits(again), logits, atol=1e-5)


def test_documents_do_not_see_each_other(config: Model, tokens: torch.Tensor) -> None:
    """Full attention with positions relative to each other: the second document is as if alone."""
    model = build(config)
    documents = torch.zeros_like(tokens)
    documents[:, 10:] = 1
    with torch.no_grad():
        assert torch.allclose(
            model.hidden(tokens, documents)[:, 10:], model.hidden(tokens[:, 10:]), atol=1e-5
        )


def test_activation_checkpointing_changes_nothing(config: Model, tokens: torch.Tensor) -> None:
    gradients = []
    for switch in (False, True):
        model = build(config)
        model.activation_checkpointing = switch
        model(tokens, tokens).backward()
        gradients.append(model.get_parameter("blocks.0.attention.q.weight").grad)
    without, with_checkpoints = gradients
    assert without is not None
    assert with_checkpoints is not None
    assert torch.equal(without, with_checkpoints)


def test_arms_share_the_values_of_shared_tensors(config: Model) -> None:
    """Matched seeds: a change in one part leaves the initial values of all others as they are."""
    default, arm = (
        GPT(resolve_model(config), VOCAB),
        GPT(
            resolve_model(dataclasses.replace(config, mlp="swiglu", value_embeddings="all")), VOCAB
        ),
    )
    default.initialise(3)
    arm.initialise(3)
    shared = default.state_dict()
    same = [
        name
        for name, tensor in arm.state_dict().items()
        if name in shared and tensor.shape == shared[name].shape
    ]
    assert len(same) > 10
    assert all(torch.equal(arm.state_dict()[name], shared[name]) for name in same)


def test_initial_weights_follow_the_seed(config: Model) -> None:
    embeddings = []
    for seed in (1, 1, 2):
        model = GPT(resolve_model(config), VOCAB)
        model.initialise(seed)
        embeddings.append(model.embedding.weight)
    assert torch.equal(embeddings[0], embeddings[1])
    assert not torch.equal(embeddings[0], embeddings[2])


def test_flops_grow_with_window_and_width(config: Model) -> None:
    config = resolve_model(dataclasses.replace(config, window_pattern="L"))
    full = flops_per_token(config, VOCAB)
    windowed = flops_per_token(dataclasses.replace(config, window_pattern="S", window=8), VOCAB)
    # Two of three blocks see 8 keys instead of 64: 12 x heads x head_dim each.
    assert full - windowed == 2 * 12 * 32 * (config.seq_len - 8)


def test_every_pass_over_the_blocks_counts_its_products(config: Model) -> None:
    once, twice, thrice = (
        flops_per_token(resolve_model(dataclasses.replace(config, recurrence=passes)), VOCAB)
        for passes in (1, 2, 3)
    )
    head = 6 * VOCAB * resolve_model(config).width
    assert twice - once == once - head
    assert thrice - twice == once - head


@pytest.mark.parametrize("window_pattern", ["L", "SSL"])
def test_a_query_is_counted_with_the_keys_that_its_mask_shows(
    config: Model, window_pattern: str
) -> None:
    config = resolve_model(dataclasses.replace(config, window_pattern=window_pattern, window=8))
    positions = torch.arange(config.seq_len)
    for layer in range(config.depth):
        window = config.window if window_of(config, layer) == "S" else None
        seen = visible(positions, positions, window)
        assert keys_per_query(config, layer) == pytest.approx(float(seen.sum()) / config.seq_len)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("mlp", ["swiglu", "relu2"])
def test_the_optimisers_products_are_counted_as_torch_counts_them(
    config: Model, project_root: Path, kind: str, mlp: Literal["swiglu", "relu2"]
) -> None:
    """torch's own counter, around a real update of grouped-query attention too."""
    changes = {"optimizer.kind": kind}
    settings = load_config(project_root / "params.yaml", overrides=changes).optimizer
    config = resolve_model(dataclasses.replace(config, mlp=mlp))
    model = build(config)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    counter = FlopCounterMode(display=False)
    with counter:
        MuonAdamW(model, settings).step(1.0)
    assert counter.get_total_flops() == optimizer_flops_per_step(config, settings)
    assert (counter.get_total_flops() > 0) == (kind == "muon")


def test_a_step_costs_its_tokens_and_once_the_optimisers_products(
    config: Model, project_root: Path
) -> None:
    config = resolve_model(config)
    optimizer = load_config(project_root / "params.yaml").optimizer
    one, two = (step_flops(config, VOCAB, optimizer, tokens) for tokens in (1000, 2000))
    assert 2 * one - two == pytest.approx(optimizer_flops_per_step(config, optimizer))
    assert two - one < 1000 * flops_per_token(config, VOCAB), "the causal half is taken off"


def test_too_long_a_row_is_refused(config: Model) -> None:
    with pytest.raises(UserError, match="model.seq_len"):
        build(config).hidden(torch.zeros(1, config.seq_len + 1, dtype=torch.int64))


@pytest.fixture
def checkpoint(config: Model, tmp_path: Path) -> Path:
    vocabulary = {str(number): number for number in range(SAVED_VOCAB)}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": vocabulary}}))
    save_checkpoint(tmp_path / "base", build(config, vocab=SAVED_VOCAB), path, {"seed": 1})
    return tmp_path / "base"


def test_checkpoint_round_trip(checkpoint: Path, config: Model, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        expected = build(config, vocab=SAVED_VOCAB).hidden(tokens)
        assert torch.equal(load_checkpoint(checkpoint).hidden(tokens), expected)


def test_damaged_checkpoint_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(checkpoint)


def test_checkpoint_of_another_shape_is_refused(checkpoint: Path) -> None:
    shape = json.loads((checkpoint / "config.json").read_text())
    shape["model"]["depth"] = 5
    (checkpoint / "config.json").write_text(json.dumps(shape))
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(checkpoint)


def test_absent_checkpoint_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="config.json"):
        load_checkpoint(tmp_path)


def test_own_norm_is_torchs(tokens: torch.Tensor) -> None:
    """Forward and backward, against torch's own in double precision."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5, 7, 24, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.allclose(layers.normalise(x, "rms"), F.rms_norm(x, (24,)), atol=1e-6)
    found, expected = (
        torch.autograd.grad((y**3).sum(), x)[0]
        for y in (layers.normalise(x, "rms"), F.rms_norm(x, (24,)))
    )
    assert torch.allclose(found, expected, atol=1e-5)
