"""Time of every stage: a roofline per kind of work, summed; an interval, not a point.

    matrix products   FLOPs / (data sheet x attainable x width / (width + SIZE x FLOPs per byte of the card)); with 8-bit floats
                    (train.fp8) those of the block matrices at the card's rate for them, which nobody has measured here
    attention         what a fused kernel computes: half of the pairs, backward with recomputation
    memory-bound      bytes of norms, residuals, activations and logits / bandwidth
    launches          kernels x latency, where the GPU waits for its host
    optimiser         Newton-Schulz products and the traffic of weights, gradients and state, once a step
    communication     an all-reduce of the gradients, for several cards

Five constants, the same for every card and trainer. They were chosen on nine public runs from ranges that measurements of
such kernels allow, and held against five more (benchmarks/measurements.md). They are not per card: what differs from card to
card is its data sheet and `attainable`, the rate of its largest products.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from paribus.config import Architecture, Optimizer
from paribus.model import footprint
from paribus.model.accounting import (
    block_matrices,
    head_products,
    optimizer_flops_per_step,
    parameters,
)
from paribus.model.shapes import applied_blocks, window_of
from paribus.plan.devices import Device, device_named, device_table

__all__ = ["Device", "Work", "device_named", "device_table", "step_seconds"]

SIZE = 4.0  # a product of inner width 4 x the card's FLOPs per byte runs at half its best rate
ATTENTION = 0.65  # of the best rate, in a fused attention kernel, forward and backward together
STREAMS = 50  # passes over a (tokens, width) bf16 tensor a block, forward and backward, compiled; eager about twice
LOGIT_BYTES = 20  # moved per token and word of the vocabulary by the loss, forward and backward
BANDWIDTH = 0.85  # of the data sheet's bandwidth, reached by streaming kernels
KERNEL_SECONDS = 5e-6  # to launch one kernel, CUDA
CPU_KERNEL_SECONDS = 8e-6  # dispatch of one operation on a CPU
KERNELS = {True: 40, False: 150}  # a block, forward and backward; compiled or eager
PROBED_SPREAD = 1.15  # identical public runs differ by up to 1.11
CPU_SPREAD = 1.6
# To round a number for the 8-bit products of both passes: read in bf16, written as a byte. The largest number is found where
# the factor is written. So an H100's d26 gains 13 %; nanochat's log (commit 92d63d4, dev/LOG.md) has 17.
ROUNDING_BYTES = 2 * (2 + 1)
CPU_EFFICIENCY = 0.75  # measured: 0.6 to 1 of it at widths of 192 to 512, two cores, eager
CPU_PROBED_SPREAD = (
    1.25  # measured: the same steps, minutes apart on a quiet virtual machine, differ by up to 1.2
)


# ---------------------------------------------------------------- work


@dataclass(frozen=True)
class Work:
    """Seconds by kind of work."""

    products: float = 0.0
    attention: float = 0.0
    traffic: float = 0.0
    launches: float = 0.0
    optimizer: float = 0.0
    communication: float = 0.0

    @property
    def total(self) -> float:
        """Launches overlap with the rest: they cost what they exceed it by."""
        busy = self.products + self.attention + self.traffic
        return max(busy, self.launches) + self.optimizer + self.communication

    def times(self, factor: float) -> Work:
        """The work with every time multiplied by `factor`."""
        return Work(*(value * factor for value in dataclasses.astuple(self)))

    def plus(self, other: Work) -> Work:
        """The sum of both, kind by kind."""
        return Work(
            *(
                a + b
                for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
            )
        )

    @property
    def bound_by(self) -> str:
        """The kind of work that takes most of the time, in words.

        Kernel launches count only where they take longer than the computation that they overlap with.
        """
        names = {
            "products": "matrix products",
            "attention": "attention",
            "traffic": "memory bandwidth",
            "launches": "kernel launches",
            "optimizer": "optimizer",
            "communication": "communication",
        }
        values = dataclasses.asdict(self)
        if self.launches < self.products + self.attention + self.traffic:
            values["launches"] = 0.0
        return names[max(values, key=lambda name: values[name])]


def product_seconds(device: Device, width: int, flops: float, fp8: bool = False) -> float:
    """Seconds of matrix products of an inner width.

    device: whose rates they have. flops: of them all. fp8: of 8-bit floats; their sums are as wide, and written as they are.
    """
    if fp8:
        assert device.fp8 is not None, "refused before (devices.suited)"
        device = dataclasses.replace(device, flops=device.fp8)
    return flops / (device.rate * efficiency(device, width))


def efficiency(device: Device, width: int) -> float:
    """Share of the best rate that products of an inner width reach: their operands' traffic is a share of their time.

    On a CPU products of the model's own size were timed, and a step reaches a share of that.

    device: whose products' rates were measured.
    """
    return (
        CPU_EFFICIENCY
        if device.kind == "cpu"
        else width / (width + SIZE * device.rate / device.bandwidth)
    )


def forward_backward(
    model: Architecture,
    vocab_size: int,
    tokens: int,
    device: Device,
    *,
    compiled: bool,
    itemsize: int = 2,
    backward: bool = True,
    checkpointing: bool = False,
    length: int | None = None,
    fp8: bool = False,
) -> Work:
    """One forward pass over `tokens` tokens, in rows of `length`, and its backward pass.

    model: its shape. vocab_size: tokens of the tokenizer. device: that computes it. compiled: by torch.compile.
    itemsize: bytes of a number. checkpointing: blocks are computed again in the backward pass. fp8: their matrices
    multiply 8-bit floats, and every factor of a product is rounded for each pass.
    """
    matrices = model.recurrence * parameters(model, vocab_size)["matrices"]
    passes = (3 + checkpointing) if backward else 1
    heads = head_products(model, vocab_size) if backward else vocab_size * model.width
    predicted = 1 + model.future_tokens if backward else 1
    flops = 2 * passes * tokens
    products = product_seconds(device, model.width, flops * matrices, fp8)
    products += product_seconds(device, model.width, flops * heads)
    length = length or model.seq_len
    keys = model.recurrence * sum(
        length if window_of(model, layer) == "L" else min(model.window, length)
        for layer in range(model.depth)
    )
    # forward 4 x pairs x width, backward 10 (it computes the scores again), half of the pairs being masked
    attention = (
        (7 + 2 * checkpointing if backward else 2) * model.n_heads * model.head_dim * keys * tokens
    )
    streams = STREAMS * (1 if compiled else 2) * (1 if backward else 0.3)
    moved = tokens * itemsize * streams * model.width * applied_blocks(
        model
    ) + tokens * predicted * LOGIT_BYTES * vocab_size * (1 if backward else 0.5)
    if fp8:
        sides = sum(sum(shape) for shape in block_matrices(model))
        rounding = ROUNDING_BYTES * (1 if compiled else 2)
        moved += tokens * rounding * sides * applied_blocks(model)
    kernels = applied_blocks(model) * KERNELS[compiled] * (1 if backward else 0.3)
    return Work(
        products,
        attention / (device.rate * ATTENTION),
        moved / (device.bandwidth * BANDWIDTH),
        kernels * _launch(device),
    )


def _launch(device: Device) -> float:
    return CPU_KERNEL_SECONDS if device.kind == "cpu" else KERNEL_SECONDS


def update(
    model: Architecture, vocab_size: int, optimizer: Optimizer, device: Device, gpus: int = 1
) -> Work:
    """One optimiser step; with several cards each updates its share of the parameters, and gradients are summed first.

    model: its shape. vocab_size: tokens of the tokenizer. optimizer: its settings. device: each of the `gpus`
    cards.
    """
    counts = parameters(model, vocab_size)
    flops = optimizer_flops_per_step(model, optimizer)
    moved = 4 * counts["total"] * 12  # weight, gradient, state: read and written, and temporaries
    seconds = (
        product_seconds(device, model.width, flops) + moved / (device.bandwidth * BANDWIDTH)
    ) / gpus
    exchanged = 2 * 4 * counts["total"] * (gpus - 1) / gpus  # a ring all-reduce of fp32 gradients
    return Work(optimizer=seconds, communication=exchanged / device.link)


def decode(
    model: Architecture, vocab_size: int, rows: int, context: int, device: Device, itemsize: int
) -> Work:
    """One token for each of `rows` answers: reads all weights and every key and value once.

    model: its shape. vocab_size: tokens of the tokenizer. context: tokens that an answer sees. device: that
    computes it. itemsize: bytes of a number.
    """
    counts = parameters(model, vocab_size)
    weights = model.recurrence * counts["matrices"] + vocab_size * model.width
    moved = (
        weights * itemsize
        + footprint.cache(model, rows, context, itemsize)
        + 24 * rows * vocab_size
    )
    kernels = applied_blocks(model) * 60 + 60
    return Work(
        product_seconds(device, model.width, 2 * weights * rows),
        0.0,
        moved / (device.bandwidth * BANDWIDTH),
        kernels * _launch(device),
    )


def step_seconds(
    model: Architecture,
    vocab_size: int,
    optimizer: Optimizer,
    device: Device,
    *,
    batch_tokens: int,
    device_tokens: int,
    gpus: int = 1,
    compiled: bool = True,
    itemsize: int = 2,
    checkpointing: bool = False,
    fp8: bool = False,
) -> Work:
    """One optimiser step over `batch_tokens`, `device_tokens` a forward pass on each of `gpus` cards.

    model: its shape. vocab_size: tokens of the tokenizer. optimizer: its settings. device: each of the cards.
    compiled: by torch.compile. itemsize: bytes of a number. checkpointing: blocks are computed again in the
    backward pass. fp8: their matrices multiply 8-bit floats.
    """
    passes = max(batch_tokens / gpus / device_tokens, 1.0) if batch_tokens else 1.0
    share = batch_tokens / gpus / passes
    one = forward_backward(
        model,
        vocab_size,
        round(share),
        device,
        compiled=compiled,
        itemsize=itemsize,
        checkpointing=checkpointing,
        fp8=fp8,
    )
    return one.times(passes).plus(update(model, vocab_size, optimizer, device, gpus))
