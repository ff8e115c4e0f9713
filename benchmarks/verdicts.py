"""Do the verdicts of paribus.study.statistics keep their word, and what do they cost? Simulations, and real A/A runs.

    python benchmarks/verdicts.py --out benchmarks/verdicts.json --picture docs/compute-to-verdict.png
    python benchmarks/verdicts.py --runs benchmarks/pool.csv            # real runs, of pool.py

A/A: arms that do not differ; every "better" or "worse" is false. Coverage of the intervals. Power on planted effects, as
planned. Compute to verdict: training runs until the verdict, at alpha .05 and power .8, of three designs:

    unpaired    two arms with seeds of their own, a fixed number of them, Welch's or Student's t: the usual design
    matched     the same seeds in both arms, a fixed number, t of the differences
    sequential  matched, corrected for interim looks; it stops at the verdict

Everything that follows from normal noise depends on two measured figures: the standard deviation over seeds, and the
correlation that matching leaves between arms, which is swept.

--runs takes the CSV of pool.py. Its A/A arms are judged by threes of seeds; for each arm that does differ: the correlation
that matching leaves, and the runs that each design takes to find just this effect, its power found by drawing seeds.
Sizes of effects are in standard deviations over seeds ("sd"). One core, about a minute.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from simulations import write

# A script's own folder is where Python looks first; the modules beside this one are not for importing.
sys.path.pop(0)

import numpy as np
from scipy import optimize, stats

from paribus.evaluate.intervals import wilson
from paribus.study import items, noise_floor, statistics
from paribus.study.difference_curve import difference_curve
from paribus.study.looks import Schedule, level
from paribus.study.power import power_of, seeds_needed

ALPHA, POWER = 0.05, 0.8
SCHEDULE = Schedule(3, 12)
PLAN = SCHEDULE.upto(12)
STDEV = 0.0012  # of val_bpb over seeds 7, 8, 9 of the default: .5246, .5237, .5222 (docs/default-world.md)
CORRELATIONS = tuple(round(0.05 * i, 2) for i in range(20))
SIZES = (0.5, 0.75, 1.0, 1.5, 2.0)  # of planted effects, in sd
SHAPES: dict[
    str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
] = {  # of noise: mean 0, variance 1
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "heavy tails (t, 4 degrees)": lambda rng, shape: rng.standard_t(4, shape) / math.sqrt(2),
    "skewed (exponential)": lambda rng, shape: rng.exponential(size=shape) - 1,
}


def rate(hits: Any) -> dict[str, Any]:
    hits = np.asarray(hits, bool).ravel()
    low, high = wilson(int(hits.sum()), hits.size)
    return {
        "rate": round(float(hits.mean()), 5),
        "low": round(low, 5),
        "high": round(high, 5),
        "n": hits.size,
    }


def runs_of(
    rng: np.random.Generator, shape: str, arms: int, seeds: int, correlation: float, count: int
) -> np.ndarray:
    """(count, arms, seeds) of metrics with unit sd; what arms of one seed share makes the correlation."""
    shared, own = SHAPES[shape](rng, (count, 1, seeds)), SHAPES[shape](rng, (count, arms, seeds))
    return math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own


def t_of(differences: np.ndarray) -> np.ndarray:
    n = differences.shape[-1]
    return differences.mean(-1) / differences.std(-1, ddof=1) * math.sqrt(n)


def z_p(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    error = np.sqrt(
        first.var(-1, ddof=1) / first.shape[-1] + second.var(-1, ddof=1) / second.shape[-1]
    )
    return 2 * stats.norm.sf(np.abs(second.mean(-1) - first.mean(-1)) / error)


@lru_cache
def critical(n: int, plan: tuple[int, ...], alpha: float = ALPHA) -> float:
    made = [look for look in plan if look <= n]
    looks = Schedule(plan[0], plan[-1]).taken(made)
    return float(stats.t.isf(level(looks, alpha) / 2, n - 1))


def stops(
    differences: np.ndarray, plan: tuple[int, ...], smallest: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(seeds used, verdict) of sequential studies (count, seeds): 1 differs, 2 equivalent within `smallest`, 0 undecided."""
    used, said = np.full(len(differences), plan[-1]), np.zeros(len(differences), int)
    for n in plan:
        part = differences[:, :n]
        mean, error = part.mean(1), part.std(1, ddof=1) / math.sqrt(n)
        now = np.where(np.abs(mean) >= critical(n, plan) * error, 1, 0)
        if smallest is not None:
            now = np.where(
                (smallest - np.abs(mean)) >= critical(n, plan, 2 * ALPHA) * error, 2, now
            )
        fresh = (said == 0) & (now > 0)
        used[fresh], said[fresh] = n, now[fresh]
    return used, said


# ---- A/A


def same_arms(rng: np.random.Generator, stdev: float) -> dict[str, Any]:
    """200 comparisons through the public function, and many through the same formulas."""
    through, many, several = (
        "through effects(), 200 comparisons of one arm",
        "many, one arm",
        "many, three arms (Holm)",
    )
    found: dict[str, Any] = {through: {}, many: {}, several: {}}
    for name, seeds, plan in (
        ("3 seeds", 3, None),
        ("5 seeds", 5, None),
        (f"looks at {PLAN}", PLAN[-1], PLAN),
    ):
        runs = stdev * runs_of(rng, "normal", 2, seeds, 0.5, 200)
        found[through][name] = rate([_claims(pair[1] - pair[0], plan, stdev) for pair in runs])
    for shape in SHAPES:
        rows = found[many][shape] = {}
        for seeds in (2, 3, 5, 8):
            base, arm = np.moveaxis(runs_of(rng, shape, 2, seeds, 0.5, 100_000), 1, 0)
            own = runs_of(rng, shape, 1, seeds, 0.5, 100_000)[:, 0]
            rows[f"{seeds} seeds"] = {
                "matched t": rate(np.abs(t_of(arm - base)) >= stats.t.isf(ALPHA / 2, seeds - 1)),
                "unpaired z, as people use": rate(z_p(own, arm) <= ALPHA),
                "unpaired Welch t": rate(
                    stats.ttest_ind(own, arm, axis=-1, equal_var=False).pvalue <= ALPHA
                ),
            }
        base, arm = np.moveaxis(runs_of(rng, shape, 2, PLAN[-1], 0.5, 100_000), 1, 0)
        rows[f"looks at {PLAN}"] = {
            "matched t, paid looks": rate(stops(arm - base, PLAN)[1] > 0),
            "matched t, unpaid looks": rate(_peeked(arm - base, PLAN)),
        }
    for seeds in (3, 5):
        runs = runs_of(rng, "normal", 4, seeds, 0.5, 100_000)
        p = 2 * stats.t.sf(np.abs(t_of(runs[:, 1:] - runs[:, :1])), seeds - 1)
        found[several][f"{seeds} seeds"] = {
            "Holm": rate(p.min(1) * 3 <= ALPHA),
            "uncorrected": rate(p.min(1) <= ALPHA),
        }
    found["two looks at the levels of a known variance, (3, 5)"] = rate(_known_variance_looks(rng))
    found["3 seeds, then the more_seeds asked for, unpaid"] = topped_up(rng)
    return found


def _claims(differences: np.ndarray, plan: tuple[int, ...] | None, stdev: float) -> bool:
    """Whether the study ends in better or worse; smallest effect: a tenth of an sd, so that no equality hides a claim."""
    for n in plan or (len(differences),):
        said = statistics.effects(
            {"same": differences[:n].tolist()},
            direction="lower",
            smallest_effect=0.1 * stdev,
            alpha=ALPHA,
            plan=Schedule(plan[0], plan[-1]) if plan else None,
        )
        if said["same"].verdict in ("better", "worse"):
            return True
    return False


def _peeked(differences: np.ndarray, plan: tuple[int, ...]) -> np.ndarray:
    return np.any(
        [np.abs(t_of(differences[:, :n])) >= stats.t.isf(ALPHA / 2, n - 1) for n in plan], axis=0
    )


def _known_variance_looks(rng: np.random.Generator) -> np.ndarray:
    """What the nominal levels of normal looks, the textbook's advice for t statistics, do at 3 and 5 seeds."""
    first = ALPHA * 3 / 5
    bound, normal = (
        stats.norm.isf(first / 2),
        stats.multivariate_normal(cov=[[1, math.sqrt(3 / 5)], [math.sqrt(3 / 5), 1]]),
    )

    def inside(at: float) -> float:
        return float(normal.cdf([bound, at], lower_limit=[-bound, -at]))

    second = 2 * stats.norm.sf(optimize.brentq(lambda at: inside(at) - (1 - ALPHA), 1, 5))
    draws = rng.standard_normal((400_000, 5))
    return (np.abs(t_of(draws[:, :3])) >= stats.t.isf(first / 2, 2)) | (
        np.abs(t_of(draws)) >= stats.t.isf(second / 2, 4)
    )


def topped_up(rng: np.random.Generator) -> dict[str, Any]:
    """Follow "undecided: run n more seeds" without a plan that pays for it, and test again at the whole alpha."""
    smallest, draws = 1.5, rng.standard_normal((100_000, 40))
    sd = draws[:, :3].std(1, ddof=1)
    early = np.abs(t_of(draws[:, :3])) >= stats.t.isf(ALPHA / 2, 2)
    limits = [(n, _largest_stdev(n, smallest)) for n in range(4, 41)]
    needed = np.select([sd <= limit for _, limit in limits], [n for n, _ in limits], 40)
    late = np.zeros(len(draws), bool)
    for n in np.unique(needed):
        of = needed == n
        late[of] = np.abs(t_of(draws[of, :n])) >= stats.t.isf(ALPHA / 2, n - 1)
    return rate(early | late)


@lru_cache
def _largest_stdev(n: int, effect: float) -> float:
    return effect / float(optimize.brentq(lambda size: power_of(size, n) - POWER, 0.01, 5))


# ---- Coverage and power


def coverage(rng: np.random.Generator) -> dict[str, Any]:
    """How often 95 % intervals hold the planted effect of 1 sd."""
    found: dict[str, Any] = {}
    for shape in SHAPES:
        rows = found[shape] = {}
        for seeds in (2, 3, 5, 8):
            runs = runs_of(rng, shape, 3, seeds, 0.5, 50_000)
            difference, own = (
                runs[:, 1] - runs[:, 0],
                runs_of(rng, shape, 1, seeds, 0.5, 50_000)[:, 0],
            )
            rows[f"{seeds} seeds"] = {
                "matched t": rate(np.abs(t_of(difference)) <= stats.t.isf(ALPHA / 2, seeds - 1)),
                "unpaired z": rate(z_p(own, runs[:, 0]) > ALPHA),
            }
        runs = runs_of(rng, shape, 2, PLAN[-1], 0.5, 50_000)
        difference = runs[:, 1] - runs[:, 0]
        used, _ = stops(difference + 1, PLAN)
        inside = np.zeros(len(used), bool)
        for n in PLAN:
            of = used == n
            inside[of] = np.abs(t_of(difference[of, :n])) <= critical(n, PLAN)
        rows[f"looks at {PLAN}, interval where it stopped"] = rate(inside)
    return found


def by_items(rng: np.random.Generator) -> dict[str, Any]:
    """Coverage of item_effect when seeds, items and tasks all have noise: 0.1 planted, 4 seeds."""
    tasks = np.repeat(np.arange(22), 20)
    held: dict[str, list[bool]] = defaultdict(list)
    for _ in range(400):
        moved, by_task = rng.normal(0, 0.3, tasks.size), rng.normal(0, 0.15, 22)[tasks]
        base = [rng.normal(0, 0.5, tasks.size) for _ in range(4)]
        for name, effect, clusters in (
            ("items", moved, None),
            ("tasks", moved + by_task, tasks),
            ("tasks, taken as if items were alone", moved + by_task, None),
        ):
            arm = [
                rng.normal(0, 0.5, tasks.size) + rng.normal(0, 0.01) + effect + 0.1
                for _ in range(4)
            ]
            said = items.item_effect(base, arm, clusters, draws=1000)
            held[name].append(said.low <= 0.1 <= said.high)
            if name == "tasks":
                means = np.array([a.mean() - b.mean() for a, b in zip(arm, base, strict=True)])
                held["seeds alone (paired t)"].append(
                    abs(float(t_of(means - 0.1))) <= stats.t.isf(ALPHA / 2, 3)
                )
    return {name: rate(hits) for name, hits in held.items()}


def by_curve(rng: np.random.Generator) -> dict[str, Any]:
    """How often the band over 25 steps holds the whole curve, for curves that wander and curves that forget."""
    found = {}
    for name, keep in (
        ("wandering (random walk)", None),
        ("forgetting (correlation .9 a step)", 0.9),
    ):
        for seeds in (3, 5):
            held = []
            for _ in range(120):
                noise = rng.standard_normal((seeds, 25))
                if keep is None:
                    noise = noise.cumsum(1)
                else:
                    for i in range(1, 25):
                        noise[:, i] = keep * noise[:, i - 1] + math.sqrt(1 - keep**2) * noise[:, i]
                curve = difference_curve(range(25), np.zeros_like(noise), noise)
                held.append(bool(((curve.band_low <= 0) & (curve.band_high >= 0)).all()))
            found[f"{name}, {seeds} seeds"] = rate(held)
    return found


def planned_power(rng: np.random.Generator) -> dict[str, Any]:
    """Power that studies of seeds_needed have on the effect they were planned for; sizes in sd of the differences."""
    found = {}
    for size in (0.5, 0.75, 1.0, 1.5, 2.0, 3.0):
        n, last = seeds_needed(size, 1.0), sequential_last(size)
        assert n is not None
        fixed, looked = (
            rng.standard_normal((40_000, n)) + size,
            rng.standard_normal((40_000, last)) + size,
        )
        used, said = stops(looked, plan_to(last))
        found[str(size)] = {
            "seeds": n,
            "matched": rate(np.abs(t_of(fixed)) >= stats.t.isf(ALPHA / 2, n - 1)),
            "sequential": rate(said == 1)
            | {"last": last, "mean seeds": round(float(used.mean()), 2)},
        }
    return found


# ---- Compute to verdict


def plan_to(last: int) -> tuple[int, ...]:
    return Schedule(min(3, last), last).upto(last)


@lru_cache
def _sequential(last: int, size: float, true: float) -> tuple[float, float]:
    """(power, mean seeds) with looks up to `last` when the truth is `true` and differences have sd 1.

    A truth of 0 is found where the study says equivalent, within ±size.
    """
    draws = np.random.default_rng(last).standard_normal((20_000, last)) + true
    used, said = stops(draws, plan_to(last), None if true else size)
    return float((said == (1 if true else 2)).mean()), float(used.mean())


@lru_cache
def sequential_last(size: float) -> int:
    """The shortest plan with the power wanted."""
    last = seeds_needed(size, 1.0) or 0
    while _sequential(last, size, size)[0] < POWER:
        last += 1
    return last


def compute_to_verdict() -> dict[str, Any]:
    """Training runs (both arms) at equal error rates, over sizes of effects and correlations; and the share of the usual."""
    rows = []
    for size in SIZES:
        usual = seeds_needed(size, 1.0, paired=False)
        assert usual is not None
        for correlation in CORRELATIONS:
            within = size / math.sqrt(2 * (1 - correlation))  # in sd of the differences
            matched, last = seeds_needed(within, 1.0), sequential_last(within)
            assert matched is not None
            row = {
                "effect_sd": size,
                "correlation": correlation,
                "unpaired_runs": 2 * usual,
                "matched_runs": 2 * matched,
            }
            for times in (1, 1.5, 2, 3):
                power, seeds = _sequential(last, within, within * times)
                row[f"sequential_runs_at_{times}"] = round(2 * seeds, 2)
                row[f"share_at_{times}"] = round(seeds / usual, 4)
                row[f"power_at_{times}"] = round(power, 4)
            found, seeds = _sequential(last, within, 0.0)
            rows.append(
                row
                | {
                    "sequential_last": last,
                    "matched_share": round(matched / usual, 4),
                    "sequential_runs_when_equal": round(2 * seeds, 2),
                    "found_equal": round(found, 4),
                }
            )
    return {"rows": rows, "quarter": quarter(rows)}


def quarter(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The correlation from which on a quarter of the usual compute is enough, by planned effect and by truth; None: never."""
    found: dict[str, Any] = {f"{size} sd": {} for size in SIZES}
    for size in SIZES:
        of = [row for row in rows if row["effect_sd"] == size]
        for times in (1, 1.5, 2, 3):
            over = [row["correlation"] for row in of if row[f"share_at_{times}"] > 0.25]
            found[f"{size} sd"][f"truth {times} x planned"] = next(
                (c for c in CORRELATIONS if not over or c > max(over)), None
            )
    return found


def curves() -> dict[str, list[tuple[float, float]]]:
    """(mean runs, power) of each design as it grows, on an effect of 1 sd."""
    found = {"unpaired": [(2 * n, power_of(1.0, n, paired=False)) for n in range(2, 31)]}
    for correlation in (0.5, 0.75, 0.9):
        within = 1 / math.sqrt(2 * (1 - correlation))
        found[f"matched, correlation {correlation}"] = [
            (2 * n, power_of(within, n)) for n in range(2, 31)
        ]
        points = (_sequential(last, within, within) for last in range(3, 31))
        found[f"sequential, correlation {correlation}"] = [
            (2 * seeds, power) for power, seeds in points
        ]
    return {
        name: [(round(runs, 2), round(power, 4)) for runs, power in line if power < 0.9995]
        for name, line in found.items()
    }


def draw(found: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.9), layout="constrained", dpi=80)
    left, right = figure.subplots(1, 2)
    colours = {"0.5": "#9ecae1", "0.75": "#4292c6", "0.9": "#08519c"}
    for name, line in found["curves"].items():
        colour = colours.get(name.rpartition(" ")[2], "#d62728")
        left.plot(
            *zip(*line, strict=True),
            "-" if "seq" in name else "--" if "match" in name else "-",
            color=colour,
            label=name,
        )
    left.axhline(POWER, color="grey", linewidth=0.7)
    left.set(
        xlabel="training runs (mean, both arms)",
        ylabel="power",
        xlim=(0, 45),
        ylim=(0, 1),
        title="An effect of 1 sd over seeds",
    )
    left.legend(fontsize=7, loc="lower right")
    for size, colour in zip(
        SIZES, ("#fdae6b", "#fd8d3c", "#e6550d", "#a63603", "#521c00"), strict=True
    ):
        rows = [row for row in found["compute"]["rows"] if row["effect_sd"] == size]
        at = [row["correlation"] for row in rows]
        right.plot(at, [row["share_at_1"] for row in rows], color=colour, label=f"{size:g} sd")
        right.plot(at, [row["share_at_2"] for row in rows], ":", color=colour)
    right.axhline(0.25, color="grey", linewidth=0.7)
    right.set(
        xlabel="correlation of matched seeds",
        ylabel="runs / runs of the unpaired design",
        ylim=(0, 1.3),
        title="Matched and sequential, power .8\n(dotted: the truth is twice the planned effect)",
    )
    right.legend(fontsize=7, title="planned effect", title_fontsize=7)
    figure.savefig(path)


# ---- Real runs


def real(path: Path, rng: np.random.Generator) -> dict[str, Any]:
    """Arms of a CSV with the columns arm, seed, val_bpb: those called "base, …" are the base again, the rest differ from it."""
    arms: dict[str, dict[int, float]] = defaultdict(dict)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            arms[row["arm"]][int(row["seed"])] = float(row["val_bpb"])
    base = np.array([arms["base"][seed] for seed in sorted(arms["base"])])
    found: dict[str, Any] = {
        "runs": sum(map(len, arms.values())),
        "seeds": len(base),
        "mean": round(float(base.mean()), 5),
        "stdev": round(float(base.std(ddof=1)), 5),
        "same": {},
        "effects": {},
    }
    for name in list(arms)[1:]:
        arm = np.array([arms[name][seed] for seed in sorted(arms[name])])
        if name.startswith("base, "):
            found["same"][name] = same_recipe(base, arm)
        else:
            found["effects"][name] = one_effect(base, arm, rng)
    return found


def same_recipe(base: np.ndarray, again: np.ndarray, seeds: int = 3) -> dict[str, Any]:
    """Verdicts on comparisons of `seeds` seeds each that share no run; every "better" or "worse" is false."""
    split = [
        (base[i : i + seeds], again[i : i + seeds]) for i in range(0, len(base) - seeds + 1, seeds)
    ]
    smallest = 0.1 * float(base.std(ddof=1))
    said = [
        statistics.effects(
            {"same": (b - a).tolist()}, direction="lower", smallest_effect=smallest, alpha=ALPHA
        )["same"]
        for a, b in split
    ]
    return {
        "stdev_of_differences": float(f"{(again - base).std(ddof=1):.3g}"),
        "correlation": correlation_of(base, again),
        "comparisons": len(split),
        "seeds_each": seeds,
        "verdicts": dict(Counter(one.verdict for one in said)),
        "false better or worse": rate([one.verdict in ("better", "worse") for one in said]),
        "p at most .05": rate([one.p <= ALPHA for one in said]),
        "unpaired z at most .05": rate([noise_floor.unpaired_z(a, b) <= ALPHA for a, b in split]),
        "interval holds 0": rate([one.low <= 0 <= one.high for one in said]),
    }


def one_effect(
    base: np.ndarray, arm: np.ndarray, rng: np.random.Generator, draws: int = 20_000
) -> dict[str, Any]:
    """Runs (both arms) each design needs to find this effect, planned for just it; powers by drawing seeds from these runs."""
    differences = arm - base
    mean, spread = abs(float(differences.mean())), float(differences.std(ddof=1))
    stdev = math.sqrt((base.var(ddof=1) + arm.var(ddof=1)) / 2)
    usual, matched = (
        seeds_needed(mean, stdev, paired=False),
        seeds_needed(mean, spread),
    )
    assert usual is not None
    assert matched is not None
    last = sequential_last(mean / spread)
    sign = math.copysign(1, differences.mean())

    def drawn(values: np.ndarray, seeds: int) -> np.ndarray:
        return rng.choice(values, (draws, seeds))

    pooled = stats.ttest_ind(drawn(arm, usual), drawn(base, usual), axis=1)
    t = t_of(drawn(differences, matched))
    used, said = stops(drawn(differences, last) * sign, plan_to(last))
    runs = {
        "unpaired": 2.0 * usual,
        "matched": 2.0 * matched,
        "matched + looks": 2 * round(float(used.mean()), 3),
    }
    power = {
        "unpaired": float(((pooled.pvalue <= ALPHA) & (pooled.statistic * sign > 0)).mean()),
        "matched": float((t * sign >= stats.t.isf(ALPHA / 2, matched - 1)).mean()),
        "matched + looks": float((said == 1).mean()),
    }
    return {
        "effect": round(float(differences.mean()), 5),
        "effect_sd": round(mean / stdev, 3),
        "stdev_of_differences": round(spread, 5),
        "correlation": correlation_of(base, arm),
        "runs": runs,
        "power": {name: round(value, 3) for name, value in power.items()},
        "share": round(runs["matched + looks"] / runs["unpaired"], 4),
    }


def correlation_of(base: np.ndarray, arm: np.ndarray) -> float:
    return round(float(np.corrcoef(base, arm)[0, 1]), 4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, help="judge real runs (pool.py) instead of simulating")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    began, rng = time.process_time(), np.random.default_rng(args.seed)
    if args.runs:
        found = {"command": " ".join(["python", *sys.argv]), "runs_of": args.runs.name} | real(
            args.runs, rng
        )
    else:
        found = {
            "command": " ".join(["python", *sys.argv]),
            "same_arms": same_arms(rng, STDEV),
            "coverage": coverage(rng),
            "items": by_items(rng),
            "bands": by_curve(rng),
            "power": planned_power(rng),
            "compute": compute_to_verdict(),
            "curves": curves(),
        }
        if args.picture:
            draw(found, args.picture)
        found["cpu_seconds"] = round(time.process_time() - began, 1)
    write(found, args.out)


if __name__ == "__main__":
    main()
