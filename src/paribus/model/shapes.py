"""Sizes that follow from the config, without a tensor: shared by the layers and by the planner, which needs no torch."""

from __future__ import annotations

from paribus.config import GATED_MLPS, Architecture, mlp_hidden

__all__ = [
    "CPU_LOGIT_BYTES",
    "GATE_CHANNELS",
    "LOGIT_BYTES",
    "MIN_LOGIT_ROWS",
    "Shape",
    "applied_blocks",
    "attention_shapes",
    "block_shapes",
    "has_value_embedding",
    "is_gated",
    "join_shapes",
    "logit_rows",
    "mlp_hidden",
    "mlp_shapes",
    "norm_shapes",
    "rotary_channels",
    "window_of",
]

Shape = tuple[int, ...]

GATE_CHANNELS = 32  # channels of the residual stream that a gate reads
# fp32 logits held at once in training and scoring. On a CPU they should stay in its caches: 8 MiB took four fifths of the
# time of 64 MiB (measured: 4,096 tokens, vocabulary 4,096, width 256).
# Elsewhere a chunk must be long enough for its products to outweigh reading the head once more.
CPU_LOGIT_BYTES = 8 * 2**20
LOGIT_BYTES = 256 * 2**20
MIN_LOGIT_ROWS = 256


# ---------------------------------------------------------------- tensors of each layer: name -> shape


def attention_shapes(config: Architecture, layer: int, vocab_size: int) -> dict[str, Shape]:
    """The parameters of `layers.Attention` in block `layer`, in the module's order.

    config: of the model. vocab_size: tokens of the tokenizer.
    """
    query_width = config.n_heads * config.head_dim
    kv_width = config.n_kv_heads * config.head_dim
    gate_channels = min(GATE_CHANNELS, config.width)
    shapes: dict[str, Shape] = {}
    if config.qk_norm and config.qk_gain:
        shapes["q_gain"] = (config.head_dim,)
        shapes["k_gain"] = (config.head_dim,)
    if config.head_gain:
        shapes["head_gain"] = (config.n_heads,)
    if config.value_residual and layer > 0:
        shapes["value_scale"] = ()
    shapes |= _linear("q", query_width, config.width, config.qkv_bias)
    shapes |= _linear("k", kv_width, config.width, config.qkv_bias)
    shapes |= _linear("v", kv_width, config.width, config.qkv_bias)
    shapes |= _linear("out", config.width, query_width, config.out_bias)
    if has_value_embedding(config, layer):
        shapes["value_embedding.weight"] = (vocab_size, kv_width)
        shapes["gate.weight"] = (config.n_kv_heads, gate_channels)
    if config.attention_gate == "head":
        shapes["output_gate.weight"] = (config.n_heads, gate_channels)
    return shapes


def mlp_shapes(config: Architecture) -> dict[str, Shape]:
    """The parameters of `layers.MLP`, in the module's order."""
    hidden = mlp_hidden(config)
    shapes = _linear("up", hidden, config.width, config.mlp_bias)
    if is_gated(config):
        shapes |= _linear("gate", hidden, config.width, config.mlp_bias)
    return shapes | _linear("down", config.width, hidden, config.mlp_bias)


def join_shapes(config: Architecture) -> dict[str, Shape]:
    """The parameters of `layers.Join`, in the module's order."""
    shapes = norm_shapes("norm", config)
    if config.norm_position == "sandwich":
        shapes |= norm_shapes("out_norm", config)
    return shapes


def norm_shapes(name: str, config: Architecture) -> dict[str, Shape]:
    """The parameters of a `layers.Norm` of this name, in the module's order.

    config: of the model.
    """
    shapes: dict[str, Shape] = {}
    if config.norm_gain:
        shapes[f"{name}.gain"] = (config.width,)
    if config.norm_bias:
        shapes[f"{name}.bias"] = (config.width,)
    return shapes


def block_shapes(config: Architecture, layer: int, vocab_size: int) -> dict[str, Shape]:
    """The parameters of `layers.Block` number `layer`, in the module's order.

    config: of the model. vocab_size: tokens of the tokenizer.
    """
    shapes: dict[str, Shape] = {}
    if config.residual_scalars:
        shapes["residual_scale"] = ()
    if config.x0_scalars:
        shapes["x0_scale"] = ()
    parts = {
        "attention": attention_shapes(config, layer, vocab_size),
        "attention_join": join_shapes(config),
        "mlp": mlp_shapes(config),
    }
    if not config.parallel_blocks:
        parts["mlp_join"] = join_shapes(config)
    for part, tensors in parts.items():
        for name, shape in tensors.items():
            shapes[f"{part}.{name}"] = shape
    return shapes


def _linear(name: str, outputs: int, inputs: int, bias: bool) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {f"{name}.weight": (outputs, inputs)}
    if bias:
        shapes[f"{name}.bias"] = (outputs,)
    return shapes


# ---------------------------------------------------------------- what blocks have and see


def has_value_embedding(config: Architecture, layer: int) -> bool:
    """`alternate` counts from the last block, where value embeddings help most (ResFormer, arXiv:2410.17897).

    Args:
        config: of the model.
        layer: number of the block, from 0.
    """
    if config.value_embeddings == "alternate":
        return (config.depth - 1 - layer) % 2 == 0
    return config.value_embeddings == "all"


def is_gated(config: Architecture) -> bool:
    """Whether the MLP has a gate beside `up`."""
    return config.mlp in GATED_MLPS


def applied_blocks(config: Architecture) -> int:
    """Blocks that a token passes through: each pass over the blocks counts all of them."""
    return config.depth * config.recurrence


def rotary_channels(config: Architecture) -> int:
    """Channels of a head that turn with the position: whole pairs, at least one."""
    pairs = round(config.rotary_fraction * config.head_dim / 2)
    return 2 * max(pairs, 1)


def window_of(config: Architecture, layer: int) -> str:
    """S or L: the pattern repeats over the blocks; the last block always sees everything.

    Args:
        config: of the model.
        layer: number of the block, from 0.
    """
    if layer == config.depth - 1:
        return "L"
    return config.window_pattern[layer % len(config.window_pattern)]


def logit_rows(vocab_size: int, device_type: str) -> int:
    """Tokens whose logits are held at once, on "cpu" or another type of device.

    Args:
        vocab_size: logits of one token.
        device_type: "cpu" or another.
    """
    budget = CPU_LOGIT_BYTES if device_type == "cpu" else LOGIT_BYTES
    return max(budget // (4 * vocab_size), MIN_LOGIT_ROWS)
