"""A judgement for the terminal, readable at 80 columns: the answer first, then a table, then what would decide."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from paribus.judge.options import Options
from paribus.judge.verdicts import Comparison, Judgement
from paribus.judge.words import amount_words, change, digits_of, summary
from paribus.text import signed

WIDTH = 80
LONGEST_NAME = 30
MOST_NAMES = 5  # of arms that a remark lists


def page(judgement: Judgement) -> str:
    """The whole text.

    Args:
        judgement: of the table.
    """
    parts = [_wrapped(summary(judgement)), "", *_verdicts(judgement)]
    if any(arm.target for arm in judgement.arms):
        parts += ["", *_targets(judgement)]
    if any(comparison.rule for comparison in judgement.comparisons):
        parts += ["", *_rules(judgement)]
    if judgement.options.margin is not None:
        parts += ["", *_margins(judgement)]
    if any(comparison.saved for comparison in judgement.comparisons):
        parts += ["", *_saved(judgement)]
    plans = _plans(judgement)
    if plans:
        parts += ["", *plans]
    remarks = [*_remarks(judgement), *judgement.notes]
    if remarks:
        parts += ["", *(_wrapped(remark, "- ") for remark in remarks)]
    return "\n".join(parts)


def _wrapped(text: str, before: str = "") -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=before,
        subsequent_indent=" " * len(before),
        break_on_hyphens=False,
    )


def shortened(name: str, width: int = LONGEST_NAME) -> str:
    """A name of at most `width` characters: its beginning and its end."""
    if len(name) <= width:
        return name
    head = (width - 1) // 2
    return f"{name[:head]}…{name[len(name) - (width - 1 - head) :]}"


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows of cells as lines: the first columns at the left, the others at the right.

    Args:
        rows: with as many cells each.
        left: how many columns stand at the left.
    """
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            cells.append(cell.ljust(width) if place < left else cell.rjust(width))
        lines.append("  ".join(cells).rstrip())
    return lines


def _table(rows: list[list[str]], names: Sequence[str]) -> list[str]:
    """Aligned rows under a head, the arms' names cut so that lines fit the width."""
    lines = aligned(rows)
    excess = max(len(line) for line in lines) - WIDTH
    if excess <= 0:
        return lines
    longest = max(len(row[0]) for row in rows)
    cut = [
        [shortened(name, max(longest - excess, 10)), *row[1:]]
        for name, row in zip(names, rows[1:], strict=True)
    ]
    return aligned([rows[0], *cut])


def _verdicts(judgement: Judgement) -> list[str]:
    digits = digits_of(judgement)
    options = judgement.options
    level = f"{100 * (1 - options.alpha):g} %"
    rows = [["arm", "runs", "difference", level, _p_head(options), "verdict"]]
    for one in judgement.comparisons:
        rows.append(
            [
                shortened(one.arm),
                f"{one.runs}:{one.reference_runs}",
                change(one.difference, digits),
                _interval(one, digits),
                _p(one.p_adjusted),
                one.verdict,
            ]
        )
    return _table(rows, [one.arm for one in judgement.comparisons])


def _p_head(options: Options) -> str:
    return {"holm": "p, Holm", "hierarchical": "p, in order", "none": "p"}[options.correction]


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"


def _interval(comparison: Comparison, digits: int) -> str:
    """`± 0.0012`, or `a to b` where it is not symmetric."""
    if comparison.low is None or comparison.high is None:
        return "–"
    above, below = comparison.high - comparison.difference, comparison.difference - comparison.low
    if math.isfinite(above) and abs(above - below) <= 1e-9 * abs(above):
        return f"± {above:.{digits}f}"
    return f"{signed(comparison.low, digits)} to {signed(comparison.high, digits)}"


def _targets(judgement: Judgement) -> list[str]:
    """The target by the runs' own spread and by the published rule."""
    options = judgement.options
    digits = digits_of(judgement)
    rows = [["arm", "runs", "mean", _p_head(options), f"reaches {options.target:g}"]]
    has_rule = options.fixed_sigma is not None
    if has_rule:
        rows[0] += ["rule", "kept"]
    for arm in judgement.arms:
        target = arm.target
        assert target is not None
        row = [shortened(arm.name), str(arm.runs), f"{arm.mean:.{digits}f}", _p(target.p_adjusted)]
        row.append("yes" if target.reaches else "not shown")
        if target.rule is not None:
            row += [_score(target.rule.score), "yes" if target.rule.kept else "no"]
        rows.append(row)
    return _table(rows, [arm.name for arm in judgement.arms])


def _score(value: float) -> str:
    return f"{value:.4f}".replace("-", "−")


def _rules(judgement: Judgement) -> list[str]:
    """The published rule for two arms beside the verdict."""
    rows = [["arm", "rule", "asked", "z", "p, one-sided", "kept", "verdict"]]
    ruled = [one for one in judgement.comparisons if one.rule is not None]
    for one in ruled:
        rule = one.rule
        assert rule is not None
        z = f"{rule.z:.2f}".replace("-", "−")
        kept = "yes" if rule.kept else "no"
        asked = f"{rule.bound:.4g}"
        rows.append(
            [shortened(one.arm), _score(rule.score), asked, z, _p(rule.p), kept, one.verdict]
        )
    return _table(rows, [one.arm for one in ruled])


def _margins(judgement: Judgement) -> list[str]:
    """Whether each arm is better by at least the margin."""
    options = judgement.options
    rows = [["arm", f"better by {options.margin:g} or more", "p, one-sided", _p_head(options)]]
    for one in judgement.comparisons:
        shown = one.p_margin_adjusted is not None and one.p_margin_adjusted <= options.alpha
        said = "yes" if shown else "not shown"
        rows.append([shortened(one.arm), said, _p(one.p_margin), _p(one.p_margin_adjusted)])
    return _table(rows, [one.arm for one in judgement.comparisons])


def _saved(judgement: Judgement) -> list[str]:
    """Effects in compute: what the reference needs for the arm's result."""
    options = judgement.options
    rows = [["arm", options.horizon or "compute", "the other needs for its result", "saves"]]
    counted = [one for one in judgement.comparisons if one.saved is not None]
    for one in counted:
        saved = one.saved
        assert saved is not None
        needs = amount_words(saved.baseline_needs) + (
            "*" if saved.baseline_needs.extrapolated else ""
        )
        share = saved.fraction.estimate
        saves = "–" if share is None else f"{100 * share:.1f} %".replace("-", "−")
        rows.append([shortened(one.arm), f"{saved.arm_horizon:,.4g}", needs, saves])
    lines = _table(rows, [one.arm for one in counted])
    if any(one.saved and one.saved.baseline_needs.extrapolated for one in counted):
        lines.append("* beyond the horizons at which it was trained")
    return lines


def _remarks(judgement: Judgement) -> list[str]:
    """What the rows cannot say, the arms of which it holds together."""
    arms_of: dict[str, list[str]] = {}
    for one in judgement.comparisons:
        for words in (one.note, one.estimate.why if one.p is None else ""):
            if words:
                arms_of.setdefault(words, []).append(one.arm)
    return [f"{_listed(arms)}: {words}." for words, arms in arms_of.items()]


def _listed(arms: Sequence[str]) -> str:
    names = ", ".join(shortened(arm) for arm in arms[:MOST_NAMES])
    return f"{names} and {len(arms) - MOST_NAMES} more" if len(arms) > MOST_NAMES else names


def _plans(judgement: Judgement) -> list[str]:
    """What would decide about the undecided arms."""
    asks_smallest = judgement.options.smallest_effect is not None
    rows = [["undecided arm", "noise", "runs an arm to see this"]]
    if asks_smallest:
        rows[0].append("the smallest effect")
    planned = [one for one in judgement.comparisons if one.plan is not None]
    for one in planned:
        plan = one.plan
        assert plan is not None
        row = [
            shortened(one.arm),
            f"{plan.noise:.2g}{' stated' if plan.stated else ''}",
            _runs(plan.to_see_this),
        ]
        if asks_smallest:
            row.append(_runs(_larger(plan.to_see_smallest, plan.to_call_equivalent)))
        rows.append(row)
    if not planned:
        return []
    note = (
        "Fresh runs of each arm for power .8, at the measured or stated noise; adding runs to these and judging again "
        "raises the chance of a false verdict."
    )
    return [*_table(rows, [one.arm for one in planned]), _wrapped(note)]


def _larger(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else max(first, second)


def _runs(number: int | None) -> str:
    return "over 100,000" if number is None else f"{number:,}"
