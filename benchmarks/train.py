"""Training speed: tokens per second of whole optimiser steps, and beside it nanochat's on the same shapes.

    git clone https://github.com/karpathy/nanochat /somewhere/nanochat
    python benchmarks/train.py --peer /somewhere/nanochat --out train.json

Depth 4, width 256, sequence 256, batch 16, vocabulary 4,096; relu², QK-norm, untied head, soft-cap, alternate value
embeddings, residual and x0 scalars, full attention, Muon with AdamW on both sides. (nanochat's model also has a smear and
a back-out scalar, which cannot be switched off and cost next to nothing.) Every side is a process of its own that waits
while the others run; rounds alternate, medians are reported. `bfloat16` without hardware for it is slow: it is measured
all the same, because a peer's best is whichever is best here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steps import OPTIMIZER, Shape, hardware, machine, own_model, peer_step, random_batches

SHAPE = Shape(depth=4, width=256, head_dim=64, vocab=4096, length=256, rows=16)
SIDES = (
    "paribus float32",
    "paribus float32 compiled",
    "paribus bfloat16 compiled",
    "nanochat float32",
    "nanochat float32 compiled",
    "nanochat bfloat16 compiled",
)


def own_step(dtype: str, compiled: bool, threads: int) -> Callable[[], None]:
    """One optimiser step of paribus, as its loop does it."""
    import torch

    from paribus.train.optim import MuonAdamW

    found = hardware("cpu", dtype, compiled, deterministic=True, threads=threads)
    model = own_model(SHAPE.model(), SHAPE.vocab, found)
    optimizer = MuonAdamW(model, OPTIMIZER)
    forward = torch.compile(model) if compiled else model
    batch = random_batches(SHAPE, "cpu")

    def step() -> None:
        tokens, targets = batch()
        loss = forward(tokens, targets) / tokens.numel()
        loss.backward()
        norm = optimizer.clip()
        if loss.isfinite() and norm.isfinite():
            optimizer.step(1.0)
        optimizer.zero_grad()

    return step


def their_step(folder: Path, compiled: bool) -> Callable[[], None]:
    """One optimiser step of nanochat."""
    step, _ = peer_step(folder, SHAPE, "cpu", compiled)
    return lambda: step().item()


def serve(side: str, steps: int, threads: int, peer: Path | None) -> None:
    """Answer every line on stdin with the tokens per second (wall, processor) of so many steps."""
    program, dtype, *compiled = side.split()
    step = (
        their_step(peer, bool(compiled))
        if program == "nanochat" and peer
        else own_step(dtype, bool(compiled), threads)
    )
    for _ in range(3):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            step()
        tokens = steps * SHAPE.rows * SHAPE.length
        speeds = {
            "wall": tokens / (time.perf_counter() - wall),
            "cpu": tokens / (time.process_time() - cpu),
        }
        print(json.dumps(speeds), flush=True)


def start(side: str, args: argparse.Namespace) -> subprocess.Popen[str]:
    environment = os.environ | {
        "OMP_NUM_THREADS": str(args.threads),
        "NANOCHAT_DTYPE": side.split()[1],
    }
    if "compiled" not in side:
        environment["TORCHDYNAMO_DISABLE"] = "1"  # nanochat's optimiser is compiled too
    command = [
        sys.executable,
        __file__,
        "--side",
        side,
        "--steps",
        str(args.steps),
        "--threads",
        str(args.threads),
    ]
    command += ["--peer", str(args.peer)] if args.peer else []
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    line = (process.stdout or sys.stdin).readline()
    while line.strip() != "ready":  # a peer prints what it likes while it starts
        if not line:
            sys.exit(f"{side}: did not start")
        line = (process.stdout or sys.stdin).readline()
    return process


def ask(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, help="a checkout of nanochat")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), metavar="SIDE")
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps of one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        serve(args.side, args.steps, args.threads, args.peer)
        return
    sides = [side for side in args.sides if args.peer or side.startswith("paribus")]
    processes = {side: start(side, args) for side in sides}
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for turn in range(args.rounds):
        for side in sides:
            speeds = ask(processes[side])
            rounds[side].append(speeds)
            print(
                f"round {turn + 1} {side:28} {speeds['wall']:8.0f} tokens/s {speeds['cpu']:8.0f} tokens/cpu-s",
                flush=True,
            )
    for process in processes.values():
        process.kill()
    write(args, rounds)


def write(args: argparse.Namespace, rounds: dict[str, list[dict[str, float]]]) -> None:
    medians = {
        side: {clock: statistics.median(one[clock] for one in speeds) for clock in ("wall", "cpu")}
        for side, speeds in rounds.items()
    }

    def best(program: str, clock: str) -> float:
        return max(speed[clock] for side, speed in medians.items() if side.startswith(program))

    report: dict[str, Any] = {
        "machine": machine(),
        "threads": args.threads,
        "tokens_per_second": medians,
        "rounds": rounds,
    }
    if any(side.startswith("nanochat") for side in medians):
        report["ratio_to_peer_best"] = {
            clock: best("paribus", clock) / best("nanochat", clock) for clock in ("wall", "cpu")
        }
    if "nanochat float32 compiled" in medians:
        default = medians["nanochat float32 compiled"]
        report["ratio_to_peer_default"] = {
            clock: best("paribus", clock) / default[clock] for clock in ("wall", "cpu")
        }
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in report.items() if name != "rounds"}, indent=1))


if __name__ == "__main__":
    main()
