"""The optimiser: Muon orthogonalises, AdamW is torch's, every switch takes effect."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from paribus.config import Config, resolve_model
from paribus.model.gpt import GPT, save_checkpoint
from paribus.train import muon
from paribus.train.muon import orthogonalise
from paribus.train.optim import MuonAdamW, parameter_groups
from paribus.train.schedule import lr_factor


def test_newton_schulz_brings_singular_values_near_one() -> None:
    matrices = torch.randn(2, 24, 96, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices, 5))
    assert values.min() > 0.6
    assert values.max() < 1.25
    assert torch.allclose(orthogonalise(matrices.mT, 5), orthogonalise(matrices, 5).mT, atol=1e-5)


def test_muon_in_bf16_steps_the_way_it_does_in_fp32() -> None:
    matrices = torch.randn(2, 24, 96, generator=torch.Generator().manual_seed(0))
    in_fp32 = orthogonalise(matrices, 5).flatten(1)
    in_bf16 = orthogonalise(matrices, 5, dtype=torch.bfloat16).flatten(1)
    cosine = torch.nn.functional.cosine_similarity(in_fp32, in_bf16)
    assert cosine.min() > 0.9995


@pytest.mark.parametrize("smallest", [-1, -3])
@pytest.mark.parametrize("coefficients", muon.COEFFICIENTS)
@pytest.mark.parametrize("iterations", [2, 5])
def test_iterations_in_pairs_in_bf16_end_as_near_to_the_polar_factor_as_in_fp64(
    iterations: int, coefficients: str, smallest: int
) -> None:
    """smallest: the power of ten that the singular values fall to."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, 64, 256, generator=generator, dtype=torch.float64)
    left, _, right = torch.linalg.svd(drawn, full_matrices=False)
    falling = torch.logspace(0, smallest, 64, dtype=torch.float64)
    matrices = left @ torch.diag(falling) @ right
    polar = (left @ right).flatten(1)

    nearness = []
    for dtype in (torch.float64, torch.bfloat16):  # one iteration at a time, and in pairs
        found = orthogonalise(matrices, iterations, coefficients, dtype).flatten(1)
        nearness.append(torch.nn.functional.cosine_similarity(found, polar))
    assert (nearness[1] > nearness[0] - 0.01).all()


def muon_steps(
    config: Config, compiled: bool, restart: bool = False
) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Two matrices after three steps at falling rates, of which the gate shuts the second out; and the state.

    restart: go on, before the last step, from copies, as a run that was saved does.
    """
    generator = torch.Generator().manual_seed(0)
    parameters = {name: torch.randn(8, 16, generator=generator) for name in "ab"}
    state: dict[str, torch.Tensor] = {}
    for step, gate in enumerate((1.0, 0.0, 1.0)):
        if restart and step == 2:
            parameters = {name: parameter.clone() for name, parameter in parameters.items()}
            state = {name: kept.clone() for name, kept in state.items()}
        for parameter in parameters.values():
            parameter.grad = torch.randn(8, 16, generator=generator)
        rate = 0.02 / (1 + step)
        muon.update(
            parameters, state, config.optimizer, rate, torch.tensor(gate), torch.float32, compiled
        )
    return list(parameters.values()), state


@pytest.mark.soak
def test_a_compiled_step_of_muon_is_compiled_once_and_goes_on_to_the_bit(
    tiny_config: Config,
) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    plain, momenta = muon_steps(tiny_config, compiled=False)
    compiled, same_momenta = muon_steps(tiny_config, compiled=True)
    again, _ = muon_steps(tiny_config, compiled=True, restart=True)
    assert counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(same_momenta, momenta, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(again, compiled, atol=0, rtol=0)


def test_adamw_is_torchs(tiny_config: Config) -> None:
    config = dataclasses.replace(
        tiny_config.optimizer, kind="adamw", grad_clip=0.0, weight_decay=0.0
    )
    ours, theirs = (GPT(resolve_model(tiny_config.model), 50) for _ in range(2))
    ours.initialise(1)
    theirs.initialise(1)
    optimizer = MuonAdamW(ours, config)
    groups = [
        {
            "params": [dict(theirs.named_parameters())[name] for name in group.parameters],
            "lr": group.lr,
        }
        for group in parameter_groups(ours, config)
    ]
    reference = torch.optim.AdamW(
        groups, betas=(config.beta1, config.beta2), eps=config.eps, weight_decay=0.0
    )
    tokens = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        for model in (ours, theirs):
            model.zero_grad()
            (model(tokens, tokens) / 32).backward()
        optimizer.step(1.0)
        reference.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-4, rtol=1e-3), name


def stepped(config: Config, lr_factor: float = 1.0, **changes: Any) -> dict[str, torch.Tensor]:
    """Weights after one step under a changed optimiser, from the same gradients."""
    model = GPT(resolve_model(dataclasses.replace(config.model, initialisation="gpt2")), 50)
    model.initialise(1)
    tokens = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(0))
    (model(tokens, tokens) / 32).backward()
    optimizer = MuonAdamW(model, dataclasses.replace(config.optimizer, **changes))
    optimizer.step(lr_factor)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def first(config: Config) -> dict[str, torch.Tensor]:
    model = GPT(resolve_model(dataclasses.replace(config.model, initialisation="gpt2")), 50)
    model.initialise(1)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("what", "decaying"),
    [
        ("matrices", {"mlp.up"}),
        ("embeddings", {"mlp.up", "embedding", "head"}),
        ("all", {"mlp.up", "embedding", "head", "residual_scale"}),
    ],
)
def test_what_decays(tiny_config: Config, what: str, decaying: set[str]) -> None:
    plain = stepped(tiny_config, weight_decay=0.0)
    decayed = stepped(tiny_config, weight_decay=0.5, weight_decay_of=what)
    for part in ("mlp.up", "embedding", "head", "residual_scale"):
        names = [name for name in plain if name.startswith(part) or f".{part}" in name]
        names = [name for name in names if "value_embedding" not in name]
        changed = any(not torch.equal(plain[name], decayed[name]) for name in names)
        assert changed == (part in decaying), part


def test_a_constant_decay_does_not_follow_the_rate(tiny_config: Config) -> None:
    name = "blocks.0.mlp.up.weight"
    still = {"lr_factor": 0.0, "weight_decay": 0.5}
    start = first(tiny_config)[name]
    following = stepped(tiny_config, **still)[name]
    constant = stepped(tiny_config, **still, weight_decay_schedule="constant")[name]
    assert torch.equal(following, start)
    expected = start * (1 - tiny_config.optimizer.matrix_lr * 0.5)
    assert torch.allclose(constant, expected)


def test_cautious_decay_leaves_alone_what_its_update_drives_from_zero(tiny_config: Config) -> None:
    name = "blocks.0.mlp.up.weight"
    start = first(tiny_config)[name]
    plain = stepped(tiny_config, weight_decay=0.0)[name]
    cautious = stepped(tiny_config, weight_decay=0.5, cautious_weight_decay=True)[name]
    driven_away = (plain - start) * start > 0
    assert driven_away.any()
    assert torch.equal(cautious[driven_away], plain[driven_away])
    decay = tiny_config.optimizer.matrix_lr * 0.5
    others = ~driven_away
    assert torch.allclose(cautious[others], (plain - decay * start)[others])


def test_single_numbers_of_a_gradient_are_bounded(tiny_config: Config) -> None:
    model = GPT(resolve_model(tiny_config.model), 50)
    model.initialise(1)
    tokens = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(0))
    model(tokens, tokens).backward()
    config = dataclasses.replace(tiny_config.optimizer, clip_value=1e-3, grad_clip=0.0)
    MuonAdamW(model, config).clip()
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    assert largest == pytest.approx(1e-3)


def trained(config: Config, **changes: Any) -> torch.Tensor:
    """All weights after two steps under a changed optimiser."""
    model = GPT(resolve_model(dataclasses.replace(config.model, value_embeddings="all")), 50)
    model.initialise(1)
    optimizer = MuonAdamW(model, dataclasses.replace(config.optimizer, **changes))
    tokens = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        (model(tokens, tokens) / 32).backward()
        optimizer.clip()
        optimizer.step(1.0)
        optimizer.zero_grad()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "adamw"},
        {"matrix_lr": 0.1},
        {"embedding_lr": 0.01},
        {"head_lr": 0.1},
        {"scalar_lr": 0.2},
        {"lr_reference_width": 1024},
        {"weight_decay": 0.5},
        {"beta1": 0.5},
        {"beta2": 0.5},
        {"eps": 1e-2},
        {"muon_momentum": 0.5},
        {"muon_iterations": 2},
        {"grad_clip": 1e-3},
        {"kind": "adamw", "adamw_matrix_lr": 0.1},
        {"lr_width_exponent": 0.0, "lr_reference_width": 1024},
    ],
    ids=str,
)
def test_every_switch_takes_effect(tiny_config: Config, changes: dict[str, Any]) -> None:
    assert not torch.equal(trained(tiny_config), trained(tiny_config, **changes))


def test_clip_bounds_the_global_norm(tiny_config: Config) -> None:
    model = GPT(resolve_model(tiny_config.model), 50)
    model.initialise(1)
    optimizer = MuonAdamW(model, dataclasses.replace(tiny_config.optimizer, grad_clip=0.5))
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    model(tokens, tokens).backward()
    before = optimizer.clip()
    after = torch.linalg.vector_norm(
        torch.stack([p.grad.norm() for p in optimizer.parameters if p.grad is not None])
    )
    assert before > 0.5
    assert after == pytest.approx(0.5, rel=1e-4)


def test_tied_head_gets_the_rate_of_a_head(tiny_config: Config) -> None:
    model = GPT(resolve_model(dataclasses.replace(tiny_config.model, tied_head=True)), 50)
    groups = {group.name: group for group in parameter_groups(model, tiny_config.optimizer)}
    assert "embedding.weight" in groups["head"].parameters


def test_schedule_warms_up_holds_and_warms_down() -> None:
    factors = [lr_factor(step, 100, 0.1, 0.4, 0.05) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[50] == 1.0
    assert factors[99] == pytest.approx(0.05)
    assert factors[59] == 1.0 > factors[61] > factors[80]


def rates(config: Config, width: int, **changes: Any) -> dict[str, float]:
    """Learning rate of each group of parameters at a width."""
    model = GPT(resolve_model(dataclasses.replace(config.model, width=width)), 50)
    optimizer = dataclasses.replace(config.optimizer, **changes)
    return {group.name: group.lr for group in parameter_groups(model, optimizer)}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_which_learning_rates_follow_the_width(tiny_config: Config, kind: str) -> None:
    changes = {"kind": kind, "lr_reference_width": 64, "lr_width_exponent": -0.5}
    narrow, wide = (rates(tiny_config, width, **changes) for width in (64, 256))
    ratios = {name: wide[name] / narrow[name] for name in narrow}
    matrix = 0.5 if kind == "adamw" else 1.0
    assert ratios == {"matrix": matrix, "embedding": 0.5, "head": 0.5, "scalar": 1.0}
    assert narrow["matrix"] == (
        tiny_config.optimizer.adamw_matrix_lr
        if kind == "adamw"
        else tiny_config.optimizer.matrix_lr
    )


@pytest.mark.parametrize("evaluate", ["weights", "ema"])
def test_a_checkpoint_holds_the_weights_and_their_average(
    tiny_config: Config, tmp_path: Path, evaluate: Literal["weights", "ema"]
) -> None:
    changes: dict[str, Any] = {"ema_decay": 0.5, "evaluate": evaluate}
    model = GPT(resolve_model(tiny_config.model), 50)
    model.initialise(1)
    start = model.head.weight.detach().clone()
    optimizer = MuonAdamW(model, dataclasses.replace(tiny_config.optimizer, **changes))
    tokens = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(0))
    (model(tokens, tokens) / 32).backward()
    optimizer.step(1.0)
    last = model.head.weight.detach().clone()
    others = optimizer.settle()
    found = {evaluate: model.head.weight.detach()}
    found["weights" if evaluate == "ema" else "ema"] = others["head.weight"]
    assert torch.equal(found["weights"], last)
    assert torch.allclose(found["ema"], (start + last) / 2)
    (tmp_path / "tokenizer.json").write_text("{}")
    save_checkpoint(tmp_path / "base", model, tmp_path / "tokenizer.json", {}, {"other": others})
    kept = load_file(tmp_path / "base/other.safetensors")
    assert torch.equal(kept["head.weight"], others["head.weight"])


@pytest.mark.parametrize("coefficients", ["newton_schulz", "polar_express"])
def test_other_coefficients_end_at_one(coefficients: str) -> None:
    matrices = torch.randn(2, 24, 96, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices, 8, coefficients))
    assert torch.allclose(values, torch.ones_like(values), atol=0.02)


def test_hyperball_keeps_each_norm(tiny_config: Config) -> None:
    start, moved = first(tiny_config), stepped(tiny_config, muon_hyperball=True)
    name = "blocks.0.mlp.up.weight"
    assert not torch.equal(start[name], moved[name])
    assert moved[name].norm() == pytest.approx(float(start[name].norm()), rel=1e-5)


def test_normuon_evens_out_rows(tiny_config: Config) -> None:
    name = "blocks.0.mlp.up.weight"
    steps = stepped(tiny_config, muon_normalisation="rows")[name] - first(tiny_config)[name]
    lengths = steps.norm(dim=1)
    assert torch.allclose(lengths, lengths.mean().expand_as(lengths), rtol=1e-3)
