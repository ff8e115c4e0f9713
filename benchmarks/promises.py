"""Do verdicts keep their error rate whatever the user does? Simulated, over kinds of noise and ways to use the tool.

    python benchmarks/promises.py --out benchmarks/promises.json

Arms that do not differ; every "better" or "worse" is false. Ways to use the tool: look until pleased, follow the advice,
read the report after every seed, add arms until one pleases, lose seeds, change the file. Beside each the rate without the
guard, where one was measured. Rates have Wilson's intervals. The formulas are vectorised; that they say what the public
functions say is checked first, on 60 random studies (`agreement`). One core, some minutes of processor time.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from simulations import Part, run_parts

sys.path.pop(0)  # the modules beside this one are not for importing

import numpy as np
from scipy import stats

from paribus.evaluate.intervals import wilson
from paribus.study import statistics
from paribus.study.looks import OPEN, Look, Schedule, level
from paribus.study.power import seeds_for_equivalence, seeds_needed, upper_stdev
from paribus.study.shrinkage import ALONE, GUARD, PRIOR

ALPHA = 0.05
LAST = 62  # seeds at which even a patient user stops
STUDIES = 20_000
Noise = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def lognormal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Mean 0, variance 1, skewness 6."""
    return (rng.lognormal(size=shape) - math.exp(0.5)) / math.sqrt((math.e - 1) * math.e)


NOISE: dict[str, Noise] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "heavy tails (t, 3 degrees)": lambda rng, shape: rng.standard_t(3, shape) / math.sqrt(3),
    "skewed (lognormal)": lognormal,
}


def rate(hits: np.ndarray) -> dict[str, Any]:
    """Share of hits with Wilson's interval."""
    low, high = wilson(int(hits.sum()), hits.size)
    return {
        "rate": round(float(hits.mean()), 5),
        "low": round(low, 5),
        "high": round(high, 5),
        "n": int(hits.size),
    }


def differences(
    rng: np.random.Generator,
    noise: str,
    arms: int,
    seeds: int,
    studies: int = STUDIES,
    spread: Sequence[float] | None = None,
) -> np.ndarray:
    """(studies, arms, seeds): arm - baseline; `spread`: noise of each arm over the baseline's."""
    draw = NOISE[noise]
    base = draw(rng, (studies, 1, seeds))
    own = draw(rng, (studies, arms, seeds))
    scale = np.ones(arms) if spread is None else np.asarray(spread, float)
    return own * scale[:, None] - base


# ---------------------------------------------------------------- the tool's rules, vectorised


@lru_cache(maxsize=4096)
def _curve(looks: tuple[Look, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(log level, log alpha) of the last look."""
    alphas = np.geomspace(1e-9, 0.499, 60)
    levels = np.array([max(level(looks, float(alpha)), 1e-300) for alpha in alphas])
    return np.log(levels), np.log(alphas)


def over_looks(p: np.ndarray, looks: tuple[Look, ...]) -> np.ndarray:
    """`p_over_looks` of many p."""
    if looks[-1].share <= (looks[-2].share if len(looks) > 1 else 0) + 1e-12:
        return np.ones_like(p)
    levels, alphas = _curve(looks)
    found = np.exp(np.interp(np.log(np.maximum(p, 1e-300)), levels, alphas))
    return np.where(np.log(np.maximum(p, 1e-300)) > levels[-1], 1.0, found)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm over the last axis."""
    order = np.argsort(p, axis=-1)
    sorted_p = np.take_along_axis(p, order, -1)
    times = np.arange(p.shape[-1], 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(sorted_p * times, axis=-1), 1)
    out = np.empty_like(adjusted)
    np.put_along_axis(out, order, adjusted, -1)
    return out


def two_sided(values: np.ndarray) -> np.ndarray:
    """p of Student's t over the last axis."""
    n = values.shape[-1]
    error = values.std(-1, ddof=1) / math.sqrt(n)
    return 2 * stats.t.sf(np.abs(values.mean(-1)) / error, n - 1)


def equivalence(values: np.ndarray, margin: float) -> np.ndarray:
    """p of TOST over the last axis."""
    n = values.shape[-1]
    error = values.std(-1, ddof=1) / math.sqrt(n)
    return stats.t.sf((margin - np.abs(values.mean(-1))) / error, n - 1)


def loans(part: np.ndarray, margin: float | None) -> np.ndarray:
    """p of the variance shrunk to the mean over the arms; of TOST with a margin."""
    n = part.shape[-1]
    variance, mean = part.var(-1, ddof=1), np.abs(part.mean(-1))
    pooled = variance.mean(-1, keepdims=True)
    shrunk = ((n - 1) * variance + PRIOR * pooled) / (n - 1 + PRIOR)
    if margin is None:
        return 2 * stats.t.sf(mean / np.sqrt(shrunk / n), n - 1 + PRIOR)
    return stats.t.sf((margin - mean) / np.sqrt(shrunk / n), n - 1 + PRIOR)


def guarded(own: np.ndarray, lent: np.ndarray) -> np.ndarray:
    """Adjusted p with loans, `shrinkage.guarded`."""
    with_loan = np.maximum(holm(lent), GUARD * own)
    return np.minimum(with_loan, ALONE * holm(own))


def follow(
    values: np.ndarray,
    schedule: Schedule = OPEN,
    last: int = LAST,
    margin: float | None = None,
    begun: Look | None = None,
    borrow: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Take every look up to `last` seeds: (verdict (studies, arms): 1 differs, 2 equivalent, 0 undecided; seeds used).

    begun: the last look of another schedule, taken before.
    """
    studies, arms, _ = values.shape
    said = np.zeros((studies, arms), int)
    used = np.full((studies, arms), last)
    frozen_differs, frozen_equal = np.ones((studies, arms)), np.ones((studies, arms))
    planned: list[int] = []
    due = schedule.after(begun.seeds if begun else 0)
    while due is not None and due <= last:
        planned.append(due)
        looks = schedule.taken(planned, begun=begun)
        if begun:
            looks = (begun, *looks)
        part = values[:, :, :due]
        open_ = said == 0
        differs = np.where(open_, over_looks(two_sided(part), looks), frozen_differs)
        equal = np.ones_like(differs)
        if margin is not None:
            tost = np.minimum(2 * equivalence(part, margin), 1)
            equal = np.where(open_, over_looks(tost, looks) / 2, frozen_equal)
        adjusted = holm(differs)
        if borrow:
            lent = np.where(open_, over_looks(loans(part, None), looks), differs)
            adjusted = guarded(differs, lent)
        now = np.where(adjusted <= ALPHA, 1, 0)
        if margin is not None:
            now = np.where(holm(equal) <= ALPHA, 2, now)
        fresh = open_ & (now > 0)
        said[fresh], used[fresh] = now[fresh], due
        frozen_differs = np.where(fresh & (now == 1), 0, np.where(fresh, differs, frozen_differs))
        frozen_equal = np.where(fresh & (now == 2), 0, np.where(fresh, equal, frozen_equal))
        due = schedule.after(due)
    return said, used


def add_arms(values: np.ndarray, last: int = LAST) -> np.ndarray:
    """Begin with one arm; while none pleases, add one at each look. Whether any was called different, (studies,)."""
    studies, arms, _ = values.shape
    looks = OPEN.upto(last)
    pleased = np.zeros(studies, bool)
    for number, due in enumerate(looks):
        present = min(number + 1, arms)
        p = np.ones((studies, present))
        for arm in range(present):
            p[:, arm] = over_looks(two_sided(values[:, arm, :due]), _looks_of_added(number, arm))
        pleased |= holm(p).min(-1) <= ALPHA
    return pleased


def _looks_of_added(number: int, arm: int) -> tuple[Look, ...]:
    """Looks 0 to `number` on an arm that came before look `arm`, where an arm came before each look."""
    looks = OPEN.upto(LAST)
    share, taken, before = 0.0, [], 0.0
    for at in range(number + 1):
        fraction = 1 / 2  # the first look of what is left, each time
        share += (1 - share) * fraction
        if at < arm:
            before = share
        else:
            taken.append(Look(looks[at], share - before))
    return tuple(taken)


# ---------------------------------------------------------------- what users do


def agreement(rng: np.random.Generator) -> dict[str, Any]:
    """Verdicts of `follow` and of the public function, look by look, on random studies of three arms."""
    same = total = 0
    for _ in range(60):
        values = differences(rng, "normal", 3, 12, 1) + rng.normal(0, 1, (1, 3, 1))
        said, _ = follow(values, last=12, margin=0.5)
        stands: dict[str, Any] = {}
        kept: dict[str, Any] = {}
        looks_of: dict[str, Any] = {}
        for due in OPEN.upto(12):
            for arm in range(3):
                if str(arm) not in stands:
                    kept[str(arm)] = list(values[0, arm, :due])
                    looks_of[str(arm)] = OPEN.taken(OPEN.upto(due))
            found = statistics.effects(
                kept,
                direction="lower",
                smallest_effect=0.5,
                alpha=ALPHA,
                plan=OPEN,
                family=statistics.Family(looks_of, stands),
            )
            for arm, effect in found.items():
                if arm not in stands and effect.decided:
                    stands[arm] = effect.verdict
        codes = {"better": 1, "worse": 1, "equivalent": 2}
        for arm in range(3):
            same += codes.get(stands.get(str(arm), ""), 0) == said[0, arm]
            total += 1
    return {"arms": total, "same": int(same)}


def until_pleased(rng: np.random.Generator) -> dict[str, Any]:
    """Open looks until one gives a verdict or LAST seeds are in; also what reading after every seed comes to."""
    found: dict[str, Any] = {}
    for noise in NOISE:
        for arms in (1, 3, 5):
            said, _ = follow(differences(rng, noise, arms, LAST, STUDIES // 2))
            found[f"{noise}, {arms} arm{'s' * (arms > 1)}"] = rate((said == 1).any(-1))
    for noise in NOISE:
        for times in (2, 5):
            said, _ = follow(differences(rng, noise, 1, LAST, STUDIES // 2, [times]))
            found[f"{noise}, arm's noise x {times}"] = rate((said == 1).any(-1))
    return found


def unguarded(rng: np.random.Generator) -> dict[str, Any]:
    """What the same users met before: a plain t test at each look or seed; advice followed at the whole alpha."""
    values = differences(rng, "normal", 1, LAST)[:, 0]
    peeked = np.zeros(len(values), bool)
    every = np.zeros(len(values), bool)
    for n in range(3, LAST + 1):
        hit = two_sided(values[:, :n]) <= ALPHA
        if n in OPEN.upto(LAST):
            peeked |= hit
        if n <= 10:
            every |= hit
    return {
        "the same looks, a plain t at each": rate(peeked),
        "a fixed study of 10, read after every seed": rate(every),
        "three seeds, then the advice": _old_advice(rng, 0.5),
    }


def _old_advice(rng: np.random.Generator, margin: float) -> dict[str, Any]:
    """Three seeds, then as many more as the measured spread asks for, tested at the whole alpha, until decided; at most 60."""
    values = differences(rng, "normal", 1, 60, 4000)[:, 0] / math.sqrt(2)
    false = 0
    for row in values:
        n = 3
        while True:
            p, equal = float(two_sided(row[:n])), float(equivalence(row[:n], margin))
            if equal <= ALPHA:
                break
            if p <= ALPHA:
                false += 1
                break
            spread = float(row[:n].std(ddof=1))
            needed = max(
                seeds_needed(margin, spread) or 60, seeds_for_equivalence(margin, spread) or 60
            )
            if n >= 60:
                break
            n = min(max(needed, n + 1), 60)
    return rate(np.arange(len(values)) < false)


def advised(rng: np.random.Generator) -> dict[str, Any]:
    """Follow every advice of an open study, equivalence too, until it is decided; and the other changes of mind."""
    found: dict[str, Any] = {}
    for noise in NOISE:
        for margin in (0.5, 1.0):
            values = differences(rng, noise, 1, LAST, STUDIES // 2) / math.sqrt(2)
            said, _ = follow(values, margin=margin)
            found[f"{noise}, smallest effect {margin:g} sd"] = rate((said == 1).any(-1))
    values = differences(rng, "normal", 1, LAST) / math.sqrt(2)
    at_margin, _ = follow(values[: STUDIES // 2] + 1.0, margin=1.0)
    found["false equivalent, the truth at the margin of 1 sd"] = rate(at_margin[:, 0] == 2)
    fixed, _ = follow(values, Schedule(5, 5), 5)
    later, _ = follow(values, OPEN, LAST, begun=Look(5, 1.0))
    found["seeds: 5, made open when it is undecided"] = rate(
        (fixed[:, 0] == 1) | (later[:, 0] == 1)
    )
    first, _ = follow(values, Schedule(3, 12), 5)
    share = Schedule(3, 12).taken([3, 5])[-1]
    then, _ = follow(values, Schedule(3, 24), 24, begun=share)
    found["{from: 3, to: 12}, made to: 24 after five seeds"] = rate(
        (first[:, 0] == 1) | (then[:, 0] == 1)
    )
    return found


def added(rng: np.random.Generator) -> dict[str, Any]:
    """Add an arm at each look until one pleases."""
    found = {}
    for noise in NOISE:
        found[noise] = rate(add_arms(differences(rng, noise, 6, LAST, STUDIES // 2)))
    return found


def lost_seeds(rng: np.random.Generator) -> dict[str, Any]:
    """Every run is lost with a chance of 1 in 10; looks are then at fewer seeds than planned."""
    found = {}
    looks = OPEN.upto(18)
    for noise in NOISE:
        values = differences(rng, noise, 1, 18, 3000)[:, 0]
        kept = rng.random(values.shape) > 0.19  # of either run of the pair
        false = np.zeros(len(values), bool)
        for index, (row, keep) in enumerate(zip(values, kept, strict=True)):
            taken: list[Look] = []
            for due, planned in zip(looks, OPEN.taken(looks), strict=True):
                seen = row[:due][keep[:due]]
                if len(seen) < 2 or (taken and len(seen) <= taken[-1].seeds):
                    continue
                taken.append(Look(len(seen), planned.share))
                if float(two_sided(seen)) <= level(taken, ALPHA):
                    false[index] = True
                    break
        found[noise] = rate(false)
    return found


def borrowed(rng: np.random.Generator) -> dict[str, Any]:
    """Open looks of arms that lend each other their variance: false verdicts where their noise differs, and power at 3 seeds."""
    found: dict[str, Any] = {}
    spreads = {
        "equal noise": [1.0] * 4,
        "one arm x 3": [1.0, 1.0, 1.0, 3.0],
        "two arms x 2": [1.0, 1.0, 2.0, 2.0],
        "two arms x 5": [1.0, 1.0, 5.0, 5.0],
        "two arms x 20": [1.0, 1.0, 20.0, 20.0],
        "three of six x 20": [1.0] * 3 + [20.0] * 3,
        "four of eight x 10": [1.0] * 4 + [10.0] * 4,
    }
    for noise in ("normal", "heavy tails (t, 3 degrees)"):
        for name, spread in spreads.items():
            values = differences(rng, noise, len(spread), 27, STUDIES // 2, spread)
            said, _ = follow(values, last=27, borrow=True)
            found[f"{noise}, {name}"] = rate((said == 1).any(-1))
    for size in (2.0, 3.0):
        values = differences(rng, "normal", 4, 12, STUDIES // 2)
        values[:, 0] += size * math.sqrt(2)
        for last in (3, 5):
            for borrow in (False, True):
                said, _ = follow(values, last=last, borrow=borrow)
                how = "lent" if borrow else "own"
                found[f"power, 4 arms, {size:g} sd by {last} seeds, {how}"] = rate(said[:, 0] == 1)
    return found


def diverging(rng: np.random.Generator) -> dict[str, Any]:
    """Bad seeds diverge; arms do not differ in the loss they would have had. False "better" of survivors, and with the rule."""
    found = {}
    for share in (0.2, 0.4):
        for n in (5, 8, 12):
            shock = rng.standard_normal((STUDIES, 2, n))
            loss = math.sqrt(0.5) * shock + math.sqrt(0.5) * rng.standard_normal(shock.shape)
            bad = shock[:, 1] > stats.norm.isf(share)
            plain = np.zeros(STUDIES, bool)
            ruled = np.zeros(STUDIES, bool)
            for index in range(STUDIES // 4):
                alive = ~bad[index]
                values = (loss[index, 1] - loss[index, 0])[alive]
                if len(values) > 1 and values.mean() < 0 and float(two_sided(values)) <= ALPHA:
                    plain[index] = True
                    ruled[index] = bool(alive.all())
            part = STUDIES // 4
            found[f"{share:.0%} diverge, {n} seeds"] = {
                "survivors alone": rate(plain[:part]),
                "no better that rests on survivors": rate(ruled[:part]),
            }
    return found


def power(rng: np.random.Generator) -> dict[str, Any]:
    """What open looks cost: the chance of a verdict and the mean number of seeds, against fixed seeds planned for the effect."""
    found = {}
    for size in (0.5, 1.0, 2.0, 3.0):
        values = differences(rng, "normal", 1, 93, STUDIES // 4) / math.sqrt(2) + size
        said, used = follow(values, last=93)
        closed = seeds_needed(size, 1.0)
        found[f"{size:g} sd"] = rate(said[:, 0] == 1) | {
            "mean seeds": round(float(used.mean()), 2),
            "fixed seeds for power .8": closed,
        }
    return found


def planning(rng: np.random.Generator) -> dict[str, Any]:
    """Power of the advice from three seeds, with the spread as measured and with its upper limit."""
    found = {}
    for size in (0.5, 1.0):
        row = {}
        for name, limit in (("as measured", 0), ("upper limit", 1)):
            values = rng.standard_normal((1500, 3))
            hits = np.zeros(len(values), bool)
            for index, seen in enumerate(values):
                spread = float(seen.std(ddof=1))
                if limit:
                    spread = upper_stdev(spread, 3)
                n = min(seeds_needed(size, spread) or 2000, 2000)
                fresh = rng.standard_normal(n) + size
                hits[index] = float(two_sided(fresh)) <= ALPHA
            row[name] = rate(hits)
        found[f"{size:g} sd"] = row
    return found


PARTS: dict[str, Part] = {
    "agreement": agreement,
    "until pleased": until_pleased,
    "without the guard": unguarded,
    "advice followed": advised,
    "arms added until one pleases": added,
    "seeds lost": lost_seeds,
    "variance borrowed": borrowed,
    "seeds diverge (nominal .025)": diverging,
    "power": power,
    "planning": planning,
}


if __name__ == "__main__":
    run_parts("promises.py", __doc__.splitlines()[0], PARTS)
