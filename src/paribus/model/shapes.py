"""Sizes that follow from the config, without a tensor: shared by the layers and by the planner, which needs no torch."""

from __future__ import annotations

from paribus.config import Architecture, mlp_hidden

__all__ = [
    "CPU_LOGIT_BYTES",
    "GATE_CHANNELS",
    "LOGIT_BYTES",
    "MIN_LOGIT_ROWS",
    "has_value_embedding",
    "logit_rows",
    "mlp_hidden",
    "window_of",
]

GATE_CHANNELS = 32  # channels of the residual stream that a value-embedding gate reads
# fp32 logits held at once in training and scoring. On a CPU they should stay in its caches: 8 MiB took four fifths of the
# time of 64 MiB (measured: 4,096 tokens, vocabulary 4,096, width 256).
# Elsewhere a chunk must be long enough for its products to outweigh reading the head once more.
CPU_LOGIT_BYTES, LOGIT_BYTES, MIN_LOGIT_ROWS = 8 * 2**20, 256 * 2**20, 256


def has_value_embedding(config: Architecture, layer: int) -> bool:
    """`alternate` counts from the last block, where value embeddings help most (ResFormer, arXiv:2410.17897)."""
    if config.value_embeddings == "alternate":
        return (config.depth - 1 - layer) % 2 == 0
    return config.value_embeddings == "all"


def window_of(config: Architecture, layer: int) -> str:
    """S or L: the pattern repeats over the blocks; the last block always sees everything."""
    return (
        "L"
        if layer == config.depth - 1
        else config.window_pattern[layer % len(config.window_pattern)]
    )


def logit_rows(vocab_size: int, device_type: str) -> int:
    """Tokens whose logits are held at once."""
    return max(
        (CPU_LOGIT_BYTES if device_type == "cpu" else LOGIT_BYTES) // (4 * vocab_size),
        MIN_LOGIT_ROWS,
    )
