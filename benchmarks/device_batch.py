"""`paribus tune batch` beside trying every device batch: how much of the best speed does its choice reach?

    dvc repro tokens
    python benchmarks/device_batch.py --memory 900MiB --turns 11 --out benchmarks/device_batch.json

The choice is made first, as a user's is. Then every number of rows up to a step's is timed, over more
turns; the choice is judged by those speeds, which it has not seen. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

from paribus.config import load_config
from paribus.plan.memory import max_device_batch, parse_bytes
from paribus.plan.probe import here
from paribus.recipe import Recipe
from paribus.tune.batch import candidates, measure


def speeds(tried: dict[int, dict[str, Any]]) -> dict[int, float]:
    """Of those that fit."""
    return {
        rows: entry["tokens_per_second"]
        for rows, entry in tried.items()
        if "tokens_per_second" in entry
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory", default="900MiB")
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    config, budget = load_config(), parse_bytes(options.memory, "--memory")
    device, dtype = here(Recipe.of(config))
    step_rows = Recipe.of(config).rows("pretrain")
    largest = max_device_batch(
        Recipe.of(config), "pretrain", budget, device=device.kind, dtype=dtype
    )
    tried = speeds(measure(config, candidates(step_rows, largest), budget))
    chosen = max(tried, key=tried.__getitem__)
    every = speeds(measure(config, list(range(1, step_rows + 1)), budget, options.turns))
    best = max(every, key=every.__getitem__)
    record = {
        "machine": platform.processor() or platform.machine(),
        "memory": options.memory,
        "turns": options.turns,
        "chosen": chosen,
        "best": best,
        "share_of_best": every[chosen] / every[best],
        "tokens_per_second": {"candidates": tried, "every": every},
    }
    print(json.dumps(record, indent=1))
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
