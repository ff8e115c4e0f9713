"""Values that follow from others, mostly from `model.depth`."""

from __future__ import annotations

import dataclasses
import math

from paribus.config.batches import batches_of
from paribus.config.conditions import heads, hidden_width, width
from paribus.config.model_schema import Architecture, Model
from paribus.config.training_schema import Pretrain


def shape(model: Model) -> tuple[int, int, int, int]:
    """width, n_heads, n_kv_heads, window."""
    n_heads = heads(model)
    window = model.window or max(model.seq_len // 2, 1)
    return width(model), n_heads, model.n_kv_heads or n_heads, window


def resolve_model(model: Model) -> Architecture:
    """The model with every derived value filled in."""
    stream, n_heads, n_kv_heads, window = shape(model)
    values = {field.name: getattr(model, field.name) for field in dataclasses.fields(Model)}
    return Architecture(
        **values | {"width": stream, "n_heads": n_heads, "n_kv_heads": n_kv_heads, "window": window}
    )


SMALL_STD = 0.02  # GPT-2's; logits of a tied head begin near zero with it


def mlp_hidden(config: Architecture) -> int:
    """Hidden width of the MLP."""
    return hidden_width(config)


def embedding_std(model: Model) -> float:
    """Standard deviation of the token embedding's first values."""
    if model.embedding_std is not None:
        return model.embedding_std
    return SMALL_STD if model.tied_head or model.initialisation == "gpt2" else 1.0


def resolve_pretrain(pretrain: Pretrain, parameters: int, seq_len: int) -> Pretrain:
    """Horizon and batch filled in for a model of so many parameters.

    Horizon: tokens_per_parameter x parameters (20: arXiv:2203.15556). Batch: 2^19 tokens at 2.2e9 tokens of
    horizon, growing as horizon^0.383 (arXiv:2505.13738), to the nearest power of two.

    Args:
        pretrain: as params.yaml has it.
        parameters: of the model.
        seq_len: tokens of a row.
    """
    batch, steps = pretrain.batch_tokens, pretrain.steps
    horizon = pretrain.tokens_per_parameter * parameters
    if batch is None:
        batch = (
            2 ** round(math.log2(2**19 * (horizon / 2.2e9) ** 0.383)) if steps is None else 2**19
        )
        batch = max(batch // seq_len, 1) * seq_len
    if steps is None:
        steps = max(math.ceil(horizon / batch), 1)
        while (rows := batches_of(pretrain, steps, batch, seq_len).total) * seq_len < horizon:
            steps = max(steps + 1, math.ceil(steps * horizon / (rows * seq_len)))
    return dataclasses.replace(pretrain, batch_tokens=batch, steps=steps)
