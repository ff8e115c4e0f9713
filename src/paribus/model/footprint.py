"""Bytes of a model's layers from the config alone: nothing is allocated, and torch is not needed.

Each function stands for the layer of its name, in the order of layers.py: it counts, tensor by tensor, what the eager code
keeps for its backward pass. tests/model/test_footprint.py compares each with what torch keeps of that layer;
tests/plan/test_plan.py compares their sum over a training step with torch's memory tracker. torch.compile keeps less: for it
these are upper bounds.

They are beside the layers and not inside of layers.py for two reasons. Code that decides weights is part of every stage's
fingerprint: there, a better estimate would retrain every model. And the planner answers without loading torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from paribus.config import Architecture, Optimizer
from paribus.model.accounting import block_matrices, parameters
from paribus.model.shapes import (
    attention_shapes,
    has_value_embedding,
    mlp_hidden,
    mlp_shapes,
    window_of,
)

FP32 = 4  # bytes of a number


@dataclass(frozen=True)
class Batch:
    """One forward pass: so many rows of so many tokens, products in a type of so many bytes."""

    rows: int
    length: int
    itemsize: int = FP32  # of the products' type: 4 fp32, 2 bf16
    packed: bool = False  # rows hold several documents that see only themselves: attention takes an explicit mask
    cuda: bool = False

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return self.rows * self.length


# ---------------------------------------------------------------- kept for the backward pass: layers.py


def norm(config: Architecture, batch: Batch) -> int:
    """`layers.normalise` of the residual stream. What it returns is counted where it goes."""
    statistics = FP32 * batch.tokens
    return statistics if norm_keeps_output(config, batch) else statistics + stream(config, batch)


def norm_keeps_output(config: Architecture, batch: Batch) -> bool:
    """Whether a norm is `kernels.RootMeanSquare`: it keeps what it gives, which others keep anyway, and not what it takes."""
    return config.norm == "rms" and not batch.cuda


def attention(config: Architecture, layer: int, batch: Batch) -> int:
    """`layers.Attention` of block `layer`, its normalised input included."""
    query_width = config.n_heads * config.head_dim
    kv_width = config.n_kv_heads * config.head_dim
    numbers = config.width  # the input
    numbers += query_width + 2 * kv_width  # q, k, v
    numbers += query_width  # what the heads found, before `out`
    statistics = config.n_heads  # the logarithms of the softmax's sums
    if config.qk_norm:
        statistics += config.n_heads + config.n_kv_heads
        if not norm_keeps_output(config, batch):
            numbers += query_width + kv_width  # q and k before their norm
    if has_value_embedding(config, layer):
        numbers += kv_width + 3 * config.n_kv_heads  # rows of the embedding; the gate's steps
    matrices = ("q.weight", "k.weight", "v.weight", "out.weight")
    shapes = attention_shapes(config, layer, vocab_size=0)
    weights = sum(math.prod(shapes[name]) for name in matrices)
    kept = batch.tokens * (batch.itemsize * numbers + FP32 * statistics)
    return kept + cast_copies(weights, batch) + mask(config, layer, batch)


def mask(config: Architecture, layer: int, batch: Batch) -> int:
    """The additive mask that a block's attention keeps where it is not plainly causal, (B or 1, 1, T, T).

    FlexAttention, on CUDA, keeps none.
    """
    if batch.cuda:
        return 0
    sliding = window_of(config, layer) == "S" and config.window < config.seq_len
    if not batch.packed and not sliding:
        return 0
    rows = batch.rows if batch.packed else 1
    return rows * batch.length**2 * batch.itemsize


def mlp(config: Architecture, batch: Batch) -> int:
    """`layers.MLP`, its normalised input included."""
    hidden = mlp_hidden(config)
    weights = sum(math.prod(shape) for shape in mlp_shapes(config).values())
    if config.mlp == "swiglu":
        numbers = 4 * hidden  # gate, its silu, up, their product
    elif config.mlp == "gelu":
        numbers = 2 * hidden  # up, its gelu
    else:
        numbers = hidden  # relu(up); its square and the cast copy of `down` are recomputed
        weights -= math.prod(mlp_shapes(config)["down.weight"])
    kept = batch.tokens * batch.itemsize * (config.width + numbers)
    return kept + cast_copies(weights, batch)


def block(config: Architecture, layer: int, batch: Batch) -> int:
    """`layers.Block` number `layer`."""
    unscaled = config.residual_scalars * stream(config, batch)  # the input before its factor
    return (
        unscaled
        + norm(config, batch)
        + attention(config, layer, batch)
        + norm(config, batch)
        + mlp(config, batch)
    )


def outside_blocks(config: Architecture, batch: Batch) -> int:
    """What `GPT.hidden` keeps before and after its blocks: streams, token numbers, and masks before they are additive."""
    if norm_keeps_output(config, batch):
        streams = int(not config.residual_scalars)  # x0, which else is the first block's
    else:
        streams = 2  # the embedding and the last block's output, before their norms
        streams += config.x0_scalars and not config.residual_scalars
    numbers = 8 * batch.tokens + 24 * batch.tokens
    kinds = {mask(config, layer, batch) for layer in range(config.depth)}
    booleans = sum(kinds) // batch.itemsize  # one of each kind of window
    return streams * stream(config, batch) + numbers + booleans


def stream(config: Architecture, batch: Batch) -> int:
    """The residual stream, (B, T, D)."""
    return batch.tokens * config.width * batch.itemsize


def cast_copies(weights: int, batch: Batch) -> int:
    """Cast copies of so many fp32 weights; in fp32 the weights themselves serve."""
    return 0 if batch.itemsize == FP32 else weights * batch.itemsize


# ---------------------------------------------------------------- held for a moment


def block_backward(config: Architecture, batch: Batch) -> int:
    """The most that a block's backward pass adds to the kept tensors.

    It holds the gradient of the block's output, those inside the MLP less what is freed before the last of them is made, and
    that of a weight.
    """
    hidden = mlp_hidden(config)
    inside = {"relu2": 2, "gelu": 1, "swiglu": 2}[config.mlp] * hidden
    weight = config.width * hidden
    gradients = batch.tokens * batch.itemsize * (config.width + inside)
    return gradients + FP32 * weight + cast_copies(weight, batch)


def block_again(config: Architecture, batch: Batch) -> int:
    """What a block's second forward pass, with checkpointing, holds at its end besides the kept tensors.

    These are the stream before and after the MLP, the gradient that waits, and the tensor inside relu².
    """
    inside = 2 * mlp_hidden(config) if config.mlp == "relu2" else 0
    return batch.tokens * batch.itemsize * (3 * config.width + inside)


def cross_entropy(
    config: Architecture, vocab_size: int, batch: Batch, chunk_rows: int
) -> tuple[int, int]:
    """`cross_entropy.ChunkedCrossEntropy`: its own peak, and what it holds when its backward pass runs.

    The final norm's output is in both. chunk_rows: tokens of a chunk.
    """
    item, weight = batch.itemsize, vocab_size * config.width
    rows = min(chunk_rows, batch.tokens)
    later = min(chunk_rows, batch.tokens - rows)  # of the chunk after it
    logits = FP32 * (2 if config.softcap else 1)
    cast = 0 if item == FP32 else item  # of the logits, or of their gradient
    per_row = vocab_size * (logits + cast)
    gradient = rows * vocab_size * item
    before = gradient if later else 0  # the last chunk's gradient, until this one's is made
    chunk = max(rows * per_row, later * per_row + before, gradient + weight * item)
    streams = stream(config, batch)
    weights = FP32 * weight + cast_copies(weight, batch)
    forward = 2 * streams + weights + chunk + 16 * batch.tokens
    kept_streams = 3 if norm_keeps_output(config, batch) else 2
    return forward, kept_streams * streams + 2 * FP32 * weight


def cache(config: Architecture, rows: int, capacity: int, itemsize: int) -> int:
    """`cache.KVCache` of `rows` sequences of at most `capacity` tokens, numbers of `itemsize` bytes."""
    return 2 * config.depth * rows * capacity * config.n_kv_heads * config.head_dim * itemsize


# ---------------------------------------------------------------- the optimiser: train/optim.py


def optimizer_state(config: Architecture, vocab_size: int, optimizer: Optimizer) -> int:
    """Muon keeps one fp32 number a parameter of the block matrices, AdamW two of everything else."""
    counts = parameters(config, vocab_size)
    numbers = 2 * counts["total"]
    if optimizer.kind == "muon":
        numbers -= counts["matrices"]
    return FP32 * numbers


def optimizer_update(
    config: Architecture, vocab_size: int, optimizer: Optimizer, cuda: bool = False
) -> int:
    """The optimiser's temporaries.

    Muon works on all matrices of one shape at once, AdamW on one kind of parameter; AdamW's fused kernel, on CUDA, makes none.
    """
    counts = parameters(config, vocab_size)
    largest = max(counts["embedding"] + counts["value_embeddings"], counts["head"])
    denominator = 0 if cuda else FP32
    if optimizer.kind == "adamw":
        return denominator * max(largest, counts["matrices"])
    return max(_muon_update(config, 2 if cuda else FP32), denominator * largest)


def _muon_update(config: Architecture, itemsize: int) -> int:
    """The peak over Muon's groups of like matrices: gradients, directions, and the iteration in numbers of `itemsize`."""
    groups: dict[tuple[int, ...], int] = {}
    for shape in block_matrices(config):
        groups[shape] = groups.get(shape, 0) + config.depth
    peak = before = 0
    for (rows, columns), count in groups.items():
        matrices, gram = count * rows * columns, count * min(rows, columns) ** 2
        peak = max(peak, before + 2 * FP32 * matrices + itemsize * (2 * matrices + 2 * gram))
        before = FP32 * matrices  # the last group's updates live until the next one's are made
    return peak
