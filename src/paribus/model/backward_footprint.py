"""Bytes that a block's backward pass holds for a moment, beside those that its layers keep (footprint.py)."""

from __future__ import annotations

import math

from paribus.config import Architecture
from paribus.model.footprint import (
    FP32,
    KEPT_LENGTH,
    Batch,
    attends_by_bands,
    cast_copies,
    fuses_square,
    mlp,
    stream,
)
from paribus.model.shapes import attention_shapes, mlp_hidden, mlp_shapes, window_of

BAND_QUERIES, NARROW_BAND_QUERIES = 128, 64  # of a block: `banded.BLOCK`, `NARROW_BLOCK`
BAND_KEY_STEP = 32  # `banded.KEY_STEP`

# Gradients of the hidden values that an activation's backward pass holds at once, less what it has freed of them by then.
HELD_BY_ACTIVATION = {
    "relu": 2,  # of its result, of up
    "relu2": 3,  # of its result, three times inside the square; its result is freed
    "leaky_relu2": 3,
    "gelu": 1,  # of its result, of up; its result is freed
    "geglu": 2,  # of the product, of both factors; the product is freed
    "swiglu": 2,
}


def block_backward(config: Architecture, layer: int, batch: Batch, accumulate: bool) -> int:
    """The most that a block's backward pass adds to the kept tensors.

    Args:
        config: of the model.
        layer: number of the block.
        batch: of one forward pass.
        accumulate: a new gradient of a weight is added to one that is there already, and freed.
    """
    moments = [_mlp_backward(config, batch, accumulate)]
    if attends_by_bands(config, batch):
        moments.append(_bands_backward(config, layer, batch, accumulate))
    return stream(config, batch) + max(moments)  # the gradient of the block's output


def _mlp_backward(config: Architecture, batch: Batch, accumulate: bool) -> int:
    """What the backward pass of an MLP holds: that of `down`, then that of the activation.

    `down` frees its cast copy and its input, unless that is what the activation keeps as well.
    """
    hidden = batch.tokens * mlp_hidden(config) * batch.itemsize
    weight = config.width * mlp_hidden(config)
    copy = cast_copies(weight, batch)
    if fuses_square(config):  # with a cast copy for the moment, and the gradient of the weight
        return hidden + copy + FP32 * weight
    gradient = weight * batch.itemsize
    freed = copy + (0 if config.mlp == "relu" else hidden)
    cast = hidden + gradient + FP32 * weight - freed if copy else 0  # of the gradient, to fp32
    inside = HELD_BY_ACTIVATION[config.mlp] * hidden - copy + _made(weight, accumulate)
    return max(hidden + gradient, cast, inside)


def _made(weights: int, accumulate: bool) -> int:
    """Gradients of so many weights of a block whose backward pass is not through. accumulate: as in `block_backward`."""
    return 0 if accumulate else FP32 * weights


def _bands_backward(config: Architecture, layer: int, batch: Batch, accumulate: bool) -> int:
    """What the backward pass of an attention by bands holds, less what the block has freed by then.

    It holds the gradient of the attention's answer, as it comes and once more by heads, as q, k and v are, and the gradients
    of those.
    """
    query_width = config.n_heads * config.head_dim
    blocks = bands(config, layer, batch)
    by_heads = 4 if config.n_kv_heads in (1, config.n_heads) else 2  # repeated k and v are so
    numbers = (2 + by_heads) * batch.tokens * query_width
    sums = 2 * batch.tokens * query_width  # gradients of k and v, in fp32 beyond two blocks
    exact = len(blocks) > 2
    numbers += _block_of_queries(config, batch, blocks, sums if exact else 0)
    held = batch.itemsize * numbers + (FP32 if exact else batch.itemsize) * sums
    out = math.prod(attention_shapes(config, layer, vocab_size=0)["out.weight"])
    answer = batch.tokens * batch.itemsize * query_width
    freed = mlp(config, batch) + answer + cast_copies(out, batch)
    made = sum(math.prod(shape) for shape in mlp_shapes(config).values()) + out
    return held - freed + _made(made, accumulate)


def _block_of_queries(
    config: Architecture, batch: Batch, blocks: list[tuple[int, int]], cast: int
) -> int:
    """The most numbers that the backward pass of a band takes for a block of queries.

    Its weights, unless they are kept, their gradient and that of the logits; beside them those of the block before, or the
    product for a gradient of keys.

    Args:
        config: of the model.
        batch: of one forward pass.
        blocks: (queries, keys) of each.
        cast: numbers of the sums that are cast while those of the last block are still there.
    """
    kinds = 2 if config.seq_len <= KEPT_LENGTH else 3
    heads = batch.rows * config.n_heads
    most = before = part = 0
    for queries, keys in blocks:
        scores = heads * queries * keys
        product = heads * keys * config.head_dim
        part = heads * queries * config.head_dim if len(blocks) > 1 else 0  # of the gradient
        inside = max(kinds * scores + max(before, product), (kinds - 1) * scores + 2 * before)
        most = max(most, inside + part)
        before = scores
    return max(most, kinds * before + part + cast)


def bands(config: Architecture, layer: int, batch: Batch) -> list[tuple[int, int]]:
    """(queries, keys) of each of `banded.Band.blocks`.

    config: of the model. layer: number of the block. batch: of one forward pass.
    """
    window = batch.length
    if window_of(config, layer) == "S" and config.window < config.seq_len:
        window = config.window
    size = NARROW_BAND_QUERIES if window <= NARROW_BAND_QUERIES else BAND_QUERIES
    found = []
    for start in range(0, batch.length, size):
        end = min(start + size, batch.length)
        first_key = max(start - window + 1, 0) // BAND_KEY_STEP * BAND_KEY_STEP
        found.append((end - start, end - first_key))
    return found
