"""Whether code of now trains the default as fast as that of another commit: processor time of whole steps, in alternating rounds.

    git worktree add /somewhere/before COMMIT
    python benchmarks/default_speed.py --before /somewhere/before --out benchmarks/default_speed.json

Each side is a process of its own, of one thread, with its own code and params.yaml, that waits while the other runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WARMING = 3  # steps that are not counted


def serve(tree: Path, steps: int) -> None:
    """Answer every line on standard input with the processor seconds of a step, the mean of so many."""
    sys.path.insert(0, str(tree / "src"))
    from paribus.config import load_config
    from paribus.machine.hardware import detect_hardware
    from paribus.machine.process import set_up_process
    from paribus.recipe import Recipe
    from paribus.train.trainer import RandomRows, Trainer, new_model, next_token

    recipe = Recipe.of(
        load_config(tree / "params.yaml", {"train.device": "cpu", "train.threads": 1})
    )
    hardware = detect_hardware(recipe.config.train)
    set_up_process(hardware, recipe.config.seed)
    objective = next_token(RandomRows(recipe), recipe, "pretrain")
    trainer = Trainer(recipe, "pretrain", new_model(recipe, hardware), objective, hardware)
    for step in range(WARMING):
        trainer.time_step(step)
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.process_time()
        for step in range(steps):
            trainer.time_step(step)
        print((time.process_time() - began) / steps, flush=True)


def start(tree: Path, steps: int) -> subprocess.Popen[str]:
    """The process of a side, once it is warm."""
    command = [sys.executable, __file__, "--serve", str(tree), "--steps", str(steps)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree / "src")}
    side = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert side.stdout is not None
    assert side.stdout.readline() == "ready\n"
    return side


def measured(side: subprocess.Popen[str]) -> float:
    """Processor seconds of a step, in one round."""
    assert side.stdin is not None
    assert side.stdout is not None
    side.stdin.write("\n")
    side.stdin.flush()
    return float(side.stdout.readline())


def commit_of(tree: Path) -> str:
    command = ["git", "-C", str(tree), "rev-parse", "--short=10", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def compare(before: Path, rounds: int, steps: int) -> dict[str, Any]:
    """The seconds of each round, and now / before."""
    trees = {"before": before, "now": ROOT}
    sides = {name: start(tree, steps) for name, tree in trees.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in sorted(sides, reverse=number % 2 == 1):
            seconds[name].append(measured(sides[name]))
    for side in sides.values():
        side.communicate()
    ratios = [now / then for now, then in zip(seconds["now"], seconds["before"], strict=True)]
    return {
        "commits": {name: commit_of(tree) for name, tree in trees.items()},
        "rounds": rounds,
        "steps": steps,
        "seconds_per_step": seconds,
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve.resolve(), options.steps)
        return
    if options.before is None:
        parser.error("--before: the folder of another commit's tree")
    result = compare(options.before.resolve(), options.rounds, options.steps)
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
