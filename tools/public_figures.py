"""Marked figures of docs/public-results.md: what `paribus judge` says of three public tables, and its rates on real runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments/results/public/results.json"
NULL = ROOT / "benchmarks/judge_null.json"


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with its first column at the left."""
    lines = ["", "", f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", ""])


def signed(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< .0001" if value < 1e-4 else f"{value:.4f}"


def yes(answer: bool) -> str:
    return "yes" if answer else "no"


def interval(low: float | None, high: float | None, digits: int) -> str:
    return (
        "–" if low is None or high is None else f"{signed(low, digits)} to {signed(high, digits)}"
    )


def optimizer_table() -> str:
    result = read(RESULTS)["optimizer"]
    arms = {arm["name"]: arm for arm in result["arms"]}
    head = [
        "record",
        "steps",
        "runs",
        "at equal steps",
        "95 % interval",
        "p, Holm",
        "verdict",
        "by the rule",
        "steps saved, 95 %",
    ]
    rows = []
    for one in result["comparisons"]:
        share = one["saved"]["fraction"]
        saved = f"{100 * share['estimate']:.1f} % ({100 * share['low']:.1f} to {100 * share['high']:.1f})"
        rows.append(
            [
                one["arm"],
                f"{arms[one['arm']]['horizon']:.0f}",
                str(one["runs"]),
                signed(one["difference"], 4),
                interval(one["low"], one["high"], 4),
                p(one["p_adjusted"]),
                f"**{one['verdict']}**" if one["verdict"] != "undecided" else one["verdict"],
                f"{yes(one['rule']['kept'])} (p {p(one['rule']['p'])})",
                saved.replace("-", "−"),
            ]
        )
    return table(head, rows)


def size_limited_table() -> str:
    results = read(RESULTS)
    in_bits = {one["arm"]: one for one in results["size_limited_bits"]["comparisons"]}
    head = [
        "record",
        "runs",
        "matched",
        "difference",
        "p of any",
        "p of .005 nats or more",
        "p of .005 bits or more",
        "kept",
    ]
    rows = []
    for one in results["size_limited"]["comparisons"]:
        kept = one["p_margin"] is not None and one["p_margin"] < 0.01
        rows.append(
            [
                one["arm"],
                f"{one['runs']} : {one['reference_runs']}",
                str(one["pairs"]) if one["pairs"] else "–",
                signed(one["difference"], 4),
                p(one["p"]),
                p(one["p_margin"]),
                p(in_bits[one["arm"]]["p_margin"]),
                "**yes**" if kept else "not shown",
            ]
        )
    return table(head, rows)


def interventions_table() -> str:
    results = read(RESULTS)["interventions"]
    noises = list(results)
    head = [
        "change",
        "difference",
        "verdict",
        *(f"runs an arm at a noise of {noise}" for noise in noises),
    ]
    rows = []
    for place, one in enumerate(results[noises[0]]["comparisons"]):
        needed = [results[noise]["comparisons"][place]["plan"]["to_see_this"] for noise in noises]
        runs = [f"{number:,}" if number else "over 100,000" for number in needed]
        rows.append([one["arm"], signed(one["difference"], 4), one["verdict"], *runs])
    return table(head, rows)


def kept_margin(name: str) -> int:
    found = read(RESULTS)[name]["comparisons"]
    return sum(1 for one in found if one["p_margin"] is not None and one["p_margin"] < 0.01)


def counted(name: str, verdict: str) -> int:
    return sum(1 for one in read(RESULTS)[name]["comparisons"] if one["verdict"] == verdict)


def large(name: str) -> int:
    """Comparisons whose mean difference reaches the margin."""
    result = read(RESULTS)[name]
    return sum(1 for one in result["comparisons"] if one["difference"] <= -result["margin"])


WORDS: dict[str, Callable[[], str]] = {
    "optimizer": optimizer_table,
    "size-limited": size_limited_table,
    "interventions": interventions_table,
    "records": lambda: str(len(read(RESULTS)["optimizer"]["comparisons"])),
    "records-better": lambda: str(counted("optimizer", "better")),
    "records-rule": lambda: str(
        sum(1 for one in read(RESULTS)["optimizer"]["comparisons"] if one["rule"]["kept"])
    ),
    "size-limited-all": lambda: str(len(read(RESULTS)["size_limited"]["comparisons"])),
    "size-limited-kept": lambda: str(kept_margin("size_limited")),
    "size-limited-kept-bits": lambda: str(kept_margin("size_limited_bits")),
    "size-limited-large": lambda: str(large("size_limited")),
    "size-limited-better": lambda: str(counted("size_limited", "better")),
}


def judge(what: str) -> str:
    """A table or a count of results.json."""
    return WORDS[what]()


def judge_null(what: str) -> str:
    """Rates on real runs: `false` where nothing differs, `power` by planted shift, or `stdev`, `recipes`, `draws`."""
    result = read(NULL)
    if what == "stdev":
        return f"{result['pooled_stdev']:.5f}"
    if what in ("recipes", "draws"):
        value = result[what]
        return str(len(value)) if what == "recipes" else f"{value:,}"
    return false_table(result) if what == "false" else power_table(result)


def false_table(result: dict[str, Any]) -> str:
    head = ["runs a group", *next(iter(result["sizes"].values()))]
    rows = []
    for size, tests in result["sizes"].items():
        rates = [by["0"] for by in tests.values()]
        rows.append(
            [size, *(f"{one['rate']:.4f} ({one['low']:.4f} to {one['high']:.4f})" for one in rates)]
        )
    return table(head, rows)


def power_table(result: dict[str, Any]) -> str:
    shifts = [shift for shift in next(iter(result["sizes"]["3"].values())) if shift != "0"]
    head = ["runs a group", "test", *(f"{shift} sd" for shift in shifts)]
    rows = []
    for size, tests in result["sizes"].items():
        for test, by in tests.items():
            rows.append([size, test, *(f"{by[shift]['rate']:.3f}" for shift in shifts)])
    return table(head, rows)
