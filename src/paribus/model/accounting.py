"""Parameters and FLOPs of a model as pure functions of its config: sums over the tensors of each layer (shapes.py).

Checked in the tests against the real model. FLOPs follow PaLM, appendix B (arXiv:2204.02311). Bytes are in footprint.py.
"""

from __future__ import annotations

import math

from paribus.config import Architecture, Optimizer
from paribus.model.initial import parameter_shapes
from paribus.model.shapes import Shape, block_shapes, window_of

OTHER_SUFFIXES = ("attention.gate.weight", "output_gate.weight", "_scale", "gain", ".bias")


def parameter_kind(name: str) -> str:
    """embedding, head, matrices (of the blocks), value_embeddings, or other: gates, gains, biases and factors.

    name: as in `GPT.named_parameters`.
    """
    if name.endswith("value_embedding.weight"):
        return "value_embeddings"
    if name.startswith(("embedding", "positions")):
        return "embedding"
    if name.startswith("head"):
        return "head"
    if name.endswith(OTHER_SUFFIXES):
        return "other"
    return "matrices"


def parameters(config: Architecture, vocab_size: int) -> dict[str, int]:
    """Parameter counts by kind (`parameter_kind`), and their total.

    Args:
        config: of the model.
        vocab_size: tokens of the tokenizer.
    """
    counts = dict.fromkeys(("embedding", "head", "matrices", "value_embeddings", "other"), 0)
    for name, shape in parameter_shapes(config, vocab_size).items():
        counts[parameter_kind(name)] += math.prod(shape)
    return counts | {"total": sum(counts.values())}


def flops_per_token(config: Architecture, vocab_size: int) -> float:
    """FLOPs of forward and backward for one token: matrix products, and attention.

    In attention a query counts `min(window, seq_len)` keys; the causal half is not taken off, as is usual, so that the
    figure compares with published MFU.

    Args:
        config: of the model.
        vocab_size: tokens of the tokenizer.
    """
    keys = config.recurrence * sum(window_keys(config, layer) for layer in range(config.depth))
    return product_flops(config, vocab_size) + attention_flops(config, keys)


def product_flops(config: Architecture, vocab_size: int) -> int:
    """FLOPs of matrix products, forward and backward, for one token: 6 for each use of a parameter of them.

    A tied head multiplies all the same, and each pass over the blocks counts.

    Args:
        config: of the model.
        vocab_size: tokens of the tokenizer.
    """
    matrices = config.recurrence * parameters(config, vocab_size)["matrices"]
    return 6 * (matrices + head_products(config, vocab_size))


def head_products(config: Architecture, vocab_size: int) -> int:
    """Parameters that a token's prediction in training multiplies: the head, and once more for each further token.

    Args:
        config: of the model.
        vocab_size: tokens of the tokenizer.
    """
    further = config.future_tokens * config.width * (config.width + vocab_size)
    return vocab_size * config.width + further


def attention_flops(config: Architecture, keys: float) -> float:
    """FLOPs of attention, forward and backward, for one token whose queries see so many keys, all blocks together.

    Args:
        config: of the model.
        keys: of a query, on average.
    """
    return 12 * config.n_heads * config.head_dim * keys


def window_keys(config: Architecture, layer: int) -> int:
    """The most keys that a query of a block sees.

    Args:
        config: of the model.
        layer: number of the block.
    """
    if window_of(config, layer) == "L":
        return config.seq_len
    return min(config.window, config.seq_len)


def keys_per_query(config: Architecture, layer: int) -> float:
    """The mean number of keys that a query of a block sees: itself and what is before it, within the block's window.

    Of a row of T tokens the query at place t sees min(t + 1, window) keys.

    Args:
        config: of the model.
        layer: number of the block.
    """
    window = window_keys(config, layer)
    return window - window * (window - 1) / (2 * config.seq_len)


def block_matrices(config: Architecture) -> list[Shape]:
    """The shapes of one block's matrices, in the module's order; all blocks have the same ones."""
    return [
        shape
        for name, shape in block_shapes(config, 0, vocab_size=0).items()
        if parameter_kind(name) == "matrices"
    ]


def optimizer_flops_per_step(config: Architecture, optimizer: Optimizer) -> float:
    """FLOPs of Muon's Newton-Schulz products in one optimiser step; 0 for AdamW, whose update has no matrix products.

    Each of `muon_iterations` iterations on a matrix of `small` x `large` forms its Gram matrix (2 small^2 large), the
    square of that (2 small^3), and the product with the matrix (2 small^2 large).

    Args:
        config: of the model.
        optimizer: its kind and iterations.
    """
    if optimizer.kind != "muon":
        return 0.0
    flops = 0.0
    for rows, columns in block_matrices(config):
        small, large = min(rows, columns), max(rows, columns)
        flops += 4 * small**2 * large + 2 * small**3
    return config.depth * optimizer.muon_iterations * flops


def step_flops(config: Architecture, vocab_size: int, optimizer: Optimizer, tokens: int) -> float:
    """FLOPs of one training step of `tokens` tokens: what "equal FLOPs" counts.

    Matrix products; attention over the keys that a query sees, so that neither what a causal mask hides nor what lies
    outside a window counts; and Muon's products, once a step. Element-wise work (norms, activations, AdamW's update) is
    left out, as it is in every such count.

    config: of the model. vocab_size: tokens of the tokenizer. optimizer: its kind and iterations.
    """
    keys = config.recurrence * sum(keys_per_query(config, layer) for layer in range(config.depth))
    per_token = product_flops(config, vocab_size) + attention_flops(config, keys)
    return tokens * per_token + optimizer_flops_per_step(config, optimizer)
