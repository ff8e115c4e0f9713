"""The memory of a library's optimiser (`optimizer.kind`): tried out on small matrices, as only its own code knows it.

What it keeps and makes of a matrix of m x n goes with m n, m² or n²: sides that are a tenth as long need a hundredth.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

from paribus.config import Architecture, Optimizer, is_foreign
from paribus.model.accounting import block_matrices
from paribus.model.shapes import Shape

SHORTEST_SIDE = 32  # of the small matrices


@dataclass(frozen=True)
class Foreign:
    """Bytes of a library's optimiser: what it keeps, and the most that a step makes besides."""

    state: int
    update: int


def memory_of(config: Architecture, optimizer: Optimizer) -> Foreign:
    """The memory of the optimiser of the block matrices; nothing where it is none of a library's."""
    if not is_foreign(optimizer.kind):
        return Foreign(0, 0)
    arguments = json.dumps(optimizer.arguments)
    return _tried(optimizer.kind, arguments, config.depth, tuple(block_matrices(config)))


@functools.cache
def _tried(kind: str, arguments: str, depth: int, shapes: tuple[Shape, ...]) -> Foreign:
    """Two steps, their tensors counted. arguments: as JSON. depth: blocks with matrices of these shapes each."""
    import torch

    from paribus.plan.tracker import LiveBytes
    from paribus.train.library import Library

    divisor = max(min(min(shape) for shape in shapes) // SHORTEST_SIDE, 1)
    small: list[Shape] = [
        (max(rows // divisor, 1), max(columns // divisor, 1)) for rows, columns in shapes
    ]
    scale = _numbers(list(shapes)) / _numbers(small)
    matrices = {}
    for number, shape in enumerate(small * depth):
        matrices[str(number)] = torch.nn.Parameter(torch.zeros(shape))
    with LiveBytes(*matrices.values()) as live, torch.no_grad():
        optimizer = Library(kind, json.loads(arguments), matrices)
        for _ in range(2):
            for matrix in matrices.values():
                matrix.grad = torch.ones_like(matrix)
            live.restart()
            optimizer.update(1e-3)
    state = sum(
        tensor.numel() * tensor.element_size()
        for name, tensor in optimizer.state().items()
        if not name.startswith("library/plain")
    )
    present = state + 2 * 4 * depth * _numbers(small)  # and the matrices and their gradients
    return Foreign(round(state * scale), round(max(live.peak - present, 0) * scale))


def _numbers(shapes: list[Shape]) -> int:
    return sum(rows * columns for rows, columns in shapes)
