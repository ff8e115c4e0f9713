"""Training speed: tokens per second of whole optimiser steps, and beside it nanochat's on the same shapes.

    git clone https://github.com/karpathy/nanochat /somewhere/nanochat
    python benchmarks/train.py --peer /somewhere/nanochat --out train.json

Depth 4, width 256, sequence 256, batch 16, vocabulary 4,096; relu², QK-norm, untied head, soft-cap, alternate value
embeddings, residual and x0 scalars, full attention, Muon with AdamW on both sides. (nanochat's model also has a smear and
a back-out scalar, which cannot be switched off and cost next to nothing.) Every side is a process of its own that waits
while the others run; rounds alternate, medians are reported. A process keeps a speed of its own, up to a twentieth from the
next one's; `--starts` starts all sides anew so many times. A side that does not start, or does not answer, within its limit
is left out, and the record says so; `--sides` measures some of them. `bfloat16` without hardware for it is slow: it is
measured all the same, because a peer's best is whichever is best here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steps import OPTIMIZER, Shape, hardware, machine, own_model, peer_step, random_batches

SHAPE = Shape(depth=4, width=256, head_dim=64, vocab=4096, length=256, rows=16)
SAY_EVERY = 10.0  # seconds between the lines that say what is waited for
SIDES = (
    "paribus float32",
    "paribus float32 compiled",
    "paribus bfloat16",
    "paribus bfloat16 compiled",
    "nanochat float32",
    "nanochat float32 compiled",
    "nanochat bfloat16",
    "nanochat bfloat16 compiled",
)


def own_step(dtype: str, compiled: bool, threads: int) -> Callable[[], None]:
    """One optimiser step of paribus, as its loop does it."""
    from paribus.train.optim import MuonAdamW

    found = hardware("cpu", dtype, compiled, deterministic=True, threads=threads)
    model = own_model(SHAPE.model(), SHAPE.vocab, found)
    optimizer = MuonAdamW(model, OPTIMIZER)
    forward = model.compiled() if compiled else model  # as `train.compile` does
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


class NotMeasured(Exception):
    """Why a side has no figure."""


class Side:
    """A process that measures one side, and waits while the others run."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": str(args.threads),
            "NANOCHAT_DTYPE": name.split()[1],
        }
        if "compiled" not in name:
            environment["TORCHDYNAMO_DISABLE"] = "1"  # nanochat's optimiser is compiled too
        command = [sys.executable, __file__, "--side", name]
        command += ["--steps", str(args.steps), "--threads", str(args.threads)]
        command += ["--peer", str(args.peer)] if args.peer else []
        self.name = name
        self.lines: queue.Queue[str] = queue.Queue()
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # what it starts to compile with ends with it
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.put(line.strip())
        self.lines.put("")  # the end: a side's own lines are never empty

    def line(self, wanted: Callable[[str], bool], seconds: float, waits_for: str) -> str:
        """The next line that is `wanted`; every other one is a peer's talk."""
        began = said = time.monotonic()
        while True:
            try:
                line = self.lines.get(timeout=1)
            except queue.Empty:
                line = None
            if line is not None and wanted(line):
                return line
            if line == "" and self.process.poll() is not None:
                raise NotMeasured(f"ended with status {self.process.returncode} ({waits_for})")
            waited = time.monotonic() - began
            if waited > seconds:
                raise NotMeasured(f"{waits_for}: not there after {seconds:.0f} s")
            if time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                print(f"{self.name}: {waits_for}, {waited:.0f} s so far", flush=True)

    def speeds(self, seconds: float) -> dict[str, float]:
        """Tokens per second of one round."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: dict[str, float] = json.loads(
            self.line(lambda line: line.startswith("{"), seconds, "waiting for a round's figures")
        )
        return found

    def end(self) -> None:
        """End the process and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def started(names: list[str], args: argparse.Namespace, failed: dict[str, str]) -> dict[str, Side]:
    """The sides that run, each after the other; why the rest does not goes to `failed`."""
    sides = {}
    for name in names:
        print(f"{name}: starting, three steps to warm up", flush=True)
        side = Side(name, args)
        try:
            side.line(
                lambda line: line == "ready", args.start_seconds, "waiting for its first steps"
            )
            sides[name] = side
        except NotMeasured as why:
            give_up(side, why, failed)
    return sides


def give_up(side: Side, why: NotMeasured, failed: dict[str, str]) -> None:
    """End a side and go on without it."""
    side.end()
    failed[side.name] = str(why)
    print(f"{side.name}: left out: {why}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, help="a checkout of nanochat")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), metavar="SIDE")
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps of one round")
    parser.add_argument("--rounds", type=int, default=5, help="of each start")
    parser.add_argument("--starts", type=int, default=1, help="of every side")
    parser.add_argument(
        "--start-seconds", type=float, default=300.0, help="a side's limit for its first steps"
    )
    parser.add_argument("--round-seconds", type=float, default=300.0, help="a side's limit a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        serve(args.side, args.steps, args.threads, args.peer)
        return
    names = [name for name in args.sides if args.peer or name.startswith("paribus")]
    failed: dict[str, str] = {}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(args.starts):
        sides = started([name for name in names if name not in failed], args, failed)
        try:
            for turn in range(args.rounds):
                measure_round(turn + 1, sides, rounds, args.round_seconds, failed)
        finally:
            for side in sides.values():
                side.end()
    measured = {name: speeds for name, speeds in rounds.items() if speeds}
    if not measured:
        sys.exit("train.py: no side could be measured")
    write(args, measured, failed)


def measure_round(
    number: int,
    sides: dict[str, Side],
    rounds: dict[str, list[dict[str, float]]],
    seconds: float,
    failed: dict[str, str],
) -> None:
    """Every side's turn; one that does not answer is left out of the rounds that follow."""
    for name in list(sides):
        try:
            speeds = sides[name].speeds(seconds)
        except (NotMeasured, OSError) as why:
            give_up(sides.pop(name), NotMeasured(str(why)), failed)
            continue
        rounds[name].append(speeds)
        print(
            f"round {number} {name:28} {speeds['wall']:8.0f} tokens/s {speeds['cpu']:8.0f} tokens/cpu-s",
            flush=True,
        )


def write(
    args: argparse.Namespace, rounds: dict[str, list[dict[str, float]]], failed: dict[str, str]
) -> None:
    """The record: medians, ratios where both programs were measured, and what was left out."""
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
        "left_out": failed,
        "rounds": rounds,
    }
    programs = {side.split()[0] for side in medians}
    if programs == {"paribus", "nanochat"}:
        report["ratio_to_peer_best"] = {
            clock: best("paribus", clock) / best("nanochat", clock) for clock in ("wall", "cpu")
        }
    if "paribus" in programs and "nanochat float32 compiled" in medians:
        default = medians["nanochat float32 compiled"]
        report["ratio_to_peer_default"] = {
            clock: best("paribus", clock) / default[clock] for clock in ("wall", "cpu")
        }
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in report.items() if name != "rounds"}, indent=1))


if __name__ == "__main__":
    main()
