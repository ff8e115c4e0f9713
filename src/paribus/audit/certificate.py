"""A certificate of `paribus verify` as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from paribus.pages.markdown import cell, line

SHOWN = 8  # differences on the page


def page(made: dict[str, Any]) -> str:
    """The certificate as Markdown."""
    about, outcome = made["record"], made["outcome"]
    lines = [
        f"# {made['verdict']}: {about['stage']} of {line(about['name'])}",
        "",
        *_sentences(made),
        "",
        f"- run: {about['kind']} {line(about['name'])}, stage {about['stage']}, fingerprint {about['fingerprint']}",
        f"- code: commit {about['commit']}"
        + (", with uncommitted changes" if about["git"]["dirty"] else ""),
        f"- hardware then: {about['hardware']['device_name']}, {about['hardware']['isa']}, {about['hardware']['dtype']}, "
        f"{about['hardware']['process_threads']} threads, torch {about['hardware']['torch_version']}",
        *(f"- data: {out} {md5}" for out, md5 in about["data"].items()),
    ]
    if outcome:
        lines += [
            f"- steps compared: {outcome['steps']}"
            + ("" if outcome["finished"] else " (not run to the end)"),
            f"- values of metrics/{about['stage']}.json compared: {outcome['measured']}"
            + (f", {len(outcome['metrics'])} differ" if outcome["metrics"] else ""),
            *(
                f"- weights {when}: {digest}"
                for when, digest in zip(("recorded", "rebuilt"), outcome["weights"], strict=True)
                if digest
            ),
        ]
    if made["differences"]:
        shown = made["differences"][:SHOWN]
        lines += [
            "",
            "| cause | what | as recorded | as found |  |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {one['cause']} | {cell(one['what'])} | {_short(one['recorded'])} | {_short(one['found'])} | "
            f"{'contradiction' if one['contradiction'] else 'this machine'} |"
            for one in shown
        ]
        lines += [f"| | and {len(made['differences']) - SHOWN} more (in the JSON) | | | |"] * (
            len(made["differences"]) > SHOWN
        )
    return "\n".join([*lines, "", f"Made {made['made']} in {made['seconds']} s.", ""])


def _sentences(made: dict[str, Any]) -> Iterator[str]:
    """What was found, in words."""
    outcome, verdict = made["outcome"], made["verdict"]
    if verdict == "bit-exact":
        yield _what_is_the_same(made["record"]["stage"], outcome)
    elif verdict == "consistent":
        yield "git, DVC and the run's own record agree. Nothing was run (--steps 0)."
    elif verdict == "contradicted":
        yield "The repository and the run's own record contradict each other" + (
            ", though the bits that were compared are the same."
            if outcome
            else "; nothing was run."
        )
    if outcome and not outcome_equal(outcome):
        yield from _what_differs(made["record"]["stage"], outcome)
    if made["causes"]:
        first = {
            cause: next(one["what"] for one in made["differences"] if one["cause"] == cause)
            for cause in made["causes"]
        }
        yield "Why: " + "; ".join(f"{cause} ({line(what)})" for cause, what in first.items()) + "."
        if "determinism" in first and outcome and outcome["again"] == "different":
            yield "The same rebuild, made twice here, differs from itself: the computation is not deterministic."
    elif verdict == "not reproduced":
        yield (
            "Why: the cause is not recorded. git, DVC and the run's own record agree, so what ran was other code, data "
            "or another machine than they say"
            + (
                ", and not chance: two rebuilds here are the same."
                if outcome and outcome["again"] == "same"
                else "."
            )
        )


def _what_is_the_same(stage: str, outcome: dict[str, Any]) -> str:
    if not outcome["finished"]:
        return f"Rebuilt from its record alone, its first {outcome['steps']} steps are the same, bit for bit."
    told = "Rebuilt from its record alone, it comes to the same weights, bit for bit"
    if outcome["measured"]:
        return f"{told}, and they measure what metrics/{stage}.json says."
    return f"{told}. metrics/{stage}.json is not kept with it, so no metric was compared."


def _what_differs(stage: str, outcome: dict[str, Any]) -> Iterator[str]:
    if outcome["parted"]:
        first = outcome["parted"]
        yield f"They part at step {first['step']}: {first['column']} {first['recorded']} then, {first['rebuilt']} now."
    elif not _same_weights(outcome):
        yield f"The {outcome['steps']} logged steps are the same and the weights are not: they part after the last one."
    elif outcome["metrics"]:
        key, (recorded, rebuilt) = next(iter(outcome["metrics"].items()))
        more = len(outcome["metrics"]) - 1
        yield (
            f"The training is the same and metrics/{stage}.json is not: {key} is {recorded} there, and these weights "
            f"measure {rebuilt}" + (f" ({more} more values differ)." if more else ".")
        )
        return
    yield (
        outcome["band"]["text"]
        if outcome["band"]
        else "How far seeds differ was not measured (fewer than three runs that differ in the seed alone): there is no band."
    )


def _same_weights(outcome: dict[str, Any]) -> bool:
    recorded, rebuilt = outcome["weights"]
    return not outcome["finished"] or recorded is None or recorded == rebuilt


def outcome_equal(outcome: dict[str, Any]) -> bool:
    """`Outcome.equal` of one that was written down."""
    return outcome["parted"] is None and _same_weights(outcome) and not outcome["metrics"]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return cell(f"{text[:10]}…" if len(text) >= 32 and " " not in text else text)
