"""Tables of docs/statistics.md: how often verdicts are false, from files of benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def promises() -> str:
    """Every way to use the tool, kind of noise and rate."""
    found = json.loads((BENCHMARKS / "promises.json").read_text(encoding="utf-8"))
    lines = [
        "",
        "",
        "| what is done | case | rate (95 % interval) | studies |",
        "| --- | --- | --- | ---: |",
    ]
    for part, rows in found.items():
        if not isinstance(rows, dict):
            continue
        for case, row in rows.items():
            lines += _lines(part, case, row)
    return "\n".join([*lines, "", ""])


def _lines(part: str, case: str, row: Any) -> list[str]:
    """The lines of one case, which may have several rates."""
    if not isinstance(row, dict):
        return []
    if "rate" in row:
        seeds = f"; {row['mean seeds']} seeds in the mean" if "mean seeds" in row else ""
        rate = f"{row['rate']:.4f} ({row['low']:.4f} to {row['high']:.4f})"
        return [f"| {part} | {case}{seeds} | {rate} | {row['n']:,} |"]
    lines = []
    for name, inner in row.items():
        lines += _lines(part, f"{case}, {name}", inner)
    return lines


def borrowing() -> str:
    """Every rule of lending variance: its worst rate, where that was, and its power."""
    found = json.loads((BENCHMARKS / "borrowing.json").read_text(encoding="utf-8"))
    powers = found["power"]
    shown = ["3 seeds, 4 arms, 2 sd", "3 seeds, 4 arms, 3 sd", "5 seeds, 4 arms, 2 sd"]
    lines = [
        "",
        "",
        f"| rule | worst rate of any false verdict | where | power: {' | '.join(shown)} |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for rule, row in found["false"].items():
        cells = " | ".join(f"{powers[case][rule]:.2f}" for case in shown)
        worst = f"{row['worst']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        lines.append(f"| {rule} | {worst} | {row['where']} | {cells} |")
    return "\n".join([*lines, "", ""])


def claims() -> str:
    """Each claim beside the first verdict: its worst rate of false ones, and where that was."""
    found = json.loads((BENCHMARKS / "claims.json").read_text(encoding="utf-8"))
    lines = [
        "",
        "",
        "| claim | worst rate of a false one | where | worst where noise is skewed |",
        "| --- | --- | --- | --- |",
    ]
    for part, cases in found.items():
        if part not in ("command", "cpu_seconds", "skewed"):
            lines += _claims_of(part, cases)
    return "\n".join([*lines, "", ""])


def _claims_of(part: str, cases: dict[str, Any]) -> list[str]:
    """The rows of one part: a rate for each case, or for each kind of claim in each case."""
    rates: dict[str, dict[str, Any]] = {}
    for case, found in cases.items():
        by_kind = {"": found} if "rate" in found else found
        for kind, one in by_kind.items():
            if "power" not in kind:
                rates.setdefault(kind, {})[case] = one
    lines = []
    for kind, by_case in rates.items():
        even = {case: one for case, one in by_case.items() if "skewed" not in case}
        skewed = {case: one for case, one in by_case.items() if "skewed" in case}
        where = max(even, key=lambda case: even[case]["rate"])
        worst = max(skewed.values(), key=lambda one: one["rate"], default=None)
        claim = f"{part}: {kind}" if kind else part
        lines.append(
            f"| {claim} | {_rate(even[where])} | {where} | {_rate(worst) if worst else '–'} |"
        )
    return lines


def _rate(one: dict[str, Any]) -> str:
    return f"{one['rate']:.3f} ({one['low']:.3f} to {one['high']:.3f})"


def ladders() -> str:
    """Coverage of a ladder's intervals by kind of noise and by how far rungs lie off the line."""
    found = json.loads((BENCHMARKS / "ladders.json").read_text(encoding="utf-8"))
    lines = [
        "",
        "",
        "| noise | off the line | trend | prediction | kept out, outside |",
        "| --- | ---: | --- | --- | --- |",
    ]
    for case, by_scatter in found["cases"].items():
        for off, rates in by_scatter.items():
            cells = [f"{rate:.3f} ({low:.3f} to {high:.3f})" for rate, low, high in rates.values()]
            lines.append(f"| {case} | {off} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", ""])


def factors() -> str:
    """Every kind of noise: rates of any false effect by both rules, and coverage."""
    found = json.loads((BENCHMARKS / "factors.json").read_text(encoding="utf-8"))
    columns = {
        "single factors, model": "factors, model alone",
        "single factors, paribus": "factors",
        "interactions, paribus": "interactions",
        "coverage, factor a": "interval of a holds",
        "coverage, factor b": "of b",
        "coverage, interaction b x c": "of b x c",
    }
    lines = [
        "",
        "",
        f"| noise | {' | '.join(columns.values())} |",
        "| --- |" + " ---: |" * len(columns),
    ]
    for case, row in found["false"].items():
        cells = " | ".join(f"{row[column]['rate']:.3f}" for column in columns)
        lines.append(f"| {case} | {cells} |")
    return "\n".join([*lines, "", ""])


def factor_power() -> str:
    """The chance to find an effect of a single factor, by its size and seeds."""
    found = json.loads((BENCHMARKS / "factors.json").read_text(encoding="utf-8"))
    parts = []
    for case, row in found["power"].items():
        parts.append(f"{row['paribus']['rate']:.2f} at {case}")
    return "; ".join(parts)
