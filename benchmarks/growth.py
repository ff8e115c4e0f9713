"""How the cost of a step and of a batch grows: `python benchmarks/growth.py --out growth.json`.

    model     tokens per processor second of optimiser steps, each size of the model doubled by itself, beside the smallest
    loader    tokens per processor second of drawing batches from 0.1 to 100 GB of token shards; the files are sparse

One thread, fp32, eager. Ratios carry over to other machines better than the figures themselves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from steps import OPTIMIZER, Shape, hardware, machine, own_model, random_batches

from paribus.data.loader import DocumentLoader
from paribus.train.optim import MuonAdamW

SMALLEST = Shape(depth=2, width=128, head_dim=32, vocab=1024, length=128, rows=8)
GROWTH: dict[str, tuple[int, ...]] = {
    "depth": (2, 4, 8),
    "width": (128, 256, 512),
    "vocab": (1024, 4096, 16384),
    "length": (128, 256, 512),
}
STEPS = 4
GIGABYTES = (0.1, 1.0, 10.0, 100.0)
SHARD_TOKENS = 100_000_000
TOKEN_BYTES = 2
BATCHES = 200


def tokens_per_second(shape: Shape) -> float:
    """Of one optimiser step's processor time, the median of some."""
    found = hardware("cpu", "float32", compiled=False, deterministic=True, threads=1)
    model = own_model(shape.model(), shape.vocab, found)
    optimizer = MuonAdamW(model, OPTIMIZER)
    batch = random_batches(shape, "cpu")
    seconds = []
    for _ in range(STEPS + 1):
        began = time.process_time()
        tokens, targets = batch()
        (model(tokens, targets) / tokens.numel()).backward()
        optimizer.clip()
        optimizer.step(1.0)
        optimizer.zero_grad()
        seconds.append(time.process_time() - began)
    return shape.rows * shape.length / statistics.median(seconds[1:])


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = {"machine": machine(), "tokens_per_second": of_model(), "loader": of_loader()}
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
