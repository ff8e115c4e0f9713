"""What a study asks besides its metric, each kind of question with one error rate of its own: alpha, over all arms and looks.

    secondary: [core, gsm8k.base, {metric: "pretrain:train_loss", direction: lower}]
    contrasts: [[muon, soap], [muon, adamw]]      # or all: every two arms
    margin: {worse_by: 0.005, cheaper: seconds}   # not worse by more than that, and cheaper; or a number alone

**Secondary metrics** are tested only for arms whose primary verdict is better or worse (gatekeeping), at the look that gave it,
by Holm over all arms and secondary metrics; the others are estimates. **Contrasts** get verdicts as arms do, by Holm over the
contrasts. **Margin**: one-sided, both claims have to hold (Berger, 1982), by Holm over the arms. **Which may be best** is
answered for two arms or more: an arm or the baseline is left out where another one is better, one-sided at alpha over the
number of the others, so that the best one is left out with a chance of at most alpha (Hsu, 1984, by Bonferroni, as arms may
differ in noise). No answer rests on seeds that survived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from paribus.study.differences import Pair, differences_in, matched
from paribus.study.experiment import BASELINE, Experiment
from paribus.study.looks import Look, level, p_over_looks
from paribus.study.outcomes import Outcomes
from paribus.study.sample import Sample
from paribus.study.sequence import Judged
from paribus.study.statistics import RESERVE, Family, effects, holm, verdict_of
from paribus.study.verdict import cost_of


@dataclass(frozen=True)
class Answer:
    """An answer to a question besides the study's own.

    Attributes:
        kind: secondary, contrast or margin.
        about: what it is about, in words.
        unit: of mean, low and high.
        mean: difference, arm - other.
        low, high: its 1 - alpha interval over all looks, of this question alone.
        p_adjusted: over the looks and all questions of its kind; None: it was not tested.
        answer: in words.
    """

    kind: str
    about: str
    unit: str
    mean: float
    low: float
    high: float
    p_adjusted: float | None
    answer: str


@dataclass(frozen=True)
class _Compared:
    """Two arms at the last look that both had: matched runs, and what the looks may have spent."""

    pairs: list[Pair]
    looks: tuple[Look, ...]


@dataclass(frozen=True)
class _Tested:
    """A question before the correction: its answer where p is small enough, and where it is not."""

    kind: str
    about: str
    unit: str
    sample: Sample
    looks: tuple[Look, ...]
    p: float | None
    yes: str
    no: str


class Besides:
    """The answers of a study.

    Args:
        experiment: the study.
        outcomes: how its runs ended.
        judged: its verdicts.
    """

    def __init__(self, experiment: Experiment, outcomes: Outcomes, judged: Judged) -> None:
        self.experiment, self.outcomes, self.judged = experiment, outcomes, judged

    def answers(self) -> list[Answer]:
        """The answers to everything that the study asks besides."""
        return [*self.secondary(), *self.contrasts(), *self.margin()]

    # ---------------------------------------------------------------- secondary metrics

    def secondary(self) -> list[Answer]:
        """The secondary metrics of every arm, tested where its primary verdict is better or worse."""
        asked = self.experiment.besides.secondary
        tested = []
        for arm in self.experiment.arms:
            effect = self.judged.effects.get(arm)
            primary = effect.verdict if effect else "none"
            for metric, direction in asked:
                compared = self._compared(arm, BASELINE)
                differences = differences_in(
                    self.experiment, self.outcomes.results, compared.pairs, metric
                )
                if not differences:
                    continue
                sample = self._sample(differences)
                is_tested = primary in ("better", "worse") and not self._lost(arm, BASELINE)
                p = p_over_looks(sample.p(), compared.looks) if is_tested else None
                word = verdict_of(sample.mean, direction, True, False)
                why = "undecided" if is_tested else f"an estimate: the primary verdict is {primary}"
                about = f"{arm}: {metric.name}"
                tested.append(
                    _Tested("secondary", about, metric.unit, sample, compared.looks, p, word, why)
                )
        return self._corrected(tested, len(asked) * len(self.experiment.arms))

    # ---------------------------------------------------------------- contrasts

    def contrasts(self) -> list[Answer]:
        """Arm against arm, with verdicts as arms against the baseline have them."""
        experiment = self.experiment
        names = {
            f"{arm} against {other}": (arm, other) for arm, other in experiment.besides.contrasts
        }
        differences, looks = {}, {}
        for name, (arm, other) in names.items():
            compared = self._compared(arm, other)
            found = differences_in(
                experiment, self.outcomes.results, compared.pairs, experiment.metric
            )
            if found and compared.looks:
                differences[name], looks[name] = found, compared.looks
        if not differences:
            return []
        judged = effects(
            differences,
            direction=experiment.direction,
            smallest_effect=experiment.smallest_effect,
            alpha=experiment.alpha,
            plan=experiment.seeds,
            family=Family(looks, absent=len(names) - len(differences)),
            skewed=experiment.skewed,
        )
        answers = []
        for name, effect in judged.items():
            lost = self._lost(*names[name])
            answers.append(
                Answer(
                    kind="contrast",
                    about=name,
                    unit=experiment.metric.unit,
                    mean=effect.mean,
                    low=effect.low,
                    high=effect.high,
                    p_adjusted=effect.p_adjusted,
                    answer="an estimate: seeds diverged" if lost else effect.verdict,
                )
            )
        return answers

    # ---------------------------------------------------------------- not worse, and cheaper

    def margin(self) -> list[Answer]:
        """Whether each arm is not worse by more than the margin, and cheaper where that is asked."""
        margin = self.experiment.besides.margin
        if margin is None:
            return []
        tested = []
        for arm in self.experiment.arms:
            compared = self._compared(arm, BASELINE)
            differences = differences_in(
                self.experiment, self.outcomes.results, compared.pairs, self.experiment.metric
            )
            if not differences:
                continue
            sample = self._sample(differences)
            claims = [self._p_not_worse(sample, compared.looks, margin.worse_by)]
            about = f"{arm}: not worse by more than {margin.worse_by:g}"
            if margin.cheaper:
                claims.append(self._p_cheaper(arm, compared, margin.cheaper))
                about += f", and fewer {margin.cheaper}"
            p = max(claims) if compared.looks and not self._lost(arm, BASELINE) else None
            no = (
                "not shown" if p is not None else "an estimate: seeds diverged, or no look is taken"
            )
            unit = self.experiment.metric.unit
            tested.append(_Tested("margin", about, unit, sample, compared.looks, p, "shown", no))
        return self._corrected(tested, len(self.experiment.arms))

    def _p_not_worse(self, sample: Sample, looks: Sequence[Look], worse_by: float) -> float:
        sign = 1 if self.experiment.direction == "lower" else -1
        return _one_sided(sample.p_below(worse_by, sign), looks)

    def _p_cheaper(self, arm: str, compared: _Compared, cost: str) -> float:
        """P of "it does not cost less", one-sided; of a cost that is counted 0 or 1."""
        of_base, of_arm = self.experiment.config(), self.experiment.config(arm)
        saved = []
        for base, own in compared.pairs:
            before, after = cost_of(cost, base, of_base), cost_of(cost, own, of_arm)
            if before is None or after is None:
                return 1.0
            saved.append(after - before)
        sample = Sample.of(saved)
        if sample.stdev == 0:
            return 0.0 if sample.mean < 0 else 1.0
        return _one_sided(sample.p_below(0.0), compared.looks)

    # ---------------------------------------------------------------- which may be best

    def may_be_best(self) -> list[str]:
        """The arms, and the baseline, of which none is shown to be worse than another one; [] for fewer than two arms."""
        names = self.experiment.names
        if len(names) < 3 or not any(self._end(arm)[1] for arm in self.experiment.arms):
            return []
        worst = dict.fromkeys(names, 1.0)
        for one, other in combinations(names, 2):
            compared = self._compared(other, one)
            differences = differences_in(
                self.experiment, self.outcomes.results, compared.pairs, self.experiment.metric
            )
            if not differences or not compared.looks:
                continue
            sample = self._sample(differences)
            sign = 1 if self.experiment.direction == "lower" else -1
            beaten = {
                one: (other, sample.p_below(0.0, sign)),
                other: (one, sample.p_below(0.0, -sign)),
            }
            for name, (winner, p) in beaten.items():
                if not self._diverged(winner):
                    worst[name] = min(worst[name], _one_sided(p, compared.looks))
        return [name for name in names if worst[name] * (len(names) - 1) > self.experiment.alpha]

    # ---------------------------------------------------------------- common

    def _compared(self, arm: str, other: str) -> _Compared:
        """Two arms at the last look that both had."""
        ends = [self._end(name) for name in (arm, other) if name != BASELINE]
        pairs = matched(self.outcomes.results, arm, other)
        if not all(looks for _, looks in ends):
            return _Compared(pairs, ())
        last, looks = min(ends, key=lambda end: end[0])
        pairs = [pair for pair in pairs if pair[0].seed <= last]
        if len(pairs) < 2:
            return _Compared(pairs, ())
        earlier = [look for look in looks[:-1] if look.seeds < len(pairs)]
        return _Compared(pairs, (*earlier, replace(looks[-1], seeds=len(pairs))))

    def _end(self, arm: str) -> tuple[int, tuple[Look, ...]]:
        """(the last seed of an arm's last look, its looks)."""
        effect = self.judged.effects.get(arm)
        if effect is None or not effect.looks:
            return -1, ()
        pairs = matched(self.outcomes.results, arm)
        seen = pairs[: effect.looks[-1].seeds]
        return (seen[-1][0].seed, effect.looks) if seen else (-1, ())

    def _sample(self, differences: Sequence[float]) -> Sample:
        reserve = RESERVE if self.experiment.skewed else 0.0
        return replace(Sample.of(differences), reserve=reserve)

    def _diverged(self, arm: str) -> bool:
        return bool(self.outcomes.diverged.get(arm))

    def _lost(self, arm: str, other: str) -> bool:
        return self._diverged(arm) or self._diverged(other)

    def _corrected(self, tested: Sequence[_Tested], questions: int) -> list[Answer]:
        """Answers after Holm over all questions of a kind, those without a test too."""
        p_values = {one.about: one.p for one in tested if one.p is not None}
        adjusted = holm(p_values, questions - len(p_values))
        alpha = self.experiment.alpha
        answers = []
        for one in tested:
            low, high = one.sample.interval(level(one.looks, alpha) if one.looks else 0.0)
            p = adjusted.get(one.about)
            is_shown = p is not None and p <= alpha
            answers.append(
                Answer(
                    kind=one.kind,
                    about=one.about,
                    unit=one.unit,
                    mean=one.sample.mean,
                    low=low,
                    high=high,
                    p_adjusted=p,
                    answer=one.yes if is_shown else one.no,
                )
            )
        return answers


def _one_sided(p: float, looks: Sequence[Look]) -> float:
    """A one-sided p over all looks: tests at alpha have the two-sided boundaries of 2 alpha."""
    return p_over_looks(min(2 * p, 1.0), looks) / 2
