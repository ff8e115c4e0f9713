"""Initial values as a function of (seed, tensor name, shape, draw), and what two models share of them.

`GPT.initialise` draws each matrix from a generator named by (seed, tensor name), as `initial_draw` says. Two arms with one
seed therefore begin with the same values of a tensor exactly where its name, shape and draw agree. Needs no torch, so
that pages can ask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from paribus.config import SMALL_STD, Architecture, embedding_std
from paribus.model.shapes import Shape, block_shapes, norm_shapes

OUTPUT_SUFFIXES = ("attention.out.weight", "mlp.down.weight")  # write to the residual stream
GATE_SUFFIXES = ("attention.gate.weight", "output_gate.weight")  # at 0 a gate multiplies by 1
# Factors that leave what they multiply as it is.
ONE_SUFFIXES = (
    "_gain",
    ".gain",
    "residual_scale",
)


@dataclass(frozen=True)
class Draw:
    """How a tensor gets its first values.

    kind: normal; orthogonal, the nearest to normal ones; constant. scale: the standard deviation, or the constant.
    """

    kind: Literal["normal", "orthogonal", "constant"]
    scale: float


ZERO = Draw("constant", 0.0)
ONE = Draw("constant", 1.0)


def parameter_shapes(config: Architecture, vocab_size: int) -> dict[str, Shape]:
    """Name -> shape of every parameter of `GPT(config, vocab_size)`, in the model's order."""
    shapes: dict[str, Shape] = {"embedding.weight": (vocab_size, config.width)}
    if config.position == "learned":
        shapes["positions.weight"] = (config.seq_len, config.width)
    if config.embedding_norm:
        shapes |= norm_shapes("embedding_norm", config)
    for layer in range(config.depth):
        for name, shape in block_shapes(config, layer, vocab_size).items():
            shapes[f"blocks.{layer}.{name}"] = shape
    shapes |= norm_shapes("final_norm", config)
    if not config.tied_head:
        shapes["head.weight"] = (vocab_size, config.width)
    for number in range(config.future_tokens):
        shapes[f"head_future.{number}.weight"] = (config.width, config.width)
    return shapes


def initial_draw(config: Architecture, name: str, shape: Shape) -> Draw:
    """How a tensor gets its first values.

    Args:
        config: of the model.
        name: of the tensor, as in `GPT.named_parameters`.
        shape: of the tensor.
    """
    if len(shape) < 2:
        return ONE if name.endswith(ONE_SUFFIXES) else ZERO
    if name.endswith(GATE_SUFFIXES):
        return ZERO
    if name.startswith("embedding"):
        return Draw("normal", embedding_std(config))
    if name.startswith("positions"):
        return Draw("normal", SMALL_STD)
    if name.startswith("head"):
        return Draw("normal", SMALL_STD) if config.initialisation == "gpt2" else ZERO
    return _matrix_draw(config, name, shape)


def _matrix_draw(config: Architecture, name: str, shape: Shape) -> Draw:
    """Of a block's matrix, or of a table of value embeddings."""
    scheme = config.initialisation
    writes = name.endswith(OUTPUT_SUFFIXES)
    if writes and scheme == "zero_outputs":
        return ZERO
    table = name.endswith("value_embedding.weight")
    # A value embedding joins what `v` makes of the residual stream, and has its scale whatever the number of heads.
    inputs = config.width if table else shape[-1]
    std = SMALL_STD if scheme == "gpt2" else 1 / math.sqrt(inputs)
    if writes:
        std /= math.sqrt(2 * config.depth * config.recurrence)
    orthogonal = scheme == "orthogonal" and not table
    return Draw("orthogonal" if orthogonal else "normal", std)


@dataclass(frozen=True)
class Count:
    """The number of tensors, and of the numbers in them."""

    tensors: int
    numbers: int


@dataclass(frozen=True)
class SharedInitial:
    """What two models with one seed have in common before the first step.

    The first four say where each tensor of model A stands; `absent_from_a` are the tensors that B alone has.
    """

    same: Count  # drawn at random, and the same numbers in both
    constant: Count  # the same shape, and all zeros (or ones) in both
    rescaled: Count  # the same random numbers, times another scale
    name_only: Count  # in both, with other shapes or another kind of draw: other numbers
    absent_from_b: Count
    absent_from_a: Count
    rescaled_names: tuple[str, ...]
    name_only_names: tuple[str, ...]

    @property
    def same_fraction(self) -> float:
        """Of the numbers of A, the share that begins with B's value."""
        parts = (self.same, self.constant, self.rescaled, self.name_only, self.absent_from_b)
        total = sum(part.numbers for part in parts)
        return (self.same.numbers + self.constant.numbers) / total


def shared_initial_tensors(
    config_a: Architecture, vocab_size_a: int, config_b: Architecture, vocab_size_b: int
) -> SharedInitial:
    """Which tensors of two models begin with the same values, given one seed, and which share only the name.

    Args:
        config_a: shapes of the models.
        vocab_size_a: entries of each one's tokenizer.
        config_b: shapes of the models.
        vocab_size_b: entries of each one's tokenizer.
    """
    shapes_a = parameter_shapes(config_a, vocab_size_a)
    shapes_b = parameter_shapes(config_b, vocab_size_b)
    names: dict[str, list[str]] = {
        kind: [] for kind in ("same", "constant", "rescaled", "name_only", "absent_from_b")
    }
    for name, shape in shapes_a.items():
        kind = _relation(name, shape, shapes_b.get(name), config_a, config_b)
        names[kind].append(name)
    only_b = [name for name in shapes_b if name not in shapes_a]
    return SharedInitial(
        same=_count(names["same"], shapes_a),
        constant=_count(names["constant"], shapes_a),
        rescaled=_count(names["rescaled"], shapes_a),
        name_only=_count(names["name_only"], shapes_a),
        absent_from_b=_count(names["absent_from_b"], shapes_a),
        absent_from_a=_count(only_b, shapes_b),
        rescaled_names=tuple(names["rescaled"]),
        name_only_names=tuple(names["name_only"]),
    )


def _relation(
    name: str, shape: Shape, other: Shape | None, config_a: Architecture, config_b: Architecture
) -> str:
    if other is None:
        return "absent_from_b"
    draw_a, draw_b = initial_draw(config_a, name, shape), initial_draw(config_b, name, other)
    if shape != other or draw_a.kind != draw_b.kind:
        return "name_only"
    if draw_a.scale != draw_b.scale:
        return "rescaled"
    return "constant" if draw_a.kind == "constant" else "same"


def _count(names: list[str], shapes: dict[str, Shape]) -> Count:
    return Count(len(names), sum(math.prod(shapes[name]) for name in names))
