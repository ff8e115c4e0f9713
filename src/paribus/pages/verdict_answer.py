"""The first line of a verdict page: whether the hypothesis held, or at least what came of each arm; what the baseline is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paribus.study.expected import Outcome, outcome, outcome_of_all
from paribus.study.experiment import Experiment, changed_keys
from paribus.study.fields import as_written
from paribus.text import number

MOST_KEYS = 3  # of the baseline, that stand beside its name
OPEN = ("undecided", "not yet", "unknown", "none")
# Verdict -> what it says of an arm, of several; in the order of the sentence.
WORDS = {
    "better": ("is better than {baseline}", "are better than {baseline}"),
    "worse": ("is worse than {baseline}", "are worse than {baseline}"),
    "equivalent": ("is equivalent to {baseline}", "are equivalent to {baseline}"),
    "changed nothing": ("changed nothing", "changed nothing"),
    "holds": ("holds at the size not trained", "hold at the size not trained"),
    "shrinks": ("shrinks with size", "shrink with size"),
    "vanishes": ("vanishes at the size not trained", "vanish at the size not trained"),
}
HEADS: dict[Outcome, str] = {
    "held": "The hypothesis held",
    "refuted": "The hypothesis is refuted",
    "open": "Not known yet",
}


@dataclass(frozen=True)
class Answer:
    """What a page answers first.

    Attributes:
        outcome: of the hypothesis; None: the file does not say what it expects.
        head: the outcome in words; "" without one.
        sentence: what came of the arms.
        against: what was expected and came otherwise, in sentences.
        baseline: what the arms are compared with, in words.
    """

    outcome: Outcome | None
    head: str
    sentence: str
    against: tuple[str, ...]
    baseline: str


def answer(experiment: Experiment, rows: Sequence[Mapping[str, Any]]) -> Answer:
    """What the page of a study answers first.

    Args:
        experiment: the study.
        rows: of the table of verdicts: name, verdict, effect. Interactions of factors are left out.
    """
    asked = [row for row in rows if not _is_interaction(experiment, row["name"])]
    keys = baseline_keys(experiment)
    outcomes, against = _against_expected(experiment, asked)
    came = outcome_of_all(outcomes) if outcomes else None
    return Answer(
        outcome=came,
        head=HEADS[came] if came else "",
        sentence=_sentence(experiment, asked, keys),
        against=tuple(against),
        baseline=baseline_words(experiment, keys),
    )


def _is_interaction(experiment: Experiment, name: str) -> bool:
    return experiment.factorial is not None and name not in experiment.factorial.factors


def _against_expected(
    experiment: Experiment, rows: Sequence[Mapping[str, Any]]
) -> tuple[list[Outcome], list[str]]:
    """The outcome of each expectation, and a sentence on each that was refuted."""
    outcomes: list[Outcome] = []
    against = []
    for row in rows:
        name, verdict = row["name"], row["verdict"]
        expected = experiment.expects.get(name)
        if expected is None:
            continue
        came = outcome(expected, verdict)
        outcomes.append(came)
        if came == "refuted":
            against.append(f"{name} was expected to be {expected}, and is {verdict}.")
    return outcomes, against


def _sentence(
    experiment: Experiment, rows: Sequence[Mapping[str, Any]], keys: Mapping[str, object]
) -> str:
    """What came of the arms. keys: as `baseline_keys` gives them."""
    baseline = "the baseline"
    if keys and len(keys) <= MOST_KEYS and experiment.factorial is None:
        values = ", ".join(f"{key}: {as_written(value)}" for key, value in keys.items())
        baseline += f" ({values})"
    parts = []
    for verdict in WORDS:
        alike = [row for row in rows if row["verdict"] == verdict]
        if alike:
            parts.append(_part(experiment, verdict, alike, len(rows), baseline))
            baseline = "the baseline"  # its values stand in the first part alone
    undecided = [row["name"] for row in rows if row["verdict"] in OPEN]
    if undecided:
        are = "is" if len(undecided) == 1 else "are"
        parts.append(f"{_who(experiment, undecided)} {are} undecided")
    sentence = "; ".join(parts) or "no arm has a result yet"
    if re.match(r"(all \d+|the|no) ", sentence):  # a name is written as the file has it
        sentence = sentence[0].upper() + sentence[1:]
    return f"{sentence}."


def _part(
    experiment: Experiment,
    verdict: str,
    rows: Sequence[Mapping[str, Any]],
    arms: int,
    baseline: str,
) -> str:
    """What is said of arms with one verdict. arms: of the study; baseline: what they are compared with."""
    one, many = WORDS[verdict]
    single = len(rows) == 1
    names = [row["name"] for row in rows]
    who = _who(experiment, names)
    if experiment.ladder is None and len(rows) == arms > 2:
        kind = "factors" if experiment.factorial else "arms"
        who = f"all {arms} {kind} ({listed(names)})"
    if experiment.factorial is not None:
        baseline = "leaving it out" if single else "leaving them out"
    said = f"{who} {(one if single else many).format(baseline=baseline)}"
    if verdict in ("better", "worse"):
        said += _by_how_much(experiment, rows)
    return said


def _who(experiment: Experiment, names: Sequence[str]) -> str:
    """The arms of a clause; of a ladder the effects, which are what has a verdict."""
    if experiment.ladder is None:
        return listed(names)
    effects = "effect" if len(names) == 1 else "effects"
    return f"the {effects} of {listed(names)}"


def _by_how_much(experiment: Experiment, rows: Sequence[Mapping[str, Any]]) -> str:
    """The smallest and the largest effect, where any is known."""
    sizes = sorted(abs(row["effect"].mean) for row in rows if row["effect"])
    if not sizes:
        return ""
    ends = dict.fromkeys(number(size) for size in (sizes[0], sizes[-1]))  # once if they are alike
    return f", by {' to '.join(ends)} {experiment.metric.unit}"


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: a, b and c.

    Args:
        names: at least one.
    """
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def baseline_keys(experiment: Experiment) -> dict[str, object]:
    """Key -> the baseline's value, of the keys that arms change.

    Args:
        experiment: the study.
    """
    values = experiment.values()
    keys: dict[str, object] = {}
    for arm, definition in experiment.arms.items():
        if definition.code is None:
            keys |= {key: values.get(key) for key in sorted(changed_keys(experiment, arm))}
    return keys


def baseline_words(experiment: Experiment, keys: Mapping[str, object]) -> str:
    """What the arms are compared with, in words.

    Args:
        experiment: the study.
        keys: as `baseline_keys` gives them.
    """
    parts = [f"profile {experiment.profile}" if experiment.profile else "params.yaml"]
    if any(arm.code is not None for arm in experiment.arms.values()):
        parts.append("the code of its commit")
    parts += [f"{key}: {as_written(value)}" for key, value in list(keys.items())[: 2 * MOST_KEYS]]
    more = len(keys) - 2 * MOST_KEYS
    if more > 0:
        parts.append(f"and {more} more of what the arms change")
    return ", ".join(parts)
