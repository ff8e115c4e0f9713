"""The audit of what was kept: all of it against the first baseline at fresh seeds, and without each of its parts.

A kept effect was measured at the seeds that helped to keep it, so the sum of what the tries claim is too large on average.
And a part that was worth its place may be worth nothing beside later parts. Both are measured here: the stack against the
first baseline, and against itself without one part at a time. A part whose loss is not shown to hurt is a barnacle.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from paribus.errors import UserError
from paribus.execute.engine import Engine
from paribus.git import git_bytes
from paribus.study.ideas import commit_of_patch, keep
from paribus.study.statistics import Effect, effects
from paribus.tries.ledger import Entry, newest_kept
from paribus.tries.runs import Asked, Failed, Measured, Runs
from paribus.tries.sides import Side, computes, facts_of
from paribus.tries.terms import Terms

ALPHA = 0.05  # of the audit: Holm over the parts
STACK = "the stack"

Standing = Literal["holds", "barnacle", "harmful", "inseparable", "fails without it"]


@dataclass(frozen=True)
class Part:
    """A kept change in the stack.

    Attributes:
        entry: of the ledger.
        without: the commit of the stack without it; None where git cannot take it out alone.
        why: it cannot.
    """

    entry: Entry
    without: str | None
    why: str = ""


@dataclass(frozen=True)
class PartResult:
    """What the audit says of a part.

    Attributes:
        number, message: of its try.
        claimed: effect, as its try measured it.
        measured: effect in the stack: the stack minus the stack without it; None where it could not be measured.
        standing: holds: its loss is shown to hurt; barnacle: it is not; harmful: the stack is better without it.
        why: there is no effect.
    """

    number: int
    message: str
    claimed: float
    measured: Effect | None
    standing: Standing
    why: str = ""


@dataclass(frozen=True)
class Audit:
    """What the audit says.

    Attributes:
        first, stack: commits.
        seeds: fresh ones.
        claimed: the sum of what the tries say.
        measured: the stack minus the first baseline.
        parts: in the order in which they were kept.
    """

    first: str
    stack: str
    seeds: list[int]
    claimed: float
    measured: Effect
    parts: list[PartResult]


# ---------------------------------------------------------------- the stack and its parts


def kept_chain(entries: Sequence[Entry], metric: str) -> list[Entry]:
    """The kept changes that the newest one builds on, and itself, in their order.

    Args:
        entries: of the ledger.
        metric: of the tries that count.

    Raises:
        UserError: where nothing is kept.
    """
    kept = [entry for entry in entries if entry.kept and entry.begun.metric == metric]
    newest = newest_kept(kept)
    if newest is None:
        raise UserError(f"nothing is kept yet of the tries by {metric}, so that there is no stack")
    chain = [newest]
    by_side = {entry.begun.change_side: entry for entry in kept}
    while (before := by_side.get(chain[0].begun.baseline_side)) is not None:
        chain.insert(0, before)
    return chain


def parts_of(chain: Sequence[Entry]) -> list[Part]:
    """The parts of a stack, each with the commit of the stack without it."""
    top = chain[-1].begun.change
    if len(chain) == 1:
        return [Part(chain[0], None, "it is the whole stack")]
    return [_part(entry, top) for entry in chain]


def _part(entry: Entry, top: str) -> Part:
    change, before = entry.begun.change, entry.begun.baseline
    if change == top:
        return Part(entry, before)
    patch = git_bytes("diff", "--binary", "--no-ext-diff", change, before)  # what `git revert` does
    with tempfile.TemporaryDirectory(prefix="paribus-part-") as folder:
        place = Path(folder) / f"without-try-{entry.number}.patch"
        place.write_bytes(patch)
        try:
            commit = commit_of_patch(place, top)
        except UserError as error:
            return Part(entry, None, f"later parts build on its lines ({error.problems[0]})")
    keep(commit, f"without-try-{entry.number}")
    return Part(entry, commit)


def side_of(terms: Terms, commit: str, name: str, overrides: Mapping[str, object]) -> Side:
    """A commit as a side whose runs train as long as the tries did.

    Args:
        terms: of the audit.
        commit: of the side.
        name: for messages.
        overrides: that all sides share.
    """
    own = facts_of(terms, commit, name)
    shared = dict(overrides)
    tokens = shared.pop("tokens", None)
    steps = None
    if isinstance(tokens, int):
        steps = max(round(tokens / own.batch_tokens), 1)
        shared["pretrain.steps"] = steps
    return Side(name, commit, shared, computes(terms, commit, shared), steps)


# ---------------------------------------------------------------- measuring


def audit(
    terms: Terms,
    entries: Sequence[Entry],
    seeds: int,
    engine: Engine,
    workers: int,
    say: Callable[[str], None],
    note: Callable[[str], None],
) -> Audit:
    """Measure the stack and its parts at fresh seeds.

    Args:
        terms: the metric, the stages and the overrides.
        entries: of the ledger.
        seeds: of each side.
        engine: that computes the runs.
        workers: runs side by side.
        say: shows what runs at the moment.
        note: shows a line that stays.

    Raises:
        UserError: where nothing is kept, or the stack or the first baseline fails.
    """
    chain = kept_chain(entries, terms.metric.name)
    first, top = chain[0].begun.baseline, chain[-1].begun.change
    parts = parts_of(chain)
    shared = _shared(terms, chain, first, workers)
    sides = {"first": side_of(terms, first, "first baseline", shared)}
    sides["stack"] = side_of(terms, top, "stack", shared)
    for part in parts:
        if part.without is not None:
            name = f"stack without try {part.entry.number}"
            sides[str(part.entry.number)] = side_of(terms, part.without, name, shared)
    begin = facts_of(terms, first, "first baseline").seed + fresh_from(entries)
    numbers = list(range(begin, begin + seeds))
    values = _values(Runs(terms.stages, terms.metric, engine, say), sides, numbers, note)
    for name in ("first", "stack"):
        failed = values[name]
        if isinstance(failed, Failed):
            raise UserError(f"the {sides[name].name} {sides[name].commit[:10]} fails in {failed}")
    return _audited(terms, chain, parts, values, numbers)


def fresh_from(entries: Sequence[Entry]) -> int:
    """The number of the first seed that no try uses, counted from the configuration's own."""
    windows = [entry.window + entry.begun.last for entry in entries]
    return max(windows, default=0)


def _shared(terms: Terms, chain: Sequence[Entry], first: str, workers: int) -> dict[str, object]:
    """Overrides of all sides; `tokens` among them stands for the steps that each side needs for them."""
    shared: dict[str, object] = dict(terms.overrides)
    tokens = chain[-1].begun.tokens
    if tokens is not None:
        shared["tokens"] = tokens
    cores = facts_of(terms, first, "first baseline").cores
    if cores is not None:
        shared["train.threads"] = max(cores // workers, 1)
    return shared


def _values(
    runs: Runs, sides: Mapping[str, Side], seeds: Sequence[int], note: Callable[[str], None]
) -> dict[str, list[float] | Failed]:
    """The metric of each side at every seed, or its first failure. Sides that compute the same share their runs."""
    unique = {side.fingerprint: side for side in sides.values()}
    asked: list[Asked] = [(side, seed) for side in unique.values() for seed in seeds]
    there = len(runs.measured(asked))
    note(
        f"{len(unique)} sides at seeds {seeds[0]} to {seeds[-1]}: {len(asked)} runs, {there} of them found again"
    )
    found = runs.compute(asked)
    values = {}
    for name, side in sides.items():
        values[name] = _of_side([found[unique[side.fingerprint], seed] for seed in seeds])
    return values


def _of_side(outcomes: Sequence[Measured | Failed]) -> list[float] | Failed:
    """The metric in each run of a side; the first failure, if one fails."""
    values = []
    for run in outcomes:
        if isinstance(run, Failed):
            return run
        if run.value is None:
            return Failed("", "the metric is not finite")
        values.append(run.value)
    return values


def _audited(
    terms: Terms,
    chain: Sequence[Entry],
    parts: Sequence[Part],
    values: Mapping[str, list[float] | Failed],
    seeds: list[int],
) -> Audit:
    stack = _numbers(values["stack"])
    whole = _effects(terms, {STACK: _differences(stack, _numbers(values["first"]))})[STACK]
    differences = {}
    for part in parts:
        without = values.get(str(part.entry.number))
        if without is not None and not isinstance(without, Failed):
            differences[str(part.entry.number)] = _differences(stack, without)
    found = _effects(terms, differences) if differences else {}
    results = [_result(part, values, found, whole) for part in parts]
    claimed = math.fsum(entry.ended.mean or 0.0 for entry in chain if entry.ended)
    return Audit(chain[0].begun.baseline, chain[-1].begun.change, seeds, claimed, whole, results)


def _result(
    part: Part,
    values: Mapping[str, list[float] | Failed],
    found: Mapping[str, Effect],
    whole: Effect,
) -> PartResult:
    entry = part.entry
    ended = entry.ended
    claimed = (ended.mean if ended else None) or 0.0
    key = str(entry.number)
    failed = values.get(key)
    effect = found.get(key)
    if part.why == "it is the whole stack":
        effect = whole
    if effect is not None:
        return PartResult(entry.number, entry.begun.message, claimed, effect, _standing(effect))
    if isinstance(failed, Failed):
        return PartResult(
            entry.number, entry.begun.message, claimed, None, "fails without it", str(failed)
        )
    return PartResult(entry.number, entry.begun.message, claimed, None, "inseparable", part.why)


def _standing(effect: Effect) -> Standing:
    if effect.verdict == "better":
        return "holds"
    return "harmful" if effect.verdict == "worse" else "barnacle"


def _effects(terms: Terms, differences: Mapping[str, Sequence[float]]) -> dict[str, Effect]:
    return effects(
        differences,
        direction=terms.direction,
        smallest_effect=terms.smallest_effect,
        alpha=ALPHA,
    )


def _numbers(values: list[float] | Failed) -> list[float]:
    assert not isinstance(values, Failed)
    return values


def _differences(own: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(own, other, strict=True)]
