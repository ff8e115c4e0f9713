"""`paribus tune batch` beside trying every device batch: how much of the best speed does its choice reach?

    dvc repro tokens
    python benchmarks/device_batch.py --memory 900MiB --rounds 3 --out benchmarks/device_batch.json

Each round measures every number of rows up to a step's; speeds are medians over the rounds. The choice is made from the first
round, as a user's is; it is judged by the medians. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path

from paribus.config import load_config
from paribus.plan.memory import max_device_batch, parse_bytes
from paribus.plan.probe import here
from paribus.study.batch import candidates, measure, rows_of_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", default="900MiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    config, budget = load_config(), parse_bytes(options.memory, "--memory")
    device, dtype = here(config)
    step_rows = rows_of_step(config)
    tried = candidates(step_rows, max_device_batch(config, "pretrain", budget, device=device.kind, dtype=dtype))
    rounds = []
    for _ in range(options.rounds):
        found = measure(config, list(range(1, step_rows + 1)), budget)
        rounds.append({rows: entry["tokens_per_second"] for rows, entry in found.items() if "tokens_per_second" in entry})
        print(rounds[-1], flush=True)
    speeds = {rows: statistics.median(one[rows] for one in rounds if rows in one) for rows in rounds[0]}
    chosen = max((rows for rows in tried if rows in rounds[0]), key=rounds[0].__getitem__)
    best = max(speeds, key=speeds.__getitem__)
    record = {"machine": platform.processor() or platform.machine(), "memory": options.memory, "candidates": tried,
              "chosen": chosen, "best": best,
              "share_of_best": speeds[chosen] / speeds[best], "tokens_per_second": speeds, "rounds": rounds}
    print(f"chosen {chosen}, best {best}: {record['share_of_best']:.1%} of its speed")
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
