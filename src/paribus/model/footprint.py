"""Bytes of a model's layers from the config alone: nothing is allocated, and torch is not needed.

Each function stands for the layer of its name, in the order of layers.py: it counts, tensor by tensor, what the eager code
keeps for its backward pass. tests/model/test_footprint.py compares each with what torch keeps of that layer;
tests/plan/test_memory.py compares the peak of a training step with all tensors that torch makes. torch.compile keeps less: for
it these are upper bounds. What a backward pass holds besides is in backward_footprint.py, the optimiser's in
optimizer_footprint.py.

They are beside the layers and not inside of layers.py for two reasons. Code that decides weights is part of every stage's
fingerprint: there, a better estimate would retrain every model. And the planner answers without loading torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from paribus.config import Architecture
from paribus.model.accounting import parameters
from paribus.model.shapes import (
    applied_blocks,
    attention_shapes,
    has_value_embedding,
    mlp_hidden,
    mlp_shapes,
    window_of,
)

FP32 = 4  # bytes of a number
BOOL = 1
KEPT_LENGTH = 512  # contexts whose weights are kept: `banded.KEPT_LENGTH`


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
    """`layers.Norm` of the residual stream. What it returns is counted where it goes.

    Args:
        config: of the model.
        batch: of one forward pass.
    """
    kept = FP32 * batch.tokens  # statistics
    if not norm_keeps_output(config, batch):
        kept += stream(config, batch)
    if norm_keeps_values(config, batch):
        kept += stream(config, batch)
    return kept


def norm_keeps_output(config: Architecture, batch: Batch) -> bool:
    """Whether a norm is `kernels.RootMeanSquare`: it keeps what it gives, which others keep anyway, and not what it takes.

    Args:
        config: of the model.
        batch: of one forward pass.
    """
    return config.norm == "rms" and not batch.cuda


def norm_keeps_values(config: Architecture, batch: Batch) -> bool:
    """Whether a norm keeps its values before a gain or a bias, besides what it returns.

    Args:
        config: of the model.
        batch: of one forward pass.
    """
    return config.norm_gain or (config.norm_bias and norm_keeps_output(config, batch))


def attention(config: Architecture, layer: int, batch: Batch) -> int:
    """`layers.Attention` of block `layer`, its normalised input included.

    config: of the model. batch: of one forward pass.
    """
    query_width = config.n_heads * config.head_dim
    kv_width = config.n_kv_heads * config.head_dim
    numbers = config.width  # the input
    numbers += query_width + 2 * kv_width  # q, k, v
    numbers += query_width  # what the heads found, before `out`
    numbers += _before_attending(config, batch) * (query_width + kv_width)
    # the logarithms of the softmax's sums
    statistics = 0 if attends_by_bands(config, batch) else config.n_heads
    if config.qk_norm:
        statistics += config.n_heads + config.n_kv_heads
    if has_value_embedding(config, layer):
        numbers += kv_width + 3 * config.n_kv_heads  # rows of the embedding; the gate's steps
    if config.head_gain:
        numbers += query_width  # before the gain
    if config.attention_gate == "head":
        numbers += query_width + 3 * config.n_heads  # before the gate; the gate's steps
    matrices = ("q.weight", "k.weight", "v.weight", "out.weight")
    shapes = attention_shapes(config, layer, vocab_size=0)
    weights = sum(math.prod(shapes[name]) for name in matrices)
    kept = batch.tokens * (batch.itemsize * numbers + FP32 * statistics)
    kept += cast_copies(weights, batch) + attention_scores(config, batch)
    if attends_by_bands(config, batch):
        return kept + _repeated_heads(config, batch) + _kept_weights(config, batch)
    forms_scores = config.attention_softcap or config.attention_dropout
    return kept if forms_scores else kept + mask(config, layer, batch)


def attends_by_bands(config: Architecture, batch: Batch) -> bool:
    """Whether attention is `banded.BandedAttention`, as on a CPU in bf16: it keeps no statistics, and shares its masks.

    config: of the model. batch: of one forward pass.
    """
    forms_scores = config.attention_softcap or config.attention_dropout
    return not (batch.cuda or batch.itemsize == FP32 or forms_scores)


def _kept_weights(config: Architecture, batch: Batch) -> int:
    """The weights of bands of short contexts, which their backward pass would have to compute again otherwise."""
    if config.seq_len > KEPT_LENGTH:
        return 0
    return batch.rows * config.n_heads * batch.length**2 * batch.itemsize


def _repeated_heads(config: Architecture, batch: Batch) -> int:
    """What bands keep besides q, k and v where query heads share keys: k and v for each of them."""
    repeats = config.n_heads - config.n_kv_heads
    if not repeats or config.n_kv_heads == 1:  # one head is repeated without a copy
        return 0
    keys_too = config.qk_norm and norm_keeps_output(config, batch)  # by the norm, not repeated
    numbers = 2 * repeats + (config.n_kv_heads if keys_too else 0)
    return batch.tokens * numbers * config.head_dim * batch.itemsize


def _before_attending(config: Architecture, batch: Batch) -> int:
    """How many forms of queries and keys are kept besides the one that attends: before a norm, a gain or a rotation."""
    if not config.qk_norm:
        return 0
    if not norm_keeps_output(config, batch):
        return 1 + config.qk_gain
    rotated_after = config.position == "rope" and config.qk_norm_position == "before_rotary"
    return int(config.qk_gain or rotated_after)


def attention_scores(config: Architecture, batch: Batch) -> int:
    """What an attention that forms all scores, (B, H, T, T), keeps besides what a fused kernel would.

    Those are soft-capped logits, and dropout on a CPU, for which torch computes in fp32.

    Args:
        config: of the model.
        batch: of one forward pass.
    """
    if batch.cuda or not (config.attention_softcap or config.attention_dropout):
        return 0
    item = batch.itemsize if config.attention_softcap else FP32
    kinds = 2 * bool(config.attention_softcap)  # the capped logits, the weights
    if config.attention_dropout:
        kinds += 2 if config.attention_softcap else 3  # what is dropped, the weights that are left
    scores = kinds * batch.rows * config.n_heads * batch.length**2
    copies = (
        3 * batch.tokens * config.n_heads * config.head_dim
    )  # of q, k and v, for all query heads
    kept_before = config.n_heads + 2 * config.n_kv_heads
    if config.qk_norm and not _before_attending(config, batch):  # by the norm, in another layout
        kept_before = config.n_kv_heads
    replaced = batch.tokens * kept_before * config.head_dim * batch.itemsize
    hidden = batch.length**2 * BOOL * (batch.rows if batch.packed else 1)
    return item * (scores + copies) - replaced + hidden


def dropped(numbers: int, batch: Batch) -> int:
    """What dropout of so many numbers keeps: bytes on CUDA, factors elsewhere.

    batch: whose device decides.
    """
    return numbers * (BOOL if batch.cuda else batch.itemsize)


def mask(config: Architecture, layer: int, batch: Batch) -> int:
    """The additive mask that a block's attention keeps where it is not plainly causal, (B or 1, 1, T, T).

    FlexAttention, on CUDA, keeps none. Bands have one for all blocks of a kind, plainly causal ones too.

    Args:
        config: of the model.
        layer: number of the block.
        batch: of one forward pass.
    """
    if batch.cuda:
        return 0
    sliding = window_of(config, layer) == "S" and config.window < config.seq_len
    if not (batch.packed or sliding or attends_by_bands(config, batch)):
        return 0
    rows = batch.rows if batch.packed else 1
    return rows * batch.length**2 * batch.itemsize


# Hidden values that an activation keeps, as multiples of the hidden width; `down` keeps the last of them.
KEPT_BY_ACTIVATION = {
    "relu": 1,
    "relu2": 2,  # relu(up), its square
    "leaky_relu2": 3,  # up, its leaky ReLU, the square
    "gelu": 2,  # up, its gelu
    "geglu": 4,  # gate, its gelu, up, their product
    "swiglu": 4,  # gate, its silu, up, their product
}


def mlp(config: Architecture, batch: Batch) -> int:
    """`layers.MLP`, its normalised input included.

    Args:
        config: of the model.
        batch: of one forward pass.
    """
    hidden = mlp_hidden(config)
    shapes = mlp_shapes(config)
    weights = sum(math.prod(shape) for shape in shapes.values())
    numbers = KEPT_BY_ACTIVATION[config.mlp] * hidden
    if fuses_square(config):  # the square and the cast copy of `down` are recomputed
        numbers -= hidden
        weights -= math.prod(shapes["down.weight"])
    kept = batch.tokens * batch.itemsize * (config.width + numbers)
    if config.mlp_dropout:
        kept += dropped(batch.tokens * hidden, batch)
        if config.mlp == "relu":
            kept += batch.tokens * hidden * batch.itemsize  # relu's own result, before the dropout
    return kept + cast_copies(weights, batch)


def fuses_square(config: Architecture) -> bool:
    """Whether the MLP is `kernels.ReluSquaredProduct`: it keeps relu(up) alone.

    config: of the model.
    """
    return config.mlp == "relu2" and not config.mlp_bias and not config.mlp_dropout


def join(config: Architecture, batch: Batch) -> int:
    """`layers.Join`, and the norm's result where nothing else keeps it.

    Args:
        config: of the model.
        batch: of one forward pass.
    """
    kept = norm(config, batch)
    if config.norm_position == "sandwich":
        kept += norm(config, batch)
        if norm_keeps_output(config, batch) and not norm_keeps_values(config, batch):
            kept += stream(config, batch)
    if config.residual_dropout:
        kept += dropped(batch.tokens * config.width, batch)
    return kept


def block(config: Architecture, layer: int, batch: Batch) -> int:
    """`layers.Block` number `layer`.

    config: of the model. batch: of one forward pass.
    """
    kept = config.residual_scalars * stream(config, batch)  # the input before its factor
    kept += join(config, batch) + attention(config, layer, batch) + mlp(config, batch)
    if config.parallel_blocks:
        return kept - stream(config, batch)  # attention and MLP have one input
    return kept + join(config, batch)


def outside_blocks(config: Architecture, batch: Batch) -> int:
    """What `GPT.hidden` keeps before and after its blocks: streams, token numbers, and masks before they are additive.

    Args:
        config: of the model.
        batch: of one forward pass.
    """
    streams = int(_first_is_outside(config, batch))
    if not norm_keeps_output(config, batch):
        # the last block's output, and the embedding, before their norms
        streams += 1 + config.embedding_norm
    streams += norm_keeps_values(config, batch) * (1 + config.embedding_norm)
    numbers = 8 * batch.tokens + 24 * batch.tokens
    if config.embedding_dropout:
        numbers += dropped(batch.tokens * config.width, batch)
    return streams * stream(config, batch) + numbers + masks(config, batch)


def _first_is_outside(config: Architecture, batch: Batch) -> bool:
    """Whether x0 is none of the tensors that blocks keep."""
    if config.residual_scalars:
        return False
    return config.x0_scalars or norm_keeps_output(config, batch)


def block_inputs(config: Architecture, batch: Batch, blocks: int) -> int:
    """What checkpointing keeps of so many blocks from the first one on: their inputs, but for x0 where it counts as outside.

    config: of the model. batch: of one forward pass.
    """
    return (blocks - _first_is_outside(config, batch)) * stream(config, batch)


def block_keeps_input(config: Architecture, batch: Batch) -> bool:
    """Whether a block keeps the stream as it came.

    config: of the model. batch: of one forward pass.
    """
    return config.residual_scalars or not norm_keeps_output(config, batch)


def masks(config: Architecture, batch: Batch) -> int:
    """One mask of each kind, for all blocks: those of bands are there until the backward pass is through.

    config: of the model. batch: of one forward pass.
    """
    one_of_each = {
        window_of(config, layer): mask(config, layer, batch) for layer in range(config.depth)
    }
    numbers = sum(one_of_each.values())
    return numbers if attends_by_bands(config, batch) else numbers // batch.itemsize * BOOL


def stream(config: Architecture, batch: Batch) -> int:
    """The residual stream, (B, T, D).

    Args:
        config: of the model.
        batch: of one forward pass.
    """
    return batch.tokens * config.width * batch.itemsize


def cast_copies(weights: int, batch: Batch) -> int:
    """Cast copies of so many fp32 weights; in fp32 the weights themselves serve.

    batch: whose number format decides.
    """
    return 0 if batch.itemsize == FP32 else weights * batch.itemsize


# ---------------------------------------------------------------- held for a moment


def block_forward(config: Architecture, batch: Batch) -> int:
    """What a block's forward pass holds at its end besides its input and the kept tensors.

    These are the stream before attention if it is not the input, what attention adds, and the stream after it; and with relu²
    the product, the tensors before and inside the square, and a cast copy.

    Args:
        config: of the model.
        batch: of one forward pass.
    """
    scaled = config.residual_scalars or config.x0_scalars
    held = (2 + scaled) * stream(config, batch)
    if not fuses_square(config):
        return held
    hidden = mlp_hidden(config)
    inside = 2 * batch.tokens * hidden * batch.itemsize
    return held + stream(config, batch) + inside + cast_copies(config.width * hidden, batch)


def cross_entropy(
    config: Architecture, vocab_size: int, batch: Batch, chunk_rows: int
) -> tuple[int, int]:
    """`cross_entropy.ChunkedCrossEntropy`: its own peak, and what it holds when its backward pass runs.

    The final norm's output is in both.

    Args:
        config: of the model.
        vocab_size: tokens of the tokenizer.
        batch: of one forward pass.
        chunk_rows: tokens of a chunk.
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


def future(config: Architecture, batch: Batch) -> int:
    """`GPT._with_future`, besides the rows that it gives to the loss: what the heads read, and their norms.

    Args:
        config: of the model.
        batch: of one forward pass.
    """
    if not config.future_tokens:
        return 0
    of_a_head = stream(config, batch) + FP32 * batch.tokens + cast_copies(config.width**2, batch)
    return stream(config, batch) + config.future_tokens * of_a_head


def cache(config: Architecture, rows: int, capacity: int, itemsize: int) -> int:
    """`cache.KVCache` of `rows` sequences of at most `capacity` tokens, numbers of `itemsize` bytes.

    config: of the model.
    """
    numbers = applied_blocks(config) * rows * capacity * config.n_kv_heads * config.head_dim
    return 2 * numbers * itemsize


def inference_weights(config: Architecture, vocab_size: int, itemsize: int) -> int:
    """`inference.for_inference`: copies of the matrices. In fp32 CUDA needs none; a tied head is cast at every step.

    config: of the model. vocab_size: tokens of the tokenizer. itemsize: bytes of a number of the products.
    """
    return itemsize * (parameters(config, vocab_size)["matrices"] + vocab_size * config.width)
