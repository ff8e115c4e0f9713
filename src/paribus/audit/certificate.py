"""A certificate of `paribus verify` as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from paribus.audit.agreement import Difference
from paribus.audit.proof import About, Certificate, Outcome
from paribus.pages.markdown import cell, line

SHOWN = 8  # differences on the page


def file_name(stage: str, fingerprint: str, kind: str) -> str:
    """The name of a certificate's file.

    Args:
        stage: that was rebuilt.
        fingerprint: of its run.
        kind: "md" or "json".
    """
    return f"verify-{stage}-{fingerprint[:8]}.{kind}"


def page(made: Certificate) -> str:
    """The certificate as Markdown."""
    about = made.record
    head = f"# {made.verdict}: {about.stage} of {line(about.name)}"
    end = f"Made {made.made} in {made.seconds} s."
    facts = [*_facts(about), *_compared(about.stage, made.outcome)]
    differences = _table(made.differences)
    return "\n".join([head, "", *_sentences(made), "", *facts, *differences, "", end, ""])


def _facts(about: About) -> Iterator[str]:
    """Describe the run."""
    hardware = about.hardware
    uncommitted = ", with uncommitted changes" if about.git["dirty"] else ""
    yield (
        f"- run: {about.kind} {line(about.name)}, stage {about.stage}, "
        f"fingerprint {about.fingerprint}"
    )
    yield f"- code: commit {about.commit}{uncommitted}"
    yield (
        f"- hardware then: {hardware['device_name']}, {hardware['isa']}, {hardware['dtype']}, "
        f"{hardware['process_threads']} threads, torch {hardware['torch_version']}"
    )
    for out, md5 in about.data.items():
        yield f"- data: {out} {md5}"


def _compared(stage: str, outcome: Outcome | None) -> Iterator[str]:
    """How much was compared; empty where nothing ran."""
    if not outcome:
        return
    cut_short = "" if outcome.finished else " (not run to the end)"
    differing = len(outcome.metrics)
    yield f"- steps compared: {outcome.steps}{cut_short}"
    yield (
        f"- values of metrics/{stage}.json compared: {outcome.measured}"
        + (f", {differing} differ" if differing else "")
    )
    for when, digest in zip(("recorded", "rebuilt"), outcome.weights, strict=True):
        if digest:
            yield f"- weights {when}: {digest}"


def _table(differences: Sequence[Difference]) -> list[str]:
    """The first of the differences as rows of a table."""
    if not differences:
        return []
    rows = ["", "| cause | what | as recorded | as found |  |", "| --- | --- | --- | --- | --- |"]
    for difference in differences[:SHOWN]:
        kind = "contradiction" if difference.contradiction else "this machine"
        recorded, found = _short(difference.recorded), _short(difference.found)
        what = cell(difference.what)
        rows.append(f"| {difference.cause} | {what} | {recorded} | {found} | {kind} |")
    more = len(differences) - SHOWN
    if more > 0:
        rows.append(f"| | and {more} more (in the JSON) | | | |")
    return rows


def _sentences(made: Certificate) -> Iterator[str]:
    """The findings, in words."""
    outcome, verdict = made.outcome, made.verdict
    stage = made.record.stage
    if verdict == "bit-exact" and outcome:
        yield _what_is_the_same(stage, outcome)
    elif verdict == "consistent":
        yield "git, DVC and the run's own record agree. Nothing was run (--steps 0)."
    elif verdict == "contradicted":
        same = (
            ", though the bits that were compared are the same."
            if outcome
            else "; nothing was run."
        )
        yield f"The repository and the run's own record contradict each other{same}"
    if outcome and not outcome.equal:
        yield from _what_differs(stage, outcome)
    again = outcome.again if outcome else None
    if made.causes:
        yield from _why(made, again)
    elif verdict == "not reproduced":
        not_chance = ", and not chance: two rebuilds here are the same" if again == "same" else ""
        yield (
            "Why: the cause is not recorded. git, DVC and the run's own record agree, so what ran was other code, data "
            f"or another machine than they say{not_chance}."
        )


def _why(made: Certificate, again: str | None) -> Iterator[str]:
    """Each cause with its first difference. again: how a second rebuild compared, where there was one."""
    first: dict[str, str] = {}
    for difference in made.differences:
        if difference.cause in made.causes:
            first.setdefault(difference.cause, difference.what)
    reasons = [f"{cause} ({line(first[cause])})" for cause in made.causes]
    yield f"Why: {'; '.join(reasons)}."
    if "determinism" in first and again == "different":
        yield "The same rebuild, made twice here, differs from itself: the computation is not deterministic."


def _what_is_the_same(stage: str, outcome: Outcome) -> str:
    if not outcome.finished:
        return f"Rebuilt from its record alone, its first {outcome.steps} steps are the same, bit for bit."
    told = "Rebuilt from its record alone, it comes to the same weights, bit for bit"
    if outcome.measured:
        return f"{told}, and they measure what metrics/{stage}.json says."
    return f"{told}. metrics/{stage}.json is not kept with it, so no metric was compared."


def _what_differs(stage: str, outcome: Outcome) -> Iterator[str]:
    if outcome.parted:
        first = outcome.parted
        yield f"They part at step {first.step}: {first.column} {first.recorded} then, {first.rebuilt} now."
    elif not outcome.same_weights:
        yield f"The {outcome.steps} logged steps are the same and the weights are not: they part after the last one."
    elif outcome.metrics:
        key, (recorded, rebuilt) = next(iter(outcome.metrics.items()))
        more = len(outcome.metrics) - 1
        yield (
            f"The training is the same and metrics/{stage}.json is not: {key} is {recorded} there, and these weights "
            f"measure {rebuilt}" + (f" ({more} more values differ)." if more else ".")
        )
        return
    yield (
        outcome.band.text
        if outcome.band
        else "How far seeds differ was not measured (fewer than three runs that differ in the seed alone): there is no band."
    )


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return cell(f"{text[:10]}…" if len(text) >= 32 and " " not in text else text)
