"""Bytes of the optimiser (train/optim.py) from the config alone, beside those of the layers (footprint.py)."""

from __future__ import annotations

from paribus.config import Architecture, Optimizer
from paribus.model.accounting import block_matrices, parameters
from paribus.model.footprint import FP32, Batch

PAIRED_FROM = 2.5  # columns a row from which Muon's iterations go in pairs: `muon.WIDE`


def optimizer_state(config: Architecture, vocab_size: int, optimizer: Optimizer) -> int:
    """Muon keeps one fp32 number a parameter of the block matrices, AdamW two of everything else, an average one of each.

    What a library's optimiser keeps of the matrices is not in it: plan/library.py tries that out.

    Args:
        config: of the model.
        vocab_size: tokens of the tokenizer.
        optimizer: which kinds of parameters it gives to Muon and to AdamW.
    """
    counts = parameters(config, vocab_size)
    of_matrices = {"muon": 1, "adamw": 2}.get(optimizer.kind, 0)
    numbers = 2 * (counts["total"] - counts["matrices"]) + of_matrices * counts["matrices"]
    if optimizer.kind == "muon" and optimizer.muon_normalisation != "none":
        side = 0 if optimizer.muon_normalisation == "rows" else 1
        numbers += config.depth * sum(shape[side] for shape in block_matrices(config))
    if optimizer.ema_decay:
        numbers += counts["total"]
    return FP32 * numbers


def optimizer_update(
    config: Architecture, vocab_size: int, optimizer: Optimizer, batch: Batch
) -> int:
    """The optimiser's temporaries.

    Muon works on all matrices of one shape at once, AdamW on one kind of parameter; AdamW's fused kernel, on CUDA and in bf16,
    makes none.
    Cautious decay keeps a copy of what decays. Those of a library's optimiser are not in it.

    Args:
        config: of the model.
        vocab_size: tokens of the tokenizer.
        optimizer: its settings.
        batch: whose device and number format decide.
    """
    counts = parameters(config, vocab_size)
    others = max(counts["embedding"] + counts["value_embeddings"], counts["head"])
    fused = batch.cuda or batch.itemsize != FP32
    denominator = 0 if fused else FP32
    matrices = 0
    if optimizer.kind == "muon":
        matrices = _muon_update(config, optimizer, batch)
    elif optimizer.kind == "adamw":
        matrices = denominator * counts["matrices"]
    others *= denominator
    if optimizer.cautious_weight_decay and optimizer.weight_decay:
        matrices += FP32 * counts["matrices"]
    return max(matrices, others)


def _muon_update(config: Architecture, optimizer: Optimizer, batch: Batch) -> int:
    """The peak over Muon's groups of like matrices: directions, and what makes them orthogonal or their steps even."""
    itemsize = 2 if batch.cuda else batch.itemsize
    in_pairs = itemsize != FP32 and not batch.cuda and optimizer.muon_iterations > 1
    groups: dict[tuple[int, ...], int] = {}
    for shape in block_matrices(config):
        groups[shape] = groups.get(shape, 0) + config.depth
    peaks = []
    for (rows, columns), count in groups.items():
        narrow, wide = sorted((rows, columns))
        numbers = count * narrow * wide
        grams = 4 if in_pairs and wide >= PAIRED_FROM * narrow else 2  # in one iteration, or a pair
        iteration = itemsize * (2 * numbers + grams * count * narrow**2)
        cast_back = 0 if itemsize == FP32 else (itemsize + FP32) * numbers
        peaks.append(FP32 * numbers + max(iteration, cast_back))
        if optimizer.muon_normalisation != "none":
            peaks.append(3 * FP32 * numbers)
    return max(peaks)
