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
import dataclasses
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

DEPTH, WIDTH, HEAD_DIM, VOCAB, LENGTH, ROWS = 4, 256, 64, 4096, 256, 16
SIDES = ("paribus float32", "paribus float32 compiled", "paribus bfloat16 compiled",
         "nanochat float32", "nanochat float32 compiled", "nanochat bfloat16 compiled")


def batches() -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randint(0, VOCAB, (ROWS, LENGTH + 1), generator=generator)
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    return batch


def own_step(dtype: str, compiled: bool) -> Callable[[], None]:
    """One optimiser step of paribus, as its loop does it."""
    from paribus import config
    from paribus.model.gpt import GPT
    from paribus.train.optim import MuonAdamW

    settings = config.load_config(Path(__file__).parents[1] / "params.yaml")
    shape = dataclasses.replace(settings.model, depth=DEPTH, width=WIDTH, head_dim=HEAD_DIM, seq_len=LENGTH,
                                value_embeddings="alternate", x0_scalars=True, residual_scalars=True, mlp="relu2",
                                qk_norm=True, softcap=15.0, window_pattern="L", tied_head=False)
    model = GPT(shape, VOCAB, getattr(torch, dtype))
    model.initialise(1)
    optimizer = MuonAdamW(model, settings.optimizer)
    forward = torch.compile(model) if compiled else model
    batch = batches()

    def step() -> None:
        tokens, targets = batch()
        loss = forward(tokens, targets) / tokens.numel()
        loss.backward()
        optimizer.clip()
        optimizer.step(1.0)
        optimizer.zero_grad()
        loss.item()

    return step


def peer_step(folder: Path, compiled: bool) -> Callable[[], None]:
    """One optimiser step of nanochat, as its pretraining script does it; its dtype comes from NANOCHAT_DTYPE."""
    sys.path.insert(0, str(folder))
    gpt = importlib.import_module("nanochat.gpt")
    shape = gpt.GPTConfig(sequence_len=LENGTH, vocab_size=VOCAB, n_layer=DEPTH, n_head=WIDTH // HEAD_DIM,
                          n_kv_head=WIDTH // HEAD_DIM, n_embd=WIDTH, window_pattern="L")
    with torch.device("meta"):
        model = gpt.GPT(shape)
    model.to_empty(device="cpu")
    model.init_weights()
    optimizer = model.setup_optimizer()
    forward = torch.compile(model, dynamic=False) if compiled else model
    batch = batches()

    def step() -> None:
        loss = forward(*batch())
        loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        loss.item()

    return step


def serve(side: str, steps: int, peer: Path | None) -> None:
    """Answer every line on stdin with the tokens per second (wall, processor) of so many steps."""
    program, dtype, *compiled = side.split()
    step = peer_step(peer, bool(compiled)) if program == "nanochat" and peer else own_step(dtype, bool(compiled))
    for _ in range(3):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            step()
        tokens = steps * ROWS * LENGTH
        speeds = {"wall": tokens / (time.perf_counter() - wall), "cpu": tokens / (time.process_time() - cpu)}
        print(json.dumps(speeds), flush=True)


def start(side: str, args: argparse.Namespace) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "NANOCHAT_DTYPE": side.split()[1]}
    if "compiled" not in side:
        environment["TORCHDYNAMO_DISABLE"] = "1"  # nanochat's optimiser is compiled too
    command = [sys.executable, __file__, "--side", side, "--steps", str(args.steps)]
    command += ["--peer", str(args.peer)] if args.peer else []
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    line = (process.stdout or sys.stdin).readline()
    while line.strip() != "ready":  # a peer prints what it likes while it starts
        if not line:
            sys.exit(f"{side}: did not start")
        line = (process.stdout or sys.stdin).readline()
    return process


def ask(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdin and process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="a checkout of nanochat")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), metavar="SIDE")
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps of one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return serve(args.side, args.steps, args.peer)
    sides = [side for side in args.sides if args.peer or side.startswith("paribus")]
    processes = {side: start(side, args) for side in sides}
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for turn in range(args.rounds):
        for side in sides:
            speeds = ask(processes[side])
            rounds[side].append(speeds)
            print(f"round {turn + 1} {side:28} {speeds['wall']:8.0f} tokens/s {speeds['cpu']:8.0f} tokens/cpu-s", flush=True)
    for process in processes.values():
        process.kill()
    write(args, rounds)


def write(args: argparse.Namespace, rounds: dict[str, list[dict[str, float]]]) -> None:
    medians = {side: {clock: statistics.median(one[clock] for one in speeds) for clock in ("wall", "cpu")}
               for side, speeds in rounds.items()}

    def best(program: str, clock: str) -> float:
        return max(speed[clock] for side, speed in medians.items() if side.startswith(program))

    report: dict[str, Any] = {
        "tokens_per_second": medians, "rounds": rounds, "threads": args.threads, "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    if args.peer:
        report["ratio_to_peer_best"] = {clock: best("paribus", clock) / best("nanochat", clock) for clock in ("wall", "cpu")}
    if "nanochat float32 compiled" in medians:
        default = medians["nanochat float32 compiled"]
        report["ratio_to_peer_default"] = {clock: best("paribus", clock) / default[clock] for clock in ("wall", "cpu")}
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in report.items() if name != "rounds"}, indent=1))


if __name__ == "__main__":
    main()
