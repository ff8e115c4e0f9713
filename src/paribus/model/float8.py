"""Products of 8-bit floats (`train.fp8`), by torch's own kernel: the block matrices, in supervised training.

Each factor is divided by its largest number, so that it fills the range of its type, and rounded: to e4m3 going forward, the
gradient to e5m2 going back (arXiv:2209.05433). Weights, what is kept for the backward pass, and all sums stay as without it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
SIDE = 16  # what the kernel takes: a multiple of so many inputs, and of outputs
LEAST = 1e-12  # a factor of zeros is divided by it


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """The product x W': x (..., inputs) bf16, weight (outputs, inputs) fp32 -> (..., outputs) bf16."""
    y: Tensor = _Product.apply(x, weight)  # type: ignore[no-untyped-call]
    return y


def relu_squared_product(up: Tensor, weight: Tensor) -> Tensor:
    """relu(up)^2 W': up (..., F) bf16, weight (D, F) fp32 -> (..., D) bf16."""
    y: Tensor = _ReluSquaredProduct.apply(up, weight)  # type: ignore[no-untyped-call]
    return y


def rounded(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """(x as 8-bit floats, row after row; the factor () fp32 that makes them x again).

    Args:
        x: a matrix, in 16 or 32 bits.
        kind: `torch.float8_e4m3fn` or `torch.float8_e5m2`.
    """
    scale = x.abs().amax().float().clamp(min=LEAST) / torch.finfo(kind).max
    return (x / scale).to(kind, memory_format=torch.contiguous_format), scale


def product(left: Tensor, right: Tensor, kind: torch.dtype = FORWARD) -> Tensor:
    """The product left right': (n, k) of `kind` and (m, k) -> (n, m) bf16. k, m: multiples of SIDE."""
    rows, row_scale = rounded(left, kind)
    columns, column_scale = rounded(right, FORWARD)
    return torch._scaled_mm(
        rows, columns.t(), scale_a=row_scale, scale_b=column_scale, out_dtype=torch.bfloat16
    )


def whole(rows: Tensor) -> Tensor:
    """Rows (n, k), with rows of zeros up to a multiple of SIDE."""
    missing = -len(rows) % SIDE
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows


def gradients(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x (..., inputs) and weight (outputs, inputs), in their dtypes, from `grad` (..., outputs)."""
    rows, inputs = grad.flatten(0, -2), x.flatten(0, -2)
    grad_x = product(rows, weight.to(grad.dtype).t(), BACKWARD).view_as(x)
    grad_weight = product(whole(rows).t(), whole(inputs).t(), BACKWARD)
    return grad_x, grad_weight.to(weight.dtype)


class _Product(torch.autograd.Function):
    """Rounds again in the backward pass, so that no more is kept than by the product without it."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        """Multiply: x (..., inputs), weight (outputs, inputs) -> (..., outputs)."""
        ctx.save_for_backward(x, weight)
        return product(x.flatten(0, -2), weight.to(x.dtype)).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        """The gradients of x (..., inputs) and the weight (outputs, inputs), from `grad` (..., outputs)."""
        x, weight = ctx.saved_tensors
        return gradients(grad, x, weight)


class _ReluSquaredProduct(torch.autograd.Function):
    """Keeps relu(up) alone, as `kernels.ReluSquaredProduct` does."""

    @staticmethod
    def forward(ctx, up: Tensor, weight: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        """Multiply: up (..., F), weight (D, F) -> (..., D)."""
        positive = up.relu()
        ctx.save_for_backward(positive, weight)
        squares = positive.square().flatten(0, -2)
        return product(squares, weight.to(up.dtype)).view(*up.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        """The gradients of `up` (..., F) and the weight (D, F), from `grad` (..., D)."""
        positive, weight = ctx.saved_tensors
        grad_squares, grad_weight = gradients(grad, positive.square(), weight)
        return grad_squares.mul_(positive).mul_(2), grad_weight
