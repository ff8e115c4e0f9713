"""Sizes that follow from the config, without a tensor: shared by the layers and by the planner, which needs no torch."""

from __future__ import annotations

from paribus.config import Architecture, mlp_hidden

__all__ = [
    "CPU_LOGIT_BYTES",
    "GATE_CHANNELS",
    "LOGIT_BYTES",
    "MIN_LOGIT_ROWS",
    "Shape",
    "attention_shapes",
    "block_shapes",
    "has_value_embedding",
    "logit_rows",
    "mlp_hidden",
    "mlp_shapes",
    "window_of",
]

Shape = tuple[int, ...]

GATE_CHANNELS = 32  # channels of the residual stream that a value-embedding gate reads
# fp32 logits held at once in training and scoring. On a CPU they should stay in its caches: 8 MiB took four fifths of the
# time of 64 MiB (measured: 4,096 tokens, vocabulary 4,096, width 256).
# Elsewhere a chunk must be long enough for its products to outweigh reading the head once more.
CPU_LOGIT_BYTES = 8 * 2**20
LOGIT_BYTES = 256 * 2**20
MIN_LOGIT_ROWS = 256


# ---------------------------------------------------------------- tensors of each layer: name -> shape


def attention_shapes(config: Architecture, layer: int, vocab_size: int) -> dict[str, Shape]:
    """The parameters of `layers.Attention` in block `layer`, in the module's order."""
    query_width = config.n_heads * config.head_dim
    kv_width = config.n_kv_heads * config.head_dim
    shapes: dict[str, Shape] = {
        "q.weight": (query_width, config.width),
        "k.weight": (kv_width, config.width),
        "v.weight": (kv_width, config.width),
        "out.weight": (config.width, query_width),
    }
    if has_value_embedding(config, layer):
        shapes["value_embedding.weight"] = (vocab_size, kv_width)
        shapes["gate.weight"] = (config.n_kv_heads, min(GATE_CHANNELS, config.width))
    return shapes


def mlp_shapes(config: Architecture) -> dict[str, Shape]:
    """The parameters of `layers.MLP`, in the module's order."""
    hidden = mlp_hidden(config)
    shapes: dict[str, Shape] = {"up.weight": (hidden, config.width)}
    if config.mlp == "swiglu":
        shapes["gate.weight"] = (hidden, config.width)
    shapes["down.weight"] = (config.width, hidden)
    return shapes


def block_shapes(config: Architecture, layer: int, vocab_size: int) -> dict[str, Shape]:
    """The parameters of `layers.Block` number `layer`, in the module's order."""
    shapes: dict[str, Shape] = {}
    if config.residual_scalars:
        shapes["residual_scale"] = ()
    if config.x0_scalars:
        shapes["x0_scale"] = ()
    for name, shape in attention_shapes(config, layer, vocab_size).items():
        shapes[f"attention.{name}"] = shape
    for name, shape in mlp_shapes(config).items():
        shapes[f"mlp.{name}"] = shape
    return shapes


# ---------------------------------------------------------------- what blocks have and see


def has_value_embedding(config: Architecture, layer: int) -> bool:
    """`alternate` counts from the last block, where value embeddings help most (ResFormer, arXiv:2410.17897)."""
    if config.value_embeddings == "alternate":
        return (config.depth - 1 - layer) % 2 == 0
    return config.value_embeddings == "all"


def window_of(config: Architecture, layer: int) -> str:
    """S or L: the pattern repeats over the blocks; the last block always sees everything."""
    if layer == config.depth - 1:
        return "L"
    return config.window_pattern[layer % len(config.window_pattern)]


def logit_rows(vocab_size: int, device_type: str) -> int:
    """Tokens whose logits are held at once, on "cpu" or another type of device."""
    budget = CPU_LOGIT_BYTES if device_type == "cpu" else LOGIT_BYTES
    return max(budget // (4 * vocab_size), MIN_LOGIT_ROWS)
