"""One check in a process of its own: `python -m paribus.card.one NAME DEVICE [PEER]`.

It prints JSON, a line each: {"figures": ...} as they are measured, and its outcome as the last one.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from paribus.card.bench import SIZES, Bench, Figures
from paribus.card.checks import CHECKS, Outcome
from paribus.errors import UserError, explained


def main(name: str, device: str, peer: str | None = None) -> None:
    """Run a check. What the machine or its settings are the reason of becomes an outcome in words.

    Args:
        name: of the check.
        device: as torch names it.
        peer: folder of nanochat, to compare with; None: without.
    """
    [check] = [one for one in CHECKS if one.name == name]
    bench = Bench(device, SIZES[device], Path(peer) if peer else None, say)
    try:
        outcome = check.run(bench)
    except UserError as error:
        outcome = refused(error)
    except Exception as error:
        refusal = explained(error)
        if refusal is None:
            raise
        outcome = refused(refusal)
    print(json.dumps(dataclasses.asdict(outcome)), flush=True)


def say(figures: Figures) -> None:
    """Print what is known so far."""
    print(json.dumps({"figures": figures}), flush=True)


def refused(error: UserError) -> Outcome:
    """The outcome of a check that this machine cannot do; the figures it has said so far stay."""
    return Outcome("; ".join(error.problems))


if __name__ == "__main__":
    main(*sys.argv[1:])
