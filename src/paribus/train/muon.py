"""Muon (Keller Jordan, 2024, https://kellerjordan.github.io/posts/muon) and its published variants.

The step of a matrix is its momentum, made orthogonal. Matrices of one shape go through the iteration together.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from paribus.config import Optimizer as OptimizerConfig
from paribus.model import kernels
from paribus.train.state import State, buffer, gradients_of, move_towards

Coefficients = tuple[float, float, float]

SAFETY = 1.01  # arXiv:2505.16932: rounding in bf16 must carry no singular value out of the next iteration's range
# Columns a row from which iterations go in pairs on a CPU in bf16 (`_iterated`): 26 products of the narrow side in place of 36
# at four columns a row (24 ms against 31 for four of 256 x 1,024, five iterations, AMD Zen 4), as many at one and a half.
WIDE = 2.5
TINY = 1e-7  # keeps a gradient of zero from dividing by zero


def _safe(*rows: Coefficients) -> list[Coefficients]:
    """Iterations that take singular values up to 1.01 times as large, and the last one, which corrects itself, as it is."""
    *early, last = rows
    return [(a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in early] + [last]


# x -> a x + b x³ + c x⁵ on singular values, one row an iteration; the last row holds for all that follow.
COEFFICIENTS: dict[str, list[Coefficients]] = {
    # Keller Jordan's: the steepest slope at zero, so that they end in [0.7, 1.2] and not at 1.
    "jordan": [(3.4445, -4.7750, 2.0315)],
    # Newton and Schulz's: slow from zero, and ends at 1.
    "newton_schulz": [(1.875, -1.25, 0.375)],
    # Each the best after those before it (arXiv:2505.16932, for singular values from 0.001 on): ends at 1.
    "polar_express": _safe(
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.875, -1.25, 0.375),
    ),
}


@dataclass(frozen=True)
class Kept:
    """What a step of matrices of one shape reads and moves on, in their order; empty where the variant keeps none."""

    momenta: list[Tensor]
    mean_squares: list[Tensor]  # of rows or columns (`muon_normalisation`)
    norms: list[Tensor]  # () each, at first (`muon_hyperball`)


def update(
    parameters: dict[str, Tensor],
    state: State,
    config: OptimizerConfig,
    lr: float,
    gate: Tensor | None,
    dtype: torch.dtype,
    compiled: bool = False,
) -> None:
    """Step all matrices of a group.

    Args:
        parameters: name -> matrix (rows, columns), with its gradient.
        state: of the optimiser; `momentum.*`, and what the variants keep.
        config: the keys `muon_*` of `optimizer`.
        lr: learning rate.
        gate: (), 1, or 0 to change nothing, whatever the gradients are. None: 1.
        dtype: of the products.
        compiled: whether the step of a shape is compiled as one graph. It rounds otherwise.
    """
    by_shape: dict[torch.Size, dict[str, Tensor]] = defaultdict(dict)
    for name, parameter in parameters.items():
        by_shape[parameter.shape][name] = parameter
    for shape, matrices in by_shape.items():
        members = list(matrices.values())
        kept = _kept(matrices, state, config)
        gradients = gradients_of(matrices)
        if compiled:  # with the rate as a tensor: a number would be compiled into the graph, anew for every step
            rate = torch.full((), lr, device=members[0].device)
            _compiled_step(shape)(members, gradients, kept, config, rate, gate, dtype)
        else:
            _step(members, gradients, kept, config, lr, gate, dtype)


@functools.cache
def _compiled_step(shape: torch.Size) -> Callable[..., None]:
    """The step, compiled for one shape: each has its own limit of variants."""
    function: Callable[..., None] = kernels.compiled(_step)
    return function


def _kept(matrices: dict[str, Tensor], state: State, config: OptimizerConfig) -> Kept:
    """Of the state, what these matrices' step needs, made where it is missing."""
    momenta, mean_squares, norms = [], [], []
    for name, matrix in matrices.items():
        momenta.append(buffer(state, "momentum", name, matrix))
        if config.muon_normalisation != "none":
            one = matrix[:, :1] if config.muon_normalisation == "rows" else matrix[:1]
            mean_squares.append(buffer(state, "mean_square", name, one))
        if config.muon_hyperball:
            key = f"norm.{name}"
            if key not in state:
                state[key] = torch.linalg.vector_norm(matrix)
            norms.append(state[key])
    return Kept(momenta, mean_squares, norms)


def _step(
    matrices: list[Tensor],
    gradients: list[Tensor],
    kept: Kept,
    config: OptimizerConfig,
    lr: float | Tensor,
    gate: Tensor | None,
    dtype: torch.dtype,
) -> None:
    """Step matrices of one shape. lr: a number, or () where it must not be one; the others as in `update`."""
    updates = orthogonalise(
        _directions(gradients, kept.momenta, config, gate),
        config.muon_iterations,
        config.muon_coefficients,
        dtype,
    )
    if config.muon_normalisation != "none":
        updates = _normalised(updates, kept.mean_squares, config, gate)
    if gate is not None:
        updates.mul_(gate)
    if config.muon_hyperball:
        _step_on_sphere(matrices, updates, kept.norms, lr, gate)
        return
    step = lr * scale(matrices[0].shape, config.muon_scaling)
    if isinstance(step, Tensor):
        torch._foreach_sub_(matrices, list((updates * step).unbind()))
    else:
        torch._foreach_add_(matrices, list(updates.unbind()), alpha=-step)


def _directions(
    gradients: list[Tensor], momenta: list[Tensor], config: OptimizerConfig, gate: Tensor | None
) -> Tensor:
    """The momenta, or what they will be after one more such gradient (Nesterov): (N, rows, columns)."""
    if gate is not None:
        closed = gate == 0
        for gradient in gradients:
            gradient.masked_fill_(closed, 0.0)  # 0 times a NaN were a NaN
    move_towards(momenta, gradients, 1 - config.muon_momentum, gate)
    if not config.muon_nesterov:
        return torch.stack(momenta)
    return torch.stack(torch._foreach_lerp(gradients, momenta, config.muon_momentum))


def orthogonalise(
    matrices: Tensor,
    iterations: int,
    coefficients: str = "jordan",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: (N, rows, columns) -> same.

    iterations: of Newton-Schulz (`optimizer.muon_iterations`). coefficients: a key of COEFFICIENTS. dtype: of the products.
    """
    rows = COEFFICIENTS[coefficients]
    steps = [rows[min(number, len(rows) - 1)] for number in range(iterations)]
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + TINY)
    narrow = x.shape[-1] < WIDE * x.shape[-2]
    if narrow or x.is_cuda or dtype != torch.bfloat16:
        for step in steps:
            x = _iterated(x, [step])
    else:
        odd = iterations % 2
        for start in range(-odd, iterations, 2):  # one alone, then pairs
            x = _iterated(x, steps[max(start, 0) : start + 2])
    return (x.mT if tall else x).to(matrices.dtype)


def _iterated(x: Tensor, steps: list[Coefficients]) -> Tensor:
    """Iterations of x (N, m, n) that multiply x itself only at their end: those before it are products of (m, m).

    An iteration is x -> q x with q = a + b g + c g², and takes the Gram matrix g = x x' to q g q. Rounding in g grows with
    every iteration that does not form it from x.
    """
    gram = x @ x.mT
    product: Tensor | None = None  # of all q before
    for a, b, c in steps[:-1]:
        q = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        q.diagonal(dim1=-2, dim2=-1).add_(a)
        product = q if product is None else q @ product
        gram = q @ gram @ q
    a, b, c = steps[-1]
    higher = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    if product is None:
        return torch.baddbmm(x, higher, x, beta=a)
    return torch.baddbmm(product, higher, product, beta=a) @ x


def scale(shape: torch.Size, scaling: str) -> float:
    """What a step is multiplied by: rows are outputs, columns inputs (`optimizer.muon_scaling`).

    Args:
        shape: of the matrix.
        scaling: the rule.
    """
    rows, columns = shape
    if scaling == "tall":  # more outputs than inputs: equal change of the output's RMS
        return float(max(1.0, rows / columns) ** 0.5)
    if scaling == "spectral":
        return float((rows / columns) ** 0.5)
    if scaling == "rms":  # the RMS of AdamW's steps, so that its rates serve
        return float(0.2 * max(rows, columns) ** 0.5)
    return 1.0


def _normalised(
    updates: Tensor, means: list[Tensor], config: OptimizerConfig, gate: Tensor | None
) -> Tensor:
    """Even steps of all rows, or columns, by a running mean of their squares; each matrix's norm stays (arXiv:2510.05491)."""
    across = -1 if config.muon_normalisation == "rows" else -2
    squares = list(updates.square().mean(across, keepdim=True).unbind())
    move_towards(means, squares, 1 - config.muon_beta2, gate)
    even = updates / (torch.stack(means).sqrt() + TINY)
    before = torch.linalg.matrix_norm(updates, keepdim=True)
    restored: Tensor = even * (before / (torch.linalg.matrix_norm(even, keepdim=True) + TINY))
    return restored


def _step_on_sphere(
    matrices: list[Tensor],
    updates: Tensor,
    norms: list[Tensor],
    lr: float | Tensor,
    gate: Tensor | None,
) -> None:
    """Step by `lr` of a matrix's norm, then back to the norm it had at first.

    K. Wen and others, 2025, https://whenwen.github.io/blog/2025/weight-decay-hyperball-part-1.
    """
    for matrix, norm, step in zip(matrices, norms, updates, strict=True):
        matrix.sub_(step * (lr * norm / (torch.linalg.vector_norm(step) + TINY)))
        back = norm / (torch.linalg.vector_norm(matrix) + TINY)
        matrix.mul_(back if gate is None else torch.where(gate == 0, 1.0, back))
