"""Dropout: masks are a function of (seed, step), so that a restart continues with the same ones; RL learns without."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from paribus.config import Config, resolve_model
from paribus.model.gpt import GPT
from paribus.train.objectives import MicroBatch, NextToken, PolicyGradient, Work
from paribus.train.optim import MuonAdamW
from paribus.train.stepper import PlainStepper

VOCAB = 61
SHARES = {
    "attention_dropout": 0.3,
    "mlp_dropout": 0.3,
    "residual_dropout": 0.3,
    "embedding_dropout": 0.3,
}


def model_with(config: Config, **changes: Any) -> GPT:
    """A tiny model whose every block acts from the start."""
    shape = dataclasses.replace(config.model, initialisation="gpt2", **changes)
    model = GPT(resolve_model(shape), VOCAB)
    model.initialise(3)
    return model.train()


def work(config: Config) -> Work:
    rows = torch.randint(0, VOCAB, (2, config.model.seq_len + 1))
    return Work([MicroBatch(rows[:, :-1], rows[:, 1:])], rows.numel(), rows.numel())


def loss_at(model: GPT, config: Config, step: int, work: Work, seed: int = 1) -> float:
    stepper = PlainStepper(model, model, MuonAdamW(model, config.optimizer), seed)
    loss, _, _ = stepper.gradient(step, work)
    return float(loss)


def test_each_kind_of_dropout_changes_the_loss(tiny_config: Config) -> None:
    rows = work(tiny_config)
    plain = loss_at(model_with(tiny_config), tiny_config, 0, rows)
    for name, share in SHARES.items():
        dropped = loss_at(model_with(tiny_config, **{name: share}), tiny_config, 0, rows)
        assert dropped != plain, name


def test_a_step_made_again_drops_the_same(tiny_config: Config) -> None:
    rows, model = work(tiny_config), model_with(tiny_config, **SHARES)
    first = loss_at(model, tiny_config, 5, rows)
    torch.rand(17)  # whatever happens between the two
    assert loss_at(model, tiny_config, 5, rows) == first


def test_other_steps_and_seeds_drop_something_else(tiny_config: Config) -> None:
    rows, model = work(tiny_config), model_with(tiny_config, **SHARES)
    first = loss_at(model, tiny_config, 5, rows)
    assert loss_at(model, tiny_config, 6, rows) != first
    assert loss_at(model, tiny_config, 5, rows, seed=2) != first


def test_a_model_that_is_evaluated_drops_nothing(tiny_config: Config) -> None:
    dropping, plain = model_with(tiny_config, **SHARES).eval(), model_with(tiny_config).eval()
    tokens = torch.randint(0, VOCAB, (2, 9))
    assert torch.equal(dropping.hidden(tokens), plain.hidden(tokens))


def test_activation_checkpointing_drops_the_same(tiny_config: Config) -> None:
    rows, model = work(tiny_config), model_with(tiny_config, **SHARES)
    loss_at(model, tiny_config, 5, rows)
    wanted = [parameter.grad for parameter in model.parameters()]
    again = model_with(tiny_config, **SHARES)
    again.activation_checkpointing = True
    loss_at(again, tiny_config, 5, rows)
    for mine, theirs in zip(again.parameters(), wanted, strict=True):
        assert mine.grad is not None
        assert theirs is not None
        assert torch.equal(mine.grad, theirs)


def test_only_supervised_stages_drop() -> None:
    assert NextToken.dropout
    assert not PolicyGradient.dropout
