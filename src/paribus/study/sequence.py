"""The looks of a study, one after another: which are due, which arms they decide, and what each may have spent.

All of it follows from the results, the study's file, and the record of looks that an earlier version of that file took.
So a verdict once given stands, a look is never taken twice on other seeds, and what was spent is never given back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from paribus.study.differences import differences_of
from paribus.study.divergence import survivors, withheld
from paribus.study.experiment import BASELINE, Experiment
from paribus.study.looks import Look
from paribus.study.outcomes import Outcomes
from paribus.study.statistics import Effect, Family, Verdict, effects, estimate

LEAST_SHARE = 1e-12  # of alpha; less is what rounding leaves of nothing


@dataclass(frozen=True)
class Step:
    """A look of a study at all of its arms.

    Attributes:
        seeds: after which it is.
        share: of alpha, that the study may have spent up to and with it.
        arms: that it looked at.
    """

    seeds: int
    share: float
    arms: tuple[str, ...]


# ---------------------------------------------------------------- the looks


def steps(experiment: Experiment, record: Sequence[Step] = ()) -> Iterator[Step]:
    """The looks of a study, in order; an open one has no last.

    Args:
        experiment: the study.
        record: looks that were taken before. Where the file would take them as they were, they are its own; else they stand as
            recorded, and the looks of the file follow and may spend what is left.
    """
    schedule, arms = experiment.seeds, experiment.looked_at
    begun = None
    if not _same(experiment, record):
        yield from record
        begun = Look(record[-1].seeds, record[-1].share)
    planned: list[int] = []
    due = schedule.after(begun.seeds if begun else 0)
    while due is not None:
        planned.append(due)
        look = schedule.taken(planned, begun=begun)[-1]
        yield Step(due, look.share, arms)
        due = schedule.after(due)


def _same(experiment: Experiment, record: Sequence[Step]) -> bool:
    """Whether the study's file would have taken the recorded looks as they were."""
    schedule, arms = experiment.seeds, set(experiment.looked_at)
    planned = schedule.upto(record[-1].seeds) if record else ()
    if [step.seeds for step in record] != list(planned):
        return False
    shares = [look.share for look in schedule.taken(planned)]
    for step, share in zip(record, shares, strict=True):
        if set(step.arms) != arms or abs(step.share - share) > 1e-9:
            return False
    return True


def affordable(
    experiment: Experiment, record: Sequence[Step] = (), upto: int | None = None
) -> Iterator[tuple[Step, float]]:
    """Each look that has something left to spend, with the share of alpha that it may spend.

    Args:
        experiment: the study.
        record: looks that were taken before.
        upto: seeds beyond which there is no look; None: there may be.
    """
    spent = 0.0
    for step in steps(experiment, record):
        share = step.share - spent
        is_beyond = upto is not None and step.seeds > upto
        if is_beyond or share <= LEAST_SHARE:
            return
        yield step, share
        spent = step.share


def next_step(experiment: Experiment, seeds: int, record: Sequence[Step] = ()) -> Step | None:
    """The first look after more than `seeds` seeds at which something is left to spend; None where there is none.

    Args:
        experiment: the study.
        seeds: that there are.
        record: looks that were taken before.
    """
    spent = 0.0
    for step in steps(experiment, record):
        if step.seeds > seeds:
            return step if step.share - spent > LEAST_SHARE else None
        spent = step.share
    return None


def added_arms(experiment: Experiment, record: Sequence[Step]) -> dict[str, float]:
    """Arm -> share of alpha that was spent before it came, of arms that were added after looks were taken.

    Args:
        experiment: the study.
        record: looks that were taken before.
    """
    added = {}
    for arm in experiment.looked_at:
        without = [step.share for step in record if arm not in step.arms]
        if without:
            added[arm] = without[-1]
    return added


# ---------------------------------------------------------------- the verdicts


@dataclass(frozen=True)
class Judged:
    """What the looks so far gave.

    Attributes:
        effects: arm -> what is known of it; arms without a matched pair are left out.
        taken: the looks that were taken.
    """

    effects: dict[str, Effect]
    taken: tuple[Step, ...]

    def is_decided(self, arm: str) -> bool:
        """Whether an arm has a verdict that stands.

        Args:
            arm: its name.
        """
        return arm in self.effects and self.effects[arm].decided

    def is_open(self, arm: str) -> bool:
        """Whether an arm has results and no verdict yet.

        Args:
            arm: its name.
        """
        return arm in self.effects and not self.effects[arm].decided


def judge(
    experiment: Experiment,
    outcomes: Outcomes,
    record: Sequence[Step] = (),
    upto: int | None = None,
) -> Judged:
    """Take every look that is due, in order, and say what is known of each arm.

    An arm is looked at when each of its runs and of the baseline's up to the look has ended. The verdict of the first look that
    gives one stands. Seeds after an arm's last look make an estimate, and no verdict: *not yet*. A verdict that would rest on
    seeds that survived is *undecided* (divergence.py).

    Args:
        experiment: the study.
        outcomes: how its runs ended.
        record: looks that were taken before.
        upto: seeds beyond which there is no look; None: there may be.
    """
    if experiment.factorial is not None:
        return Judged({}, ())  # its effects are judged, not its cells (factor_effects.py)
    looks = _Looks(experiment, outcomes)
    for step, _ in affordable(experiment, record, upto):
        if not looks.take(step) and step not in record:
            break
    latest = outcomes
    if upto is not None:
        latest = outcomes.upto(experiment.first_seed + upto - 1)
    more_to_come = bool(looks.taken and next_step(experiment, looks.taken[-1].seeds, record))
    known: dict[str, Effect] = {}
    for arm in experiment.arms:
        differences = differences_of(experiment, latest.results, arm)
        effect = _latest(experiment, looks.effects.get(arm), differences, more_to_come)
        if effect is not None:
            known[arm] = effect
    return Judged(known, tuple(looks.taken))


def _latest(
    experiment: Experiment, effect: Effect | None, differences: Sequence[float], more_to_come: bool
) -> Effect | None:
    """An arm's effect at its last look, or what seeds after that estimate where another look is to come."""
    if effect is None:
        if not differences:
            return None
        return estimate(differences, experiment.alpha, skewed=experiment.skewed)
    if effect.decided or len(differences) <= effect.n or not more_to_come:
        return effect
    return estimate(differences, experiment.alpha, effect.looks, experiment.skewed)


class _Looks:
    """The looks taken so far, and what they gave.

    Args:
        experiment: the study.
        outcomes: how its runs ended.
    """

    def __init__(self, experiment: Experiment, outcomes: Outcomes) -> None:
        self.experiment, self.outcomes = experiment, outcomes
        self.effects: dict[str, Effect] = {}
        self.taken: list[Step] = []
        self._differences: dict[str, list[float]] = {}  # of an arm at its last look
        self._looks: dict[str, tuple[Look, ...]] = {}  # taken on an arm
        self._before: dict[str, float] = {}  # arm -> share that was spent before it came

    def take(self, step: Step) -> bool:
        """Take a look; whether an arm was due."""
        first = self.experiment.first_seed
        so_far = self.outcomes.upto(first + step.seeds - 1)
        wanted = set(range(first, first + step.seeds))
        due = []
        for arm in self.experiment.arms:
            if arm not in step.arms:
                self._before[arm] = step.share
            elif not self._decided(arm) and _complete(so_far, arm, wanted):
                due.append(arm)
        if not due:
            return False
        for arm in due:
            self._add(arm, step, differences_of(self.experiment, so_far.results, arm))
        found = self._effects(step)
        for arm in due:
            if arm in found:
                counts = survivors(so_far.results, so_far.diverged, arm)
                self.effects[arm] = withheld(found[arm], counts)
        self.taken.append(step)
        return True

    def _decided(self, arm: str) -> bool:
        return arm in self.effects and self.effects[arm].decided

    def is_open(self, arm: str) -> bool:
        """Whether an arm has results and no verdict yet.

        Args:
            arm: its name.
        """
        return arm in self.effects and not self.effects[arm].decided

    def _add(self, arm: str, step: Step, differences: list[float]) -> None:
        """Note what an arm has at a look. One without a new seed, or with a single one, is not tested again."""
        looks = self._looks.get(arm, ())
        seeds_before = looks[-1].seeds if looks else 1
        if len(differences) > seeds_before:
            share = step.share - self._before.get(arm, 0.0)
            self._looks[arm] = (*looks, Look(len(differences), share))
        if differences:
            self._differences[arm] = differences

    def _effects(self, step: Step) -> dict[str, Effect]:
        if not self._differences:
            return {}
        stands: dict[str, Verdict] = {}
        for arm, effect in self.effects.items():
            if effect.decided:
                stands[arm] = effect.verdict
        looks = {arm: self._looks.get(arm, ()) for arm in self._differences}
        absent = len(set(step.arms) - self._differences.keys())
        experiment = self.experiment
        return effects(
            self._differences,
            direction=experiment.direction,
            smallest_effect=experiment.smallest_effect,
            alpha=experiment.alpha,
            plan=experiment.seeds,
            family=Family(looks, stands, absent),
            borrow=experiment.borrow,
            skewed=experiment.skewed,
        )


def _complete(outcomes: Outcomes, arm: str, seeds: set[int]) -> bool:
    return seeds <= outcomes.ended(arm) and seeds <= outcomes.ended(BASELINE)
