"""A judgement in words: the first line, a sentence on each arm, and the same as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

from paribus.judge.options import Options
from paribus.judge.rules import Rule, TargetRule
from paribus.judge.verdicts import ArmSummary, Comparison, Judgement, Plan
from paribus.study.saved import Amount, Saved
from paribus.text import p_value, signed

VERDICTS = ("better", "worse", "equivalent", "undecided")
MOST_DIGITS = 8


def summary(judgement: Judgement) -> str:
    """The answer in a line: how many arms are what.

    Args:
        judgement: of the table.
    """
    counts: Counter[str] = Counter(comparison.verdict for comparison in judgement.comparisons)
    against = "the arm before it" if judgement.options.chain else judgement.options.baseline
    total = len(judgement.comparisons)
    parts = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]]
    arms = "1 arm" if total == 1 else f"{total} arms"
    relation = "than" if set(counts) <= {"better", "worse"} else "beside"
    return (
        f"{metric_name(judgement.options)} ({judgement.options.result_direction} is better): of {arms}, "
        f"{' and '.join(parts) if len(parts) < 3 else ', '.join(parts)} {relation} {against}."
    )


def metric_name(options: Options) -> str:
    """What the results are called."""
    return options.metric or "the result"


def digits_of(judgement: Judgement) -> int:
    """Decimals with which the smallest error still shows two figures."""
    usable = [one.estimate for one in judgement.comparisons]
    scales = [estimate.error for estimate in usable if estimate.error]
    if not scales:
        scales = [abs(estimate.difference) / 10 for estimate in usable if estimate.difference]
    finite = [scale for scale in scales if math.isfinite(scale)]
    if not finite:
        return 4
    return min(max(1 - math.floor(math.log10(min(finite))), 0), MOST_DIGITS)


def change(difference: float, digits: int) -> str:
    """A difference with its sign; – where the runs do not tell it."""
    return "–" if math.isnan(difference) else signed(difference, digits)


def sentence(comparison: Comparison, judgement: Judgement) -> str:
    """The verdict on an arm, for people.

    Args:
        comparison: of the arm.
        judgement: that it is part of.
    """
    digits, options = digits_of(judgement), judgement.options
    size = change(comparison.difference, digits)
    arm, reference = comparison.arm, comparison.reference
    note = f" ({comparison.note})" if comparison.note else ""
    if comparison.p is None:
        plan = plan_words(comparison.plan)
        why = f"{size}; {comparison.estimate.why}"
        return f"{arm}: undecided beside {reference}: {why}{note}{f'; {plan}' if plan else ''}."
    interval = (
        f"{interval_words(comparison, options, digits)}, {evidence(comparison)}, {_p(comparison)}"
    )
    if comparison.verdict == "equivalent":
        return (
            f"{arm} is equivalent to {reference}: {size} ({interval}), within ±{options.smallest_effect:g}, the smallest "
            f"effect that matters{note}."
        )
    if comparison.verdict == "undecided":
        plan = plan_words(comparison.plan)
        return f"{arm}: undecided beside {reference}: {size} ({interval}){note}{f'; {plan}' if plan else ''}."
    compute = saved_words(comparison, options)
    return f"{arm} is {comparison.verdict} than {reference}: {size} ({interval}){note}{f'; {compute}' if compute else ''}."


def _p(comparison: Comparison) -> str:
    assert comparison.p_adjusted is not None
    return p_value(comparison.p_adjusted)


def interval_words(comparison: Comparison, options: Options, digits: int) -> str:
    """`95 % interval a to b`."""
    assert comparison.low is not None and comparison.high is not None
    level = f"{100 * (1 - options.alpha):g} % interval"
    return f"{level} {signed(comparison.low, digits)} to {signed(comparison.high, digits)}"


def evidence(comparison: Comparison) -> str:
    """What a comparison rests on: `5 matched runs`, `8 against 16 runs`."""
    estimate = comparison.estimate
    if estimate.pairs and comparison.runs == comparison.reference_runs == estimate.pairs:
        return f"{estimate.pairs} matched runs"
    runs = f"{comparison.runs} against {comparison.reference_runs} runs"
    return f"{runs}, {estimate.pairs} of them matched" if estimate.pairs else runs


def plan_words(plan: Plan | None) -> str:
    """What would decide, in words; "" where nothing is known of it."""
    if plan is None:
        return ""
    noise = f"{'a stated' if plan.stated else 'the measured'} noise of {plan.noise:.2g}"
    kind = "matched runs" if plan.matched else "runs"
    parts = []
    if plan.to_see_smallest and plan.to_call_equivalent:
        needed = max(plan.to_see_smallest, plan.to_call_equivalent)
        parts.append(f"about {needed:,} fresh {kind} an arm would decide about the smallest effect")
    if plan.to_see_this:
        parts.append(f"{plan.to_see_this:,} {kind} an arm would show a difference as large as this")
    if not parts:
        return f"more than 100,000 runs an arm would be needed at {noise}"
    return f"{', '.join(parts)}, at {noise}"


# ---------------------------------------------------------------- JSON


def as_json(judgement: Judgement) -> dict[str, object]:
    """A judgement as JSON's values; keys are documented in docs/judge.md and stable. What is unbounded is null.

    Args:
        judgement: of the table.
    """
    options = judgement.options
    return {
        "source": judgement.source,
        "summary": summary(judgement),
        "metric": metric_name(options),
        "direction": options.result_direction,
        "baseline": options.baseline,
        "chain": options.chain,
        "alpha": options.alpha,
        "correction": options.correction,
        "smallest_effect": options.smallest_effect,
        "margin": options.margin,
        "arms": [_arm(arm) for arm in judgement.arms],
        "comparisons": [_comparison(one, judgement) for one in judgement.comparisons],
        "notes": list(judgement.notes),
    }


def _arm(arm: ArmSummary) -> dict[str, object]:
    values = {field.name: getattr(arm, field.name) for field in dataclasses.fields(arm)}
    return values | {"target": _target(arm.target)}


def _target(target: TargetRule | None) -> dict[str, object] | None:
    if target is None:
        return None
    return {
        "target": target.target,
        "p": target.p,
        "p_adjusted": target.p_adjusted,
        "reaches": target.reaches,
        "rule": _rule(target.rule),
    }


def _rule(rule: Rule | None) -> dict[str, object] | None:
    return None if rule is None else dataclasses.asdict(rule)


def _comparison(comparison: Comparison, judgement: Judgement) -> dict[str, object]:
    estimate = comparison.estimate
    return {
        "arm": comparison.arm,
        "reference": comparison.reference,
        "verdict": comparison.verdict,
        "sentence": sentence(comparison, judgement),
        "design": estimate.design,
        "runs": comparison.runs,
        "reference_runs": comparison.reference_runs,
        "pairs": estimate.pairs,
        "difference": _finite(estimate.difference),
        "stderr": estimate.error,
        "df": estimate.df if comparison.p is not None else None,
        "low": _finite(comparison.low),
        "high": _finite(comparison.high),
        "p": comparison.p,
        "p_adjusted": comparison.p_adjusted,
        "p_equivalent": comparison.p_equivalent,
        "p_equivalent_adjusted": comparison.p_equivalent_adjusted,
        "p_margin": comparison.p_margin,
        "p_margin_adjusted": comparison.p_margin_adjusted,
        "p_logrank": comparison.p_logrank,
        "rule": _rule(comparison.rule),
        "saved": saved_json(comparison.saved),
        "plan": None if comparison.plan is None else dataclasses.asdict(comparison.plan),
        "why": estimate.why,
        "note": comparison.note,
    }


def saved_json(saved: Saved | None) -> dict[str, object] | None:
    """An effect in compute as JSON's values, with the share that it saves."""
    if saved is None:
        return None
    return dataclasses.asdict(saved) | {"fraction": dataclasses.asdict(saved.fraction)}


def saved_words(comparison: Comparison, options: Options) -> str:
    """An effect in compute, as a sentence; "" where nothing is known of it."""
    saved = comparison.saved
    if saved is None:
        return ""
    unit = options.horizon or options.step or "compute"
    needs = amount_words(saved.baseline_needs)
    fewer = amount_words(saved.arm_needs)
    beyond = ", beyond the horizons trained" if saved.baseline_needs.extrapolated else ""
    return (
        f"for the result of {comparison.arm} after {saved.arm_horizon:,.4g} {unit}, {comparison.reference} needs {needs}"
        f"{beyond}; for that of {comparison.reference} after {saved.baseline_horizon:,.4g}, {comparison.arm} needs {fewer}"
    )


def amount_words(amount: Amount) -> str:
    """`3,210 (3,190 to 3,240)`; an open end is named as such."""
    if amount.estimate is None:
        return "an amount that these runs do not tell"
    low = "no lower bound" if amount.low is None else f"{_plain(amount.low)}"
    high = "no upper bound" if amount.high is None else f"{_plain(amount.high)}"
    return f"{_plain(amount.estimate)} ({low} to {high})"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
