"""`paribus try`: a change against the baseline at matched seeds, and keep, discard or undecided."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from paribus.cli.engines import LOCAL, Prepared, prepare_tries
from paribus.config import Train, merge
from paribus.execute.leftovers import remove_leftovers
from paribus.places import state_root
from paribus.study.committed import CommittedFiles
from paribus.text import duration, number, quantity, signed
from paribus.tries.attempt import Question, Seen, ask, decide
from paribus.tries.decision import INTERVAL
from paribus.tries.ledger import Entry, Ledger
from paribus.tries.sides import Side
from paribus.tries.terms import Terms, read_terms

if TYPE_CHECKING:
    from rich.status import Status

EXIT_STATUS = {"keep": 0, "discard": 1, "undecided": 3}
FILES_SHOWN = 6


def run(
    revision: str | None,
    message: str | None,
    as_one: str | None,
    again: bool,
    workers: int | None,
    as_json: bool,
    given: dict[str, Any],
    engine: str = LOCAL,
) -> int:
    """Try a change; returns the exit status.

    Args:
        revision: the change; None: what is not committed.
        message: of the change.
        as_one: why evaluation or data may change.
        again: whether to try once more what has a verdict.
        workers: runs side by side; None: 1 here, on a cluster as many as fit.
        as_json: print the entry of the ledger as JSON.
        given: the terms that the command line gives.
        engine: `local`, `ray` or `ray:HOST:PORT`.

    Raises:
        UserError: before any run, where the change cannot be tried.
    """
    if given.get("baseline") is not None:
        given = given | {"stack": False}
    ledger = Ledger()
    terms = read_terms(given)
    prepared = prepare_tries(engine, workers)
    question = ask(terms, ledger, revision, message, as_one, again, prepared.side_by_side)
    screen = Screen()
    screen.head(question, terms)
    entry = question.entry
    if entry.ended is None:
        entry = _run(question, terms, ledger, screen, prepared)
    elif question.pair is not None:
        screen.line(f"tried before, as number {entry.number}; --again tries it at fresh seeds")
    print(json.dumps(as_data(entry), indent=1) if as_json else conclusion(entry))
    assert entry.ended is not None
    return EXIT_STATUS[entry.ended.verdict]


def _run(
    question: Question, terms: Terms, ledger: Ledger, screen: Screen, prepared: Prepared
) -> Entry:
    from paribus.errors import StateInUse

    number, pair = question.entry.number, question.pair
    assert pair is not None, "without a pair a try has its verdict"
    with ledger.held(number) as mine:
        if not mine:
            raise StateInUse(f"try {number} is being run by another `paribus try` of this change")
        for found in remove_leftovers(state_root()):
            screen.line(found)
        engine = prepared.open(train_of(pair.baseline), [pair.baseline.commit, pair.change.commit])
        try:
            with screen:
                return decide(question, terms, ledger, engine, screen.busy, screen.seed)
        except KeyboardInterrupt:
            screen.line("its runs save their states; the same command goes on")
            raise SystemExit(130) from None
        finally:
            engine.close()


def train_of(side: Side) -> Train:
    """The settings of training that the runs of a side have. side: of a try."""
    params = CommittedFiles(side.commit).mapping("params.yaml")
    values = merge(params, side.overrides)["train"]
    assert isinstance(values, dict)
    return Train(**values)


# ---------------------------------------------------------------- on the screen


class Screen:
    """Lines on stderr, at most 80 columns wide; on a terminal the last one shows what runs at the moment."""

    def __init__(self) -> None:
        self._status: Status | None = None
        if sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status("")

    def __enter__(self) -> Screen:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def line(self, text: str) -> None:
        """A line that stays."""
        print(text, file=sys.stderr, flush=True)

    def busy(self, text: str) -> None:
        """What runs at the moment; shown on a terminal alone."""
        if self._status:
            self._status.update(text)

    def head(self, question: Question, terms: Terms) -> None:
        """What is compared with what."""
        begun = question.entry.begun
        self.line(f"try {question.entry.number}: {begun.message}")
        self.line(f"  change {begun.change[:10]} against baseline {begun.baseline[:10]}")
        for file in begun.files[:FILES_SHOWN]:
            self.line(f"  {file}")
        if len(begun.files) > FILES_SHOWN:
            self.line(f"  and {len(begun.files) - FILES_SHOWN} more")
        length = f", {quantity(begun.tokens)} tokens a run" if begun.tokens else ""
        self.line(
            f"  {begun.metric} of {begun.stage}, {begun.direction} is better; "
            f"seeds {begun.first} to {begun.last}{length}"
        )
        self.line(
            f"  kept if better at p <= {question.entry.level:.2g}, the share of this try in the stream's "
            f"{terms.false_keeps:.0%}"
        )

    def seed(self, seen: Seen) -> None:
        """The values of a seed, and the look at it."""
        values = f"{number(seen.baseline, 4)} -> {number(seen.change, 4)}"
        text = f"  seed {seen.seed}: {values}  {signed(seen.change - seen.baseline)}"
        now = seen.look
        if now is not None:
            interval = f"{signed(now.low)} to {signed(now.high)}"
            text += f"   mean {signed(now.mean)} ({interval})"
        self.line(text)


def conclusion(entry: Entry) -> str:
    """The verdict, for people."""
    ended, begun = entry.ended, entry.begun
    assert ended is not None
    lines = [f"{ended.verdict}: {begun.message}: {ended.why}"]
    if ended.mean is not None and ended.low is not None and ended.high is not None:
        lines.append(
            f"  {signed(ended.mean)} {begun.unit}, {INTERVAL:.0%} interval {signed(ended.low)} to "
            f"{signed(ended.high)}, {len(ended.seeds)} matched seeds"
        )
    lines.append(
        f"  {ended.computed} runs computed in {duration(ended.seconds)} of training, {ended.found} found again"
    )
    if ended.verdict == "undecided":
        lines += [f"  {line}" for line in cost_to_know(entry)]
    if ended.verdict == "keep":
        lines.append(f"  commit it, and it is the next baseline: {begun.change[:10]}")
    return "\n".join(lines)


def cost_to_know(entry: Entry) -> list[str]:
    """What it would cost to decide what is undecided, in lines."""
    ended = entry.ended
    assert ended is not None
    if ended.seeds_to_know is None:
        return ["no number of seeds follows from what was measured"]
    runs = 2 * ended.seeds_to_know
    each = ended.seconds / ended.computed if ended.computed else None
    time = f", about {duration(runs * each)} of training" if each else ""
    return [
        f"to know: about {ended.seeds_to_know} fresh seeds, {runs} runs{time}:",
        f"--again --seeds {entry.begun.first}..{ended.seeds_to_know}",
    ]


def as_data(entry: Entry) -> dict[str, Any]:
    """An entry of the ledger for programs; its keys are a contract."""
    begun, ended = entry.begun, entry.ended
    data: dict[str, Any] = {
        "number": entry.number,
        "message": begun.message,
        "verdict": ended.verdict if ended else None,
        "why": ended.why if ended else "under way, or killed: the same `paribus try` goes on",
        "metric": begun.metric,
        "unit": begun.unit,
        "direction": begun.direction,
        "smallest_effect": begun.smallest_effect,
        "change": begun.change,
        "baseline": begun.baseline,
        "files": begun.files,
        "as_one": begun.as_one,
        "began": entry.time,
        "ended": entry.ended_time,
        "level": entry.level,
        "budget": begun.budget,
        "tokens": begun.tokens,
    }
    if ended:
        data |= {
            "effect": ended.mean,
            "low": _finite(ended.low),
            "high": _finite(ended.high),
            "interval": INTERVAL,
            "p": ended.p,
            "seeds": ended.seeds,
            "change_values": ended.change,
            "baseline_values": ended.baseline,
            "runs_computed": ended.computed,
            "runs_found": ended.found,
            "seconds": ended.seconds,
            "seeds_to_know": ended.seeds_to_know,
        }
    return data


def _finite(value: float | None) -> float | None:
    """None in place of an infinite end of an interval, which JSON has no number for."""
    return None if value in (None, float("inf"), float("-inf")) else value
