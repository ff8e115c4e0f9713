"""What a CPU's own ways in bf16 are worth: `python benchmarks/bf16.py --out bf16.json`.

    attention   model/banded.py beside torch's, forward and backward, and how far each is from fp32
    muon        the iteration on matrices of the default's shapes in bf16 beside fp32, and the cosine between their steps

Milliseconds of processor time of one thread, the least of `--rounds` alternating rounds: other processes add to it, and
take nothing away.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from steps import machine
from torch import Tensor

from paribus.model import banded
from paribus.model.attention import attend, dense_mask
from paribus.train.muon import orthogonalise

# rows, heads, tokens, head_dim, window (0: none); the default's two kinds first
SHAPES = (
    (16, 4, 256, 48, 64),
    (16, 4, 256, 48, 0),
    (4, 8, 1024, 64, 256),
    (4, 8, 1024, 64, 0),
)
MATRICES = ((16, 192, 192), (8, 512, 192), (4, 192, 512))  # number, rows, columns

Parts = list[Tensor]


def attention(shape: tuple[int, ...], kind: str, dtype: torch.dtype) -> Callable[[], Parts]:
    """A forward and a backward pass: the answer, and the gradients of q, k and v."""
    rows, heads, length, width, window = shape
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(rows, length, heads, width, generator=generator) for _ in range(4)]
    normed = [torch.nn.functional.rms_norm(one, (width,)) for one in drawn[:2]]
    leaves = [one.to(dtype).requires_grad_() for one in (*normed, drawn[2])]
    towards = drawn[3].to(dtype).transpose(1, 2)
    seen = dense_mask(torch.arange(length)[None], window or None, None, None)
    plain = None if not window else seen
    keeps = length <= banded.KEPT_LENGTH  # as a model of this context does
    band = banded.band(seen, window or None, dtype, keeps=keeps)
    mask = band if kind == "band" else plain

    def run() -> Parts:
        q, k, v = (leaf.transpose(1, 2) for leaf in leaves)
        answer = attend(q, k, v, mask)
        return [answer.detach(), *torch.autograd.grad(answer, leaves, towards)]

    return run


def muon(shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[], Parts]:
    """The steps of some matrices."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return lambda: [orthogonalise(matrices, 5, dtype=dtype)]


def milliseconds(sides: dict[str, Callable[[], Parts]], rounds: int) -> dict[str, float]:
    """The least time of each side."""
    least = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for name, run in sides.items():
            began = time.process_time()
            run()
            least[name] = min(least[name], (time.process_time() - began) * 1e3)
    return {name: round(value, 2) for name, value in least.items()}


def distance(found: Parts, exact: Parts) -> list[float]:
    """Of each tensor from the exact one, relative to its norm."""
    pairs = zip(found, exact, strict=True)
    return [round(float((a.float() - b).norm() / b.norm()), 5) for a, b in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"machine": machine(), "attention": [], "muon": []}
    for shape in SHAPES:
        sides = {kind: attention(shape, kind, torch.bfloat16) for kind in ("torch", "band")}
        exact = attention(shape, "torch", torch.float32)()
        apart = {kind: distance(run(), exact) for kind, run in sides.items()}
        taken = milliseconds(sides, args.rounds)
        row = {"shape": shape, "milliseconds": taken, "distance_from_float32": apart}
        report["attention"].append(row)
        print(json.dumps(row), flush=True)
    for shape in MATRICES:
        kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        runs = {name: muon(shape, dtype) for name, dtype in kinds.items()}
        full, rounded = (run()[0].flatten(1) for run in runs.values())
        cosine = float(torch.nn.functional.cosine_similarity(full, rounded).min())
        row = {"shape": shape, "milliseconds": milliseconds(runs, args.rounds), "cosine": cosine}
        report["muon"].append(row)
        print(json.dumps(row), flush=True)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
