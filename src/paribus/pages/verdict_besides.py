"""What a study asks besides its metric, in sentences: secondary metrics, contrasts, margins, which arms may be best."""

from __future__ import annotations

import math
from collections.abc import Sequence

from paribus.study.besides import Answer
from paribus.study.experiment import Experiment
from paribus.text import p_value, signed


def sentence_of(answer: Answer, alpha: float) -> str:
    """An answer, for people.

    Args:
        answer: to a question besides the study's own.
        alpha: of the study.
    """
    size = f"{signed(answer.mean)} {answer.unit}"
    parts = []
    if math.isfinite(answer.low):
        parts.append(f"{1 - alpha:.0%} interval {signed(answer.low)} to {signed(answer.high)}")
    if answer.p_adjusted is not None:
        parts.append(p_value(answer.p_adjusted))
    details = f" ({', '.join(parts)})" if parts else ""
    return f"{answer.about}: {answer.answer}: {size}{details}."


def best_sentence(experiment: Experiment, names: Sequence[str]) -> list[str]:
    """Which arms may be best, in a sentence; [] where nothing says so.

    Args:
        experiment: the study.
        names: of the arms that may be, as `Besides.may_be_best` gives them.
    """
    if not names:
        return []
    sure = f"with a confidence of {1 - experiment.alpha:.0%}"
    if len(names) == 1:
        return [f"The best by {experiment.metric.name} is {names[0]}, {sure}."]
    return [f"The best by {experiment.metric.name} is one of {', '.join(names)}, {sure}."]
