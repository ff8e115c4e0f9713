"""The table of docs/gpu.md: what each measure for speed brings on paper, from benchmarks/card_shares.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHARES = Path(__file__).resolve().parent.parent / "benchmarks/card_shares.json"
MEASURES = {
    "fused_attention": "attention in one kernel, no scores in memory",
    "cross_entropy": "the loss in chunks with its own backward pass",
    "compiled": "`train.compile`",
    "windows": "windows that skip unseen blocks, beside whole rows",
    "fp8": "`train.fp8`",
    "async_states": "states written by a thread, from pinned memory",
    "no_waiting": "no wait for the card within and between steps",
    "compiled_muon": "Muon's step compiled",
    "graphs": "CUDA graphs of a training step",
    "varlen": "variable lengths in place of document masks",
}


def shares() -> str:
    """Measures down, cards and depths across; - where a card cannot."""
    rows: list[Any] = json.loads(SHARES.read_text(encoding="utf-8"))["rows"]
    head = " | ".join(f"{row['card']}, d{row['depth']}" for row in rows)
    lines = ["", "", f"| measure | {head} |", "| --- |" + " ---: |" * len(rows)]
    for name, words in MEASURES.items():
        cells = [_percent(row["shares"].get(name)) for row in rows]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    speeds = " | ".join(f"{row['tokens_per_second'] / 1e3:,.0f} k" for row in rows)
    waits = " | ".join(_percent(row["decode_launch_share"]) for row in rows)
    lines.append(f"| *tokens/s of training with all of them but fp8* | {speeds} |")
    lines.append(f"| *sampling 16 answers: the card waits for launches* | {waits} |")
    times = " | ".join(f"{row['decode_graphs_speedup']:.1f}" for row in rows)
    lines.append(f"| *sampling 16 answers by CUDA graphs: times as quick* | {times} |")
    return "\n".join([*lines, "", ""])


def _percent(share: float | None) -> str:
    """Of a step's time; a loss below zero."""
    if share is None:
        return "-"
    digits = 0 if abs(share) >= 0.1 or not share else 1
    return f"{100 * share:.{digits}f} %"
