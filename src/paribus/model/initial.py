"""Initial values as a function of (seed, tensor name, shape, scale), and what two models share of them.

`GPT.initialise` draws each tensor from a generator named by (seed, tensor name) and multiplies it by `initial_std`. Two
arms with one seed therefore begin with the same values of a tensor exactly where its name, shape and scale agree.
Needs no torch, so that pages can ask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from paribus.config import Architecture
from paribus.model.shapes import Shape, block_shapes

# Matrices that write to the residual stream, the gates and the head start at zero: every block is the identity.
ZERO_SUFFIXES = (
    "attention.out.weight",
    "mlp.down.weight",
    "attention.gate.weight",
    "head.weight",
)
EMBEDDING_STD = 1.0
# Position embeddings, and a token embedding that is the output head as well: its logits should start near zero.
SMALL_STD = 0.02


def parameter_shapes(config: Architecture, vocab_size: int) -> dict[str, Shape]:
    """Name -> shape of every parameter of `GPT(config, vocab_size)`, in the model's order."""
    shapes: dict[str, Shape] = {"embedding.weight": (vocab_size, config.width)}
    if config.position == "learned":
        shapes["positions.weight"] = (config.seq_len, config.width)
    for layer in range(config.depth):
        for name, shape in block_shapes(config, layer, vocab_size).items():
            shapes[f"blocks.{layer}.{name}"] = shape
    if not config.tied_head:
        shapes["head.weight"] = (vocab_size, config.width)
    return shapes


def initial_std(config: Architecture, name: str, shape: Shape) -> float:
    """Standard deviation of a matrix's first values; 0: it starts at zero.

    name: as in `GPT.named_parameters`; shape: its own, with at least two axes.
    """
    if name.endswith(ZERO_SUFFIXES):
        return 0.0
    if name.startswith("positions"):
        return SMALL_STD
    if name.startswith("embedding"):
        return SMALL_STD if config.tied_head else EMBEDDING_STD
    # A value embedding joins what `v` makes of the residual stream, and has its scale whatever the number of heads.
    inputs = config.width if name.endswith("value_embedding.weight") else shape[-1]
    return 1 / math.sqrt(inputs)


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
    name_only: Count  # in both, with other shapes: other numbers, even where both are drawn
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

    config_a, config_b: shapes of the models. vocab_size_a, vocab_size_b: entries of each one's tokenizer.
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
    if shape != other:
        return "name_only"
    if len(shape) < 2:
        return "constant"
    std_a = initial_std(config_a, name, shape)
    std_b = initial_std(config_b, name, other)
    if std_a != std_b:
        return "rescaled"
    return "same" if std_a else "constant"


def _count(names: list[str], shapes: dict[str, Shape]) -> Count:
    return Count(len(names), sum(math.prod(shapes[name]) for name in names))
