"""May a study's arms lend each other their variance, and know of their common baseline? False verdicts and power, simulated.

    python benchmarks/borrowing.py --out benchmarks/borrowing.json

Any false "differs" over m arms that do not differ, one look at n seeds, alpha .05, Bonferroni's level for the smallest p (Holm's
first step). Rules:

    own               t of each arm's own variance
    shrunk            variance shrunk to the mean over the arms, with PRIOR degrees of freedom (Smyth 2004's form)
    guarded           shrunk, and the arm's own p at most c times Bonferroni's level: c = .5, .75 and 1 times the number of arms
    guarded, c = 2    the same at a fixed c: a loan may halve a p, and no more
    paribus           shrunk, and the arm's own p at most alpha / GUARD; or its own p at most Bonferroni's level / ALONE
    Dunnett           shrunk, at the level for differences that correlate .5 (equal noise), beside its effect on the rate

Cases: a part of the arms noisier than the baseline and the others, 1.5 to 20 times; normal noise and heavy tails.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

from simulations import write

sys.path.pop(0)  # the modules beside this one are not for importing

import numpy as np
from scipy import stats

from paribus.evaluate.intervals import wilson
from paribus.study.shrinkage import ALONE, FEWEST, GUARD, PRIOR

ALPHA = 0.05
STUDIES = 30_000


def noise(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    if kind == "normal":
        return rng.standard_normal(shape)
    return rng.standard_t(3, shape) / math.sqrt(3)


def t_values(
    rng: np.random.Generator, kind: str, spread: list[float], n: int, effect: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """(own |t|, shrunk |t|), (studies, arms); effect: of the first arm, in sd of its differences."""
    scale = np.asarray(spread, float)
    base = noise(rng, kind, (STUDIES, 1, n))
    values = noise(rng, kind, (STUDIES, len(scale), n)) * scale[:, None] - base
    values[:, 0] += effect * math.sqrt(scale[0] ** 2 + 1)
    variance, mean = values.var(-1, ddof=1), np.abs(values.mean(-1))
    pooled = variance.mean(-1, keepdims=True)
    shrunk = ((n - 1) * variance + PRIOR * pooled) / (n - 1 + PRIOR)
    return mean / np.sqrt(variance / n), mean / np.sqrt(shrunk / n)


def dunnett_level(arms: int, n: int) -> float:
    """Level of each of `arms` shrunk tests at which any is false alpha of the time, where all noise is equal."""
    rng = np.random.default_rng(7)
    largest = []
    for _ in range(6):
        largest.append(t_values(rng, "normal", [1.0] * arms, n)[1].max(-1))
    bound = float(np.quantile(np.concatenate(largest), 1 - ALPHA))
    return float(2 * stats.t.sf(bound, n - 1 + PRIOR))


def rules(own: np.ndarray, shrunk: np.ndarray, n: int, dunnett: float) -> dict[str, np.ndarray]:
    """Rule -> which arms it calls different, (studies, arms)."""
    arms = own.shape[1]
    at = ALPHA / arms
    borrowed = shrunk >= stats.t.isf(at / 2, n - 1 + PRIOR)
    found = {"own": own >= stats.t.isf(at / 2, n - 1), "shrunk": borrowed}
    for name, factor in (
        ("guarded, c = 1 of the arms", arms),
        ("guarded, c = .75 of the arms", 0.75 * arms),
        ("guarded, c = .5 of the arms", 0.5 * arms),
        ("guarded, c = 2", 2.0),
        ("guarded, c = 1.5", 1.5),
    ):
        factor = max(factor, 1.0)
        found[name] = borrowed & (own >= stats.t.isf(min(at * factor, 1) / 2, n - 1))
    guard = shrunk >= stats.t.isf(at / 2, n - 1 + PRIOR)
    guard &= own >= stats.t.isf(ALPHA / GUARD / 2, n - 1)
    found["guarded, or alone (paribus)"] = guard | (own >= stats.t.isf(at / ALONE / 2, n - 1))
    if arms < FEWEST:
        found["guarded, or alone (paribus)"] = found["own"]
    found["shrunk, Dunnett"] = shrunk >= stats.t.isf(dunnett / 2, n - 1 + PRIOR)
    return found


def cases() -> list[list[float]]:
    """Spreads of the arms' noise over the baseline's."""
    found = []
    for arms in (2, 3, 4, 6, 8):
        found.append([1.0] * arms)
        for noisy in sorted({1, arms // 2, arms - 1}):
            for times in (1.5, 2, 3, 5, 10, 20):
                found.append([float(times)] * noisy + [1.0] * (arms - noisy))
    return found


def false_verdicts(rng: np.random.Generator) -> dict[str, Any]:
    """Rule -> its worst rates."""
    worst: dict[str, list[tuple[float, str]]] = {}
    equal: dict[str, list[float]] = {}
    for n in (3, 4, 5, 8, 12):
        levels = {arms: dunnett_level(arms, n) for arms in (2, 3, 4, 6, 8)}
        for kind in ("normal", "t, 3 degrees"):
            for spread in cases():
                own, shrunk = t_values(rng, kind, spread, n)
                for rule, hits in rules(own, shrunk, n, levels[len(spread)]).items():
                    share = float(hits.any(-1).mean())
                    where = f"{n} seeds, {kind}, noise {[f'{one:g}' for one in spread]}"
                    worst.setdefault(rule, []).append((share, where))
                    if set(spread) == {1.0} and kind == "normal":
                        equal.setdefault(rule, []).append(share)
    found = {}
    for rule, rates in worst.items():
        share, where = max(rates)
        low, high = wilson(round(share * STUDIES), STUDIES)
        found[rule] = {
            "worst": round(share, 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "where": where.replace("'", ""),
            "cases": len(rates),
            "cases above .05 by more than 3 standard errors": sum(
                rate > ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / STUDIES) for rate, _ in rates
            ),
            "equal normal noise, mean": round(float(np.mean(equal[rule])), 4),
        }
    return found


def power(rng: np.random.Generator) -> dict[str, Any]:
    """Chance to find an effect in one of several arms of equal noise."""
    found = {}
    for n, effect in ((3, 2.0), (3, 3.0), (5, 2.0), (8, 1.0)):
        for arms in (2, 4, 8):
            own, shrunk = t_values(rng, "normal", [1.0] * arms, n, effect)
            hits = rules(own, shrunk, n, dunnett_level(arms, n))
            found[f"{n} seeds, {arms} arms, {effect:g} sd"] = {
                rule: round(float(said[:, 0].mean()), 3) for rule, said in hits.items()
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began = time.process_time()
    found = {
        "command": "python benchmarks/borrowing.py",
        "false": false_verdicts(np.random.default_rng(1)),
        "power": power(np.random.default_rng(2)),
    }
    found["cpu_seconds"] = round(time.process_time() - began, 1)
    write(found, options.out)


if __name__ == "__main__":
    main()
