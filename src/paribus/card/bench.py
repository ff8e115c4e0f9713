"""What the checks of a card share: the sizes they take, and models, steps and states at these sizes."""

from __future__ import annotations

import functools
import hashlib
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paribus.config import merge, parse_config, read_yaml
from paribus.machine.hardware import FP8_CARDS, Hardware, detect_hardware, own_card
from paribus.machine.process import set_up_process
from paribus.model.gpt import GPT
from paribus.model.window_kernel import settled
from paribus.plan.devices import device_named, known_device, peak_flops
from paribus.plan.estimate import training_step_work
from paribus.plan.memory import max_device_batch
from paribus.recipe import Recipe
from paribus.train.stepper import make_stepper, pinned
from paribus.train.trainer import RandomRows, Trainer, new_model, next_token

SEED = 1
Figures = dict[str, Any]  # name -> number or numbers, as the record keeps them
STEP_RATE = 1e-3  # of the learning rates, in steps that are only timed


@dataclass(frozen=True)
class Sizes:
    """What is measured: on a card its real sizes, on a CPU the smallest that run the same code."""

    depths: tuple[int, ...]
    seq_len: int
    vocab_size: int
    head_dim: int
    rows: int  # of a forward pass, at most
    passes: int  # forward passes of an optimiser step
    warmup: int  # steps before the timed ones, compilation included
    steps: int  # timed, at most
    seconds: float  # after which no further step is timed
    proof_rows: int  # of a forward pass, where results are compared and not timed
    grid: tuple[tuple[int, int], ...]  # (depth, rows) whose memory is measured
    samples: tuple[int, ...]  # answers side by side
    new_tokens: int  # of an answer

    @property
    def window(self) -> int:
        """A quarter of the sequence, up to a multiple of 128, as nanochat's; half of a short one."""
        return min(-(-self.seq_len // 4 // 128) * 128, self.seq_len // 2)


SIZES = {
    "cuda": Sizes(
        depths=(12, 16),
        seq_len=2048,
        vocab_size=32768,
        head_dim=128,
        rows=8,
        passes=2,
        warmup=3,
        steps=10,
        seconds=15.0,
        proof_rows=2,
        grid=((8, 4), (8, 8), (12, 4)),
        samples=(1, 16, 128),
        new_tokens=128,
    ),
    "cpu": Sizes(
        depths=(1,),
        seq_len=32,
        vocab_size=320,
        head_dim=16,
        rows=2,
        passes=2,
        warmup=0,
        steps=1,
        seconds=1.0,
        proof_rows=2,
        grid=((1, 1),),
        samples=(2,),
        new_tokens=4,
    ),
}


def keep_nothing(figures: Figures) -> None:
    """Where nobody reads a check's figures before it ends."""


@dataclass(frozen=True)
class Bench:
    """One check's place: the device, the sizes, and a checkout of nanochat where one was given.

    say: takes figures as soon as they are measured, so that a check that breaks down later has them.
    """

    device: str
    sizes: Sizes
    peer: Path | None = None
    say: Callable[[Figures], None] = keep_nothing

    @property
    def compiles(self) -> bool:
        """Whether speeds are of compiled models."""
        return self.device == "cuda"

    @property
    def dtype(self) -> str:
        """Of products: bf16 where the card has it."""
        return "auto" if self.device == "cuda" else "float32"

    @property
    def precisions(self) -> tuple[str, ...]:
        """What the device multiplies in: values of `train.dtype`, and fp8 (`train.fp8`)."""
        if self.device != "cuda":
            return ("float32",)
        capability = torch.cuda.get_device_capability(own_card())
        return ("float32", "bfloat16", *(["fp8"] if capability >= FP8_CARDS else []))

    def recipe(self, depth: int, rows: int, **changes: Any) -> Recipe:
        """Nanochat's model of a depth, with its switches and windows.

        rows: of a forward pass. changes: keys of params.yaml with __ for the dot.
        """
        sizes = self.sizes
        overrides: dict[str, Any] = {
            "seed": SEED,
            "model.depth": depth,
            "model.aspect_ratio": 64,
            "model.head_dim": sizes.head_dim,
            "model.seq_len": sizes.seq_len,
            "model.mlp": "relu2",
            "model.rope_base": 100_000.0,
            "model.window_pattern": "SSSL",
            "model.window": sizes.window,
            "model.value_embeddings": "alternate",
            "pretrain.batch_tokens": sizes.passes * rows * sizes.seq_len,
            "pretrain.device_batch_size": rows,
            "train.device": self.device,
            "train.dtype": self.dtype,
            "train.compile": False,
            "train.processes": 1,
            "train.save_seconds": 0.0,
        }
        overrides |= {key.replace("__", "."): value for key, value in changes.items()}
        return Recipe.of(parse_config(merge(_params(), overrides)), sizes.vocab_size)

    def rows(self, depth: int) -> int:
        """Of a forward pass whose speed is measured: a power of two that the planner promises to fit; 0: none does."""
        recipe = self.recipe(depth, self.sizes.rows)
        dtype = detect_hardware(recipe.config.train).dtype
        most = max_device_batch(
            recipe, "pretrain", self.free_memory(), device=self.device, dtype=dtype
        )
        fits = min(most, self.sizes.rows)
        return 1 << (fits.bit_length() - 1) if fits else 0

    def free_memory(self) -> int:
        """Bytes of the card that are free, what this process holds included; on a CPU a small figure that tries the code."""
        if self.device != "cuda":
            return 2**30
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved()

    def trainer(self, depth: int, rows: int, **changes: Any) -> tuple[Trainer, Hardware]:
        """A model at its first values and all that trains it, in a process that is set up as a stage's.

        Args:
            depth: of the model, blocks.
            rows: of one forward pass.
            changes: to the recipe, as `recipe` takes them.
        """
        recipe = self.recipe(depth, rows, **changes)
        hardware = detect_hardware(recipe.config.train)
        set_up_process(hardware, SEED)
        hardware = settled(hardware, recipe.architecture)
        model = new_model(recipe, hardware).train()
        objective = next_token(RandomRows(recipe), recipe, "pretrain")
        trainer = Trainer(recipe, "pretrain", model, objective, hardware)
        return trainer, hardware

    def synchronise(self) -> None:
        """Wait for the card."""
        if self.device == "cuda":
            torch.cuda.synchronize()


@functools.cache
def _params() -> dict[str, Any]:
    """params.yaml: what the checks do not set is as there."""
    return read_yaml("params.yaml")


def disturb(model: GPT, std: float = 0.02) -> None:
    """Move every weight, so that no part of the model is at zero, where an error would not show.

    Args:
        model: that is changed in place.
        std: of what is added to each weight.
    """
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * std
            parameter.add_(noise.to(parameter.device))


def digest(model: GPT) -> str:
    """sha256 of the weights."""
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        found.update(name.encode())
        found.update(parameter.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()


def timed_steps(
    bench: Bench, trainer: Trainer, warmup: int | None = None, steps: int | None = None
) -> list[float]:
    """Seconds of each timed step of the loop's own stepper, on rows that are there.

    Args:
        bench: its sizes, and the seconds after which no more steps are timed.
        trainer: whose steps they are.
        warmup: steps before the first timed one; None: the bench's.
        steps: to time; None: the bench's.
    """
    sizes, objective = bench.sizes, trainer.objective
    warmup = sizes.warmup if warmup is None else warmup
    patience = sizes.seconds if steps is None else math.inf
    steps = sizes.steps if steps is None else steps
    torch.manual_seed(SEED)
    work = objective.work(0)
    if bench.device == "cuda":
        work = pinned(work)
    stepper = make_stepper(trainer.model, trainer.forward, trainer.optimizer, objective, SEED)
    for step in range(warmup):
        stepper.submit(step, work, STEP_RATE)
    seconds: list[float] = []  # the stepper stays one step ahead of the card, as in a run
    while len(seconds) < steps and sum(seconds) < patience:
        began = time.perf_counter()
        stepper.submit(warmup + len(seconds), work, STEP_RATE)
        seconds.append(time.perf_counter() - began)
    stepper.flush()
    bench.synchronise()
    return seconds


def speed(recipe: Recipe, hardware: Hardware, seconds: list[float]) -> Figures:
    """Tokens per second and MFU of an optimiser step's median time.

    Args:
        recipe: of the run, for its tokens and FLOPs.
        hardware: that it ran on, for the peak.
        seconds: of each step.
    """
    step = statistics.median(seconds)
    rate = recipe.batch_tokens("pretrain") / step
    return {
        "tokens_per_second": rate,
        "planned_tokens_per_second": planned_speed(recipe, hardware),
        "mfu": rate * recipe.flops_per_token / peak_flops(hardware),
        "step_seconds": step,
        "rows": recipe.pretrain.device_batch_size,
    }


def planned_speed(recipe: Recipe, hardware: Hardware) -> float | None:
    """Tokens per second of training by the planner; None for what is not in devices.yaml."""
    if not known_device(hardware.device_name):
        return None
    device = device_named(hardware.device_name, hardware.dtype)
    item = 4 if hardware.dtype == "float32" else 2
    work = training_step_work(recipe, "pretrain", device, item)
    return recipe.batch_tokens("pretrain") / work.total


def seconds_of(work: Callable[[], object], bench: Bench) -> float:
    """Of one call, the card's work included.

    Args:
        work: to time.
        bench: that knows the card.
    """
    bench.synchronise()
    began = time.perf_counter()
    work()
    bench.synchronise()
    return time.perf_counter() - began
