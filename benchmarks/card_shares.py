"""What each measure for speed brings on a card, on paper: `python benchmarks/card_shares.py --out card_shares.json`.

A step's time is the planner's (plan/throughput.py). A measure's share is the time that the step would take longer without it,
over the step's time with all of them, from operations and bytes counted here. Nobody has measured any of it on a card:
`paribus doctor --gpu` is the check.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from paribus.config import load_config
from paribus.model.accounting import parameters
from paribus.model.cache import ROUND_KEYS
from paribus.model.shapes import applied_blocks
from paribus.plan import throughput
from paribus.plan.devices import Device, device_named
from paribus.plan.memory import max_device_batch
from paribus.plan.throughput import BANDWIDTH, KERNEL_SECONDS, LOGIT_BYTES, Work
from paribus.recipe import Recipe
from paribus.train.loop import SAVE_SPACING

CARDS = ("RTX 3090", "RTX 4090", "H100")
DEPTHS = (12, 16)
VOCAB = 32768
SEQ_LEN = 2048
ROWS = 32  # of a forward pass, at most
# nanochat's model of a depth, as `paribus doctor --gpu` times it
MODEL: dict[str, Any] = {
    "model.aspect_ratio": 64,
    "model.head_dim": 128,
    "model.seq_len": SEQ_LEN,
    "model.mlp": "relu2",
    "model.window_pattern": "SSSL",
    "model.window": SEQ_LEN // 4,
    "model.value_embeddings": "alternate",
    "pretrain.batch_tokens": 2**19,
    "train.dtype": "bfloat16",
    "train.compile": True,
}

# Bytes moved for each token and word by a loss over whole logits, each operation by itself: the product writes 2; to fp32 2 + 4;
# soft cap 4 + 4; log-softmax 4 + 4; its gradient 4 + 4; the cap's 8 + 4; to bf16 4 + 2; two products read 2 + 2.
WHOLE_LOGIT_BYTES = 54
# Bytes moved for each pair of query and key by attention that keeps its scores, both passes: forward, a product writes 2,
# the mask reads and writes 4, the softmax 4, a product reads 2; backward as much twice.
SCORE_BYTES = 3 * 12
# Bytes moved for each number of Muon's matrices, besides the products of its iteration. One operation at a time: leave out what
# is not finite 8, momentum 12, Nesterov 12, side by side 8, to bf16 6, norm 2, over the norm 4, to fp32 6, gate 8, weights 12.
# Compiled: gradient 4 + 4 and momentum 4 + 4 in, bf16 out 2; norm 2; over it 4; weights 2 + 4 + 4.
MUON_BYTES, COMPILED_MUON_BYTES = 78, 34
WAIT_SECONDS = 0.5e-3  # from the end of a step's work until the card has the next: a copy, Python's way to the next launch
# From the end of a decoded token's work until the card has the next: 0.06 ms of Python (measured, 16 answers), a copy, a launch.
DECODE_WAIT_SECONDS = 0.1e-3
# Of a kernel in a CUDA graph, besides its own time: 3.4 microseconds for kernels of 2.9 (developer.nvidia.com/blog/cuda-graphs).
GRAPH_KERNEL_SECONDS = 0.5e-6
DISK = 1e9  # bytes/s of serialising, hashing and writing
PINNED = 12e9  # bytes/s from the card into pinned memory, PCIe 4


def main() -> None:
    """Print the shares, and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    rows = [shares(card, depth) for card in CARDS for depth in DEPTHS]
    text = json.dumps({"rows": rows}, indent=1) + "\n"
    print(text, end="")
    if out:
        out.write_text(text, encoding="utf-8")


def shares(card: str, depth: int) -> dict[str, Any]:
    """Of a card and a depth: seconds of a step, tokens/s, and measure -> share of the step."""
    device = device_named(card)
    recipe = recipe_of(depth)
    rows = min(
        max_device_batch(recipe, "pretrain", device.memory, device="cuda", dtype="bfloat16"), ROWS
    )
    rows = 1 << (rows.bit_length() - 1)
    passes = math.ceil(2**19 / (rows * SEQ_LEN))
    step = work_of(recipe, device, rows)
    whole = step.total
    saved = {
        "windows": work_of(recipe_of(depth, **{"model.window_pattern": "L"}), device, rows).total
        - whole,
        "fused_attention": moved(device, score_bytes(recipe)),
        "cross_entropy": moved(device, 2**19 * VOCAB * (WHOLE_LOGIT_BYTES - LOGIT_BYTES)),
        "compiled": work_of(recipe, device, rows, compiled=False).total - whole,
        "compiled_muon": moved(device, muon_bytes(recipe)),
        "no_waiting": passes * WAIT_SECONDS,
        "async_states": whole / SAVE_SPACING * (1 - DISK / PINNED),  # saves are that rare
        "graphs": max(step.launches - computing(step), 0.0),
        "varlen": 0.0,  # documents do not end within rows in pretraining, and masks skip the same blocks
    }
    if device.fp8:
        saved["fp8"] = whole - work_of(recipe, device, rows, fp8=True).total
    found: dict[str, Any] = {
        "card": card,
        "depth": depth,
        "rows": rows,
        "step_seconds": whole,
        "tokens_per_second": 2**19 / whole,
        "decode_launch_share": decode_launches(recipe, device),
        "decode_graphs_speedup": decode_by_graphs(recipe, device),
        "shares": {name: seconds / whole for name, seconds in saved.items()},
    }
    rounded: dict[str, Any] = json.loads(
        json.dumps(found), parse_float=lambda text: round(float(text), 4)
    )
    return rounded


def recipe_of(depth: int, **changes: Any) -> Recipe:
    """The model of a depth and how it is trained. changes: keys of params.yaml."""
    config = load_config(Path("params.yaml"), {**MODEL, "model.depth": depth, **changes})
    return Recipe.of(config, VOCAB)


def work_of(
    recipe: Recipe, device: Device, rows: int, *, compiled: bool = True, fp8: bool = False
) -> Work:
    """One optimiser step, by kind of work."""
    return throughput.step_seconds(
        recipe.architecture,
        VOCAB,
        recipe.config.optimizer,
        device,
        batch_tokens=2**19,
        device_tokens=rows * SEQ_LEN,
        compiled=compiled,
        fp8=fp8,
    )


def moved(device: Device, count: float) -> float:
    """Seconds to move so many bytes."""
    return count / (device.bandwidth * BANDWIDTH)


def score_bytes(recipe: Recipe) -> float:
    """Of the scores of all pairs, for a step."""
    model = recipe.architecture
    return 2**19 * SEQ_LEN * model.n_heads * applied_blocks(model) * SCORE_BYTES


def muon_bytes(recipe: Recipe) -> float:
    """That compiling Muon's step saves."""
    matrices = parameters(recipe.architecture, VOCAB)["matrices"]
    return matrices * (MUON_BYTES - COMPILED_MUON_BYTES)


def decode_launches(recipe: Recipe, device: Device) -> float:
    """Share of a decoded token's time, 16 answers side by side, in which the card waits for launches."""
    work = decode_work(recipe, device, 0)
    return max(1 - computing(work) / work.total, 0.0)


def decode_by_graphs(recipe: Recipe, device: Device) -> float:
    """How many times as quick a decoded token is by a CUDA graph.

    It reads half of `ROUND_KEYS` too many keys on average. A graph serves that many tokens, all but two: the first step of its
    sizes launches each kernel, and so does the second, which is captured.
    """
    work = decode_work(recipe, device, 0)
    kernels = work.launches / KERNEL_SECONDS
    longer = decode_work(recipe, device, ROUND_KEYS // 2)
    by_graph = computing(longer) + kernels * GRAPH_KERNEL_SECONDS + 2 * work.launches / ROUND_KEYS
    return (work.total + DECODE_WAIT_SECONDS) / (by_graph + DECODE_WAIT_SECONDS)


def decode_work(recipe: Recipe, device: Device, more: int) -> Work:
    """A token of 16 answers side by side. more: keys that each reads beyond a quarter of the context."""
    context = SEQ_LEN // 4 + more
    return throughput.decode(recipe.architecture, VOCAB, 16, context, device, 2)


def computing(work: Work) -> float:
    """Seconds in which the card does not wait for launches."""
    return work.products + work.attention + work.traffic


if __name__ == "__main__":
    main()
