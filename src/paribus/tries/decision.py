"""Keep, discard or undecided: what the differences at matched seeds say of one change.

The tests are those of `study.statistics`, with a look after each seed from the first look on:

- **keep**: the change is better, one-sided at the level that the stream's error budget allows (`online`), and not shown to
  be too small to matter;
- **discard**: it is shown, at 5 %, to be better by less than the smallest effect that matters;
- **undecided**: neither, at the last seed, or as soon as it is plain that the last seed would bring neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from scipy import stats

from paribus.study.looks import Look as TakenLook
from paribus.study.looks import Schedule
from paribus.study.looks import level as level_of_look
from paribus.study.power import seeds_for_equivalence, seeds_needed
from paribus.study.statistics import Effect, Family, effects

Verdict = Literal["keep", "discard", "undecided"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

DISCARD_LEVEL = 0.05  # how often a change that is worth the smallest effect may be discarded
INTERVAL = 1 - 2 * DISCARD_LEVEL  # two-sided, so that either end is at DISCARD_LEVEL


@dataclass(frozen=True)
class Rule:
    """How a try decides.

    Attributes:
        direction: "lower" or "higher" is better.
        smallest_effect: that matters, in the metric's unit.
        first, last: seeds at the first look and at the last.
        level: one-sided, at which the change is kept.
    """

    direction: str
    smallest_effect: float
    first: int
    last: int
    level: float

    @property
    def plan(self) -> tuple[int, ...]:
        """The numbers of seeds at which it looks."""
        return tuple(range(self.first, self.last + 1))

    @property
    def schedule(self) -> Schedule:
        """How its looks spend the level: in proportion to the seeds, all of it at the last."""
        return Schedule(self.first, self.last)

    def taken(self, seeds: int) -> tuple[TakenLook, ...]:
        """The looks after at most so many seeds, with what each may have spent."""
        return self.schedule.taken([n for n in self.plan if n <= seeds])


@dataclass(frozen=True)
class Look:
    """What one look says.

    Attributes:
        n: matched seeds.
        mean: of the differences, change - baseline.
        low, high: its interval, which holds at all looks together (INTERVAL).
        p: one-sided, over the looks so far; what the error budget takes note of.
        stdev: of the differences.
        verdict: None where the next seed is wanted.
        why: of the verdict, in words.
    """

    n: int
    mean: float
    low: float
    high: float
    p: float
    stdev: float | None
    verdict: Verdict | None
    why: str


def look(differences: Sequence[float], rule: Rule, p_before: float = 1.0) -> Look:
    """Judge the differences so far.

    Args:
        differences: change - baseline, one for each matched seed.
        rule: how to decide.
        p_before: the p-value of the look before.
    """
    strict = _judged(differences, rule, 2 * rule.level)
    wide = _judged(differences, rule, 2 * DISCARD_LEVEL)
    better = strict.mean < 0 if rule.direction == "lower" else strict.mean > 0
    # Two-sided p-values of the whole plan; the worse side is never kept, so that 1 is on the safe side for it.
    p = min(p_before, strict.p_adjusted / 2 if better else 1.0)
    verdict, why = _verdict(strict, wide, rule, p)
    return Look(strict.n, strict.mean, wide.low, wide.high, p, strict.stdev, verdict, why)


def _judged(differences: Sequence[float], rule: Rule, alpha: float) -> Effect:
    judged = effects(
        {"change": differences},
        direction=rule.direction,
        smallest_effect=rule.smallest_effect,
        alpha=alpha,
        plan=rule.schedule,
        family=Family(looks={"change": rule.taken(len(differences))}),
    )
    return judged["change"]


def _verdict(strict: Effect, wide: Effect, rule: Rule, p: float) -> tuple[Verdict | None, str]:
    most = -wide.low if rule.direction == "lower" else wide.high  # that it may gain
    if most <= 0:
        return "discard", "it is not better"
    if most < rule.smallest_effect:
        return "discard", f"it gains less than {rule.smallest_effect:g}, the smallest effect"
    if p <= rule.level:
        return "keep", "it is better"
    if strict.n >= rule.last:
        if strict.stdev == 0 and strict.mean == 0:
            return "discard", "the metric is the same at each seed"
        return "undecided", "neither is shown at the last seed"
    if _no_verdict_ahead(strict, rule):
        return "undecided", f"{rule.last} seeds would hardly show either"
    return None, ""


def _no_verdict_ahead(now: Effect, rule: Rule) -> bool:
    """Whether the last look would say neither keep nor discard, were the mean within a standard error of what it is."""
    if not now.stdev:
        return False
    gain = -now.mean if rule.direction == "lower" else now.mean
    off = now.stdev / math.sqrt(now.n)
    error = now.stdev / math.sqrt(rule.last)
    to_keep = _bound(rule, 2 * rule.level) * error
    to_discard = rule.smallest_effect - _bound(rule, 2 * DISCARD_LEVEL) * error
    return gain + off < to_keep and gain - off > to_discard


def _bound(rule: Rule, alpha: float) -> float:
    """The largest t that is no verdict at the last look."""
    nominal = level_of_look(rule.taken(rule.last), alpha)
    return float(stats.t.isf(nominal / 2, rule.last - 1))


def seeds_to_know(seen: Look, rule: Rule) -> int | None:
    """Fresh seeds by which a new try would decide, by the spread that was measured; None where no number follows."""
    if not seen.stdev:
        return None
    to_keep = seeds_needed(rule.smallest_effect, seen.stdev, alpha=2 * rule.level)
    to_discard = seeds_for_equivalence(rule.smallest_effect, seen.stdev, alpha=DISCARD_LEVEL)
    if to_keep is None or to_discard is None:
        return None
    return max(to_keep, to_discard, rule.first)
