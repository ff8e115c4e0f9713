"""Training beside busy processes: `python benchmarks/neighbours.py --out neighbours.json`.

The default's optimiser step is repeated in a process of its own, alone and beside one and two processes that compute without
end at nice 19 in another session, as another user's or another terminal's would. Phases alternate; medians are compared:
`share` is the speed beside them over the undisturbed one. Sides differ in how OpenMP's threads wait for each other.

    watched    as paribus has it: they spin, and sleep at once while the process finds itself short of cores
    spin       they spin for a millisecond, whatever happens
    passive    OMP_WAIT_POLICY=passive: they always sleep at once

Linux's `kernel.sched_autogroup_enabled` decides whether niceness counts between sessions at all; the record says how it
stands, and `--autogroup` sets it for the time of the run (root) and puts it back. With `--nice-sessions` the neighbours make
their session nice as well, by /proc/PID/autogroup. The file holds a record for each: `equal` shares of sessions, `nice`
sessions, and `off`. Other load on the machine spoils the figures; the record has it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steps import ROOT, hardware, machine

AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")
WAITING: dict[str, dict[str, str]] = {
    "watched": {},
    "spin": {"GOMP_SPINCOUNT": "200001"},  # any number but paribus' own, at which it would watch
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
NEIGHBOURS = (0, 1, 2)
# Computes without end, but not longer than the benchmark, however that ends.
BUSY = """
import os, sys
if sys.argv[1:] == ["nice-session"]:
    open("/proc/self/autogroup", "w").write("19")
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


def serve(threads: int) -> None:
    """Answer every line on stdin, a number of seconds, with the tokens per second of steps in that time."""
    from paribus.config import load_config
    from paribus.recipe import Recipe
    from paribus.train.trainer import RandomRows, Trainer, new_model, next_token

    recipe = Recipe.of(load_config(ROOT / "params.yaml"), vocab_size=1024)
    found = hardware("cpu", "auto", compiled=False, deterministic=True, threads=threads)
    rows = next_token(RandomRows(recipe), recipe, "pretrain")
    trainer = Trainer(recipe, "pretrain", new_model(recipe, found), rows, found)
    trainer.time_step(0)
    print("ready", flush=True)
    tokens_a_step = recipe.rows("pretrain") * recipe.architecture.seq_len
    for line in sys.stdin:
        began = time.perf_counter()
        tokens = 0
        while time.perf_counter() - began < float(line):
            trainer.time_step(0)
            tokens += tokens_a_step
        print(tokens / (time.perf_counter() - began), flush=True)


@contextlib.contextmanager
def neighbours(count: int, nice_sessions: bool) -> Iterator[None]:
    """So many processes that compute without end, at the lowest priority, each in a session of its own."""
    command = ["nice", "-n", "19", sys.executable, "-c", BUSY]
    if nice_sessions:
        command.append("nice-session")
    running = [subprocess.Popen(command, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


@contextlib.contextmanager
def autogroup(value: int | None) -> Iterator[None]:
    """The kernel's switch at `value`, then as it was. None: as it is."""
    if value is None:
        yield
        return
    before = AUTOGROUP.read_text(encoding="ascii")
    AUTOGROUP.write_text(f"{value}\n", encoding="ascii")
    try:
        yield
    finally:
        AUTOGROUP.write_text(before, encoding="ascii")


class Side:
    """A process that trains with one way of waiting."""

    def __init__(self, waiting: str, threads: int, nice_sessions: bool) -> None:
        self.nice_sessions = nice_sessions
        command = [sys.executable, __file__, "--serve", "--threads", str(threads)]
        environment = os.environ | WAITING[waiting] | {"OMP_NUM_THREADS": str(threads)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def speed(self, seconds: float, count: int) -> float:
        """Tokens per second beside `count` neighbours."""
        assert self.process.stdin
        with neighbours(count, self.nice_sessions):
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.flush()
            return float(self._line())


def measure(side: Side, rounds: int, seconds: float) -> dict[str, Any]:
    """Speeds and shares of a side."""
    speeds: dict[int, list[float]] = {count: [] for count in NEIGHBOURS}
    for _ in range(rounds):
        for count in NEIGHBOURS:
            speeds[count].append(side.speed(seconds, count))
    medians = {count: statistics.median(found) for count, found in speeds.items()}
    return {
        "tokens_per_second": medians,
        "share": {count: medians[count] / medians[0] for count in NEIGHBOURS if count},
        "rounds": speeds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", nargs="+", choices=WAITING, default=list(WAITING))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of a phase")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--autogroup", type=int, choices=(0, 1), help="of the kernel, while it runs"
    )
    parser.add_argument(
        "--nice-sessions", action="store_true", help="of the neighbours, not their processes alone"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.threads)
        return
    report: dict[str, Any] = {"machine": machine(), "threads": args.threads, "sides": {}}
    with autogroup(args.autogroup):
        report["autogroup"] = int(AUTOGROUP.read_text(encoding="ascii"))
        for waiting in args.sides:
            side = Side(waiting, args.threads, args.nice_sessions)
            try:
                report["sides"][waiting] = measure(side, args.rounds, args.seconds)
            finally:
                side.process.kill()
                side.process.wait()
            print(waiting, report["sides"][waiting]["share"], flush=True)
    if args.out:
        kept: dict[str, Any] = {}
        if args.out.exists():
            kept = json.loads(args.out.read_text(encoding="utf-8"))
        shares = "nice" if args.nice_sessions else "equal"
        kept[shares if report["autogroup"] else "off"] = report
        args.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
