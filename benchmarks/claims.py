"""Do the claims beside the first verdict keep their error rate? Items, many metrics, contrasts, the best, a margin, skewed noise.

    python benchmarks/claims.py --out benchmarks/claims.json

As promises.py, whose looks, noise and rates it uses: every claim that is counted is false, but where power is said. Where looks
are taken, a claim counts if any look made it. Items are judged by the public functions, the rest by vectorised formulas. One
core, some minutes of processor time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from promises import (
    ALPHA,
    LAST,
    NOISE,
    STUDIES,
    differences,
    follow,
    holm,
    over_looks,
    rate,
    two_sided,
)
from scipy import stats
from simulations import Part, run_parts

from paribus.study.items import item_noise
from paribus.study.looks import OPEN, level
from paribus.study.sample import ByItem, Sample
from paribus.study.statistics import RESERVE, effects

SOME = 12  # seeds at which users of several arms stop
UNEQUAL = {"equal noise": [1.0] * 4, "two arms x 3": [1.0, 1.0, 3.0, 3.0]}


def looks_upto(last: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """(seeds, the looks so far) of every look up to `last` seeds."""
    dues = OPEN.upto(last)
    taken = OPEN.taken(dues)
    for number, due in enumerate(dues, start=1):
        yield due, taken[:number]


def one_sided(values: np.ndarray, bound: float = 0.0) -> np.ndarray:
    """p of "the mean is at least bound" over the last axis: small where it is below."""
    n = values.shape[-1]
    error = values.std(-1, ddof=1) / math.sqrt(n)
    return stats.t.cdf((values.mean(-1) - bound) / error, n - 1)


def one_sided_over_looks(p: np.ndarray, looks: tuple[Any, ...]) -> np.ndarray:
    """A one-sided p over all looks."""
    return over_looks(np.minimum(2 * p, 1), looks) / 2


# ---------------------------------------------------------------- many metrics


def many_metrics(rng: np.random.Generator) -> dict[str, Any]:
    """`paribus compare` of six metrics that correlate .5, at five matched seeds: any p at most .05."""
    found: dict[str, Any] = {}
    for noise in NOISE:
        shared = differences(rng, noise, 1, 5)
        values = math.sqrt(0.5) * (shared + differences(rng, noise, 6, 5))
        p = two_sided(values)
        found[noise] = {
            "each p alone": rate((p <= ALPHA).any(-1)),
            "after Holm": rate((holm(p) <= ALPHA).any(-1)),
        }
    return found


def secondary(rng: np.random.Generator) -> dict[str, Any]:
    """Three secondary metrics (correlation .5 with the first), tested at the look at which the first one spoke."""
    found: dict[str, Any] = {}
    for noise in NOISE:
        for arms in (1, 3):
            for size in (0.0, 2.0):
                studies = STUDIES // 2
                first = differences(rng, noise, arms, SOME, studies)
                others = differences(rng, noise, 3 * arms, SOME, studies)
                others = others.reshape(studies, arms, 3, SOME)
                others = math.sqrt(0.5) * (others + first[:, :, None])
                first[:, 0] -= size * math.sqrt(2)
                said, used = follow(first, last=SOME)
                p = np.ones((studies, arms, 3))
                for due, looks in looks_upto(SOME):
                    spoke = (said == 1) & (used == due)
                    own = over_looks(two_sided(others[..., :due]), looks)
                    p = np.where(spoke[:, :, None], own, p)
                of_others = (holm(p.reshape(studies, -1)) <= ALPHA).any(-1)
                equal_arms = said[:, 1:] if size else said
                of_first = (equal_arms == 1).any(-1)
                truth = f"the first metric of one arm {size:g} sd" if size else "nothing differs"
                found[f"{noise}, {arms} arm{'s' * (arms > 1)}, {truth}"] = {
                    "a secondary metric": rate(of_others),
                    "any metric": rate(of_others | of_first),
                }
    return found


# ---------------------------------------------------------------- arms among each other


def contrasts(rng: np.random.Generator) -> dict[str, Any]:
    """All six contrasts of four equal arms; an arm that has its verdict against the baseline is looked at no more."""
    found: dict[str, Any] = {}
    pairs = [(one, other) for one in range(4) for other in range(one)]
    for noise in NOISE:
        for name, spread in UNEQUAL.items():
            values = differences(rng, noise, 4, SOME, STUDIES // 2, spread)
            _, used = follow(values, last=SOME)
            any_false = np.zeros(len(values), bool)
            p = np.ones((len(values), len(pairs)))
            for due, looks in looks_upto(SOME):
                for place, (one, other) in enumerate(pairs):
                    is_due = np.minimum(used[:, one], used[:, other]) >= due
                    own = two_sided(values[:, one, :due] - values[:, other, :due])
                    p[:, place] = np.where(is_due, over_looks(own, looks), p[:, place])
                any_false |= (holm(p) <= ALPHA).any(-1)
            found[f"{noise}, {name}"] = rate(any_false)
    return found


def best(rng: np.random.Generator) -> dict[str, Any]:
    """A baseline and four arms, all equal or one ahead of the others by 1 sd of a difference: the best is left out at a look."""
    found: dict[str, Any] = {}
    for noise in NOISE:
        for name, spread in UNEQUAL.items():
            for ahead in (0.0, 1.0):
                values = differences(rng, noise, 4, SOME, STUDIES // 2, spread)
                values[:, 0] -= ahead * math.sqrt(2)
                runs = np.concatenate([np.zeros_like(values[:, :1]), values], axis=1)
                out = _left_out(runs)
                case = f"{noise}, {name}, {f'one ahead by {ahead:g} sd' if ahead else 'all equal'}"
                found[case] = {"the best is left out": rate(out[:, 1])}
                if ahead:
                    found[case]["all others are (power)"] = rate(out[:, [0, 2, 3, 4]].all(-1))
    return found


def _left_out(runs: np.ndarray) -> np.ndarray:
    """Which of the arms (studies, arms, seeds) are shown at a look to be worse than another one."""
    studies, arms, _ = runs.shape
    out = np.zeros((studies, arms), bool)
    for due, looks in looks_upto(SOME):
        for one in range(arms):
            for other in range(arms):
                if other != one:
                    p = one_sided(runs[:, other, :due] - runs[:, one, :due])
                    out[:, one] |= one_sided_over_looks(p, looks) * (arms - 1) <= ALPHA
    return out


def margin(rng: np.random.Generator) -> dict[str, Any]:
    """Three arms that are worse by exactly the margin (1 sd of a difference), and look for "not worse by more" at every look."""
    found: dict[str, Any] = {}
    for noise in NOISE:
        values = differences(rng, noise, 3, SOME, STUDIES // 2) + math.sqrt(2)
        _, used = follow(values, last=SOME)
        any_false = np.zeros(len(values), bool)
        p = np.ones(values.shape[:2])
        for due, looks in looks_upto(SOME):
            own = one_sided_over_looks(one_sided(values[..., :due], math.sqrt(2)), looks)
            p = np.where(used >= due, own, p)
            any_false |= (holm(p) <= ALPHA).any(-1)
        found[noise] = rate(any_false)
    return found


# ---------------------------------------------------------------- items


def by_items(rng: np.random.Generator) -> dict[str, Any]:
    """Five equal arms on the same items, any verdict "better" or "worse"; from seeds alone, and from seeds and items."""
    found: dict[str, Any] = {}
    cases = {
        "400 items, 3 seeds": (400, 3, None),
        "100 items, 10 seeds": (100, 10, None),
        "22 tasks of 20 items, 5 seeds": (440, 5, np.repeat(np.arange(22), 20)),
    }
    for name, (items, seeds, tasks) in cases.items():
        false: dict[str, list[bool]] = {"seeds alone": [], "seeds and items": []}
        for _ in range(600):
            runs = [_outcomes(rng, items, seeds, tasks) for _ in range(6)]
            by_seed, by_both = {}, {}
            for arm, own in enumerate(runs[1:]):
                difference = list((own - runs[0]).mean(axis=1))
                noise = item_noise(
                    list(runs[0]), list(own), tasks, equal_clusters=tasks is not None
                )
                by_seed[str(arm)], by_both[str(arm)] = difference, ByItem(difference, noise)
            for kind, values in (("seeds alone", by_seed), ("seeds and items", by_both)):
                judged = effects(values, direction="higher", smallest_effect=1e-6, alpha=ALPHA)
                false[kind].append(any(effect.decided for effect in judged.values()))
        found[f"{name}, five arms"] = {kind: rate(np.array(hits)) for kind, hits in false.items()}
    return found


def _outcomes(
    rng: np.random.Generator, items: int, seeds: int, tasks: np.ndarray | None
) -> np.ndarray:
    """Answers (seeds, items) of an arm to items of its own luck: .5 logit an item, .3 a task, .1 a seed; the arms' law is one."""
    luck = rng.normal(0, 0.5, items)
    if tasks is not None:
        luck = luck + rng.normal(0, 0.3, tasks.max() + 1)[tasks]
    logit = luck + rng.normal(0, 0.1, (seeds, 1))
    return (rng.random((seeds, items)) < 1 / (1 + np.exp(-logit))).astype(float)


def floors(rng: np.random.Generator) -> dict[str, Any]:
    """Arms at a floor that differ by more than matters are called equivalent."""
    found: dict[str, Any] = {}
    for seeds, items, base, arm, matters in (
        (3, 4, 0.01, 0.05, 0.02),
        (2, 20, 0.005, 0.04, 0.02),
        (3, 20, 0.005, 0.04, 0.02),
        (2, 50, 0.002, 0.03, 0.02),
        (5, 1319, 0.0, 0.0105, 0.01),
    ):
        wrong = []
        for _ in range(1000):
            before = (rng.random((seeds, items)) < base).astype(float)
            after = (rng.random(items) < arm) * np.ones((seeds, 1))
            difference = list((after - before).mean(axis=1))
            values = ByItem(difference, item_noise(list(before), list(after)))
            judged = effects(
                {"arm": values}, direction="higher", smallest_effect=matters, alpha=ALPHA
            )
            wrong.append(judged["arm"].verdict == "equivalent")
        case = f"{items:,} items, {seeds} seeds, {base:g} against {arm:g}, margin {matters:g}"
        found[case] = rate(np.array(wrong))
    return found


# ---------------------------------------------------------------- skewed noise


def skewed(rng: np.random.Generator) -> dict[str, Any]:
    """Open looks to LAST seeds of one arm whose noise is skewed and larger than the baseline's, by rules against it."""
    draws = {
        "lognormal": NOISE["skewed (lognormal)"],
        "exponential": lambda rng, shape: rng.exponential(size=shape) - 1,
    }
    found: dict[str, Any] = {}
    for rule in RULES:
        row: dict[str, Any] = {}
        for name, times in (
            ("lognormal", 1),
            ("lognormal", 2),
            ("lognormal", 5),
            ("lognormal", 20),
            ("exponential", 5),
        ):
            shape = (STUDIES // 2, LAST)
            arm, base = draws[name](rng, shape) * times, draws[name](rng, shape)
            row[f"{name} x {times}"] = rate(_looks_with(RULES[rule], arm, base)[0])
        for size in (1.0, 2.0):
            shape = (STUDIES // 4, LAST)
            arm = rng.standard_normal(shape) + size * math.sqrt(2)
            said, used = _looks_with(RULES[rule], arm, rng.standard_normal(shape))
            row[f"normal, power at {size:g} sd"] = rate(said) | {
                "mean seeds": round(float(used.mean()), 1)
            }
        found[rule] = row
    return found


Rule = Callable[[np.ndarray, np.ndarray, float], np.ndarray]  # (arm, baseline, level) -> rejected


def _looks_with(rule: Rule, arm: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    said = np.zeros(len(arm), bool)
    used = np.full(len(arm), LAST)
    for due, looks in looks_upto(LAST):
        fresh = rule(arm[:, :due], base[:, :due], level(looks, ALPHA)) & ~said
        said |= fresh
        used[fresh] = due
    return said, used


def _student(arm: np.ndarray, base: np.ndarray, at: float) -> np.ndarray:
    return two_sided(arm - base) <= at


def _johnson(arm: np.ndarray, base: np.ndarray, at: float) -> np.ndarray:
    """Johnson's (1978) t, which the measured skewness corrects, and Student's: both reject."""
    values = arm - base
    n, mean = values.shape[-1], values.mean(-1)
    variance = values.var(-1, ddof=1)
    third = ((values - mean[:, None]) ** 3).mean(-1) * n**2 / ((n - 1) * (n - 2))
    moved = mean + third / (6 * n * variance) + third * mean**2 / (3 * variance**2)
    p = 2 * stats.t.sf(np.abs(moved) / np.sqrt(variance / n), n - 1)
    return (p <= at) & _student(arm, base, at)


def _alike(arm: np.ndarray, base: np.ndarray, at: float) -> np.ndarray:
    """No verdict where one arm's values spread half as much again as the other's."""
    ratio = arm.std(-1, ddof=1) / base.std(-1, ddof=1)
    return _student(arm, base, at) & (np.maximum(ratio, 1 / ratio) < 1.5)


def _late(arm: np.ndarray, base: np.ndarray, at: float) -> np.ndarray:
    """No verdict before 18 seeds."""
    return _student(arm, base, at) & (arm.shape[-1] >= 18)


def _signs(arm: np.ndarray, base: np.ndarray, at: float) -> np.ndarray:
    """The differences keep their size and change their sign at random (Fisher, 1935): at most 1,000 draws."""
    values = arm - base
    n = values.shape[-1]
    if 2.0 ** (1 - n) > at:  # the smallest p there is
        return np.zeros(len(values), bool)
    rng = np.random.default_rng(n)
    flips = rng.choice([-1.0, 1.0], (1000, n))
    candidates = np.flatnonzero(two_sided(values) <= 4 * at)
    rejected = np.zeros(len(values), bool)
    for index in candidates:
        drawn = np.abs(flips @ values[index])
        beyond = (drawn >= abs(values[index].sum()) - 1e-12).sum()
        rejected[index] = (1 + beyond) / 1001 <= at
    return rejected


def _reserve(arm: np.ndarray, base: np.ndarray, at: float) -> np.ndarray:
    """`skewed: true`: the verdict holds with one more seed RESERVE standard deviations on the other side."""
    values = arm - base
    n = values.shape[-1]
    stdev = values.std(-1, ddof=1)
    one = Sample(n, 0.0, 1.0, reserve=RESERVE)  # of unit spread
    beyond = np.maximum(np.abs(values.mean(-1)) - one.shift * stdev, 0)
    return 2 * stats.t.sf(beyond / (one.seed_error * stdev), n - 1) <= at


RULES: dict[str, Rule] = {
    "Student's t": _student,
    "Johnson's t and Student's": _johnson,
    "no verdict where spreads differ by half": _alike,
    "no verdict before 18 seeds": _late,
    "random signs": _signs,
    "skewed: true": _reserve,
}

PARTS: dict[str, Part] = {
    "six metrics in compare": many_metrics,
    "secondary metrics": secondary,
    "contrasts": contrasts,
    "which may be best": best,
    "not worse by more than the margin": margin,
    "by item": by_items,
    "equivalent at a floor": floors,
    "skewed": skewed,
}


if __name__ == "__main__":
    run_parts("claims.py", __doc__.splitlines()[0], PARTS)
