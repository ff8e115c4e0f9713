"""One check in a process of its own: `python -m paribus.card.one NAME DEVICE [PEER]` prints its outcome as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from paribus.card.bench import SIZES, Bench
from paribus.card.checks import CHECKS


def main(name: str, device: str, peer: str | None = None) -> None:
    """Run a check; its outcome is the last line of stdout."""
    [check] = [one for one in CHECKS if one.name == name]
    bench = Bench(device, SIZES[device], Path(peer) if peer else None)
    print(json.dumps(dataclasses.asdict(check.run(bench))))


if __name__ == "__main__":
    main(*sys.argv[1:])
