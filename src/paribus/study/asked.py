"""What an ablation's file asks besides its metric: secondary metrics, contrasts of arms, a margin (besides.py answers)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from paribus.study.fields import hint, is_number, shown

if TYPE_CHECKING:
    from paribus.study.experiment import Metric

KEYS = ("secondary", "contrasts", "margin")
# Less is cheaper.
COSTS = (
    "flops",
    "parameters",
    "peak_memory_bytes",
    "seconds",
    "steps",
    "tokens",
)


@dataclass(frozen=True)
class Margin:
    """Not worse by more than `worse_by`, in the metric's unit, and cheaper: a cost of COSTS that has to be less."""

    worse_by: float
    cheaper: str | None = None


@dataclass(frozen=True)
class Asked:
    """What a study asks besides its metric.

    Attributes:
        secondary: metrics with their better direction.
        contrasts: (arm, the arm that it is compared with).
        margin: of non-inferiority.
    """

    secondary: tuple[tuple[Metric, str], ...] = ()
    contrasts: tuple[tuple[str, str], ...] = ()
    margin: Margin | None = None


def design_problems(raw: Mapping[str, object]) -> list[str]:
    """Questions in a file whose runs follow a design of their own, which has other comparisons.

    Args:
        raw: the values of the file.
    """
    designs = [key for key in ("factors", "ladder") if key in raw]
    return [f"{key}: not with {designs[0]}" for key in KEYS if designs and key in raw]


def read_contrasts(
    raw: Mapping[str, object], arms: Sequence[str], problems: list[str]
) -> tuple[tuple[str, str], ...]:
    """The contrasts of a file: a list of two arms each, or `all`.

    Args:
        raw: the values of the file.
        arms: their names.
        problems: the list that receives the messages.
    """
    value = raw.get("contrasts", [])
    if value == "all":
        if len(arms) < 2:
            problems.append("contrasts: all: there is one arm, and a contrast takes two")
        return tuple((later, earlier) for earlier, later in combinations(arms, 2))
    if not isinstance(value, list):
        problems.append(
            f"contrasts: {shown(value)}; expected all, or a list such as [[a, b], [a, c]]"
        )
        return ()
    found: dict[tuple[str, str], None] = {}
    for pair in value:
        own = _contrast_problems(pair, arms)
        problems += own
        if own:
            continue
        one, other = pair
        if (one, other) in found or (other, one) in found:
            problems.append(f"contrasts: {one} and {other} stand there twice")
        found[one, other] = None
    return tuple(found)


def _contrast_problems(pair: object, arms: Sequence[str]) -> list[str]:
    if not isinstance(pair, list) or len(pair) != 2:
        return [f"contrasts: {shown(pair)}; expected two arms, as [a, b]"]
    if pair[0] == pair[1]:
        return [f"contrasts: {shown(pair[0])} is compared with itself"]
    problems = []
    for name in pair:
        if name == "baseline":
            problems.append("contrasts: every arm is compared with the baseline already")
        elif name not in arms:
            problems.append(f"contrasts: {shown(name)} is no arm; {hint(name, list(arms))}")
    return problems


def read_margin(raw: Mapping[str, Any], problems: list[str]) -> Margin | None:
    """The margin of a file: a number above 0, or {worse_by: 0.005, cheaper: seconds}; None where there is none.

    Args:
        raw: the values of the file.
        problems: the list that receives the messages.
    """
    if "margin" not in raw:
        return None
    value = raw["margin"]
    values = value if isinstance(value, dict) else {"worse_by": value}
    worse_by, cheaper = values.get("worse_by"), values.get("cheaper")
    if not is_number(worse_by) or set(values) - {"worse_by", "cheaper"}:
        problems.append(
            f"margin: {shown(value)}; expected a number above 0, or {{worse_by: 0.005, cheaper: seconds}}"
        )
        return None
    if worse_by <= 0:
        problems.append(f"margin: {worse_by} is not above 0, in the metric's unit")
    if cheaper is not None and cheaper not in COSTS:
        problems.append(f"margin: cheaper: {shown(cheaper)} is no cost; {hint(cheaper, COSTS)}")
    return Margin(float(worse_by), cheaper)
