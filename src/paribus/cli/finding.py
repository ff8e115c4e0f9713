"""What a check of `paribus doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SHOWN = 4  # of a list of things that are wrong


@dataclass(frozen=True)
class Finding:
    """What a check found. broken: a run would fail or give other results than the lock promises; note: worth knowing."""

    state: Literal["ok", "note", "broken"]
    text: str


def some(things: list[str]) -> str:
    """The first few of a list, and how many more there are.

    Args:
        things: in words.
    """
    told = ", ".join(things[:SHOWN])
    return f"{told} and {len(things) - SHOWN} more" if len(things) > SHOWN else told
