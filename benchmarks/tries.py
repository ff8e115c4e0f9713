"""Streams of 200 tries: of what is kept, how much is noise; of what is good, how much is missed; how many runs it takes.

    python benchmarks/tries.py > benchmarks/tries.json

Three rules on the same streams:

    lower         one run of each change; kept where it is lower than the best so far
    two sigmas    the same, lower by two standard deviations that five runs of the first baseline measured
    try           `paribus try`: matched seeds, looks, one error budget, baselines shared and replaced as it does

A run's metric is the truth of its commit, plus a part that its seed gives to every commit, plus a part of its own; each part
has half of the variance over seeds. So the unit, "sd", is both the standard deviation of one run over seeds and that of a
matched difference. Changes that are no better have no effect at all, which is the hardest case; where `harmful` is true, half
of them are worse.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass

# A script's own folder is where Python looks first; the modules beside this one are not for importing.
sys.path.pop(0)

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from paribus.study.looks import level as level_of_look
from paribus.tries.decision import DISCARD_LEVEL, Rule, look
from paribus.tries.ledger import WINDOWS
from paribus.tries.online import ErrorBudget

Floats = NDArray[np.float64]

TRIES = 200
STREAMS = 200
SHARES = (0.05, 0.2, 0.5)  # of changes that are better
EFFECTS = (0.5, 2.0)  # sd; of those, evenly spread
SMALLEST_EFFECT = 0.5  # sd
FALSE_KEEPS = 0.1
OWN = math.sqrt(0.5)  # of a run: the part that is neither the commit's nor the seed's
SIGMA_RUNS = 5
LEVELS = np.geomspace(1e-9, 0.499, 120)


@dataclass
class Counts:
    """Of every stream: kept changes, those among them that are no better, better ones that were missed, runs."""

    kept: Floats
    false: Floats
    better: Floats
    runs: Floats

    def summary(self) -> dict[str, float]:
        """Means over the streams, with the standard error of the first."""
        share = self.false / np.maximum(self.kept, 1)
        found = (self.kept - self.false) / np.maximum(self.better, 1)
        return {
            "false_keeps": round(float(share.mean()), 4),
            "false_keeps_error": round(float(share.std(ddof=1) / math.sqrt(len(share))), 4),
            "false_keeps_pooled": round(float(self.false.sum() / max(self.kept.sum(), 1)), 4),
            "kept": round(float(self.kept.mean()), 2),
            "missed": round(float(1 - found[self.better > 0].mean()), 4),
            "runs": round(float(self.runs.mean())),
        }


def streams(rng: np.random.Generator, share: float, harmful: bool) -> Floats:
    """(STREAMS, TRIES): by how much each change is better, in sd."""
    better = rng.random((STREAMS, TRIES)) < share
    size = np.where(better, rng.uniform(*EFFECTS, better.shape), 0.0)
    if harmful:
        worse = ~better & (rng.random(better.shape) < 0.5)
        size = np.where(worse, -rng.uniform(*EFFECTS, better.shape), size)
    return size


# ---------------------------------------------------------------- what people do


def keep_if_lower(rng: np.random.Generator, gains: Floats, sigmas: float) -> Counts:
    """One run a change at a fixed seed; kept where it beats the best run so far by `sigmas` measured standard deviations."""
    of_seed = rng.standard_normal((STREAMS, SIGMA_RUNS)) * OWN
    runs = of_seed + rng.standard_normal((STREAMS, SIGMA_RUNS)) * OWN
    margin = sigmas * runs.std(axis=1, ddof=1)
    best = runs[:, 0] - of_seed[:, 0]  # of the baseline at the fixed seed: its own part
    truth = np.zeros(STREAMS)
    kept = np.zeros((STREAMS, TRIES), bool)
    for number in range(TRIES):
        value = truth - gains[:, number] + rng.standard_normal(STREAMS) * OWN
        kept[:, number] = value < best - margin
        truth = np.where(kept[:, number], truth - gains[:, number], truth)
        best = np.where(kept[:, number], value, best)
    spent = TRIES + (SIGMA_RUNS if sigmas else 1)
    return counted(gains, kept, np.full(STREAMS, float(spent)))


# ---------------------------------------------------------------- paribus try


class Looks:
    """`decision.look` for many streams at once; `check` compares the two."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.plan = tuple(range(3, last + 1))
        rule = Rule("lower", SMALLEST_EFFECT, 3, last, 0.01)
        self.nominal = {
            n: np.array([level_of_look(rule.taken(n), level) for level in LEVELS])
            for n in self.plan
        }

    def over_looks(self, p: Floats, n: int) -> Floats:
        """Two-sided p-values of n seeds, over all looks of the plan."""
        table = self.nominal[n]
        found = np.exp(np.interp(np.log(np.maximum(p, 1e-300)), np.log(table), np.log(LEVELS)))
        return np.where(p > table[-1], 1.0, found)

    def bound(self, n: int, alpha: Floats) -> Floats:
        """The largest t that is no verdict at n seeds."""
        nominal = np.exp(np.interp(np.log(alpha), np.log(LEVELS), np.log(self.nominal[n])))
        return np.asarray(stats.t.isf(nominal / 2, n - 1))

    def judge(self, gain: Floats, level: Floats) -> tuple[NDArray[np.bool_], Floats, Floats]:
        """(kept, p, seeds) of changes from their gains (streams, last) at levels (streams,)."""
        streams = len(gain)
        p, seeds = np.ones(streams), np.full(streams, float(self.last))
        kept, open_ = np.zeros(streams, bool), np.ones(streams, bool)
        for n in self.plan:
            mean, spread = gain[:, :n].mean(axis=1), gain[:, :n].std(axis=1, ddof=1)
            error = spread / math.sqrt(n)
            one_sided = stats.t.sf(mean / error, n - 1)
            now = np.where(mean > 0, self.over_looks(np.minimum(2 * one_sided, 1), n) / 2, 1.0)
            p = np.where(open_, np.minimum(p, now), p)
            wide = self.bound(n, np.full(1, 2 * DISCARD_LEVEL))
            discarded = mean + wide * error < SMALLEST_EFFECT
            keeps = ~discarded & (p <= level)
            hopeless = self._no_verdict_ahead(mean, spread, n, level)
            over = open_ & (discarded | keeps | hopeless)
            kept |= over & keeps
            seeds = np.where(over, n, seeds)
            open_ &= ~over
        return kept, p, seeds

    def _no_verdict_ahead(
        self, mean: Floats, spread: Floats, n: int, level: Floats
    ) -> NDArray[np.bool_]:
        off, error = spread / math.sqrt(n), spread / math.sqrt(self.last)
        to_keep = self.bound(self.last, 2 * level) * error
        wide = self.bound(self.last, np.full(1, 2 * DISCARD_LEVEL))
        return (mean + off < to_keep) & (mean - off > SMALLEST_EFFECT - wide * error)

    def check(self, rng: np.random.Generator) -> None:
        """Raises AssertionError unless `decision.look` says the same of some changes."""
        gain = rng.standard_normal((60, self.last)) + rng.uniform(-1, 2, (60, 1))
        level = np.full(60, 0.004)
        kept, p, seeds = self.judge(gain, level)
        rule = Rule("lower", SMALLEST_EFFECT, self.plan[0], self.last, 0.004)
        for row in range(len(gain)):
            before = 1.0
            for n in self.plan:
                now = look(list(-gain[row, :n]), rule, before)
                before = now.p
                if now.verdict:
                    break
            same = (now.verdict == "keep", now.n) == (kept[row], seeds[row])
            assert same, (row, now, kept[row], p[row], seeds[row])
            assert math.isclose(now.p, p[row], rel_tol=0.02), (now, p[row])


def paribus_try(rng: np.random.Generator, gains: Floats, last: int) -> Counts:
    """`paribus try` with seeds {from: 3, to: last} and what is kept as the next baseline."""
    looks = Looks(last)
    looks.check(rng)
    rows = np.arange(STREAMS)[:, None]
    budgets = [ErrorBudget(FALSE_KEEPS) for _ in range(STREAMS)]
    base = rng.standard_normal((STREAMS, WINDOWS * last)) * OWN  # of the baseline's runs
    base_has = np.zeros((STREAMS, WINDOWS * last), bool)
    kept = np.zeros((STREAMS, TRIES), bool)
    runs = np.zeros(STREAMS)
    for number in range(TRIES):
        columns = number % WINDOWS * last + np.arange(last)
        own = rng.standard_normal((STREAMS, last)) * OWN
        gain = gains[:, number, None] - own + base[:, columns]
        level = np.array([budget.level() for budget in budgets])
        now, p, seeds = looks.judge(gain, level)
        for budget, its_p, its_verdict in zip(budgets, p, now, strict=True):
            budget.note(float(its_p), bool(its_verdict))
        kept[:, number] = now
        used = np.arange(last) < seeds[:, None]
        runs += seeds + (used & ~base_has[:, columns]).sum(axis=1)
        base_has[:, columns] |= used
        fresh = rng.standard_normal(base.shape) * OWN
        fresh[rows, columns] = own
        of_change = np.zeros_like(base_has)
        of_change[:, columns] = used
        base = np.where(now[:, None], fresh, base)
        base_has = np.where(now[:, None], of_change, base_has)
    return counted(gains, kept, runs)


def counted(gains: Floats, kept: NDArray[np.bool_], runs: Floats) -> Counts:
    """What became of the changes."""
    better = gains > 0
    return Counts(
        kept.sum(axis=1).astype(float),
        (kept & ~better).sum(axis=1).astype(float),
        better.sum(axis=1).astype(float),
        runs,
    )


def main() -> None:
    """Print the table as JSON."""
    began = time.process_time()
    rows = []
    for harmful in (False, True):
        for share in SHARES:
            gains = streams(np.random.default_rng(1), share, harmful)
            rules = {
                "lower": keep_if_lower(np.random.default_rng(2), gains, 0.0),
                "two sigmas": keep_if_lower(np.random.default_rng(2), gains, 2.0),
                "try 3..8": paribus_try(np.random.default_rng(3), gains, 8),
                "try 3..16": paribus_try(np.random.default_rng(4), gains, 16),
            }
            for rule, counts in rules.items():
                rows.append({"better": share, "harmful": harmful, "rule": rule} | counts.summary())
    about = {
        "tries": TRIES,
        "streams": STREAMS,
        "effects_sd": EFFECTS,
        "smallest_effect_sd": SMALLEST_EFFECT,
        "false_keeps": FALSE_KEEPS,
        "processor_seconds": round(time.process_time() - began),
    }
    print(json.dumps({"about": about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
