"""Attention of a CPU in bf16: plain products of blocks of queries with the band of keys that they see.

torch's own attention of a CPU reads every key up to the query, windows or not, and multiplies in bf16 no faster than in fp32.
Forward and backward on AMD Zen 4, 16 rows of 256 tokens, 4 heads of 48: 31 ms with a window of 64 and 39 without, where
torch's takes 57 and 56; 4 rows of 1,024 tokens, 8 heads of 64: 141 ms with a window of 256 and 203 without, torch's 456 and
313 (benchmarks/bf16.json).

Shapes: B rows, H query heads, K key/value heads, N = B x H, T tokens, E head_dim, Q queries of a block, S keys of its band.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Queries of a block. The narrow one serves windows that a wide block would see little of.
BLOCK, NARROW_BLOCK = 128, 64
KEY_STEP = 32  # bands begin at multiples: products of other widths take up to half as long again


@dataclass(frozen=True)
class Band:
    """Which keys each query sees: those of its window, as far as the mask allows."""

    mask: Tensor  # (B or 1, T, T), 0 where seen, else -inf; in the type of the products
    window: int | None  # keys that a query sees at most, its own included; None: all

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Each block's queries, and the keys that any of them sees."""
        length = self.mask.shape[-1]
        narrow = self.window is not None and self.window <= NARROW_BLOCK
        size = NARROW_BLOCK if narrow else BLOCK
        for start in range(0, length, size):
            end = min(start + size, length)
            first_key = 0 if self.window is None else max(start - self.window + 1, 0)
            yield slice(start, end), slice(first_key // KEY_STEP * KEY_STEP, end)


def band(seen: Tensor, window: int | None, dtype: torch.dtype) -> Band:
    """The band of a mask.

    Args:
        seen: True where a query, in rows, sees a key, (B or 1, 1, T, T).
        window: tokens that a query sees at most, itself included; None: all before it.
        dtype: of the products.
    """
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return Band(mask.masked_fill_(~seen, -torch.inf)[:, 0], window)


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Band) -> Tensor:
    """softmax(q k' / sqrt(E) + mask) v: q, k, v (B, H, T, E) -> (B, H, T, E)."""
    if torch.compiler.is_compiling():
        whole: Tensor = compiled_attention(q, k, v, seen.mask, seen.window)
        return whole
    answer: Tensor = BandedAttention.apply(q, k, v, seen)  # type: ignore[no-untyped-call]
    return answer


class BandedAttention(torch.autograd.Function):
    """`attend`, whose weights are computed again for the backward pass. Bytes: `footprint.attention`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, seen: Band) -> Tensor:
        """Attend: q, k, v (B, H, T, E) -> (B, H, T, E), which lies in memory as (B, T, H, E)."""
        ctx.save_for_backward(q, k, v)
        ctx.seen = seen
        return _answer(q, k, v, seen)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of q, k and v, from that of the answer, all (B, H, T, E)."""
        q, k, v = ctx.saved_tensors
        return *_gradients(grad, q, k, v, ctx.seen), None


# ---------------------------------------------------------------- the same as one operator of a compiled graph


@torch.library.custom_op("paribus::banded_attention", mutates_args=())
def compiled_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, window: int | None) -> Tensor:
    """`attend` as an operator that a compiler leaves as it is: traced, its loop would make a graph for every length.

    mask, window: of the band.
    """
    return _answer(q, k, v, Band(mask, window))


@torch.library.custom_op("paribus::banded_attention_backward", mutates_args=())
def compiled_gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, from `grad`, that of the answer. mask, window: of the band."""
    return _gradients(grad, q, k, v, Band(mask, window))


@compiled_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, window: int | None) -> Tensor:
    return _empty_answer(q)


@compiled_gradients.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.window = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *compiled_gradients(grad, *ctx.saved_tensors, ctx.window), None, None


compiled_attention.register_autograd(_backward, setup_context=_keep)


# ---------------------------------------------------------------- block by block


def _empty_answer(q: Tensor) -> Tensor:
    """As large as q (B, H, T, E), in memory as (B, T, H, E)."""
    rows, heads, length, width = q.shape
    return q.new_empty(rows, length, heads, width).transpose(1, 2)


def _answer(q: Tensor, k: Tensor, v: Tensor, seen: Band) -> Tensor:
    """`attend` without gradients."""
    answer = _empty_answer(q)
    flat_q, flat_k, flat_v = _flat(q), _flat(k), _flat(v)
    for queries, keys in seen.blocks():
        mask = seen.mask[:, queries, keys]
        weights = _weights(flat_q[:, queries], flat_k[:, keys].contiguous(), mask)
        block = torch.bmm(weights, flat_v[:, keys])
        answer[:, :, queries] = block.unflatten(0, q.shape[:2])
    return answer


def _gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, seen: Band
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of q, k and v, from `grad`, that of the answer, all (B, H, T, E)."""
    shape, scale = q.shape, q.shape[-1] ** -0.5
    q, k, v, grad = _flat(q), _flat(k), _flat(v), _flat(grad)
    grad_q = torch.empty_like(q)
    # each key's gradient is a sum over blocks: in fp32, so that it does not depend on how many there are
    grad_k = torch.zeros(k.shape, device=k.device)
    grad_v = torch.zeros(v.shape, device=v.device)
    for queries, keys in seen.blocks():
        mask = seen.mask[:, queries, keys]
        band_k, band_v = k[:, keys].contiguous(), v[:, keys].contiguous()
        weights = _weights(q[:, queries], band_k, mask)
        grad_block = grad[:, queries]
        grad_v[:, keys] += torch.bmm(weights.mT, grad_block)
        grad_weights = torch.bmm(grad_block, band_v.mT)
        grad_logits = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_logits.mul_(scale)
        grad_q[:, queries] = torch.bmm(grad_logits, band_k)
        grad_k[:, keys] += torch.bmm(grad_logits.mT, q[:, queries])
    return grad_q.view(shape), grad_k.to(k.dtype).view(shape), grad_v.to(v.dtype).view(shape)


def _flat(heads: Tensor) -> Tensor:
    """(B, H, T, E) -> (N, T, E), in one piece."""
    return heads.flatten(0, 1).contiguous()


def _weights(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """What each query of a block takes of each key: q (N, Q, E), k (N, S, E), mask (B or 1, Q, S) -> (N, Q, S)."""
    heads = len(q) // len(mask)  # that share a row of the mask
    logits = mask[:, None].expand(-1, heads, -1, -1).flatten(0, 1).contiguous()
    logits.baddbmm_(q, k.mT, alpha=q.shape[-1] ** -0.5)
    return torch.softmax(logits, dim=-1)
