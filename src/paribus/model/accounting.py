"""Parameters, FLOPs and bytes of a model as pure functions of its config: nothing is allocated.

Checked in the tests against the real model, and bytes against torch's own tracker on fake tensors. FLOPs follow PaLM,
appendix B (arXiv:2204.02311). Bytes are those of the eager code in `layers.py`, tensor by tensor; torch.compile keeps
less, so for it they are an upper bound.
"""

from __future__ import annotations

from dataclasses import dataclass

from paribus.config import Architecture, Model, Optimizer, resolve_model
from paribus.model.shapes import GATE_CHANNELS, has_value_embedding, mlp_hidden, window_of


def parameters(model: Model, vocab_size: int) -> dict[str, int]:
    """Parameter counts by kind: embedding, head, matrices (of the blocks), value_embeddings, other, total."""
    config = resolve_model(model)
    width, kv_width = config.width, config.n_kv_heads * config.head_dim
    q_width = config.n_heads * config.head_dim
    attention = width * (q_width + 2 * kv_width) + q_width * width
    mlp = (3 if config.mlp == "swiglu" else 2) * width * mlp_hidden(config)
    valued = sum(has_value_embedding(config, layer) for layer in range(config.depth))
    counts = {
        "embedding": vocab_size * width
        + (config.seq_len * width if config.position == "learned" else 0),
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
    keys = sum(
        config.seq_len if window_of(config, layer) == "L" else min(config.window, config.seq_len)
        for layer in range(config.depth)
    )
    return 6 * products + 12 * config.n_heads * config.head_dim * keys


def keys_per_query(config: Architecture, layer: int) -> float:
    """The mean number of keys that a query of a block sees: itself and what is before it, within the block's window.

    Of a row of T tokens the query at place t sees min(t + 1, window) keys.
    """
    length = config.seq_len
    window = length if window_of(config, layer) == "L" else min(config.window, length)
    return window - window * (window - 1) / (2 * length)


def optimizer_flops_per_step(model: Model, optimizer: Optimizer) -> float:
    """FLOPs of Muon's Newton-Schulz products in one optimiser step; 0 for AdamW, whose update has no matrix products.

    Each of `muon_iterations` iterations on a matrix of `small` x `large` forms its Gram matrix (2 small^2 large), the
    square of that (2 small^3), and the product with the matrix (2 small^2 large).
    """
    if optimizer.kind != "muon":
        return 0.0
    config = resolve_model(model)
    query_width, kv_width = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    mlp_matrices = 3 if config.mlp == "swiglu" else 2
    shapes = [(query_width, config.width)] * 2
    shapes += [(kv_width, config.width)] * 2
    shapes += [(mlp_hidden(config), config.width)] * mlp_matrices
    flops = 0.0
    for rows, columns in shapes:
        small, large = min(rows, columns), max(rows, columns)
        flops += 4 * small**2 * large + 2 * small**3
    return config.depth * optimizer.muon_iterations * flops


def step_flops(model: Model, vocab_size: int, optimizer: Optimizer, tokens: int) -> float:
    """FLOPs of one training step of `tokens` tokens: what "equal FLOPs" counts.

    6 x parameters of the matrix products a token; attention over the keys that a query sees, so that neither what a
    causal mask hides nor what lies outside a window counts; and Muon's products, once a step. Element-wise work
    (norms, activations, AdamW's update) is left out, as it is in every such count.
    """
    config = resolve_model(model)
    counts = parameters(config, vocab_size)
    products = counts["matrices"] + vocab_size * config.width
    keys = sum(keys_per_query(config, layer) for layer in range(config.depth))
    per_token = 6 * products + 12 * config.n_heads * config.head_dim * keys
    return tokens * per_token + optimizer_flops_per_step(config, optimizer)


# ---------------------------------------------------------------- bytes


@dataclass(frozen=True)
class Batch:
    """One forward pass: so many rows of so many tokens, products in a type of so many bytes."""

    rows: int
    length: int
    itemsize: int = 4  # of the products' type: 4 fp32, 2 bf16
    packed: bool = False  # rows hold several documents that see only themselves: attention takes an explicit mask
    cuda: bool = False

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def optimizer_bytes(model: Model, vocab_size: int, optimizer: Optimizer) -> int:
    """Muon keeps one fp32 number a parameter of the block matrices, AdamW two of everything else."""
    counts = parameters(model, vocab_size)
    return 4 * (2 * counts["total"] - (counts["matrices"] if optimizer.kind == "muon" else 0))


def _copies(weights: int, batch: Batch) -> int:
    """Bytes of the cast copies of fp32 weights; in fp32 the weights themselves serve."""
    return 0 if batch.itemsize == 4 else weights * batch.itemsize


def keeps_output(config: Architecture, batch: Batch) -> bool:
    """Whether the norms are `layers.RootMeanSquare`."""
    return config.norm == "rms" and not batch.cuda


def mask_bytes(config: Architecture, layer: int, batch: Batch) -> int:
    """The additive mask that a block's attention keeps where it is not plainly causal, (B or 1, 1, T, T); FlexAttention,
    on CUDA, keeps none."""
    if batch.cuda:
        return 0
    sliding = window_of(config, layer) == "S" and config.window < config.seq_len
    if not batch.packed and not sliding:
        return 0
    return (batch.rows if batch.packed else 1) * batch.length**2 * batch.itemsize


def block_bytes(config: Architecture, layer: int, batch: Batch) -> int:
    """What one block keeps for its backward pass."""
    width, item, tokens = config.width, batch.itemsize, batch.tokens
    q, kv, hidden = (
        config.n_heads * config.head_dim,
        config.n_kv_heads * config.head_dim,
        mlp_hidden(config),
    )
    own = keeps_output(
        config, batch
    )  # the norm keeps what it gives, which is kept anyway, and not what it takes
    streams = (
        2 if own else 4
    ) + config.residual_scalars  # normalised, twice; what was normalised; before the scalar
    wide = (
        q + (q + 2 * kv) + (q + kv if config.qk_norm and not own else 0)
    )  # output; q, k, v; q and k before their norm
    statistics = 4 * (
        2 + (config.n_heads + config.n_kv_heads if config.qk_norm else 0) + config.n_heads
    )
    weights = width * (2 * q + 2 * kv)
    if config.mlp == "relu2":
        inner = hidden  # its square and the cast weight are made again
        weights += width * hidden
    else:
        inner = (4 if config.mlp == "swiglu" else 2) * hidden
        weights += (3 if config.mlp == "swiglu" else 2) * width * hidden
    if has_value_embedding(config, layer):
        wide += kv + 3 * config.n_kv_heads
    kept = tokens * (item * (streams * width + wide + inner) + statistics)
    return kept + _copies(weights, batch) + mask_bytes(config, layer, batch)


def backward_bytes(config: Architecture, batch: Batch) -> int:
    """The most that a block's backward pass adds to what is kept: the gradient of its output, those of the MLP's inside
    less what is let go before the last of them is made, and that of a weight."""
    hidden = mlp_hidden(config)
    inner = {"relu2": 2, "gelu": 1, "swiglu": 2}[config.mlp] * hidden
    weight = config.width * hidden * (4 if batch.itemsize == 4 else 4 + batch.itemsize)
    return batch.tokens * batch.itemsize * (config.width + inner) + weight


def again_bytes(config: Architecture, batch: Batch) -> int:
    """What a block's second forward pass, with checkpointing, holds at its end besides what it keeps: the stream before
    and after the MLP, the gradient that waits, and relu²'s inside."""
    inner = 2 * mlp_hidden(config) if config.mlp == "relu2" else 0
    return batch.tokens * batch.itemsize * (3 * config.width + inner)


def loss_bytes(
    config: Architecture, vocab_size: int, batch: Batch, chunk_rows: int
) -> tuple[int, int]:
    """The chunked cross-entropy's own peak, and what it holds when its backward pass runs; the final norm's output is in both."""
    width, item = config.width, batch.itemsize
    weight, stream = vocab_size * width, batch.tokens * width * item
    rows = min(chunk_rows, batch.tokens)
    later = min(chunk_rows, batch.tokens - rows)  # of the chunk after it
    each = vocab_size * (
        4 * (2 if config.softcap else 1) + (item if item < 4 else 0)
    )  # logits; or their gradient, cast
    before = (
        rows * vocab_size * item if later else 0
    )  # the last chunk's gradient, until this one's is made
    chunk = max(rows * each, later * each + before, rows * vocab_size * item + weight * item)
    forward = 2 * stream + 4 * weight + _copies(weight, batch) + chunk + 16 * batch.tokens
    backward = (3 if keeps_output(config, batch) else 2) * stream + 8 * weight
    return forward, backward


def update_bytes(model: Model, vocab_size: int, optimizer: Optimizer, cuda: bool = False) -> int:
    """The optimiser's temporaries: Muon works on all matrices of one shape at once, AdamW on one kind of parameter; its
    fused kernel, on CUDA, makes none."""
    config, counts = resolve_model(model), parameters(model, vocab_size)
    largest = max(counts["embedding"] + counts["value_embeddings"], counts["head"])
    denominators = 0 if cuda else 4
    if optimizer.kind == "adamw":
        return denominators * max(largest, counts["matrices"])
    shapes: dict[tuple[int, int], int] = {}
    q, kv, hidden = (
        config.n_heads * config.head_dim,
        config.n_kv_heads * config.head_dim,
        mlp_hidden(config),
    )
    inputs = 2 if config.mlp == "swiglu" else 1
    for shape, count in (
        ((q, config.width), 1),
        ((kv, config.width), 2),
        ((config.width, q), 1),
        ((hidden, config.width), inputs),
        ((config.width, hidden), 1),
    ):
        shapes[shape] = shapes.get(shape, 0) + count * config.depth
    item, before, peak = (2 if cuda else 4), 0, 0
    for (rows, columns), count in shapes.items():
        group, gram = count * rows * columns, count * min(rows, columns) ** 2
        peak = max(peak, before + 8 * group + item * (2 * group + 2 * gram))
        before = 4 * group  # the last group's updates live until the next one's are made
    return max(peak, denominators * largest)


def cache_bytes(config: Architecture, rows: int, capacity: int, itemsize: int) -> int:
    """Keys and values of `rows` sequences of at most `capacity` tokens."""
    return 2 * config.depth * rows * capacity * config.n_kv_heads * config.head_dim * itemsize
