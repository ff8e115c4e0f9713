"""The default model with one switch changed at a time: bits per byte at equal tokens, and speed.

    dvc repro tokens
    python benchmarks/switches.py --steps 100 --seeds 1 2 --out switches.json

Each arm pretrains through the project's own loader, model and optimiser, one thread, as many arms side by side as
asked; seeds are shared, so the difference to the baseline is paired. Seeds 7 and up are left for the reported results.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from pathlib import Path

import torch

from paribus import config
from paribus.config import resolve_model
from paribus.data.loader import DocumentLoader
from paribus.data.tokenizer import Tokenizer
from paribus.evaluate.bpb import bits_per_byte
from paribus.model.gpt import GPT
from paribus.train.objectives import NextToken
from paribus.train.optim import MuonAdamW
from paribus.train.schedule import lr_factor

ARMS: dict[str, dict[str, object]] = {
    "default": {},
    "value embeddings, alternate": {"model.value_embeddings": "alternate"},
    "value embeddings, all": {"model.value_embeddings": "all"},
    "no x0 scalars": {"model.x0_scalars": False},
    "no residual scalars": {"model.residual_scalars": False},
    "swiglu": {"model.mlp": "swiglu"},
    "gelu": {"model.mlp": "gelu"},
    "no qk_norm": {"model.qk_norm": False},
    "layer norm": {"model.norm": "layer"},
    "tied head": {"model.tied_head": True},
    "no softcap": {"model.softcap": 0.0},
    "learned positions": {"model.position": "learned"},
    "2 key/value heads": {"model.n_kv_heads": 2},
    "windows SSSL of 64": {"model.window_pattern": "SSSL", "model.window": 64},
    "adamw": {"optimizer.kind": "adamw"},
    "adamw, rate x 2": {"optimizer.kind": "adamw", "optimizer.adamw_matrix_lr": 0.004},
    "muon, rate x 2": {"optimizer.matrix_lr": 0.04},
    "muon, rate / 2": {"optimizer.matrix_lr": 0.01},
}
VALUES = {"model.value_embeddings": "all"}
ARMS |= {
    f"value embeddings, all; {name}": VALUES | ARMS[name]
    for name in (
        "swiglu",
        "windows SSSL of 64",
        "no qk_norm",
        "no x0 scalars",
        "no residual scalars",
        "tied head",
        "muon, rate x 2",
    )
}
ARMS["value embeddings, all; swiglu; windows SSSL of 64"] = (
    VALUES | ARMS["swiglu"] | ARMS["windows SSSL of 64"]
)


def measure(job: tuple[str, dict[str, object], int, int]) -> tuple[str, int, dict[str, float]]:
    """Pretrain one arm (its overrides) on one seed for so many steps -> bits per byte, tokens per CPU second, parameters."""
    arm, changes, seed, steps = job
    torch.set_num_threads(1)
    settings = config.load_config(overrides=changes)
    words, schedule = Tokenizer.load(Path("data/tokenizer/tokenizer.json")), settings.pretrain
    model = GPT(resolve_model(settings.model), words.vocab_size)
    model.initialise(seed)
    length, rows = model.config.seq_len, (schedule.batch_tokens or 4096) // model.config.seq_len
    objective = NextToken(
        DocumentLoader("data/tokens", "train", length, seed), rows, schedule.device_batch_size
    )
    optimizer = MuonAdamW(model, settings.optimizer)
    began = time.process_time()
    for step in range(steps):
        work = objective.work(step)
        for micro in work.micro_batches:
            (
                model(micro.tokens, micro.targets, micro.documents, micro.weights) / work.normaliser
            ).backward()
        optimizer.clip()
        optimizer.step(
            lr_factor(
                step,
                steps,
                schedule.warmup_fraction,
                schedule.warmdown_fraction,
                schedule.final_lr_fraction,
            )
        )
        optimizer.zero_grad()
    seconds = time.process_time() - began
    model.eval()
    rows_held_out = DocumentLoader("data/tokens", "val", length, seed).validation_rows(
        16, settings.eval.bpb_tokens
    )
    return (
        arm,
        seed,
        {
            "val_bpb": bits_per_byte(model, rows_held_out, words.token_bytes).bpb,
            "tokens_per_cpu_second": steps * rows * length / seconds,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    arms = ["default", *(arm for arm in options.arms if arm != "default")]
    jobs = [(arm, ARMS[arm], seed, options.steps) for seed in options.seeds for arm in arms]
    results: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in arms}
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for arm, seed, result in pool.imap_unordered(measure, jobs):
            results[arm][seed] = result
            print(f"{arm}, seed {seed}: {result['val_bpb']:.4f} bits per byte", flush=True)
    print(
        "\n| arm | val_bpb | difference | tokens/s, one thread | parameters |\n| --- | --- | --- | --- | --- |"
    )
    for arm, by_seed in results.items():
        differences = [
            by_seed[seed]["val_bpb"] - results["default"][seed]["val_bpb"] for seed in by_seed
        ]
        mean = {
            key: statistics.mean(result[key] for result in by_seed.values())
            for key in by_seed[options.seeds[0]]
        }
        spread = f"{statistics.mean(differences):+.4f} ({min(differences):+.4f} to {max(differences):+.4f})"
        print(
            f"| {arm} | {mean['val_bpb']:.4f} | {spread} | {mean['tokens_per_cpu_second']:.0f} | {mean['parameters']:.0f} |"
        )
    if options.out:
        record = {
            "steps": options.steps,
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "arms": results,
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
