"""A try from its first seed to its verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paribus.config import fingerprint
from paribus.errors import UserError
from paribus.execute.engine import Engine
from paribus.git import git
from paribus.study.ideas import keep
from paribus.tries.decision import Look, Rule, look, seeds_to_know
from paribus.tries.ledger import Begun, Ended, Entry, Ledger, newest_kept
from paribus.tries.runs import Asked, Failed, Measured, Runs
from paribus.tries.sides import (
    DoesNotStart,
    Pair,
    commit_named,
    commit_of_the_change,
    compared,
    holds,
    pair,
)
from paribus.tries.terms import Terms


@dataclass(frozen=True)
class Question:
    """A try before its first run.

    Attributes:
        entry: of the ledger; with its verdict, where the same was tried before.
        pair: the two sides; None where the change's code does not start, or the verdict is known.
    """

    entry: Entry
    pair: Pair | None


@dataclass(frozen=True)
class Seen:
    """What is shown of a seed.

    Attributes:
        seed: of both runs.
        change, baseline: the metric.
        look: at this many seeds; None before the first.
    """

    seed: int
    change: float
    baseline: float
    look: Look | None


# ---------------------------------------------------------------- before the first run


def ask(
    terms: Terms,
    ledger: Ledger,
    revision: str | None,
    message: str | None,
    as_one: str | None,
    again: bool,
    workers: int,
) -> Question:
    """Settle what is tried, and note in the ledger that it begins.

    Args:
        terms: what it is compared with, and how it is decided.
        ledger: of the repository.
        revision: the change; None: what is not committed.
        message: of the change; None: its commit's subject.
        as_one: why evaluation or data may change.
        again: whether to try once more what has a verdict.
        workers: runs side by side.

    Raises:
        UserError: where it cannot be tried.
    """
    first = commit_named(terms.baseline, "baseline")
    change = commit_of_the_change(revision, message or "a change")
    baseline = baseline_of(terms, ledger, first, change)
    text = message or git("log", "-1", "--format=%s", change)
    crash = None
    try:
        tokens = kept_tokens(terms, ledger, baseline)
        both, _ = pair(terms, baseline, change, as_one, workers, tokens)
    except DoesNotStart as error:
        if not error.problems[0].startswith("the change"):
            raise
        crash, both = error.problems[0], None
    begun = _begun(terms, baseline, change, both, text, as_one)
    entry = _begin(ledger, begun, again)
    keep(entry.begun.change, entry.reference)
    if crash is not None and entry.ended is None:
        entry = ledger.end(entry.number, Ended("discard", crash))
    return Question(entry, both)


def baseline_of(terms: Terms, ledger: Ledger, first: str, change: str) -> str:
    """The commit to compare with: the newest kept change that builds on the baseline, or the baseline itself.

    Args:
        terms: of the try.
        ledger: with what was kept.
        first: the baseline's commit.
        change: the commit of the change.
    """
    if not terms.stack:
        return first
    same = [entry for entry in ledger.entries() if entry.begun.metric == terms.metric.name]
    newest = newest_kept(same)
    if newest is None:
        return first
    kept = newest.begun.change
    if not holds(kept, first) or holds(first, kept):  # another line of work, or merged since
        return first
    is_itself = git("rev-parse", f"{kept}^{{tree}}") == git("rev-parse", f"{change}^{{tree}}")
    return newest.begun.baseline if is_itself else kept


def kept_tokens(terms: Terms, ledger: Ledger, baseline: str) -> int | None:
    """Tokens that the newest kept change was tried with, if the baseline holds it and no budget is given; else None.

    Args:
        terms: of the try.
        ledger: with what was kept.
        baseline: its commit.
    """
    same = [entry for entry in ledger.entries() if entry.begun.metric == terms.metric.name]
    newest = newest_kept(same)
    if newest is None or terms.budget is not None or newest.begun.stage != terms.targets[-1]:
        return None
    return newest.begun.tokens if holds(baseline, newest.begun.change) else None


def _begun(
    terms: Terms, baseline: str, change: str, both: Pair | None, message: str, as_one: str | None
) -> Begun:
    """What is settled. both: None where the change's code does not start; its commits stand for what it computes."""
    if both is not None:
        sides = both.change.fingerprint, both.baseline.fingerprint
        files, tokens = both.files, both.tokens
    else:
        sides = f"commit {change}", f"commit {baseline}"
        found = compared(terms, baseline, change, as_one)
        files, tokens = [file.path for file in found.files], None
    first, last = terms.seeds
    key = fingerprint(
        sides=sides,
        metric=terms.metric.name,
        direction=terms.direction,
        smallest_effect=terms.smallest_effect,
        seeds=terms.seeds,
    )
    return Begun(
        key=key,
        message=message,
        change=change,
        baseline=baseline,
        change_side=sides[0],
        baseline_side=sides[1],
        files=files,
        stage=terms.targets[-1],
        metric=terms.metric.name,
        unit=terms.metric.unit,
        direction=terms.direction,
        smallest_effect=terms.smallest_effect,
        first=first,
        last=last,
        budget=terms.budget.text if terms.budget else None,
        tokens=tokens,
        false_keeps=terms.false_keeps,
        as_one=as_one,
    )


def _begin(ledger: Ledger, begun: Begun, again: bool) -> Entry:
    entry = ledger.begin(begun)
    times = 2
    while again and entry.ended is not None:
        once_more = fingerprint(key=begun.key, again=times)
        entry = ledger.begin(dataclasses.replace(begun, key=once_more))
        times += 1
    return entry


# ---------------------------------------------------------------- running


def rule_of(entry: Entry) -> Rule:
    """How a try decides."""
    begun = entry.begun
    return Rule(begun.direction, begun.smallest_effect, begun.first, begun.last, entry.level)


def decide(
    question: Question,
    terms: Terms,
    ledger: Ledger,
    engine: Engine,
    say: Callable[[str], None],
    show: Callable[[Seen], None],
) -> Entry:
    """Run both sides seed by seed until there is a verdict; returns the entry with it.

    Args:
        question: that `ask` settled.
        terms: of the try.
        ledger: that receives the verdict.
        engine: that computes the runs.
        say: shows a line on what happens.
        show: shows a seed that both sides have.

    Raises:
        UserError: where the baseline itself fails, or the machine does; called again, the try goes on.
    """
    entry, both = question.entry, question.pair
    if entry.ended is not None or both is None:
        return entry
    runs = Runs(terms.stages, terms.metric, engine, say)
    trial = _Trial(entry, both, runs, show)
    return ledger.end(entry.number, trial.verdict())


class _Trial:
    """The seeds of one try."""

    def __init__(self, entry: Entry, both: Pair, runs: Runs, show: Callable[[Seen], None]) -> None:
        self.entry, self.both, self.runs, self.show = entry, both, runs, show
        self.rule = rule_of(entry)
        self.seeds: list[int] = []
        self.change: list[float] = []
        self.baseline: list[float] = []
        self.seconds: list[float] = []
        self.asked = 0

    def verdict(self) -> Ended:
        """The outcome, after as many seeds as it takes."""
        p = 1.0
        for number in range(self.rule.last):
            failed = self._run(self.both.first_seed + self.entry.window + number)
            if failed is not None:
                return self._ended("discard", f"the change failed in {failed}", None)
            now = None
            if len(self.seeds) >= self.rule.first:
                now = look(self.differences, self.rule, p)
                p = now.p
            self.show(Seen(self.seeds[-1], self.change[-1], self.baseline[-1], now))
            if now is not None and now.verdict is not None:
                return self._ended(now.verdict, now.why, now)
        raise AssertionError("the last look has a verdict")

    @property
    def differences(self) -> list[float]:
        """The change minus the baseline at each seed."""
        return [own - base for own, base in zip(self.change, self.baseline, strict=True)]

    def _run(self, seed: int) -> Failed | None:
        """Both runs of a seed; the failure of the change's, if it fails."""
        base, own = (self.both.baseline, seed), (self.both.change, seed)
        pair_of_runs: Sequence[Asked] = [base, own]
        if self.seconds or self.runs.engine.resources().slots > 1:
            usual = sum(self.seconds) / len(self.seconds) if self.seconds else None
            found = dict(self.runs.compute(pair_of_runs, usual))
        else:  # the first run of the baseline says how long one takes
            found = dict(self.runs.compute([base]))
            first = found[base]
            usual = first.seconds if isinstance(first, Measured) else None
            found |= self.runs.compute([own], usual)
        self.asked += len(pair_of_runs)
        of_base, of_own = found[base], found[own]
        if isinstance(of_base, Failed) or of_base.value is None:
            words = str(of_base) if isinstance(of_base, Failed) else "its metric is not finite"
            raise UserError(
                f"the baseline {self.both.baseline.commit[:10]} itself fails at seed {seed}: {words}"
            )
        if isinstance(of_own, Failed):
            return of_own
        if of_own.value is None:
            return Failed(self.entry.begun.stage, f"{self.entry.begun.metric} is not finite")
        self.seeds.append(seed)
        self.baseline.append(of_base.value)
        self.change.append(of_own.value)
        self.seconds.append(of_base.seconds)
        return None

    def _ended(self, verdict: str, why: str, now: Look | None) -> Ended:
        computed = len(self.runs.computed)
        needed = seeds_to_know(now, self.rule) if now and verdict == "undecided" else None
        return Ended(
            verdict=verdict,
            why=why,
            seeds=self.seeds,
            change=self.change,
            baseline=self.baseline,
            mean=now.mean if now else None,
            low=now.low if now else None,
            high=now.high if now else None,
            p=now.p if now else None,
            seconds=sum(self.seconds) / len(self.seconds) * computed if self.seconds else 0.0,
            computed=computed,
            found=self.asked - computed,
            seeds_to_know=needed,
        )
