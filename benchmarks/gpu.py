"""Training on a GPU: speed and MFU beside nanochat's, memory beside the plan, what deterministic kernels cost.

    git clone https://github.com/karpathy/nanochat /somewhere/nanochat
    python benchmarks/gpu.py --peer /somewhere/nanochat

A few minutes on one card; needs torch, numpy, tokenizers and safetensors. Without a GPU it says so and exits 2.
`--device cpu` tries every part of it anywhere, eager and on small shapes: those figures mean nothing. Each case is a
process of its own:

    paribus dN            our loop, compiled, bf16: prefetching loader on token shards, nanochat's switches and windows
    nanochat dN           its model and optimiser, compiled, bf16, on tokens that are on the card already (with --peer)
    deterministic dN      the deepest of them with train.deterministic
    memory, memory eager  the seed study's switches (full attention, no value embeddings or scalars): the most that the
                          allocator had handed out, and what the planner said, which is of eager code

MFU counts the same FLOPs a token for both sides (model/accounting.py) and the card's dense bf16 peak.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from steps import OPTIMIZER, Shape, hardware, machine, own_model, peer_step

from paribus.config import resolve_model
from paribus.data.loader import DocumentLoader
from paribus.machine.hardware import cpu_name
from paribus.machine.interrupt import Interrupt
from paribus.model.accounting import flops_per_token
from paribus.model.footprint import Batch
from paribus.plan.devices import peak_flops
from paribus.plan.memory import training_step
from paribus.train import parallel
from paribus.train.callback import Callback
from paribus.train.checkpoint import StateStore
from paribus.train.loop import Loop, Plan, peak_memory_bytes
from paribus.train.objectives import NextToken
from paribus.train.optim import MuonAdamW
from paribus.train.stepper import make_stepper

SEED_SWITCHES = {
    "value_embeddings": "none",
    "x0_scalars": False,
    "residual_scalars": False,
    "window_pattern": "L",
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "cuda": {
        "depths": [12, 16],
        "rows": 16,
        "length": 2048,
        "vocab": 65536,
        "head_dim": 128,
        "micro_batches": 4,
        "steps": 20,
        "warmup": 5,
    },
    "cpu": {
        "depths": [1],
        "rows": 2,
        "length": 128,
        "vocab": 512,
        "head_dim": 16,
        "micro_batches": 2,
        "steps": 2,
        "warmup": 1,
    },
}


@dataclass(frozen=True)
class Case:
    """One process's measurement."""

    name: str
    shape: Shape
    device: str
    micro_batches: int  # forward passes of an optimiser step
    steps: int
    warmup: int  # steps before them, compilation included
    compiled: bool
    deterministic: bool = False
    memory: bool = False  # with the seed study's switches
    peer: Path | None = None

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.device == "cuda" else "float32"

    @property
    def step_tokens(self) -> int:
        return self.micro_batches * self.shape.rows * self.shape.length


def cases(options: argparse.Namespace) -> list[Case]:
    """What the options ask for, paribus and nanochat next to each other."""
    found = []
    for depth in options.depths:
        shape = Shape(
            depth, 64 * depth, options.head_dim, options.vocab, options.length, options.rows, "SSSL"
        )
        case = partial(
            Case,
            shape=shape,
            device=options.device,
            micro_batches=options.micro_batches,
            steps=options.steps,
            warmup=options.warmup,
            compiled=options.device == "cuda",
        )
        found.append(case(f"paribus d{depth}"))
        if options.peer:
            found.append(case(f"nanochat d{depth}", peer=options.peer))
    found.append(case(f"deterministic d{depth}", deterministic=True))
    return [*found, case("memory", memory=True), case("memory eager", memory=True, compiled=False)]


# ---------------------------------------------------------------- one case


class Unsaved(StateStore):
    """Keeps nothing: what saving costs is for overheads.py to say."""

    def save(self, *_: object) -> None:
        pass


class Logged(Callback):
    """The metrics of every step, and when they were there: a step's numbers are read when it is done."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.rows: list[dict[str, float]] = []

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        self.times.append(time.perf_counter())
        self.rows.append(metrics)


def write_tokens(folder: Path, vocab: int, count: int) -> None:
    """Token shards of random tokens."""
    tokens = np.random.default_rng(0).integers(0, vocab, count).astype("<u2")
    tokens.tofile(folder / "train-00000.bin")
    shard = {"file": "train-00000.bin", "tokens": count}
    (folder / "manifest.json").write_text(
        json.dumps({"dtype": "<u2", "vocab_size": vocab, "train": {"shards": [shard]}})
    )


def own(case: Case) -> dict[str, Any]:
    """Our loop, as a stage runs it."""
    shape, found = case.shape, hardware(case.device, case.dtype, case.compiled, case.deterministic)
    model = own_model(shape.model(**SEED_SWITCHES if case.memory else {}), shape.vocab, found)
    logged = Logged()
    times, rows = logged.times, logged.rows
    flops, peak = flops_per_token(model.config, shape.vocab), peak_flops(found)
    plan = Plan(case.warmup + case.steps, lambda step: 1.0, flops, peak, math.inf)
    with tempfile.TemporaryDirectory(prefix="paribus-gpu-") as name:
        write_tokens(Path(name), shape.vocab, 64 * case.step_tokens + 1)
        objective = NextToken(
            DocumentLoader(name, "train", shape.length, 1),
            case.micro_batches * shape.rows,
            shape.rows,
        )
        forward = parallel.wrap(model, "ddp", case.compiled)
        stepper = make_stepper(model, forward, MuonAdamW(model, OPTIMIZER), objective, seed=1)
        store = Unsaved(Path(name) / "state", 1)
        Loop(stepper, objective, plan, store, Interrupt(), logged).run()
    waited = rows[-1]["train/data_wait_seconds"] - rows[case.warmup - 1]["train/data_wait_seconds"]
    seconds = (times[-1] - times[case.warmup - 1]) / case.steps
    planned = training_step(
        model.config,
        shape.vocab,
        OPTIMIZER,
        Batch(
            shape.rows,
            shape.length,
            2 if case.dtype == "bfloat16" else 4,
            cuda=case.device == "cuda",
        ),
        accumulate=case.micro_batches > 1,
        checkpointing=False,
    )
    return figures(case, seconds, flops, peak, model.device) | {
        "data_wait_seconds": waited / case.steps,
        "planned_bytes": planned.tensors,
        "loss": rows[-1]["train/loss"],
        "first_step_seconds": rows[0]["train/seconds"],
        "nonfinite": rows[-1]["train/nonfinite"],
    }


def theirs(case: Case) -> dict[str, Any]:
    """nanochat's step, which waits for the card only at both ends of the measurement."""
    assert case.peer
    found = hardware(case.device, case.dtype, case.compiled, deterministic=False)
    step, model = peer_step(case.peer, case.shape, case.device, case.compiled, case.micro_batches)
    for _ in range(case.warmup):
        step()
    loss = step().item()
    began = time.perf_counter()
    for _ in range(case.steps):
        loss = step()
    loss = loss.item()
    seconds = (time.perf_counter() - began) / case.steps
    flops = flops_per_token(resolve_model(case.shape.model()), case.shape.vocab)
    return figures(case, seconds, flops, peak_flops(found), model.get_device()) | {"loss": loss}


def figures(
    case: Case, seconds: float, flops: float, peak: float, device: torch.device
) -> dict[str, Any]:
    """What every case says."""
    speed = case.step_tokens / seconds
    return {
        "tokens_per_second": speed,
        "mfu": speed * flops / peak,
        "step_seconds": seconds,
        "step_tokens": case.step_tokens,
        "flops_per_token": flops,
        "peak_flops": peak,
        "peak_memory_bytes": peak_memory_bytes(device),
    }


def measure(case: Case) -> dict[str, Any]:
    return theirs(case) if case.peer else own(case)


# ---------------------------------------------------------------- all of them


def in_process(case: Case) -> dict[str, Any]:
    """A case in a process of its own, started with this one's options; what went wrong, if it did."""
    environment = os.environ | {"NANOCHAT_DTYPE": case.dtype}
    if not case.compiled:
        environment["TORCHDYNAMO_DISABLE"] = "1"  # nanochat's optimiser is compiled too
    done = subprocess.run(
        [sys.executable, *sys.argv, "--case", case.name],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        return {"error": f"exit status {done.returncode}; what it said is above"}
    return json.loads(done.stdout.splitlines()[-1])


def summary(rounds: dict[str, list[dict[str, Any]]], depths: list[int]) -> dict[str, Any]:
    """Ratios of the medians over rounds; a case that failed has none."""

    def median(name: str, key: str = "tokens_per_second") -> float:
        values = [one[key] for one in rounds.get(name, []) if "error" not in one]
        return statistics.median(values) if values else math.nan

    deepest = depths[-1]
    found = {
        f"d{depth}_tokens_per_second_to_peer": median(f"paribus d{depth}")
        / median(f"nanochat d{depth}")
        for depth in depths
    }
    found |= {f"d{depth}_mfu": median(f"paribus d{depth}", "mfu") for depth in depths}
    found |= {
        f"d{depth}_data_wait_share": median(f"paribus d{depth}", "data_wait_seconds")
        / median(f"paribus d{depth}", "step_seconds")
        for depth in depths
    }
    found["deterministic_cost"] = (
        median(f"paribus d{deepest}") / median(f"deterministic d{deepest}") - 1
    )
    found |= {
        f"{name.replace(' ', '_')}_measured_to_planned": median(name, "peak_memory_bytes")
        / median(name, "planned_bytes")
        for name in ("memory", "memory eager")
    }
    return {name: value for name, value in found.items() if not math.isnan(value)}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, help="a checkout of nanochat")
    parser.add_argument("--device", choices=list(DEFAULTS), default="cuda")
    parser.add_argument("--depths", nargs="+", type=int, metavar="DEPTH")
    for name in ("rows", "length", "vocab", "head-dim", "micro-batches", "steps", "warmup"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--rounds", type=int, default=1, help="of all cases; medians are compared")
    parser.add_argument("--out", type=Path, help="default: gpu-CARD.json")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name, value in DEFAULTS[options.device].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main() -> int:
    options = parse()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            f"gpu.py: torch {torch.__version__} sees no CUDA device here; --device cpu tries this on small shapes",
            file=sys.stderr,
        )
        return 2
    if options.case:
        print(
            json.dumps(measure(next(case for case in cases(options) if case.name == options.case)))
        )
        return 0
    rounds: dict[str, list[dict[str, Any]]] = {case.name: [] for case in cases(options)}
    for _ in range(options.rounds):
        for case in cases(options):
            rounds[case.name].append(in_process(case))
            print(f"{case.name}: {json.dumps(rounds[case.name][-1])}", flush=True)
    return write(options, rounds)


def write(options: argparse.Namespace, rounds: dict[str, list[dict[str, Any]]]) -> int:
    """The record; 1 if a case failed."""
    card = torch.cuda.get_device_name() if options.device == "cuda" else cpu_name()
    settings = {name: getattr(options, name) for name in DEFAULTS[options.device]}
    record = {
        "card": card,
        "cuda": torch.version.cuda,
        "machine": machine(),
        "settings": settings,
        "summary": summary(rounds, options.depths),
        "cases": rounds,
    }
    slug = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    out = options.out or Path(f"gpu-{slug}.json")
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record["summary"], indent=1), f"written to {out}", sep="\n")
    return int(any("error" in one for results in rounds.values() for one in results))


if __name__ == "__main__":
    sys.exit(main())
