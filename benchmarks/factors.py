"""Do the verdicts on factors keep their error rate? False effects, coverage and power of a 2^(5-1) design, simulated.

    python benchmarks/factors.py --out benchmarks/factors.json

Studies of 16 cells (five factors, resolution V), 3 or 5 seeds, alpha .05. Rules:

    model      the mixed model's p, Holm over single factors, and over interactions
    paribus    the same, guarded by each effect's own contrasts over seeds (study/factor_effects.py)

Cases: normal, heavy-tailed and skewed noise; cells of one level four times as noisy; one factor, or all, whose effect varies over
seeds, by so many standard deviations of a run. What is vectorised here agrees with the package on the first studies of each case.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.pop(0)  # the modules beside this one are not for importing

import numpy as np
from scipy import stats

from paribus.evaluate.intervals import wilson
from paribus.study.factor_effects import OWN_LEVEL, Judge, fitted
from paribus.study.factors import Factor, Factorial, fractions, terms_of
from paribus.study.shrinkage import ALONE, GUARD

ALPHA = 0.05
STUDIES = 20_000
CHECKED = 25  # studies of each case that the package judges too
FACTORS = ("a", "b", "c", "d", "e")
SIGNS = next(one for one in fractions(5) if len(one) == 16)
CELLS = {
    "-".join(name for name, level in zip(FACTORS, row, strict=True) if level > 0)
    or "baseline": tuple(map(int, row))
    for row in SIGNS
}
DESIGN = Factorial(
    {name: Factor({name: 0}, {name: 1}) for name in FACTORS}, CELLS, 5, tuple(terms_of(FACTORS))
)
TERMS = DESIGN.asked
CONTRASTS = np.array([DESIGN.signs(term) * 2 / 16 for term in TERMS])  # standardised
SCALE = np.array([len(term) for term in TERMS], float)
SINGLE = np.array([len(term) == 1 for term in TERMS])


def noise(rng: np.random.Generator, case: str, seeds: int) -> np.ndarray:
    """Values of the metric (studies, cells, seeds), with standard deviation 1 of a run, without any effect."""
    shape = (STUDIES, 16, seeds)
    first = DESIGN.signs(("a",))[:, None]
    kind, _, amount = case.partition(" ")
    if kind == "heavy":
        return rng.standard_t(3, shape) / math.sqrt(3)
    if kind in ("skewed", "skewed-unequal"):
        values = (rng.lognormal(0, 1, shape) - math.exp(0.5)) / math.sqrt(math.e * (math.e - 1))
        return values * np.where(first > 0, 4, 1) if kind == "skewed-unequal" else values
    values = rng.standard_normal(shape)
    if kind == "unequal":
        return values * np.where(first > 0, 4, 1)
    if kind == "one-varies":
        return values + float(amount) * rng.standard_normal((STUDIES, 1, seeds)) * first / 2
    if kind == "all-vary":
        slopes = rng.standard_normal((STUDIES, 5, seeds)) * float(amount) / 2
        return values + np.einsum("cf,sfn->scn", SIGNS_OF_DESIGN, slopes)
    return values


SIGNS_OF_DESIGN = np.array(list(CELLS.values()), float)


def holm(p: np.ndarray) -> np.ndarray:
    order = np.argsort(p, axis=1)
    ranked = np.take_along_axis(p, order, 1) * (p.shape[1] - np.arange(p.shape[1]))
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.maximum.accumulate(np.minimum(ranked, 1), axis=1), 1)
    return adjusted


def judged(values: np.ndarray) -> dict[str, np.ndarray]:
    """Effects (studies, effects), their adjusted p by both rules, and half the width of their intervals."""
    seeds = values.shape[2]
    contrasts = np.einsum("ec,scn->sen", CONTRASTS, values)
    mean, own = contrasts.mean(2), contrasts.var(2, ddof=1)
    single = own[:, SINGLE].mean(1, keepdims=True)
    rest = own[:, ~SINGLE].mean(1, keepdims=True)
    free = (seeds - 1) * SINGLE.sum(), (seeds - 1) * (~SINGLE).sum()
    pooled = (single * free[0] + rest * free[1]) / sum(free)
    apart = single > rest
    variance = np.where(SINGLE, np.where(apart, single, pooled), np.where(apart, rest, pooled))
    freedom = np.where(SINGLE, *free)
    p_model = 2 * stats.t.sf(np.abs(mean) / np.sqrt(variance / seeds), freedom)
    p_own = 2 * stats.t.sf(np.abs(mean) / np.sqrt(own / seeds), seeds - 1)
    model, guarded = np.empty_like(p_own), np.empty_like(p_own)
    for family in (SINGLE, ~SINGLE):
        model[:, family] = holm(p_model[:, family])
        with_loan = np.maximum(model[:, family], GUARD * p_own[:, family])
        guarded[:, family] = np.minimum(with_loan, ALONE * holm(p_own[:, family]))
    alone = own / variance > stats.f.isf(OWN_LEVEL, seeds - 1, freedom)
    bound = np.where(alone, stats.t.isf(ALPHA / 2, seeds - 1), stats.t.isf(ALPHA / 2, freedom))
    half = bound * np.sqrt(np.where(alone, own, variance) / seeds)
    return {
        "mean": mean * SCALE,
        "model": model,
        "paribus": np.minimum(guarded, 1),
        "half": half * SCALE,
    }


def agrees(values: np.ndarray, found: dict[str, np.ndarray]) -> None:
    """Raises AssertionError where the package judges otherwise."""
    for study in range(CHECKED):
        judge = Judge("lower", 0.01, ALPHA, fitted(DESIGN, values[study]))
        for place, effect in enumerate(judge.asked().values()):
            assert math.isclose(effect.mean, found["mean"][study, place], abs_tol=1e-12)
            assert math.isclose(effect.p_adjusted, found["paribus"][study, place], rel_tol=1e-9)
            assert math.isclose(
                (effect.high - effect.low) / 2, found["half"][study, place], rel_tol=1e-9
            )


def rate(hits: np.ndarray) -> dict[str, Any]:
    count, number = int(hits.sum()), len(hits)
    low, high = wilson(count, number)
    return {"rate": count / number, "low": low, "high": high, "n": number}


def false_effects(rng: np.random.Generator) -> dict[str, Any]:
    cases = ["normal", "heavy", "skewed", "unequal", "skewed-unequal"]
    cases += [f"one-varies {amount}" for amount in (0.5, 1, 2, 4)] + ["all-vary 1"]
    rows: dict[str, Any] = {}
    for seeds, case in itertools.product((3, 5), cases):
        values = noise(rng, case, seeds)
        found = judged(values)
        agrees(values, found)
        row = {}
        for rule in ("model", "paribus"):
            wrong = found[rule] <= ALPHA
            row[f"single factors, {rule}"] = rate(wrong[:, SINGLE].any(1))
            row[f"interactions, {rule}"] = rate(wrong[:, ~SINGLE].any(1))
        covered = np.abs(found["mean"]) <= found["half"]
        row["coverage, factor a"] = rate(covered[:, 0])
        row["coverage, factor b"] = rate(covered[:, 1])
        row["coverage, interaction b x c"] = rate(covered[:, list(TERMS).index(("b", "c"))])
        rows[f"{case}, {seeds} seeds"] = row
    return rows


def power(rng: np.random.Generator) -> dict[str, Any]:
    """The chance to find one factor whose effect is so many standard deviations of a run."""
    rows: dict[str, Any] = {}
    for seeds, size in itertools.product((3, 5), (0.5, 1.0, 1.5, 2.0)):
        values = noise(rng, "normal", seeds) + size * DESIGN.signs(("a",))[:, None] / 2
        found = judged(values)
        single = values[:, list(CELLS).index("baseline")]
        rows[f"{size:g} sd, {seeds} seeds"] = {
            rule: rate(found[rule][:, 0] <= ALPHA) for rule in ("model", "paribus")
        } | {"runs": int(16 * single.shape[1])}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    found = {"studies": STUDIES, "alpha": ALPHA, "false": false_effects(rng), "power": power(rng)}
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
