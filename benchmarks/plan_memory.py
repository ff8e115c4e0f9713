"""The planner's memory beside all tensors that torch makes, as fakes: a grid, and depth 16 on a 24 GB card. No GPU needed.

python benchmarks/plan_memory.py --out benchmarks/plan_memory.json           # the grid, about 2 CPU minutes
python benchmarks/plan_memory.py --only d16 --out benchmarks/plan_memory_d16.json
python benchmarks/plan_memory.py --only cpu --out benchmarks/plan_memory_cpu.json  # real steps, what the process holds
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from small import make_project

from paribus.config import flatten, load_config, merge, read_yaml, resolve_model
from paribus.model.footprint import Batch
from paribus.plan.memory import CPU_PROCESS, stage_memory, training_step
from paribus.plan.tracker import track_step
from paribus.recipe import Recipe

BASE = {"model.width": 256, "model.head_dim": 64, "model.seq_len": 256}
GRID = {
    "model.depth": [2, 6],
    "rows": [2, 12],
    "model.seq_len": [256, 1024],
    "vocab": [1024, 16384],
    "model.n_kv_heads": [4, 1],
    "train.activation_checkpointing": [False, True],
    "optimizer.kind": ["muon", "adamw"],
}


def point(
    overrides: dict[str, Any], vocab: int, rows: int, dtype: str, accumulate: bool
) -> dict[str, Any]:
    """One configuration: tracked, predicted and the error."""
    batches = dict.fromkeys(
        ("pretrain.batch_tokens", "midtrain.batch_tokens", "sft.batch_tokens"), 2**19
    )
    config = load_config(overrides=overrides | batches)
    began = time.process_time()
    tracked = track_step(config, vocab, rows=rows, accumulate=accumulate, dtype=dtype)
    batch = Batch(rows, config.model.seq_len, 4 if dtype == "float32" else 2)
    memory = training_step(
        resolve_model(config.model),
        vocab,
        config.optimizer,
        batch,
        accumulate=accumulate,
        checkpointing=config.train.activation_checkpointing,
    )
    return {
        "tracked_bytes": tracked.peak,
        "predicted_bytes": memory.total,
        "error": memory.total / tracked.peak - 1,
        "update_bytes": tracked.update,
        "cpu_seconds": time.process_time() - began,
    }


def grid() -> list[dict[str, Any]]:
    """Every combination; types of products and gradient accumulation alternate over them."""
    rows = []
    for number, values in enumerate(itertools.product(*GRID.values())):
        chosen = dict(zip(GRID, values, strict=True))
        settings = {key: value for key, value in chosen.items() if "." in key}
        dtype, accumulate = ("float32", "bfloat16")[number % 3 == 1], number % 2 == 1
        found = point(BASE | settings, chosen["vocab"], chosen["rows"], dtype, accumulate)
        rows.append(chosen | {"dtype": dtype, "accumulate": accumulate} | found)
        print(
            f"{found['error']:+6.1%}  {found['tracked_bytes'] / 1e6:9.1f} MB  {chosen} {dtype} {accumulate}",
            flush=True,
        )
    return rows


def d16() -> list[dict[str, Any]]:
    """Depth 16, 65,536 words, 2,048 tokens, 16 rows within 24 GB with the optimiser's state."""
    profile = flatten(read_yaml("experiments/profiles/d16-rtx3090.yaml"))
    rows = []
    for checkpointing in (False, True):
        found = point(
            profile | {"train.activation_checkpointing": checkpointing}, 65536, 16, "bfloat16", True
        )
        rows.append(
            {
                "profile": "d16-rtx3090",
                "rows": 16,
                "activation_checkpointing": checkpointing,
                **found,
                "within_24_gb": found["tracked_bytes"] < 24e9,
            }
        )
        print(
            f"checkpointing {checkpointing}: {found['tracked_bytes'] / 1e9:.2f} GB tracked, "
            f"{found['predicted_bytes'] / 1e9:.2f} predicted",
            flush=True,
        )
    return rows


def cpu() -> list[dict[str, Any]]:
    """The most memory of pretraining stages of three steps: the default's at other depths, device batches and types."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder) / "project")
        environment = {"PYTHONPATH": str(project.root / "src"), "DVC_ROOT": str(project.root)}
        default = read_yaml(project.root / "params.yaml")
        for dtype, depth, device_rows in itertools.product(
            ["float32", "bfloat16"], [2, 4, 6], [4, 16]
        ):
            overrides = {
                "model.depth": depth,
                "pretrain.device_batch_size": device_rows,
                "train.dtype": dtype,
            }
            (project.root / "params.yaml").write_text(yaml.safe_dump(merge(default, overrides)))
            config = load_config(project.root / "params.yaml")
            planned = stage_memory(Recipe.of(config), "pretrain", device="cpu", dtype=dtype)
            # not forked from a process that holds the tests' libraries
            project.run(sys.executable, "-m", "paribus", "pretrain", **environment)
            measured = project.metrics("pretrain")["peak_memory_bytes"]
            rows.append(
                overrides
                | {
                    "measured_bytes": measured,
                    "tensor_bytes": planned.tensors,
                    "predicted_bytes": planned.total,
                    "error": planned.total / measured - 1,
                    "heap": (measured - CPU_PROCESS) / planned.tensors - 1,
                }
            )
            print(f"{rows[-1]['error']:+6.1%}  {measured / 1e6:7.0f} MB  {overrides}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["grid", "d16", "cpu"], default="grid")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = {"grid": grid, "d16": d16, "cpu": cpu}[options.only]()
    errors = [abs(row["error"]) for row in rows]
    record = {
        "torch": torch.__version__,
        "points": len(rows),
        "median_error": statistics.median(errors),
        "largest_error": max(errors),
        "within_1_percent": sum(error <= 0.01 for error in errors),
        "within_5_percent": sum(error <= 0.05 for error in errors),
        "rows": rows,
    }
    print({key: value for key, value in record.items() if key != "rows"})
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
