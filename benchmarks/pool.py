"""A pool of real, tiny trainings, for `verdicts.py --runs`: the same recipe many times, and recipes that differ in one thing.

    dvc repro tokens
    python benchmarks/pool.py --seeds 30 --out benchmarks/pool.csv
    python benchmarks/verdicts.py --runs benchmarks/pool.csv --out benchmarks/verdicts_real.json

Depth 2, width 64, 40 steps of 1,024 tokens on the embedded world, one thread, three seconds a run. Arms:

    base                 the recipe, seeds 1, 2, ...
    base, other passes   the same recipe and seeds, its batch in passes of one row instead of four: only rounding differs
    base, other seeds    the same recipe, seeds 1001, 1002, ...
    the rest             one thing changed, seeds 1, 2, ... as the base
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
from pathlib import Path

from switches import measure

TINY: dict[str, object] = {
    "model.depth": 2,
    "model.width": 64,
    "model.head_dim": 32,
    "model.seq_len": 128,
    "pretrain.batch_tokens": 1024,
    "pretrain.device_batch_size": 4,
    "eval.bpb_tokens": 16384,
}
ARMS: dict[str, dict[str, object]] = {
    "base": {},
    "base, other passes": {"pretrain.device_batch_size": 1},
    "base, other seeds": {},
    "matrix rate x 1.5": {"optimizer.matrix_lr": 0.03},
    "relu2": {"model.mlp": "relu2"},
    "no qk_norm": {"model.qk_norm": False},
}
OTHER_SEEDS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    jobs = [
        (arm, TINY | ARMS[arm], seed + OTHER_SEEDS * (arm == "base, other seeds"), options.steps)
        for seed in range(1, options.seeds + 1)
        for arm in options.arms
    ]
    with (
        multiprocessing.get_context("spawn").Pool(options.jobs) as pool,
        options.out.open("w", encoding="utf-8", newline="") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(["arm", "seed", "val_bpb"])
        for arm, seed, result in pool.imap(measure, jobs):
            rows.writerow([arm, seed, f"{result['val_bpb']:.6f}"])
            file.flush()


if __name__ == "__main__":
    main()
