"""The table of docs/planning.md: how costs grow, from benchmarks/growth.json."""

from __future__ import annotations

import json
from pathlib import Path

GROWTH = Path(__file__).resolve().parent.parent / "benchmarks/growth.json"
MODEL = {
    "depth": "depth, at width 128",
    "width": "width, at depth 2",
    "vocab": "vocabulary",
    "length": "tokens of a row",
}
RANKS = {"ddp": "processes that share a step by DDP", "fsdp": "processes that share a step by FSDP"}


def growth() -> str:
    """What grows down; its sizes, the measured figures and each as a multiple of the first across."""
    found = json.loads(GROWTH.read_text(encoding="utf-8"))
    lines = ["", "", "| what grows | sizes | tokens a processor second | of the first |"]
    lines.append("| --- | --- | --- | --- |")
    for name, words in MODEL.items():
        lines.append(_row(words, found["tokens_per_second"][name]))
    lines.append(_row("GB of shards that the loader reads", found["loader"]))
    for name, words in RANKS.items():
        lines.append(_row(words, found["ranks"][name]))
    costs = found["study"]
    lines += ["", "| runs of a study | " + " | ".join(costs) + " |"]
    lines.append("| --- |" + " ---: |" * len(costs))
    seconds = " | ".join(f"{cost:.2f}" for cost in costs.values())
    lines.append(f"| processor seconds a run, besides its stages | {seconds} |")
    return "\n".join([*lines, "", ""])


def _row(words: str, speeds: dict[str, float]) -> str:
    """speeds: tokens a processor second by size."""
    first = next(iter(speeds.values()))
    figures = ", ".join(f"{speed:,.0f}" for speed in speeds.values())
    ratios = ", ".join(f"{speed / first:.2f}" for speed in speeds.values())
    return f"| {words} | {', '.join(speeds)} | {figures} | {ratios} |"
