"""Time of every stage: a roofline per kind of work, summed; an interval, not a point.

    matrix products   FLOPs / (data sheet x attainable x width / (width + SIZE x FLOPs per byte of the card))
    attention         what a fused kernel computes: half of the pairs, backward with recomputation
    memory-bound      bytes of norms, residuals, activations and logits / bandwidth
    launches          kernels x latency, where the GPU waits for its host
    optimiser         Newton-Schulz products and the traffic of weights, gradients and state, once a step
    communication     an all-reduce of the gradients, for several cards

Five constants, the same for every card and trainer. They were chosen on nine public runs (docs/planning.md) from ranges
that measurements of such kernels allow, and are not per card: what differs from card to card is its data sheet and
`attainable`, the rate of its largest products.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from paribus.config import Architecture, Optimizer, read_yaml, resolve_model
from paribus.errors import UserError
from paribus.model.accounting import cache_bytes, parameters
from paribus.model.shapes import mlp_hidden, window_of
from paribus.plan.memory import parse_bytes

SIZE = 4.0  # a product of inner width 4 x the card's FLOPs per byte runs at half its best rate
ATTENTION = 0.65  # of the best rate, in a fused attention kernel, forward and backward together
STREAMS = 50  # passes over a (tokens, width) bf16 tensor a block, forward and backward, compiled; eager about twice
LOGIT_BYTES = 20  # moved per token and word of the vocabulary by the loss, forward and backward
BANDWIDTH = 0.85  # of the data sheet's bandwidth, reached by streaming kernels
KERNEL_SECONDS = 5e-6  # to launch one kernel, CUDA
CPU_KERNEL_SECONDS = 8e-6  # dispatch of one operation on a CPU
KERNELS = {True: 40, False: 150}  # a block, forward and backward; compiled or eager
SPREAD = 1.2  # nine public runs lie within this factor of the data-sheet estimate; identical runs differ by up to 1.11
PROBED_SPREAD = 1.1
CPU_SPREAD = 1.6
CPU_EFFICIENCY = 0.75  # measured: 0.6 to 1 of it at widths of 192 to 512, two cores, eager
CPU_PROBED_SPREAD = (
    1.25  # measured: the same steps, minutes apart on a quiet virtual machine, differ by up to 1.2
)


@dataclass(frozen=True)
class Device:
    """A card: rates per second, sizes in bytes, price in USD an hour."""

    name: str
    flops: float  # of matrix products in the type asked for
    bandwidth: float
    memory: int
    attainable: float
    watts: float
    link: float
    kind: str  # cuda, mps or cpu
    source: str
    price: float | None = None
    corrections: Mapping[str, float] = field(
        default_factory=dict
    )  # stage -> measured seconds / estimated ones, here
    spread: float = SPREAD

    def correction(self, stage: str) -> float:
        """That of the stage, else pretraining's; 1 where neither was measured."""
        return self.corrections.get(stage, self.corrections.get("pretrain", 1.0))

    @property
    def rate(self) -> float:
        """FLOP/s of the largest matrix products."""
        return self.flops * self.attainable


@functools.cache
def device_table() -> dict[str, dict[str, object]]:
    """devices.yaml."""
    return read_yaml(Path(__file__).with_name("devices.yaml"))


def device_named(name: str, dtype: str = "bfloat16") -> Device:
    """A card of the table by its name or part of it ("3090", "NVIDIA H100 80GB HBM3"). Raises UserError with the nearest."""
    table, wanted = device_table(), name.lower()
    found = [key for key in table if key.lower() in wanted] or [
        key for key in table if wanted in key.lower()
    ]
    if not found:
        close = difflib.get_close_matches(wanted, [key.lower() for key in table], n=1, cutoff=0.4)
        nearest = next((key for key in table if close and key.lower() == close[0]), None)
        hint = f"did you mean {nearest}? " if nearest else ""
        raise UserError(
            f"--device: {name!r} is not in devices.yaml; {hint}there are: {', '.join(table)}, and cpu (this one)"
        )
    key = min(found, key=len) if wanted not in [one.lower() for one in found] else name
    entry = dict(table.get(key) or next(table[one] for one in found if one.lower() == wanted))
    low = entry.pop("fp32")
    if dtype == "float32":
        entry["flops"] = low
    entry["memory"] = parse_bytes(str(entry["memory"]), key)
    return Device(name=key, kind="mps" if key.startswith("Apple") else "cuda", **entry)  # type: ignore[arg-type]


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
        return Work(*(value * factor for value in dataclasses.astuple(self)))

    def plus(self, other: Work) -> Work:
        return Work(
            *(
                a + b
                for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
            )
        )

    @property
    def bound_by(self) -> str:
        names = {
            "products": "matrix products",
            "attention": "attention",
            "traffic": "memory bandwidth",
            "launches": "kernel launches",
            "optimizer": "optimiser",
            "communication": "communication",
        }
        values = dataclasses.asdict(self)
        if self.launches < self.products + self.attention + self.traffic:
            values["launches"] = 0.0
        return names[max(values, key=lambda name: values[name])]


def efficiency(device: Device, width: int) -> float:
    """Share of the best rate that products of an inner width reach: their operands' traffic is a share of their time.

    On a CPU products of the model's own size were timed, and a step reaches a share of that.
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
) -> Work:
    """One forward pass over `tokens` tokens, in rows of `length`, and its backward pass."""
    counts = parameters(model, vocab_size)
    passes = (3 + checkpointing) if backward else 1
    flops = 2 * passes * (counts["matrices"] + vocab_size * model.width) * tokens
    length = length or model.seq_len
    keys = sum(
        length if window_of(model, layer) == "L" else min(model.window, length)
        for layer in range(model.depth)
    )
    # forward 4 x pairs x width, backward 10 (it computes the scores again), half of the pairs being masked
    attention = (
        (7 + 2 * checkpointing if backward else 2) * model.n_heads * model.head_dim * keys * tokens
    )
    streams = STREAMS * (1 if compiled else 2) * (1 if backward else 0.3)
    moved = (
        tokens * itemsize * streams * model.width * model.depth
        + tokens * LOGIT_BYTES * vocab_size * (1 if backward else 0.5)
    )
    kernels = model.depth * KERNELS[compiled] * (1 if backward else 0.3)
    return Work(
        flops / (device.rate * efficiency(device, model.width)),
        attention / (device.rate * ATTENTION),
        moved / (device.bandwidth * BANDWIDTH),
        kernels * _launch(device),
    )


def _launch(device: Device) -> float:
    return CPU_KERNEL_SECONDS if device.kind == "cpu" else KERNEL_SECONDS


def update(
    model: Architecture, vocab_size: int, optimizer: Optimizer, device: Device, gpus: int = 1
) -> Work:
    """One optimiser step; with several cards each updates its share of the parameters, and gradients are summed first."""
    counts = parameters(model, vocab_size)
    flops = 0.0
    if optimizer.kind == "muon":
        kv, hidden = model.n_kv_heads * model.head_dim, mlp_hidden(model)
        shapes = [(model.n_heads * model.head_dim, model.width)] * 2 + [(kv, model.width)] * 2
        shapes += [(hidden, model.width)] * (3 if model.mlp == "swiglu" else 2)
        for a, b in shapes:
            small, large = min(a, b), max(a, b)
            flops += model.depth * optimizer.muon_iterations * (4 * small**2 * large + 2 * small**3)
    moved = 4 * counts["total"] * 12  # weight, gradient, state: read and written, and temporaries
    seconds = (
        flops / (device.rate * efficiency(device, model.width))
        + moved / (device.bandwidth * BANDWIDTH)
    ) / gpus
    exchanged = 2 * 4 * counts["total"] * (gpus - 1) / gpus  # a ring all-reduce of fp32 gradients
    return Work(optimizer=seconds, communication=exchanged / device.link)


def decode(
    model: Architecture, vocab_size: int, rows: int, context: int, device: Device, itemsize: int
) -> Work:
    """One token for each of `rows` answers: reads all weights and every key and value once."""
    counts = parameters(model, vocab_size)
    weights = counts["matrices"] + vocab_size * model.width
    moved = (
        weights * (4 if itemsize == 4 else 8)
        + cache_bytes(model, rows, context, itemsize)
        + 24 * rows * vocab_size
    )
    kernels = model.depth * 60 + 60
    return Work(
        2 * weights * rows / (device.rate * efficiency(device, model.width)),
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
) -> Work:
    """One optimiser step over `batch_tokens`, `device_tokens` a forward pass on each of `gpus` cards."""
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
    )
    return one.times(passes).plus(update(resolve_model(model), vocab_size, optimizer, device, gpus))


# ---------------------------------------------------------------- the seed study's own estimate

SEED_HOURS, SEED_BANDWIDTH_RATIO, SEED_LATENCY = (
    4.0,
    27.0,
    1.4,
)  # of its depth 20 on eight H100; to one RTX 3090


def seed_estimate(flops: float, device: Device) -> float:
    """Hours by the seed study's reasoning: memory-bound kernels, so that only bandwidth counts, with a share for latency.

    flops: of the whole run, against depth 20's 3.9e19. Right for its own two runs, and for the wrong reason: those were
    bound by matrix products, and a card's FLOP/s and bandwidth happen to have fallen in step.
    """
    return (
        SEED_HOURS
        * SEED_BANDWIDTH_RATIO
        * SEED_LATENCY
        * (936e9 / device.bandwidth)
        * flops
        / 3.91e19
    )
