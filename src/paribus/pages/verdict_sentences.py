"""The verdict on each arm in a sentence, and what may be done next about the undecided."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap

from paribus.study.advice import Again, NextLook
from paribus.study.experiment import Experiment
from paribus.study.statistics import Effect
from paribus.study.verdict import ArmVerdict
from paribus.text import p_value, signed


def sentence(
    experiment: Experiment,
    arm: str,
    effect: Effect | None,
    coming: NextLook | None = None,
    asked_again: Again | None = None,
) -> str:
    """The verdict on an arm, for people.

    Args:
        experiment: the study.
        arm: its name.
        effect: over the matched seeds; None: there are none.
        coming: the study's next look; None: there is none.
        asked_again: its question in a new study; None: no command is named.
    """
    if effect is None:
        return f"{arm}: no verdict, as no seed of it and of the baseline is done."
    size = f"{signed(effect.mean)} {experiment.metric.unit}"
    if effect.verdict == "not yet":
        why = _why_not_yet(arm, effect, coming, asked_again)
        return f"{arm}: not yet: {size} so far ({_running_interval(experiment, effect)}); {why}."
    interval = (
        f"{1 - experiment.alpha:.0%} interval {signed(effect.low)} to {signed(effect.high)}, {seeds_of(effect)}, "
        f"{p_value(effect.p_adjusted)}"
    )
    if effect.verdict == "equivalent":
        return (
            f"{arm} is equivalent to the baseline: {size} ({interval}), within "
            f"±{experiment.smallest_effect:g}, the smallest effect that this study considers relevant."
        )
    if effect.verdict == "undecided":
        if effect.stdev == 0 and effect.mean == 0:
            return (
                f"{arm}: undecided: {experiment.metric.name} is the same in both arms at each of {effect.n} matched seeds, "
                "which does not show that they are equal: it may be at its floor, too coarse (more items, or a finer "
                "metric), or not touched by the change."
            )
        return (
            f"{arm}: undecided: {size} ({interval}); {next_step(arm, effect, coming, asked_again)}."
        )
    return f"{arm} is {effect.verdict} than the baseline: {size} ({interval}; {experiment.direction} is better)."


def seeds_of(effect: Effect) -> str:
    """What an effect rests on: `5 matched seeds`, `5 unmatched runs of each`, `5 matched seeds and 1,319 items`.

    Args:
        effect: of an arm.
    """
    many = "s" if effect.n != 1 else ""
    seeds = f"{effect.n} matched seed{many}"
    if not effect.matched:
        seeds = f"{effect.n} unmatched run{many} of each"
    return seeds if effect.items is None else f"{seeds} and {effect.items.items:,} items"


def _running_interval(experiment: Experiment, effect: Effect) -> str:
    seeds = seeds_of(effect)
    if abs(effect.low) == float("inf"):
        return f"{seeds}, too few for an interval"
    return (
        f"{1 - experiment.alpha:.0%} interval {signed(effect.low)} to {signed(effect.high)}, which holds at any number of seeds; "
        f"{seeds}"
    )


def _why_not_yet(
    arm: str, effect: Effect, coming: NextLook | None, asked_again: Again | None
) -> str:
    if coming is not None:
        return coming.words()
    why = (
        "an estimate without a verdict, as the looks before left no error rate to spend; "
        "a new study with fresh seeds can decide"
    )
    if asked_again is None:
        return why
    return f"{why}: {asked_again.words([arm], effect.n + (effect.more_seeds or 0))}"


def next_step(
    arm: str, effect: Effect, coming: NextLook | None, asked_again: Again | None = None
) -> str:
    """What keeps verdicts as rarely wrong as they claim: the next look, else a new study.

    Args:
        arm: that is undecided.
        effect: of it.
        coming: the study's next look; None: there is none.
        asked_again: its question in a new study; None: no command is named.
    """
    if coming is not None:
        return coming.words()
    if effect.more_seeds is None and effect.items is not None:
        return "no number of seeds decides, as the noise of the items alone is too large: it takes more items"
    if effect.stdev is None and effect.n > 1:
        return "runs that never reach the target do not tell how many would decide; a target that more of them reach does"
    if effect.more_seeds is None:
        return "more than 100,000 seeds would be needed"
    needed = effect.n + effect.more_seeds
    how = "(`seeds: open`, `fresh_seeds: true`)"
    if asked_again is not None:
        how = asked_again.words([arm], needed)
    return (
        f"by an upper limit of this spread {needed} seeds decide, in a new study with fresh seeds: {how}; more seeds in this "
        "one would raise its chance of a false verdict"
    )


def caveat(arm: ArmVerdict) -> str:
    """The sentence in place of a verdict where an arm changed nothing, or seeds of it or the baseline diverged."""
    if arm.changed_nothing:
        return (
            f"{arm.name} changed nothing: at {len(arm.seeds)} matched seeds its weights are the baseline's, bit for bit; "
            "what it sets is not used in this configuration."
        )
    lost = arm.survivors.sentence(arm.name)
    if not lost:
        return ""
    effect = arm.effect
    if effect is None:
        return f"{arm.name}: no verdict: {lost}."
    size = f"{signed(effect.mean)} over the {seeds_of(effect)} that survived"
    if not effect.decided:
        return f"{arm.name}: {effect.verdict}: {lost}, and no verdict rests on the others alone ({size})."
    return f"{arm.name} is {effect.verdict} than the baseline, although {lost} ({size})."


def say(text: str) -> None:
    """Print a sentence; on a terminal in lines of whole words, in which a command between backquotes stays whole.

    Args:
        text: of the sentence.
    """
    if sys.stdout.isatty():
        whole = re.sub(r"`[^`]*`", lambda command: command[0].replace(" ", "\0"), text)
        width = shutil.get_terminal_size().columns
        lines = textwrap.wrap(whole, width, break_long_words=False, break_on_hyphens=False)
        text = "\n".join(lines).replace("\0", " ")
    print(text)
