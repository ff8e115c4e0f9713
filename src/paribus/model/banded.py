"""Attention of a CPU in bf16: plain products of blocks of queries with the band of keys that they see.

torch's own attention of a CPU reads every key up to the query, windows or not, and multiplies in bf16 no faster than in fp32.
Forward and backward on AMD Zen 4, one thread: 16 rows of 256 tokens, 4 heads of 48, take 18 ms with a window of 64 and 21
without, where torch's takes 49; 4 rows of 1,024 tokens, 8 heads of 64, take 111 ms with a window of 256 and 190 without,
torch's 339 and 247 (benchmarks/bf16.json).

Shapes: B rows, H query heads, K key/value heads, N = B x H, T tokens, E head_dim, Q queries of a block, S keys of its band.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Queries of a block. The narrow one serves windows that a wide block would see little of.
BLOCK, NARROW_BLOCK = 128, 64
KEY_STEP = 32  # bands begin at multiples: products of other widths take up to half as long again
# Models of this context and below keep the weights for the backward pass; forward and backward of 16 rows of 256 tokens, 4
# heads of 64, take 25 ms then, and 33 where they are computed again. What is kept grows with the square of the context.
KEPT_LENGTH = 512


@dataclass(frozen=True)
class Band:
    """Which keys each query sees: those of its window, as far as the mask allows."""

    mask: Tensor  # (B or 1, T, T), 0 where seen, else -inf; in the type of the products
    window: int | None  # keys that a query sees at most, its own included; None: all
    keeps: bool = False  # the weights, for the backward pass

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Each block's queries, and the keys that any of them sees."""
        length = self.mask.shape[-1]
        narrow = self.window is not None and self.window <= NARROW_BLOCK
        size = NARROW_BLOCK if narrow else BLOCK
        for start in range(0, length, size):
            end = min(start + size, length)
            first_key = 0 if self.window is None else max(start - self.window + 1, 0)
            yield slice(start, end), slice(first_key // KEY_STEP * KEY_STEP, end)


def band(seen: Tensor, window: int | None, dtype: torch.dtype, *, keeps: bool = False) -> Band:
    """The band of a mask.

    Args:
        seen: True where a query, in rows, sees a key, (B or 1, 1, T, T).
        window: tokens that a query sees at most, itself included; None: all before it.
        dtype: of the products.
        keeps: whether the backward pass finds the weights, or computes them again.
    """
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return Band(mask.masked_fill_(~seen, -torch.inf)[:, 0], window, keeps)


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Band) -> Tensor:
    """softmax(q k' / sqrt(E) + mask) v: q, k, v (B, H, T, E) -> (B, H, T, E)."""
    keeps = seen.keeps and torch.is_grad_enabled()
    if torch.compiler.is_compiling():
        # The kernels of the graph that make them write them in this order, and nobody copies them.
        heads = q.contiguous(), k.contiguous(), v.contiguous()
        whole: Tensor = compiled_attention(*heads, seen.mask, seen.window, keeps)[0]
        return whole
    answer: Tensor = BandedAttention.apply(q, k, v, seen, keeps)  # type: ignore[no-untyped-call]
    return answer


class BandedAttention(torch.autograd.Function):
    """`attend`, whose weights are kept for the backward pass or computed again. Bytes: `footprint.attention`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, seen: Band, keeps: bool) -> Tensor:
        """Attend: q, k, v (B, H, T, E) -> (B, H, T, E), which lies in memory as (B, T, H, E)."""
        kept = _room(q, keeps)
        ctx.save_for_backward(q, k, v, kept)
        ctx.seen = seen
        return _answer(q, k, v, seen, kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of q, k and v, from that of the answer, all (B, H, T, E)."""
        q, k, v, kept = ctx.saved_tensors
        return *_gradients(grad, q, k, v, ctx.seen, kept), None, None


# ---------------------------------------------------------------- the same as one operator of a compiled graph


@torch.library.custom_op("paribus::banded_attention", mutates_args=())
def compiled_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, window: int | None, keeps: bool
) -> tuple[Tensor, Tensor]:
    """`attend` as an operator that a compiler leaves as it is: traced, its loop would make a graph for every length.

    mask, window: of the band. keeps: whether the weights come with the answer.
    """
    kept = _room(q, keeps)
    return _answer(q, k, v, Band(mask, window), kept), kept


@torch.library.custom_op("paribus::banded_attention_backward", mutates_args=())
def compiled_gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, window: int | None, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, from `grad`, that of the answer. mask, window: of the band. kept: the weights."""
    return _gradients(grad, q, k, v, Band(mask, window), kept)


@compiled_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, window: int | None, keeps: bool
) -> tuple[Tensor, Tensor]:
    return _empty_answer(q), _room(q, keeps)


@compiled_gradients.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, window: int | None, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, window, _ = inputs
    kept = output[1]
    ctx.mark_non_differentiable(kept)
    ctx.save_for_backward(q, k, v, mask, kept)
    ctx.window = window


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, mask, kept = ctx.saved_tensors
    return *compiled_gradients(grad, q, k, v, mask, ctx.window, kept), None, None, None


compiled_attention.register_autograd(_backward, setup_context=_keep)


# ---------------------------------------------------------------- block by block


def _empty_answer(q: Tensor) -> Tensor:
    """As large as q (B, H, T, E), in memory as (B, T, H, E)."""
    rows, heads, length, width = q.shape
    return q.new_empty(rows, length, heads, width).transpose(1, 2)


def _room(q: Tensor, keeps: bool) -> Tensor:
    """For the weights of all blocks, one behind the other; they fill less than (N, T, T). Empty where none are kept."""
    rows, heads, length, _ = q.shape
    return q.new_empty(rows * heads * length * length if keeps else 0)


def _parts(kept: Tensor, seen: Band, heads: int) -> Iterator[Tensor | None]:
    """Of what `_room` has made, each block's weights (N, Q, S); None where none are kept. heads: N."""
    start = 0
    for queries, keys in seen.blocks():
        if not len(kept):
            yield None
            continue
        shape = (heads, queries.stop - queries.start, keys.stop - keys.start)
        end = start + math.prod(shape)
        yield kept[start:end].view(shape)
        start = end


def _answer(q: Tensor, k: Tensor, v: Tensor, seen: Band, kept: Tensor) -> Tensor:
    """`attend` without gradients. kept: takes the weights, where there is room."""
    answer = _empty_answer(q)
    flat_q, flat_k, flat_v = _flat(q), _flat(k), _flat(v)
    parts = _parts(kept, seen, len(flat_q))
    for (queries, keys), part in zip(seen.blocks(), parts, strict=True):
        mask = seen.mask[:, queries, keys]
        weights = _weights(flat_q[:, queries], flat_k[:, keys], mask, part)
        block = torch.bmm(weights, flat_v[:, keys])
        answer[:, :, queries] = block.unflatten(0, q.shape[:2])
    return answer


def _gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, seen: Band, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of q, k and v, from `grad`, that of the answer, all (B, H, T, E). kept: as `_answer` has left it."""
    shape, scale = q.shape, q.shape[-1] ** -0.5
    q, k, v, grad = _flat(q), _flat(k), _flat(v), _flat(grad)
    blocks = list(seen.blocks())
    # Each key's gradient is a sum over blocks: of more than two in fp32, so that their number does not matter.
    exact = torch.float32 if len(blocks) > 2 else q.dtype
    grad_q = torch.empty_like(q)
    grad_k = torch.zeros(k.shape, dtype=exact, device=k.device)
    grad_v = torch.zeros(v.shape, dtype=exact, device=v.device)
    for (queries, keys), part in zip(blocks, _parts(kept, seen, len(q)), strict=True):
        block_q, band_k, grad_block = q[:, queries], k[:, keys], grad[:, queries].contiguous()
        weights = part
        if weights is None:
            weights = _weights(block_q, band_k, seen.mask[:, queries, keys], None)
        grad_v[:, keys] += torch.bmm(weights.mT, grad_block)
        grad_weights = torch.bmm(grad_block, v[:, keys].mT)
        grad_logits = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_q[:, queries] = torch.baddbmm(block_q, grad_logits, band_k, beta=0, alpha=scale)
        grad_k[:, keys] += torch.baddbmm(band_k, grad_logits.mT, block_q, beta=0, alpha=scale)
    return grad_q.view(shape), grad_k.to(k.dtype).view(shape), grad_v.to(v.dtype).view(shape)


def _flat(heads: Tensor) -> Tensor:
    """(B, H, T, E) -> (N, T, E), in one piece."""
    return heads.flatten(0, 1).contiguous()


def _weights(q: Tensor, k: Tensor, mask: Tensor, out: Tensor | None) -> Tensor:
    """What each query of a block takes of each key: q (N, Q, E), k (N, S, E), mask (B or 1, Q, S) -> (N, Q, S).

    out: where they go; None: to memory of their own.
    """
    heads = len(q) // len(mask)  # that share a row of the mask
    logits = mask[:, None].expand(-1, heads, -1, -1).flatten(0, 1).contiguous()
    logits.baddbmm_(q, k.mT, alpha=q.shape[-1] ** -0.5)
    return torch.softmax(logits, dim=-1, out=out)
