"""Do the verdicts of `paribus judge` keep their word on real runs that nobody here made?

    python benchmarks/judge_null.py --out benchmarks/judge_null.json

From every recipe of the optimiser benchmark with 15 runs or more (experiments/results/public) two groups of 3, 5 and 8 runs
that share none are drawn, 10,000 times: no verdict but "undecided" is true of them. Then the second group is moved by 0.5 to 3
standard deviations of the recipe. Beside Welch's t, which `judge` uses for unmatched runs, and Student's pooled t stand the
benchmark's rule (z with a standard deviation fixed at .0013, one-sided bound .004, taken in both directions) and the same
z at .05. The shift leaves the interval's width alone, so that it covers a planted shift as often as it covers 0.

`agreement` counts draws for which the public function gives the verdict of the vectorised test used here.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from paribus.judge import judge

TABLE = (
    Path(__file__).resolve().parent.parent / "experiments/results/public/optimizer_benchmark.csv"
)
FEWEST = 15
SIZES = (3, 5, 8)
SHIFTS = (0.5, 1.0, 1.5, 2.0, 3.0)
SIGMA, BOUND = 0.0013, 0.004


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    recipes = read()
    spreads = {name: float(values.std(ddof=1)) for name, values in recipes.items()}
    results: dict[str, Any] = {
        "draws": options.draws,
        "recipes": {name: {"runs": len(values), "stdev": round(spreads[name], 6)} for name, values in recipes.items()},
        "pooled_stdev": round(math.sqrt(np.mean([spread**2 for spread in spreads.values()])), 6),
        "sizes": {str(size): of_size(recipes, size, options.draws) for size in SIZES},
        "agreement": agreement(recipes),
    }  # fmt: skip
    text = json.dumps(results, indent=1) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


def read() -> dict[str, np.ndarray]:
    """recipe -> results at its record step, of those with enough runs."""
    values: dict[str, list[float]] = {}
    with TABLE.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values.setdefault(row["recipe"], []).append(float(row["val_loss"]))
    return {name: np.array(of) for name, of in values.items() if len(of) >= FEWEST}


def of_size(recipes: dict[str, np.ndarray], size: int, draws: int) -> dict[str, Any]:
    """Rates over all recipes that have two groups of this size."""
    rng = np.random.default_rng(size)
    rates: dict[str, dict[str, list[float]]] = {}
    for values in recipes.values():
        if len(values) < 2 * size:
            continue
        order = rng.permuted(np.tile(np.arange(len(values)), (draws, 1)), axis=1)
        first, second = values[order[:, :size]], values[order[:, size : 2 * size]]
        for shift in (0.0, *SHIFTS):
            moved = second + shift * values.std(ddof=1)
            for test, found in decided(first, moved).items():
                rates.setdefault(test, {}).setdefault(f"{shift:g}", []).append(float(found.mean()))
    return {
        test: {shift: summary(of, draws) for shift, of in by.items()} for test, by in rates.items()
    }


def decided(first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    """test -> (draws,) whether it says that the groups differ."""
    size = first.shape[1]
    difference = second.mean(axis=1) - first.mean(axis=1)
    z = np.abs(difference) / (SIGMA * math.sqrt(2 / size))
    return {
        "welch": stats.ttest_ind(second, first, axis=1, equal_var=False).pvalue <= 0.05,
        "pooled": stats.ttest_ind(second, first, axis=1).pvalue <= 0.05,
        "fixed z at .05": z >= stats.norm.isf(0.025),
        "published rule": np.abs(difference) / math.sqrt(2 / size) >= BOUND,
    }


def summary(rates: list[float], draws: int) -> dict[str, Any]:
    """Mean over recipes, its 95 % interval over recipes (t), the extremes, and the share of draws with its Monte Carlo error."""
    mean = float(np.mean(rates))
    half = float(stats.t.isf(0.025, len(rates) - 1) * stats.sem(rates))
    simulation = 1.96 * math.sqrt(max(mean * (1 - mean), 0) / (draws * len(rates)))
    return {
        "rate": round(mean, 4),
        "low": round(max(mean - half, 0), 4),
        "high": round(min(mean + half, 1), 4),
        "least": round(min(rates), 4),
        "most": round(max(rates), 4),
        "simulation": round(simulation, 4),
        "recipes": len(rates),
    }


def agreement(recipes: dict[str, np.ndarray], draws: int = 100) -> dict[str, int]:
    """Draws for which `judge` says what the vectorised test says."""
    rng = np.random.default_rng(1)
    names = list(recipes)
    same = 0
    for draw in range(draws):
        values = recipes[names[draw % len(names)]]
        size = SIZES[draw % len(SIZES)]
        size = min(size, len(values) // 2)
        chosen = rng.permutation(len(values))[: 2 * size]
        first, second = values[chosen[:size]], values[chosen[size:]] + 2 * values.std() * (draw % 2)
        expected = bool(decided(first[None], second[None])["welch"][0])
        table = {"arm": ["a"] * size + ["b"] * size, "loss": [*first, *second]}
        verdict = judge(table, arm="arm", metric="loss", baseline="a").comparisons[0].verdict
        same += (verdict != "undecided") == expected
    return {"draws": draws, "same": same}


if __name__ == "__main__":
    main()
