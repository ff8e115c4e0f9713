"""The effects of a study with factors: a mixed model over matched seeds, and a verdict on each effect.

    y(cell, seed) = mean + sum over effects of (size x level) + u(seed) + sum over factors of v(seed, factor) x level + noise

u, v and the noise are normal and independent; the v of all factors have one variance. A seed takes part only if it has every
cell, so the blocks are complete and the REML estimate has a closed form: an effect is the mean over seeds of its contrast, and
its variance the mean square of the contrasts of single factors, or of the rest, or of all where those of single factors do not
vary more. (statsmodels' optimiser finds the same where a variance lies inside; at zero it stops up to a third away.)

Where one effect varies over seeds more than the model says, the model's error is too small for it. So an effect counts only if
its own contrasts over seeds, which nothing else touches, say so too (shrinkage.py), and an interval is its own where they vary
more. An interaction is the difference of two differences: the first factor's effect at the second level of the other, less
that at the first.

Sources: Patterson & Thompson (1971), REML; Yates (1937), contrasts; Holm (1979); Daniel (1959), the half-normal plot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from paribus.study.experiment import BASELINE, Experiment
from paribus.study.factors import Factorial, Signs, Term, name_of, terms_of
from paribus.study.outcomes import Outcomes
from paribus.study.results import Result
from paribus.study.sample import Sample
from paribus.study.shrinkage import guarded
from paribus.study.statistics import Effect, Verdict, holm, verdict_of

OWN_LEVEL = (
    0.25  # of the F test beyond which an effect's own spread replaces the model's in its interval
)


@dataclass(frozen=True)
class Model:
    """The estimate of the mixed model.

    Attributes:
        contrasts: effect -> its contrast at each seed (seeds,), in the metric's unit.
        variance: effect -> of one such contrast, by the model.
        freedom: effect -> degrees of freedom of that.
        noise: standard deviation of a run within its seed.
        varying: standard deviation over seeds of the effect of a single factor, beyond noise.
    """

    contrasts: Mapping[Term, Signs]
    variance: Mapping[Term, float]
    freedom: Mapping[Term, float]
    noise: float
    varying: float


@dataclass(frozen=True)
class FactorEffects:
    """What a study with factors found.

    Attributes:
        seeds: that have a value in every cell.
        left_out: seeds that lack one.
        diverged: whether a run diverged, so that nothing is decided.
        effects: of what is asked, single factors first.
        at_baseline: factor -> its effect where all others are as in the baseline, what one change at a time measures: by the
            model, or where `measured` by the runs of the two cells alone; {} where interactions are not asked for, or aliased.
        measured: whether the cells that change one factor alone are part of the design.
        model: with the variances.
        cells: arm -> its values at `seeds`.
    """

    seeds: tuple[int, ...]
    left_out: tuple[int, ...]
    diverged: bool
    effects: Mapping[Term, Effect]
    at_baseline: Mapping[str, Effect]
    measured: bool
    model: Model | None
    cells: Mapping[str, Sequence[float]]


def factor_effects(experiment: Experiment, outcomes: Outcomes) -> FactorEffects:
    """The effects of a study with factors, as far as its seeds are complete.

    Args:
        experiment: the study.
        outcomes: how its runs ended.
    """
    design = experiment.factorial
    assert design is not None
    found = _values_by_seed(outcomes.results)
    complete = tuple(seed for seed in sorted(found) if found[seed].keys() >= design.cells.keys())
    left_out = tuple(seed for seed in sorted(found) if seed not in complete)
    cells = {cell: [found[seed][cell] for seed in complete] for cell in design.cells}
    diverged = bool(outcomes.diverged)
    measured = all(factor in design.cells for factor in design.factors)
    if len(complete) < 2:
        return FactorEffects(complete, left_out, diverged, {}, {}, measured, None, cells)
    model = fitted(design, np.array(list(cells.values())))
    judged = Judge(
        experiment.direction,
        experiment.smallest_effect,
        experiment.alpha,
        model,
        _withheld(experiment, outcomes),
    )
    at_baseline: Mapping[str, Effect] = {}
    if measured:
        at_baseline = judged.of_cells(design, cells)
    elif len(design.asked) == len(terms_of(design.factors)) and not design.aliases():
        at_baseline = judged.at_baseline()
    effects = judged.asked()
    return FactorEffects(complete, left_out, diverged, effects, at_baseline, measured, model, cells)


def _values_by_seed(results: Sequence[Result]) -> dict[int, dict[str, float]]:
    """Seed -> cell -> its value; a seed whose runs all lack one is there too."""
    found: dict[int, dict[str, float]] = {}
    for result in results:
        of_seed = found.setdefault(result.seed, {})
        if result.value is not None:
            of_seed[result.arm] = result.value
    return found


def _withheld(experiment: Experiment, outcomes: Outcomes) -> Verdict | None:
    """What stands in place of every verdict; None: verdicts are given."""
    wanted = experiment.seeds.last or 0
    if any(len(outcomes.ended(arm)) < wanted for arm in experiment.names):
        return "not yet"
    return "undecided" if outcomes.diverged else None


def fitted(design: Factorial, values: Signs) -> Model:
    """The mixed model's estimate from complete seeds.

    Args:
        design: of the cells.
        values: of the metric (cells, seeds).
    """
    cells, seeds = values.shape
    contrasts = {}
    squares = []  # of single factors' contrasts over seeds
    for term in design.asked:
        standard = 2 * design.signs(term) @ values / cells
        contrasts[term] = standard * len(term)
        if len(term) == 1:
            squares.append(float(standard.var(ddof=1)))
    rest, rest_freedom = _rest(design, values)
    single = float(np.mean(squares))
    single_freedom = (seeds - 1) * len(squares)
    variance, freedom = {}, {}
    if rest_freedom and single > rest:
        of_single, of_rest = (single, single_freedom), (rest, rest_freedom)
    else:
        together = single_freedom + rest_freedom
        pooled = (single * single_freedom + rest * rest_freedom) / together
        of_single = pooled, single_freedom
        of_rest = pooled, rest_freedom or single_freedom
    for term in design.asked:
        square, free = of_single if len(term) == 1 else of_rest
        variance[term], freedom[term] = square * len(term) ** 2, free
    noise = math.sqrt(of_rest[0] * cells) / 2
    varying = math.sqrt(max(of_single[0] - of_rest[0], 0.0))
    return Model(contrasts, variance, freedom, noise, varying)


def _rest(design: Factorial, values: Signs) -> tuple[float, int]:
    """(mean square of what is no single factor's, as of a standardised contrast; its degrees of freedom).

    It holds the asked interactions over seeds and, where the design has more cells than effects, what is left of them.
    """
    cells, seeds = values.shape
    within = values - values.mean(axis=0)  # of a seed
    total = float(np.sum((within - within.mean(axis=1, keepdims=True)) ** 2))
    of_single = 0.0
    singles = [term for term in design.asked if len(term) == 1]
    for term in singles:
        standard = 2 * design.signs(term) @ values / cells
        of_single += float(standard.var(ddof=1)) * (seeds - 1) * cells / 4
    freedom = (seeds - 1) * (cells - 1 - len(singles))
    if not freedom:
        return 0.0, 0
    return max(total - of_single, 0.0) / freedom * 4 / cells, freedom


class Judge:
    """From the model to verdicts.

    Args:
        direction: "lower" or "higher" is better.
        smallest_effect: that matters, in the metric's unit.
        alpha: the rate of false verdicts, of single factors and of interactions each.
        model: of the cells.
        withheld: what stands in place of every verdict; None: they are given.
    """

    def __init__(
        self,
        direction: str,
        smallest_effect: float,
        alpha: float,
        model: Model,
        withheld: Verdict | None = None,
    ) -> None:
        self.direction, self.margin, self.alpha = direction, smallest_effect, alpha
        self.model, self.withheld = model, withheld

    def asked(self) -> dict[Term, Effect]:
        """The effects that the study asks for; Holm over single factors, and over interactions."""
        found: dict[Term, Effect] = {}
        for letters in (1, 2):
            terms = [term for term in self.model.contrasts if len(term) == letters]
            own = {name_of(term): Sample.of(list(self.model.contrasts[term])) for term in terms}
            lent = {}
            for term in terms:
                name = name_of(term)
                lent[name] = self._modelled(
                    own[name], self.model.variance[term], self.model.freedom[term]
                )
            judged = self._family(own, lent)
            found |= {term: judged[name_of(term)] for term in terms}
        return found

    def at_baseline(self) -> dict[str, Effect]:
        """Factor -> its effect where the others are as in the baseline, by the model."""
        own, lent = {}, {}
        for term in self.model.contrasts:
            if len(term) != 1:
                continue
            contrast = np.array(self.model.contrasts[term])
            variance, freedom = self.model.variance[term], self.model.freedom[term]
            for other in self.model.contrasts:
                if len(other) == 2 and term[0] in other:
                    contrast = contrast - self.model.contrasts[other] / 2
                    variance += self.model.variance[other] / 4
                    freedom = min(freedom, self.model.freedom[other])
            own[term[0]] = Sample.of(list(contrast))
            lent[term[0]] = self._modelled(own[term[0]], variance, freedom)
        return self._family(own, lent)

    def of_cells(
        self, design: Factorial, cells: Mapping[str, Sequence[float]]
    ) -> dict[str, Effect]:
        """Factor -> its effect as one change at a time measures it, by the runs of two cells alone."""
        own = {}
        for factor in design.factors:
            pairs = zip(cells[BASELINE], cells[factor], strict=True)
            own[factor] = Sample.of([value - base for base, value in pairs])
        return self._family(own, {})

    def _modelled(self, own: Sample, variance: float, freedom: float) -> Sample:
        if not own.usable:
            return own
        return replace(own, stdev=math.sqrt(variance), degrees=freedom)

    def _family(self, own: Mapping[str, Sample], lent: Mapping[str, Sample]) -> dict[str, Effect]:
        margin, alpha = self.margin, self.alpha
        differs = _adjusted(
            {name: one.p() for name, one in own.items()},
            {name: one.p() for name, one in lent.items()},
        )
        equals = _adjusted(
            {name: one.p_equivalent(margin) for name, one in own.items()},
            {name: one.p_equivalent(margin) for name, one in lent.items()},
        )
        found = {}
        for name, sample in own.items():
            shown = interval_sample(sample, lent.get(name))
            verdict = self.withheld or verdict_of(
                sample.mean, self.direction, differs[name] <= alpha, equals[name] <= alpha
            )
            low, high = shown.interval(alpha)
            found[name] = Effect(
                n=sample.n,
                mean=sample.mean,
                low=low,
                high=high,
                p=lent.get(name, sample).p(),
                p_adjusted=differs[name],
                stdev=shown.stdev,
                verdict=verdict,
                more_seeds=None,
            )
        return found


def _adjusted(own: Mapping[str, float], lent: Mapping[str, float]) -> dict[str, float]:
    """P over a family: of the model, guarded by each effect's own; without a model its own."""
    plain = holm(own)
    return guarded(own, plain, holm(lent)) if lent else plain


def interval_sample(own: Sample, lent: Sample | None) -> Sample:
    """The sample whose interval is shown: the model's, or where an effect varies over seeds more than that, its own.

    Args:
        own: of the effect's contrasts.
        lent: the same with the model's variance.
    """
    if lent is None or not own.usable:
        return own
    ratio = ((own.stdev or 0.0) / (lent.stdev or 1.0)) ** 2
    too_much = float(stats.f.isf(OWN_LEVEL, own.df, lent.df))
    return own if ratio > too_much else lent
