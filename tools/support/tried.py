"""Entries of a ledger for the tests of `paribus try`."""

from __future__ import annotations

import dataclasses

from paribus.tries.ledger import Begun, Ended

BEGUN = Begun(
    key="a",
    message="an idea",
    change="c" * 40,
    baseline="b" * 40,
    change_side="change",
    baseline_side="baseline",
    files=["src/a.py +1 −0"],
    stage="pretrain",
    metric="val_bpb",
    unit="bits per byte",
    direction="lower",
    smallest_effect=0.01,
    first=3,
    last=8,
    budget=None,
    tokens=1000,
    false_keeps=0.1,
)


def begun(key: str) -> Begun:
    return dataclasses.replace(BEGUN, key=key)


def ended(verdict: str = "discard", p: float = 0.2) -> Ended:
    return Ended(
        verdict, "why", [7, 8, 9], [1.0] * 3, [1.1] * 3, -0.1, -0.3, 0.1, p, 3.0, 6, 0, None
    )
