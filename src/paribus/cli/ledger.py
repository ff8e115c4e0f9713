"""`paribus ledger`: everything that was tried, and what of it still stands."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from paribus.cli.trying import Screen, as_data
from paribus.execute.leftovers import remove_leftovers
from paribus.execute.local import Pool
from paribus.git import try_git
from paribus.places import main_checkout, state_root
from paribus.text import duration, signed
from paribus.tries import stack
from paribus.tries.decision import VERDICTS
from paribus.tries.ledger import Entry, Ledger
from paribus.tries.standing import StudyRow, studies
from paribus.tries.terms import DEFAULTS, read_terms

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


def audit(seeds: int, workers: int, as_json: bool) -> int:
    """Measure everything that was kept against the first baseline at fresh seeds; returns the exit status.

    Args:
        seeds: of each side.
        workers: runs side by side.
        as_json: print JSON.
    """
    terms = read_terms()
    entries = Ledger().entries()
    screen = Screen()
    for left in remove_leftovers(state_root()):
        screen.line(left)
    engine = Pool(main_checkout(), state_root(), workers)
    try:
        with screen:
            found = stack.audit(terms, entries, seeds, engine, workers, screen.busy, screen.line)
    except KeyboardInterrupt:
        screen.line("its runs save their states; the same command goes on")
        raise SystemExit(130) from None
    finally:
        engine.close()
    data = dataclasses.asdict(found)
    print(json.dumps(data, indent=1) if as_json else audit_text(found, terms.metric.unit))
    return 0 if found.measured.verdict == "better" else 1


def audit_text(found: stack.Audit, unit: str) -> str:
    """The audit, for people.

    Args:
        found: by the audit.
        unit: of the metric.
    """
    whole = found.measured
    changes = "change" if len(found.parts) == 1 else "changes"
    lines = [
        f"{len(found.parts)} kept {changes}, {found.stack[:10]} against {found.first[:10]} at {len(found.seeds)} fresh seeds",
        f"  claimed  {signed(found.claimed)} {unit}, the sum of what their tries measured",
        f"  measured {signed(whole.mean)} {unit}, 95% interval {signed(whole.low)} to {signed(whole.high)}: {whole.verdict}",
        "each part: the stack minus the stack without it",
    ]
    for part in found.parts:
        effect = part.measured
        measured = part.why
        if effect is not None:
            measured = f"{signed(effect.mean)} ({signed(effect.low)} to {signed(effect.high)})"
        lines.append(f"  {part.number:>4}  {part.message[:MESSAGE_COLUMN]}: {part.standing}")
        lines.append(f"        claimed {signed(part.claimed)}, in the stack {measured}")
    return "\n".join(lines)


def ledger_data(
    ledger: Ledger, entries: Sequence[Entry], beside: Sequence[StudyRow]
) -> dict[str, Any]:
    """The ledger for programs; its keys are a contract.

    Args:
        ledger: of the repository.
        entries: every try.
        beside: the studies.
    """
    newest = entries[-1].begun.false_keeps if entries else None
    false_keeps = newest or DEFAULTS["false_keeps"]
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
