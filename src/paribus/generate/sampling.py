"""Choosing tokens: uniform numbers that are a function of (seed, question, sample, place), and what they choose.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

# What rounding at another batch size can move in fp32, with room to spare. Measured at depth 4, width 256, logits of
# standard deviation 4.5: at most 2e-5 in a logit, 8e-7 in the edge of a block, 3e-6 in the edge of a token within it.
CLOSE_LOGITS, CLOSE_BLOCK, CLOSE_TOKEN = 1e-4, 2e-6, 6e-6
_MASK = (1 << 64) - 1


# ---------------------------------------------------------------- random numbers


def stream_seed(*parts: int) -> int:
    """A 64-bit seed named by whole numbers: the splitmix64 finaliser over each in turn (Steele et al., 2014)."""
    state = 0
    for part in parts:
        state = (state + 0x9E3779B97F4A7C15 + (part & _MASK)) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def uniform(seeds: Tensor, counters: Tensor) -> Tensor:
    """Numbers `counters` (R, N) of the splitmix64 streams `seeds` (R, 1), int64 -> (R, N) fp32 in [0, 1), 24 bits."""
    x = seeds + (counters + 1) * signed(0x9E3779B97F4A7C15)  # int64 wraps around as uint64 does
    x = (x ^ _shift(x, 30)) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * signed(0x94D049BB133111EB)
    return _shift(x ^ _shift(x, 31), 40).float() / 2**24


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def signed(value: int) -> int:
    """64 bits as int64 has them."""
    return value - (1 << 64) if value >> 63 else value


# ---------------------------------------------------------------- choosing a token


def choose(
    logits: Tensor, uniforms: Tensor, temperature: float, top_k: int
) -> tuple[Tensor, Tensor]:
    """Next tokens (R,) for logits (R, V), and (R,) True where rounding could have decided.

    Greedy at temperature 0. Else drawn with `uniforms` (R, 2), in [0, 1): first a block of about sqrt(V) tokens, then a
    token of the block. Either draw has few edges that a number could lie close to. top_k: only the so many likeliest
    tokens are candidates; 0: all are.
    """
    if temperature == 0:
        best, tokens = logits.max(dim=-1)
        runner_up = logits.scatter(-1, tokens[:, None], -torch.inf).max(dim=-1).values
        return tokens, best - runner_up < CLOSE_LOGITS
    ambiguous = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    if 0 < top_k < logits.shape[-1]:
        top = logits.topk(top_k + 1, dim=-1).values
        # which tokens belong to the k is itself a close call
        ambiguous = top[:, -2] - top[:, -1] < CLOSE_LOGITS
        logits = logits.masked_fill(logits < top[:, -2:-1], -torch.inf)
    if temperature != 1:
        logits = logits / temperature
    size = 1 << (logits.shape[-1] - 1).bit_length() // 2
    probabilities = torch.softmax(logits, dim=-1)
    missing = -logits.shape[-1] % size
    whole_blocks = pad(probabilities, (0, missing)) if missing else probabilities
    weights = whole_blocks.unflatten(-1, (-1, size))  # (R, blocks, size)
    wider = max(1 / temperature, 1.0)
    block, close_block = _draw(weights.sum(dim=-1), uniforms[:, :1], CLOSE_BLOCK * wider)
    within = weights.gather(1, block[:, None, None].expand(-1, 1, size))[:, 0]
    token, close_token = _draw(within, uniforms[:, 1:], CLOSE_TOKEN * wider)
    return block * size + token, ambiguous | close_block | close_token


def rounds_finely(dtype: torch.dtype, device_type: str) -> bool:
    """Whether products round so finely that CLOSE_LOGITS and the others cover another batch size.

    They do in fp32, except for TF32 on CUDA.

    Args:
        dtype: of the products.
        device_type: of the products.
    """
    if dtype != torch.float32:
        return False
    return device_type != "cuda" or torch.get_float32_matmul_precision() == "highest"


def _draw(weights: Tensor, uniforms: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Indices (R,) into weights (R, n), by inverting their running sum at (R, 1); and True if a close call."""
    edges = weights.cumsum(dim=-1)
    edges = edges / edges[:, -1:]  # the last is exactly 1, and uniforms are below it
    chosen = torch.searchsorted(edges, uniforms.contiguous(), right=True)
    above = edges.gather(-1, chosen) - uniforms
    below = torch.where(chosen > 0, uniforms - edges.gather(-1, (chosen - 1).clamp(min=0)), 1.0)
    return chosen[:, 0], torch.minimum(above, below)[:, 0] < margin
