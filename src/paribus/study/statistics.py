"""From matched differences to a verdict: paired t, Holm over arms, equivalence, looks.

Pure functions over numbers, no files. A difference is arm - baseline at one seed, in the metric's own unit; matched
seeds share data order and initial values, so what both arms have in common cancels.

Sources: Holm (1979), many arms; Jennison & Turnbull (1989; 2000, §4.4), repeated intervals; Maurer & Bretz (2013), Holm
with looks. What one arm's differences say: sample.py. The levels of looks: looks.py. How many seeds an effect takes:
power.py. Outcomes item by item: items.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from paribus.errors import UserError
from paribus.study.looks import OPEN, Look, Schedule, anytime_bound, level, p_over_looks
from paribus.study.power import MOST_SEEDS, seeds_for_equivalence, seeds_needed, upper_stdev
from paribus.study.sample import ItemNoise, Sample
from paribus.study.shrinkage import guarded, lent

# not yet: seeds are in, and no look is due that could say more.
Verdict = Literal["better", "worse", "equivalent", "undecided", "not yet"]
# Standard deviations at which a verdict on skewed noise bears one more seed (benchmarks/promises.py, "skewed").
RESERVE = 4.5
DECIDED: tuple[Verdict, ...] = ("better", "worse", "equivalent")


@dataclass(frozen=True)
class Effect:
    """What the matched seeds of one arm say, in the metric's unit.

    Attributes:
        n: matched seeds.
        mean: of their differences.
        low, high: the 1 - alpha interval of the mean, of this arm alone (not corrected for other arms); of a study with looks
            the repeated interval, which holds at all looks together, and between looks the anytime-valid one. One seed has no
            interval: -inf to inf.
        p: two-sided, of this arm and look alone.
        p_adjusted: over all looks and, by Holm, all arms.
        stdev: of the differences; None of one seed.
        verdict: on the arm.
        more_seeds: for the undecided, how many more decide or lead to the next look; None: decided, more than MOST_SEEDS, or no
            difference was seen at all, so that no number of seeds follows from it.
        looks: taken on this arm, with what they may have spent; the last is the one that this is of.
        matched: whether arm and baseline share what a seed decides; else they are two samples of n runs each.
        items: noise of the items in the interval and p, where the metric is a mean over items.
    """

    n: int
    mean: float
    low: float
    high: float
    p: float
    p_adjusted: float
    stdev: float | None
    verdict: Verdict
    more_seeds: int | None
    looks: tuple[Look, ...] = ()
    matched: bool = True
    items: ItemNoise | None = None

    @property
    def spent(self) -> float:
        """The share of alpha that the looks so far may have spent."""
        return self.looks[-1].share if self.looks else 0.0

    @property
    def decided(self) -> bool:
        """Whether there is a verdict that stands."""
        return self.verdict in DECIDED


@dataclass(frozen=True)
class Family:
    """What a look at several arms needs beside their differences.

    Attributes:
        looks: arm -> the looks taken on it, this one last, where they are not those of the plan up to its number of seeds (a seed
            was lost, the arm came later, the plan was another one).
        stands: arm -> the verdict that an earlier look gave.
        absent: how many arms of the study have nothing to test yet; Holm counts them.
    """

    looks: Mapping[str, Sequence[Look]] = field(default_factory=dict)
    stands: Mapping[str, Verdict] = field(default_factory=dict)
    absent: int = 0


def effects(
    differences: Mapping[str, Sequence[float]],
    *,
    direction: str,
    smallest_effect: float,
    alpha: float,
    plan: Schedule | None = None,
    family: Family | None = None,
    borrow: bool = False,
    skewed: bool = False,
) -> dict[str, Effect]:
    """The verdict on every arm from its matched differences (arm - baseline, one a seed).

    better, worse: the mean differs from 0 at `alpha`, after Holm over the arms, towards `direction` ("lower" or "higher")
    or away from it. equivalent: it is within ±smallest_effect (TOST at alpha, after Holm over the arms), **also where it
    differs from 0**: too small to matter, by the study's own word. undecided: neither. Differences that are all the same
    have no spread to judge by, also where all are 0: a metric at its floor, or too coarse, gives that for arms that differ.
    Of a metric that is a mean over items (`ByItem`) the items are noise too, and zeros are *equivalent* as far as the number
    of items bounds what was not seen.

    How often a verdict is false: of any one arm only one of the two claims can be false (0 is not outside
    ±smallest_effect), so each arm errs with a chance of at most alpha. Over all arms each question is held to alpha by
    Holm; that any claim of either kind is false has a chance of at most 2 alpha.

    Args:
        differences: arm -> its differences so far.
        direction: "lower" or "higher" is better.
        smallest_effect: that matters, in the metric's unit.
        alpha: the rate of false verdicts.
        plan: when the study looks; None: this is its only look.
        family: what went before, where it does not follow from the plan and the arm's number of seeds.
        borrow: whether three arms or more lend each other their variance (shrinkage.py).
        skewed: whether a verdict has to hold with one more seed RESERVE standard deviations on the other side, for noise that is
            skewed and of unequal size.

    Raises:
        UserError: with everything that is wrong: no arms, no or non-finite differences, unknown direction, alpha outside
            (0, 0.5), smallest_effect not above 0, more seeds than the plan has.
    """
    family = family or Family()
    samples, taken = _checked(differences, direction, smallest_effect, alpha, plan, family)
    if skewed:
        samples = {arm: replace(sample, reserve=RESERVE) for arm, sample in samples.items()}
    p_values = {arm: sample.p() for arm, sample in samples.items()}
    differs = {arm: p_over_looks(p, taken[arm]) for arm, p in p_values.items()}
    equals = {arm: _p_equal(sample, smallest_effect, taken[arm]) for arm, sample in samples.items()}
    loans = lent(samples) if borrow else {}
    lent_differs = {arm: p_over_looks(loan.p(), taken[arm]) for arm, loan in loans.items()}
    lent_equals = {arm: _p_equal(loan, smallest_effect, taken[arm]) for arm, loan in loans.items()}
    different = _adjusted(differs, lent_differs, family, ("better", "worse"))
    equal = _adjusted(equals, lent_equals, family, ("equivalent",))
    judged = {}
    for arm, sample in samples.items():
        verdict = verdict_of(sample.mean, direction, different[arm] <= alpha, equal[arm] <= alpha)
        low, high = sample.interval(level(taken[arm], alpha) if taken[arm] else alpha)
        more = None
        if verdict == "undecided":
            more = _more(sample, smallest_effect, alpha / (len(samples) + family.absent), plan)
        judged[arm] = Effect(
            n=sample.n,
            mean=sample.mean,
            low=low,
            high=high,
            p=p_values[arm],
            p_adjusted=different[arm],
            stdev=sample.stdev,
            verdict=verdict,
            more_seeds=more,
            looks=taken[arm],
            matched=sample.matched,
            items=sample.items,
        )
    return judged


def _p_equal(sample: Sample, margin: float, looks: Sequence[Look]) -> float:
    """One-sided p of equivalence over all looks: tests at alpha have the two-sided boundaries of 2 alpha."""
    two_sided = min(2 * sample.p_equivalent(margin), 1.0)
    return p_over_looks(two_sided, looks) / 2


def _adjusted(
    own: dict[str, float],
    loans: dict[str, float],
    family: Family,
    answers: Sequence[Verdict],
) -> dict[str, float]:
    """P over all arms of one question. loans: of shrunk variances; answers: verdicts that answer it, at an earlier look."""
    answered = [arm for arm, verdict in family.stands.items() if verdict in answers]
    settled = dict.fromkeys(answered, 0.0)  # rejected before, and not tested again
    plain = holm(own | settled, family.absent)
    if not loans:
        return plain
    return guarded(own | settled, plain, holm(own | loans | settled, family.absent))


def open_look(
    differences: Sequence[float],
    earlier: Sequence[int] = (),
    *,
    direction: str,
    smallest_effect: float,
    alpha: float = 0.05,
    schedule: Schedule = OPEN,
) -> Effect:
    """One more look at one change, of as many as there may ever be: all of them together err at most alpha of the time.

    Look number k may have spent alpha (1 - 1/(k + 1)) by then: half of it at the first, two thirds by the second. The number of
    differences at a look must not follow from their values, and neither may looks be left out of `earlier` because they were
    disappointing.

    Example:
        >>> first = open_look([-0.011, -0.013, -0.012], direction="lower", smallest_effect=0.002)
        >>> first.verdict, first.spent
        ('better', 0.5)
        >>> second = open_look([0.1, -0.2, 0.1, 0.0, -0.1], earlier=[3], direction="lower", smallest_effect=0.002)
        >>> second.verdict, round(second.spent, 3), second.n + second.more_seeds
        ('undecided', 0.667, 8)

    Args:
        differences: change - baseline at every matched seed so far.
        earlier: how many differences there were at each look taken before, rising; this look is at len(differences).
        direction: "lower" or "higher" is better.
        smallest_effect: that matters; within it the change is equivalent.
        alpha: the rate of false verdicts, over all looks together.
        schedule: plans the next look.

    Returns:
        The verdict, the interval that holds at all looks together, the share of alpha spent (`spent`), and how many more
        seeds lead to the next look (`more_seeds`).

    Raises:
        UserError: for differences that are not finite, or earlier looks that do not rise to fewer than there are now.
    """
    looks = schedule.taken([*earlier, len(differences)])
    judged = effects(
        {"change": differences},
        direction=direction,
        smallest_effect=smallest_effect,
        alpha=alpha,
        plan=schedule,
        family=Family(looks={"change": looks}),
    )
    return judged["change"]


def estimate(
    differences: Sequence[float], alpha: float, looks: Sequence[Look] = (), skewed: bool = False
) -> Effect:
    """What is known between looks: the mean, and an interval that holds however often one looks at it. No verdict.

    Args:
        differences: arm - baseline at every matched seed so far, at least one.
        alpha: chance that the interval ever misses the truth, over all numbers of seeds together.
        looks: taken before.
        skewed: as `effects` has it.
    """
    sample = replace(Sample.of(differences), reserve=RESERVE if skewed else 0.0)
    low, high = -math.inf, math.inf
    if sample.usable:
        half = anytime_bound(sample.n, alpha) * sample.error + sample.shift
        low, high = sample.mean - half, sample.mean + half
    return Effect(
        n=sample.n,
        mean=sample.mean,
        low=low,
        high=high,
        p=1.0,
        p_adjusted=1.0,
        stdev=sample.stdev,
        verdict="not yet",
        more_seeds=None,
        looks=tuple(looks),
        matched=sample.matched,
        items=sample.items,
    )


def _checked(
    differences: Mapping[str, Sequence[float]],
    direction: str,
    smallest_effect: float,
    alpha: float,
    plan: Schedule | None,
    family: Family,
) -> tuple[dict[str, Sample], dict[str, tuple[Look, ...]]]:
    """(arm -> its sample, arm -> looks taken on it; () where there is one look only). Raises UserError."""
    problems = [] if differences else ["differences: no arms to judge"]
    taken: dict[str, tuple[Look, ...]] = {}
    for arm, values in differences.items():
        problems += _value_problems(arm, values)
        if arm in family.looks:
            taken[arm] = tuple(family.looks[arm])
        elif plan is not None:
            made = [*plan.upto(len(values) - 1), len(values)]
            try:
                taken[arm] = plan.taken(made)
            except UserError as error:
                problems += [f"differences: {arm}: {problem}" for problem in error.problems]
        else:
            taken[arm] = ()
    problems += settings_problems(direction, smallest_effect, alpha)
    if problems:
        raise UserError(problems)
    return {arm: Sample.of(values) for arm, values in differences.items()}, taken


def _value_problems(arm: str, values: Sequence[float]) -> list[str]:
    """An arm without values, or with one that is not finite."""
    if len(values) == 0:
        return [f"differences: {arm} has none"]
    return [
        f"differences: {arm}, number {number} is {value}; a run without a result has no place here"
        for number, value in enumerate(values, start=1)
        if not math.isfinite(value)
    ]


def settings_problems(direction: str, smallest_effect: float, alpha: float) -> list[str]:
    """What is wrong with the settings of a verdict.

    Args:
        direction: "lower" or "higher" is better.
        smallest_effect: that matters, in the metric's unit.
        alpha: the rate of false verdicts.
    """
    problems = []
    if direction not in ("lower", "higher"):
        problems.append(f"direction: {direction!r} is neither lower nor higher")
    if not (math.isfinite(smallest_effect) and smallest_effect > 0):
        problems.append(f"smallest_effect: {smallest_effect} is not above 0, in the metric's unit")
    if not 0 < alpha < 0.5:
        problems.append(f"alpha: {alpha} is not between 0 and 0.5")
    return problems


def verdict_of(mean: float, direction: str, differs: bool, within: bool) -> Verdict:
    """The verdict in a word.

    Args:
        mean: difference of the metric, arm - baseline.
        direction: "lower" or "higher" is better.
        differs: whether it is shown to differ from 0.
        within: whether it is shown to be too small to matter.
    """
    if within:
        return "equivalent"
    if not differs:
        return "undecided"
    return "better" if (mean < 0) == (direction == "lower") else "worse"


def holm(p_values: Mapping[str, float], absent: int = 0) -> dict[str, float]:
    """The smallest p counts for all, the next for one fewer, and none may undercut a smaller one.

    Args:
        p_values: arm -> its p.
        absent: arms that are to be tested too, and have no p yet.
    """
    adjusted: dict[str, float] = {}
    so_far = 0.0
    for rank, arm in enumerate(sorted(p_values, key=p_values.__getitem__)):
        still_to_come = len(p_values) + absent - rank
        so_far = max(so_far, min(still_to_come * p_values[arm], 1.0))
        adjusted[arm] = so_far
    return adjusted


def _more(
    sample: Sample, smallest_effect: float, alpha: float, plan: Schedule | None
) -> int | None:
    """More seeds until the next look, or where there is none, until a difference of smallest_effect would be seen.

    Then none at all is called equivalent too, with POWER each. Few seeds measure a spread badly, so its upper limit is taken.
    """
    next_look = plan.after(sample.n) if plan is not None else None
    if next_look is not None:
        return next_look - sample.n
    only_bounded = sample.stdev is None and sample.n > 1
    if sample.identical or only_bounded:
        return None
    if not sample.usable:
        return max(3 - sample.n, 1)
    stdev = upper_stdev(_planning_stdev(sample), sample.n)
    to_see_it = seeds_needed(smallest_effect, stdev, alpha=alpha)
    to_call_none = seeds_for_equivalence(smallest_effect, stdev, alpha=alpha)
    if to_see_it is None or to_call_none is None:
        return None
    needed = max(to_see_it, to_call_none)
    if sample.lasting_error:
        # It leaves the seeds a part of the squared error that so many seeds may have.
        left = 1 - sample.lasting_error**2 * needed / stdev**2
        needed = math.ceil(needed / left) if left > 0 else MOST_SEEDS + 1
    return max(needed - sample.n, 1) if needed <= MOST_SEEDS else None


def _planning_stdev(sample: Sample) -> float:
    """The spread that would ask of Student's t what a reserve asks; without one, the spread itself."""
    assert sample.stdev is not None
    if not sample.reserve:
        return sample.stdev
    per_seed = math.sqrt(sample.n)
    return (sample.seed_error + sample.shift / 2) * per_seed
