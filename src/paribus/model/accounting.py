"""Parameters and FLOPs of a model as pure functions of its config: nothing is allocated.

Checked against the real model in the tests. FLOPs follow PaLM, appendix B (arXiv:2204.02311).
"""

from __future__ import annotations

from paribus.config import Model, resolve_model
from paribus.model.layers import GATE_CHANNELS, has_value_embedding, mlp_hidden, window_of


def parameters(model: Model, vocab_size: int) -> dict[str, int]:
    """Parameter counts by kind: embedding, head, matrices (of the blocks), value_embeddings, other, total."""
    config = resolve_model(model)
    width, kv_width = config.width, config.n_kv_heads * config.head_dim
    q_width = config.n_heads * config.head_dim
    attention = width * (q_width + 2 * kv_width) + q_width * width
    mlp = (3 if config.mlp == "swiglu" else 2) * width * mlp_hidden(config)
    valued = sum(has_value_embedding(config, layer) for layer in range(config.depth))
    counts = {
        "embedding": vocab_size * width + (config.seq_len * width if config.position == "learned" else 0),
        "head": 0 if config.tied_head else vocab_size * width,
        "matrices": config.depth * (attention + mlp),
        "value_embeddings": valued * vocab_size * kv_width,
        "other": valued * min(GATE_CHANNELS, width) * config.n_kv_heads
        + config.depth * (config.residual_scalars + config.x0_scalars),
    }
    return counts | {"total": sum(counts.values())}


def flops_per_token(model: Model, vocab_size: int) -> float:
    """FLOPs of forward and backward for one token: 6 x (parameters of matrix products) + attention.

    Attention: 12 x heads x head_dim x keys per block, where a query sees `min(window, seq_len)` keys; the causal
    half is not taken off, as is usual, so that the figure compares with published MFU.
    """
    config = resolve_model(model)
    counts = parameters(config, vocab_size)
    products = counts["matrices"] + vocab_size * config.width  # a tied head multiplies all the same
    keys = sum(config.seq_len if window_of(config, layer) == "L" else min(config.window, config.seq_len)
               for layer in range(config.depth))
    return 6 * products + 12 * config.n_heads * config.head_dim * keys
