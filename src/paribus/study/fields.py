"""The fields of an ablation's file: each is read into plain values, or gives its problems in words."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from paribus.config import dotted
from paribus.execute.run import LONGEST_NAME
from paribus.run_id import NAME
from paribus.study.looks import OPEN, Schedule

EQUAL = ("tokens", "bytes", "flops", "seconds", "none")
AUTO = Schedule(3, 12)  # seeds: auto
MOST_SEEDS = 1000  # of a study; beyond it is a slip of the pen
MOST_WORKERS = 256
# Of a run; beyond any that was made.
MOST_HELD = {
    "tokens": 1e16,
    "bytes": 1e17,
    "flops": 1e30,
    "seconds": 1e9,
}
LONGEST_SHOWN = 60  # letters of a wrong value


def shown(value: object) -> str:
    """A wrong value, cut where it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"


def as_written(value: object) -> str:
    """A value as params.yaml has it: true, null, muon.

    Args:
        value: of a key.
    """
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def hint(name: object, known: Sequence[str]) -> str:
    """The nearest known name, or all of them."""
    close = difflib.get_close_matches(str(name)[:100], known, n=1)
    return f"did you mean {close[0]}?" if close else f"allowed: {', '.join(known)}"


def name_problem(name: object) -> str | None:
    """Why this cannot be the name of a study or an arm; None where it can."""
    expected = f"expected small letters, digits, - and _, at most {LONGEST_NAME} of them"
    if not isinstance(name, str):
        return f"{shown(name)} is not text; put it in quotes ({expected})"
    if not re.fullmatch(NAME, name) or len(name) > LONGEST_NAME:
        return f"the name {shown(name)} is not allowed; {expected}"
    return None


def text(raw: Mapping[str, object], key: str, problems: list[str]) -> str:
    """A sentence; "" where it is wrong.

    Args:
        raw: the values of the file.
        key: of the sentence.
        problems: the list that receives the messages.
    """
    value = raw[key]
    if not isinstance(value, str) or not value.strip():
        problems.append(f"{key}: {shown(value)} is not allowed; expected a sentence")
        return ""
    return value.strip()


def number(
    raw: Mapping[str, object], key: str, above: float, below: float | None, problems: list[str]
) -> float:
    """A finite number between two bounds that it does not reach.

    Args:
        raw: the values of the file.
        key: of the number.
        above: the lower bound.
        below: the upper bound; None: there is none.
        problems: the list that receives the messages.
    """
    value = raw[key]
    if is_number(value) and value > above and (below is None or value < below):
        return float(value)
    bounds = f"above {above:g}" + (f" and below {below:g}" if below is not None else "")
    problems.append(f"{key}: {shown(value)} is not allowed; expected a number {bounds}")
    return 0.01


def whole(raw: Mapping[str, object], key: str, least: int, most: int, problems: list[str]) -> int:
    """A whole number.

    Args:
        raw: the values of the file.
        key: of the number.
        least: that is allowed.
        most: that is allowed.
        problems: the list that receives the messages.
    """
    value = raw[key]
    if not _is_whole(value, least, most):
        problems.append(
            f"{key}: {shown(value)} is not allowed; expected a whole number from {least} to {most}"
        )
        return least
    return value


def switch(raw: Mapping[str, object], key: str, problems: list[str]) -> bool:
    """True or false.

    Args:
        raw: the values of the file.
        key: of the switch.
        problems: the list that receives the messages.
    """
    value = raw[key]
    if not isinstance(value, bool):
        problems.append(f"{key}: {shown(value)} is not allowed; expected true or false")
        return False
    return value


def _is_whole(value: object, least: int, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def seeds(value: object, problems: list[str]) -> Schedule:
    """When a study looks at its verdicts.

    Args:
        value: of the key `seeds`: open, a number, {from: 3} (open from there), {from: 3, to: 12}, or auto for just that.
        problems: the list that receives the messages.
    """
    if value == "open":
        return OPEN
    if isinstance(value, dict) and set(value) == {"auto"}:
        value = value["auto"]
    if value == "auto":
        return AUTO
    if _is_whole(value, 2, MOST_SEEDS):
        return Schedule(value, value)
    if isinstance(value, dict) and set(value) in ({"from"}, {"from", "to"}):
        first, last = value["from"], value.get("to", MOST_SEEDS)
        if _is_whole(first, 2, MOST_SEEDS) and _is_whole(last, first, MOST_SEEDS):
            return Schedule(first, value.get("to"))
    problems.append(
        f"seeds: {shown(value)} is not allowed; expected open, a whole number >= 2 (at most {MOST_SEEDS}), auto, or "
        "{from: 3, to: 12}, from >= 2; without to there is no last look"
    )
    return OPEN


def equal(value: object, problems: list[str]) -> tuple[str, float | None]:
    """(what is held equal, its amount or None).

    Args:
        value: of the key `equal`.
        problems: the list that receives the messages.
    """
    kind: object = value
    amount: object = None
    if isinstance(value, dict) and len(value) == 1:
        [(kind, amount)] = value.items()
    if isinstance(kind, str) and kind in EQUAL:
        if amount is None and not isinstance(value, dict):
            return kind, None
        if is_number(amount) and kind != "none" and 0 < amount <= MOST_HELD[kind]:
            return kind, float(amount)
    problems.append(
        f"equal: {shown(value)} is not allowed; expected one of {', '.join(EQUAL)}, or {{tokens: 200000}}"
    )
    return "none", None


def overrides(value: object, where: str, problems: list[str]) -> dict[str, object]:
    """Dotted key -> value, of a mapping that may be nested; {} where something is wrong with its form.

    Args:
        value: the mapping.
        where: the key that it is under.
        problems: the list that receives the messages.
    """
    if not isinstance(value, dict):
        problems.append(f"{where}: {shown(value)}; expected {{dotted.key: value}}")
        return {}
    wrong = _keys_that_are_no_text(value, where)
    problems += wrong
    return {} if wrong else dotted(value)


def _keys_that_are_no_text(value: dict[object, object], where: str) -> list[str]:
    problems = []
    for key, below in value.items():
        if not isinstance(key, str):
            problems.append(f"{where}: the key {shown(key)} is not text; put it in quotes")
        elif isinstance(below, dict):
            problems += _keys_that_are_no_text(below, f"{where}.{key}")
    return problems
