"""How the cost of a step and of a batch grows: `python benchmarks/growth.py --out growth.json`.

    model     tokens per processor second of optimiser steps, each size of the model doubled by itself, beside the smallest
    loader    tokens per processor second of drawing batches from 0.1 to 100 GB of token shards; the files are sparse
    ranks     tokens per processor second, of all processes together, of a step that 1, 2 and 4 share, by DDP and by FSDP
    study     processor seconds a run besides its stages, in studies of 10, 50 and 200 runs

One thread a process, fp32, eager. Ratios carry over to other machines better than the figures themselves.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from steps import OPTIMIZER, Shape, hardware, machine, own_model, random_batches

from paribus.data.loader import DocumentLoader
from paribus.train import parallel
from paribus.train.optim import MuonAdamW

SMALLEST = Shape(depth=2, width=128, head_dim=32, vocab=1024, length=128, rows=8)
GROWTH: dict[str, tuple[int, ...]] = {
    "depth": (2, 4, 8),
    "width": (128, 256, 512),
    "vocab": (1024, 4096, 16384),
    "length": (128, 256, 512),
}
STEPS = 4
SHARED = Shape(depth=4, width=256, head_dim=64, vocab=4096, length=256, rows=16)
RANKS = (1, 2, 4)
RUNS = (10, 50, 200)
GIGABYTES = (0.1, 1.0, 10.0, 100.0)
SHARD_TOKENS = 100_000_000
TOKEN_BYTES = 2
BATCHES = 200


def tokens_per_second(shape: Shape, sharding: str = "ddp") -> float:
    """Of one optimiser step's processor time, the median of some; of all ranks together where several share its rows."""
    found = hardware("cpu", "float32", compiled=False, deterministic=True, threads=1)
    model = own_model(shape.model(), shape.vocab, found)
    forward = parallel.wrap(model, sharding, compiled=False)
    optimizer = MuonAdamW(model, OPTIMIZER)
    batch = random_batches(shape, "cpu")
    seconds = []
    for _ in range(STEPS + 1):
        began = time.process_time()
        tokens, targets = batch()
        (forward(tokens, targets) / tokens.numel()).backward()
        optimizer.clip()
        optimizer.step(1.0)
        optimizer.zero_grad()
        [used] = parallel.sums(time.process_time() - began)
        seconds.append(used)
    return parallel.ranks() * shape.rows * shape.length / statistics.median(seconds[1:])


def of_model() -> dict[str, dict[str, float]]:
    """Tokens per second by what grows and its size."""
    found: dict[str, dict[str, float]] = {}
    for name, sizes in GROWTH.items():
        found[name] = {}
        for size in sizes:
            fields = {key: getattr(SMALLEST, key) for key in SMALLEST.__dataclass_fields__}
            shape = Shape(**fields | {name: size})
            found[name][str(size)] = tokens_per_second(shape)
            print(name, size, round(found[name][str(size)]), flush=True)
    return found


def of_ranks() -> dict[str, dict[str, float]]:
    """Tokens per processor second by sharding and number of processes; the step has the same rows for all."""
    found: dict[str, dict[str, float]] = {}
    for sharding in ("ddp", "fsdp"):
        found[sharding] = {}
        for ranks in RANKS:
            launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
            command = [sys.executable, "-m", *launcher, __file__, "--rank-of", sharding]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            found[sharding][str(ranks)] = float(done.stdout)
            print("ranks", sharding, ranks, round(found[sharding][str(ranks)]), flush=True)
    return found


def as_rank(sharding: str) -> None:
    """One of several processes; the first prints the tokens per processor second of all."""
    with parallel.group("cpu"):
        share = dataclasses.replace(SHARED, rows=SHARED.rows // parallel.ranks())
        speed = tokens_per_second(share, sharding)
        if parallel.rank() == 0:
            print(speed)


def of_study() -> dict[str, float]:
    """Processor seconds a run besides its stages, by the number of runs; of run_overhead.py."""
    found = {}
    for runs in RUNS:
        with tempfile.TemporaryDirectory(prefix="paribus-growth-") as name:
            out = Path(name) / "overhead.json"
            command = [sys.executable, str(Path(__file__).with_name("run_overhead.py"))]
            asked = ["--runs", str(runs), "--seconds", "0", "--out", str(out)]
            subprocess.run([*command, *asked], stdout=subprocess.DEVNULL, check=True)
            found[str(runs)] = json.loads(out.read_text())["warm_cpu_seconds"]
        print("study", runs, found[str(runs)], flush=True)
    return found


def write_sparse(folder: Path, gigabytes: float) -> None:
    """Token shards of zeros that take no room on the disk."""
    left = int(gigabytes * 1e9) // TOKEN_BYTES
    shards = []
    while left > 0:
        tokens = min(left, SHARD_TOKENS)
        name = f"train-{len(shards):05d}.bin"
        with (folder / name).open("wb") as file:
            file.truncate(tokens * TOKEN_BYTES)
        shards.append({"file": name, "tokens": tokens})
        left -= tokens
    manifest = {"dtype": "<u2", "vocab_size": 1024, "train": {"shards": shards}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def of_loader() -> dict[str, float]:
    """Tokens per processor second by gigabytes of shards."""
    found = {}
    for gigabytes in GIGABYTES:
        with tempfile.TemporaryDirectory(prefix="paribus-growth-") as name:
            write_sparse(Path(name), gigabytes)
            loader = DocumentLoader(name, "train", 256, 1)
            found[str(gigabytes)] = drawn(
                lambda step, loader=loader: loader.batch(step, range(16), 16)
            )
        print("loader", gigabytes, round(found[str(gigabytes)]), flush=True)
    return found


def drawn(draw: Callable[[int], Any]) -> float:
    """Tokens per processor second of batches of 16 rows of 256."""
    draw(0)
    began = time.process_time()
    for step in range(BATCHES):
        draw(step)
    return BATCHES * 16 * 256 / (time.process_time() - began)


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "tokens_per_second": of_model,
    "loader": of_loader,
    "ranks": of_ranks,
    "study": of_study,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rank-of", choices=("ddp", "fsdp"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.rank_of:
        as_rank(options.rank_of)
        return
    report: dict[str, Any] = {}
    if options.out and options.out.exists():  # the parts that are not measured anew
        report = json.loads(options.out.read_text(encoding="utf-8"))
    report["machine"] = machine()
    for name in options.parts:
        report[name] = PARTS[name]()
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
