"""What the checks of a card share: the sizes they take, and models, steps and states at these sizes."""

from __future__ import annotations

import functools
import hashlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paribus.config import merge, parse_config, read_yaml
from paribus.machine.hardware import Hardware, detect_hardware
from paribus.machine.process import set_up_process
from paribus.model.gpt import GPT
from paribus.plan.devices import peak_flops
from paribus.recipe import Recipe
from paribus.train.stepper import make_stepper, pinned
from paribus.train.trainer import RandomRows, Trainer, new_model, next_token

SEED = 1


@dataclass(frozen=True)
class Sizes:
    """What is measured: on a card its real sizes, on a CPU the smallest that run the same code."""

    depths: tuple[int, ...]
    seq_len: int
    vocab_size: int
    head_dim: int
    rows: int  # of a forward pass
    passes: int  # forward passes of an optimiser step
    steps: int  # timed
    warmup: int  # steps before them, compilation included
    grid: tuple[tuple[int, int], ...]  # (depth, rows) whose memory is measured
    samples: tuple[int, ...]  # answers side by side
    new_tokens: int  # of an answer

    @property
    def window(self) -> int:
        """A quarter of the sequence, up to a multiple of 128, as nanochat's; half of a short one."""
        return min(-(-self.seq_len // 4 // 128) * 128, self.seq_len // 2)

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimiser step."""
        return self.passes * self.rows * self.seq_len


SIZES = {
    "cuda": Sizes(
        depths=(12, 16),
        seq_len=2048,
        vocab_size=32768,
        head_dim=128,
        rows=8,
        passes=4,
        steps=10,
        warmup=4,
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
        steps=1,
        warmup=0,
        grid=((1, 1),),
        samples=(2,),
        new_tokens=4,
    ),
}


@dataclass(frozen=True)
class Bench:
    """One check's place: the device, the sizes, and a checkout of nanochat where one was given."""

    device: str
    sizes: Sizes
    peer: Path | None = None

    @property
    def compiles(self) -> bool:
        """Whether speeds are of compiled models."""
        return self.device == "cuda"

    @property
    def dtype(self) -> str:
        """Of products: bf16 where the card has it."""
        return "auto" if self.device == "cuda" else "float32"

    def recipe(self, depth: int, **changes: Any) -> Recipe:
        """Nanochat's model of a depth, with its switches and windows. changes: keys with __ for the dot."""
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
            "pretrain.batch_tokens": sizes.step_tokens,
            "pretrain.device_batch_size": sizes.rows,
            "train.device": self.device,
            "train.dtype": self.dtype,
            "train.compile": False,
            "train.processes": 1,
            "train.save_seconds": 0.0,
        }
        overrides |= {key.replace("__", "."): value for key, value in changes.items()}
        return Recipe.of(parse_config(merge(_params(), overrides)), sizes.vocab_size)

    def trainer(self, depth: int, **changes: Any) -> tuple[Trainer, Hardware]:
        """A model at its first values and all that trains it, in a process that is set up as a stage's."""
        recipe = self.recipe(depth, **changes)
        hardware = detect_hardware(recipe.config.train)
        set_up_process(hardware, SEED)
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
    """Move every weight, so that no part of the model is at zero, where an error would not show."""
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


def timed_steps(bench: Bench, trainer: Trainer) -> list[float]:
    """Seconds of each timed step of the loop's own stepper, on rows that are there."""
    objective = trainer.objective
    torch.manual_seed(SEED)
    work = objective.work(0)
    if bench.device == "cuda":
        work = pinned(work)
    stepper = make_stepper(trainer.model, trainer.forward, trainer.optimizer, objective, SEED)
    seconds = []
    for step in range(bench.sizes.warmup + bench.sizes.steps):
        if step == bench.sizes.warmup:
            bench.synchronise()
        began = time.perf_counter()
        stepper.submit(step, work, 1e-3)
        if step >= bench.sizes.warmup:
            seconds.append(time.perf_counter() - began)
    stepper.flush()
    bench.synchronise()
    return seconds


def speed(bench: Bench, recipe: Recipe, hardware: Hardware, seconds: list[float]) -> dict[str, Any]:
    """Tokens per second and MFU of an optimiser step's median time."""
    step = statistics.median(seconds)
    rate = bench.sizes.step_tokens / step
    return {
        "tokens_per_second": rate,
        "mfu": rate * recipe.flops_per_token / peak_flops(hardware),
        "step_seconds": step,
    }


def seconds_of(work: Callable[[], object], bench: Bench) -> float:
    """Of one call, the card's work included."""
    bench.synchronise()
    began = time.perf_counter()
    work()
    bench.synchronise()
    return time.perf_counter() - began
