"""`paribus ledger`: everything that was tried, and what of it still stands."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from paribus.cli.trying import as_data
from paribus.git import try_git
from paribus.text import duration, signed
from paribus.tries.decision import VERDICTS
from paribus.tries.ledger import Entry, Ledger
from paribus.tries.standing import StudyRow, studies
from paribus.tries.terms import read_terms

LONGEST_DIFF = 20_000  # letters of a change on the page
MESSAGE_COLUMN = 34  # letters


def show(as_json: bool, page: bool) -> None:
    """Print the ledger, or write its page.

    Args:
        as_json: print JSON.
        page: write experiments/results/ledger.html, .json and .png.
    """
    ledger = Ledger()
    entries, beside = ledger.entries(), studies()
    data = ledger_data(ledger, entries, beside)
    if page:
        from paribus.pages.ledger import write_page

        diffs = {entry.number: _diff(entry) for entry in entries}
        print(f"page: {write_page(entries, beside, data, diffs)}")
        return
    print(json.dumps(data, indent=1, allow_nan=False) if as_json else table(entries, data))


def ledger_data(
    ledger: Ledger, entries: Sequence[Entry], beside: Sequence[StudyRow]
) -> dict[str, Any]:
    """The ledger for programs; its keys are a contract.

    Args:
        ledger: of the repository.
        entries: every try.
        beside: the studies.
    """
    false_keeps = read_terms().false_keeps
    verdicts = [entry.ended.verdict for entry in entries if entry.ended]
    totals: dict[str, Any] = {"tries": len(entries)}
    totals |= {verdict: verdicts.count(verdict) for verdict in VERDICTS}
    totals |= {
        "under_way": len(entries) - len(verdicts),
        "runs": sum(entry.ended.computed for entry in entries if entry.ended),
        "seconds": sum(entry.ended.seconds for entry in entries if entry.ended),
        "false_keeps": false_keeps,
        "next_level": ledger.budget(false_keeps).level(),
    }
    return {
        "totals": totals,
        "tries": [as_data(entry) for entry in entries],
        "studies": [dataclasses.asdict(row) for row in beside],
    }


def table(entries: Sequence[Entry], data: dict[str, Any]) -> str:
    """The tries in lines of at most 80 columns.

    Args:
        entries: every try.
        data: of the ledger.
    """
    if not entries:
        return "nothing was tried yet: change something, then `paribus try -m WHAT`"
    lines = [
        f"{'':>4}  {'change':<{MESSAGE_COLUMN}} {'verdict':<9} {'effect':>8} {'p':>8} {'seeds':>5}"
    ]
    for entry in entries:
        message = entry.begun.message
        if len(message) > MESSAGE_COLUMN:
            message = message[: MESSAGE_COLUMN - 1] + "…"
        verdict = entry.ended.verdict if entry.ended else "under way"
        effect = p = seeds = ""
        if entry.ended and entry.ended.mean is not None and entry.ended.p is not None:
            effect, p = signed(entry.ended.mean), f"{entry.ended.p:.2g}"
            seeds = str(len(entry.ended.seeds))
        lines.append(
            f"{entry.number:>4}  {message:<{MESSAGE_COLUMN}} {verdict:<9} {effect:>8} {p:>8} {seeds:>5}"
        )
    totals = data["totals"]
    lines.append(
        f"{totals['keep']} kept, {totals['discard']} discarded, {totals['undecided']} undecided; "
        f"{totals['runs']} runs, {duration(totals['seconds'])} of training"
    )
    lines.append(f"the next change is kept at p <= {totals['next_level']:.2g}")
    return "\n".join(lines)


def _diff(entry: Entry) -> str:
    """What a try changes, as `git diff` writes it; "" where git does not have its commits here."""
    options = ("--no-color", "--no-ext-diff", "--no-textconv")
    text = try_git("diff", *options, entry.begun.baseline, entry.begun.change) or ""
    return text if len(text) <= LONGEST_DIFF else f"{text[:LONGEST_DIFF]}\n…"
