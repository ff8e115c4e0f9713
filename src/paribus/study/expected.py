"""What a study's file expects of its arms, `expects: {adamw: worse}`, and whether it came so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from paribus.study.fields import hint, shown

# Expected -> the verdicts by which it holds.
HOLDS_BY = {
    "better": ("better",),
    "worse": ("worse",),
    "equivalent": ("equivalent", "changed nothing"),
    "not better": ("worse", "equivalent", "changed nothing"),
    "not worse": ("better", "equivalent", "changed nothing"),
}
OF_LADDERS = {"holds": ("holds",), "shrinks": ("shrinks",), "vanishes": ("vanishes",)}
DECIDED = {
    verdict for verdicts in (*HOLDS_BY.values(), *OF_LADDERS.values()) for verdict in verdicts
}

Outcome = Literal["held", "refuted", "open"]


def read_expects(
    raw: Mapping[str, object], names: Sequence[str], problems: list[str]
) -> dict[str, str]:
    """Arm, or factor -> what is expected of it; {} where the file does not say.

    Args:
        raw: the values of the file.
        names: of its arms, or factors.
        problems: the list that receives the messages.
    """
    value = raw.get("expects", {})
    allowed = list(OF_LADDERS if "ladder" in raw else HOLDS_BY)
    if not isinstance(value, dict):
        problems.append(f"expects: {shown(value)}; expected {{ARM: {' or '.join(allowed[:2])}}}")
        return {}
    found = {}
    for name, words in value.items():
        if name not in names:
            problems.append(f"expects: {shown(name)} is no arm; {hint(name, list(names))}")
        elif words not in allowed:
            problems.append(
                f"expects.{name}: {shown(words)} is not allowed; {hint(words, allowed)}"
            )
        else:
            found[name] = words
    return found


def outcome(expected: str, verdict: str) -> Outcome:
    """Whether what was expected of an arm held.

    Args:
        expected: a key of HOLDS_BY, or of OF_LADDERS.
        verdict: on the arm, in a word.
    """
    if verdict not in DECIDED:
        return "open"
    return "held" if verdict in (HOLDS_BY | OF_LADDERS)[expected] else "refuted"


def outcome_of_all(outcomes: Sequence[Outcome]) -> Outcome:
    """Whether a hypothesis held: in every part, or not in one.

    Args:
        outcomes: of what was expected of each arm.
    """
    if "refuted" in outcomes:
        return "refuted"
    return "open" if "open" in outcomes else "held"
