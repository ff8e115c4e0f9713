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
    name = "the baseline"
    if keys and len(keys) <= MOST_KEYS and experiment.factorial is None:
        name += f" ({', '.join(f'{key}: {as_written(value)}' for key, value in keys.items())})"
    parts = []
    for verdict in WORDS:
        alike = [row for row in asked if row["verdict"] == verdict]
        if alike:
            parts.append(_part(experiment, verdict, alike, len(asked), name))
            name = "the baseline"  # once is enough
    open_arms = [row["name"] for row in asked if row["verdict"] in OPEN]
    if open_arms:
        who = listed(open_arms)
        if experiment.ladder is not None:
            who = f"the effect{'s' if len(open_arms) > 1 else ''} of {who}"
        parts.append(f"{who} {'is' if len(open_arms) == 1 else 'are'} undecided")
    sentence = "; ".join(parts) or "no arm has a result yet"
    if re.match(r"(all \d+|the|no) ", sentence):  # a name is written as the file has it
        sentence = sentence[0].upper() + sentence[1:]
    sentence += "."
    outcomes: dict[str, Outcome] = {}
    against = []
    for row in asked:
        expected = experiment.expects.get(row["name"])
        if expected is None:
            continue
        outcomes[row["name"]] = outcome(expected, row["verdict"])
        if outcomes[row["name"]] == "refuted":
            against.append(f"{row['name']} was expected to be {expected}, and is {row['verdict']}.")
    came = outcome_of_all(list(outcomes.values())) if outcomes else None
    head = HEADS[came] if came else ""
    return Answer(came, head, sentence, tuple(against), baseline_words(experiment, keys))


def _is_interaction(experiment: Experiment, name: str) -> bool:
    return experiment.factorial is not None and name not in experiment.factorial.factors


def _part(
    experiment: Experiment, verdict: str, rows: Sequence[Mapping[str, Any]], arms: int, name: str
) -> str:
    """What is said of arms with one verdict. arms: of the study; name: of what they are compared with."""
    one, many = WORDS[verdict]
    who = listed([row["name"] for row in rows])
    if experiment.ladder is not None:
        who = f"the effect{'s' if len(rows) > 1 else ''} of {who}"
    elif len(rows) == arms > 2:
        who = f"all {arms} {'factors' if experiment.factorial else 'arms'} ({who})"
    if experiment.factorial is not None:
        name = "without it" if len(rows) == 1 else "without them"
    said = f"{who} {(one if len(rows) == 1 else many).format(baseline=name)}"
    if verdict in ("better", "worse"):
        sizes = sorted(abs(row["effect"].mean) for row in rows if row["effect"])
        if sizes:
            ends = dict.fromkeys(number(size) for size in (sizes[0], sizes[-1]))
            said += f", by {' to '.join(ends)} {experiment.metric.unit}"
    return said


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
