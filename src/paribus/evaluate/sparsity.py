"""Reward sparsity: will reinforcement learning learn anything from this checkpoint?

With a group-mean baseline, a group of answers that are all wrong or all right has no gradient. How many groups will
be such follows from how often each question is answered right, before any training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from paribus.evaluate.intervals import mean_and_stderr, pass_at_k

GROUP_SIZES = (4, 8, 16, 32, 64)
MUCH_CUT_OFF = 0.1  # share of answers cut off from which on that is what to change first


def sparsity(n_correct: Sequence[int], samples: int) -> dict[str, float]:
    """Fractions of groups of `samples` answers by how many are right.

    n_correct: right answers of each group. Returns zero_reward_groups (all wrong), all_reward_groups (all right) and
    zero_gradient_groups (either).
    """
    groups = max(len(n_correct), 1)
    zero = sum(count == 0 for count in n_correct) / groups
    full = sum(count == samples for count in n_correct) / groups
    return {
        "zero_reward_groups": zero,
        "all_reward_groups": full,
        "zero_gradient_groups": zero + full,
    }


def predict(n_correct: Sequence[int], samples: int, group_size: int) -> dict[str, Any]:
    """The fractions of `sparsity` to expect of groups of another size, with the standard error over questions.

    Up to `samples` unbiased, without a model: the chance that group_size of a question's answers, drawn without
    replacement, are all wrong (as in pass@k) or all right. Beyond, `extrapolated`: from the beta distribution of
    success rates whose first two moments are those of the questions.

    Args:
        n_correct: right answers to each question.
        samples: answers drawn to each question.
        group_size: answers of a group to predict.
    """
    if group_size > samples:
        zero, full = _beta_binomial_ends(n_correct, samples, group_size)
        return _fractions(zero, full, None, extrapolated=True)
    zeros = [1 - pass_at_k(samples, count, group_size) for count in n_correct]
    fulls = [1 - pass_at_k(samples, samples - count, group_size) for count in n_correct]
    stderr = mean_and_stderr([zero + full for zero, full in zip(zeros, fulls, strict=True)])[1]
    return _fractions(
        mean_and_stderr(zeros)[0], mean_and_stderr(fulls)[0], stderr, extrapolated=False
    )


def _fractions(
    zero: float, full: float, stderr: float | None, *, extrapolated: bool
) -> dict[str, Any]:
    return {
        "zero_reward_groups": zero,
        "all_reward_groups": full,
        "zero_gradient_groups": zero + full,
        "zero_gradient_groups_stderr": stderr,
        "extrapolated": extrapolated,
    }


def _beta_binomial_ends(
    n_correct: Sequence[int], samples: int, group_size: int
) -> tuple[float, float]:
    """Chances of 0 and of group_size right answers, by the method of moments."""
    questions = len(n_correct)
    first = sum(n_correct) / (questions * samples)
    second = sum(count * (count - 1) for count in n_correct) / (questions * samples * (samples - 1))
    spread = (
        second - first * first
    )  # variance of success rates between questions, sampling noise taken off
    if first in (0.0, 1.0) or spread <= 0:  # all questions alike
        return (1 - first) ** group_size, first**group_size
    if spread >= first * (1 - first):  # each question is always or never answered right
        return 1 - first, first
    weight = first * (1 - first) / spread - 1
    a, b = first * weight, (1 - first) * weight

    def end(shape: float) -> float:  # B(shape + group_size, rest) / B(shape, rest)
        return math.exp(
            math.lgamma(shape + group_size)
            - math.lgamma(shape)
            - math.lgamma(a + b + group_size)
            + math.lgamma(a + b)
        )

    return end(b), end(a)


def sparsity_report(
    n_correct: Sequence[int],
    steps: Sequence[int],
    samples: int,
    *,
    samples_per_second: float,
    group_size: int,
    group_sizes: Sequence[int] = GROUP_SIZES,
    cut_off: float = 0.0,
    max_new_tokens: int | None = None,
) -> dict[str, Any]:
    """All that `paribus eval sparsity` shows.

    Args:
        n_correct: right answers to each question.
        steps: solution steps of each question.
        samples: answers drawn to each question.
        samples_per_second: measured sampling speed of this machine.
        group_size: the one that RL is set to (`rl.samples_per_question`).
        group_sizes: others to predict.
        cut_off: share of the answers that ended at `max_new_tokens` and not by themselves.
        max_new_tokens: longest answer (`rl.max_new_tokens`), tokens.

    Raises:
        ValueError: without questions.
    """
    if not n_correct or samples < 2:
        raise ValueError("sparsity needs at least one question and two samples of each")
    ks = [2**i for i in range(samples.bit_length()) if 2**i <= samples]
    predicted = {}
    for size in sorted({*group_sizes, group_size}):
        fractions = predict(n_correct, samples, size)
        per_hour = (1 - fractions["zero_gradient_groups"]) * samples_per_second * 3600 / size
        predicted[str(size)] = fractions | {"gradient_groups_per_hour": per_hour}
    curve = {
        f"pass_at_{k}": mean_and_stderr([pass_at_k(samples, count, k) for count in n_correct])[0]
        for k in ks
    }
    report = {
        "questions": len(n_correct),
        "samples": samples,
        **curve,
        **sparsity(n_correct, samples),
        "cut_off": cut_off,
        "max_new_tokens": max_new_tokens,
        "samples_per_second": samples_per_second,
        "group_size": group_size,
        "by_group_size": predicted,
        "by_steps": by_steps(n_correct, steps, samples),
    }
    return report | {"recommendation": recommendation(report)}


def by_steps(
    n_correct: Sequence[int], steps: Sequence[int], samples: int
) -> dict[str, dict[str, float]]:
    """`sparsity` and pass_at_1 of the questions of each number of solution steps.

    Args:
        n_correct: right answers to each question.
        steps: solution steps of each question.
        samples: answers drawn to each question.
    """
    groups: dict[int, list[int]] = {}
    for count, step in zip(n_correct, steps, strict=True):
        groups.setdefault(step, []).append(count)
    return {
        str(step): {
            "groups": len(counts),
            "pass_at_1": sum(counts) / (len(counts) * samples),
            **sparsity(counts, samples),
        }
        for step, counts in sorted(groups.items())
    }


def recommendation(report: Mapping[str, Any]) -> str:
    """What to do, in plain words, for a report of `sparsity_report`."""
    size = report["group_size"]
    now = report["by_group_size"][str(size)]
    idle, zero, full = (
        now["zero_gradient_groups"],
        now["zero_reward_groups"],
        now["all_reward_groups"],
    )
    facts = (
        f"With {size} answers to a question, {idle:.0%} of groups will carry no gradient "
        f"({zero:.0%} all wrong, {full:.0%} all right): "
        f"{now['gradient_groups_per_hour']:,.0f} useful groups an hour."
    )
    if report["cut_off"] >= MUCH_CUT_OFF:
        return f"{facts} {_cut_off_advice(report)}"
    if report["pass_at_1"] == 0:
        advice = (
            f"No answer of {report['questions'] * report['samples']:,} was right: RL has nothing to reinforce. "
            "Train longer before it (midtrain, sft), or use easier problems; no setting of rl.* changes this."
        )
    elif zero > 0.5:
        advice = (
            f"Mostly out of reach: {_larger_group(report)}set rl.curriculum or rl.dynamic_sampling, "
            "or train sft longer first."
        )
    elif full > 0.5:
        advice = (
            "Mostly solved: harder problems will teach more; rl.dynamic_sampling skips the solved ones, "
            "at their cost in samples."
        )
    elif idle > 0.5:
        advice = (
            "Half of the samples are wasted, on both ends: rl.dynamic_sampling redraws such groups."
        )
    else:
        advice = "Go ahead: most groups will teach something."
    return f"{facts} {advice}"


def _cut_off_advice(report: Mapping[str, object]) -> str:
    """The advice that precedes all other: answers that were cut off say nothing about the model."""
    return (
        f"{report['cut_off']:.0%} of the answers were cut off at rl.max_new_tokens ({report['max_new_tokens']}) or "
        "the end of the context (model.seq_len) before their end, and count as wrong: raise the one that is too small, "
        "then look again. The figures above are not the model's "
        "doing as long as that is so."
    )


def _larger_group(report: Mapping[str, Any]) -> str:
    """A larger group is worth it if it brings more useful groups for the same number of samples."""
    sizes = {
        int(size): row["gradient_groups_per_hour"] for size, row in report["by_group_size"].items()
    }
    best = max(sizes, key=lambda size: sizes[size])
    if best <= report["group_size"]:
        return ""
    return f"rl.samples_per_question: {best} gives {sizes[best]:,.0f} useful groups an hour; or "
