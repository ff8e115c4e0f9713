"""The record of a study's looks: what each may have spent, and at which arms it looked.

    .paribus/ablations/NAME/looks.json    {"looks": [{seeds, share, arms}, …]}
    experiments/results/NAME.json         the same, committed with the report

A study whose file changes afterwards, or that gets another arm, may spend only what these left.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paribus.files import Items, Optional, Shape, read_json
from paribus.journal import write_json
from paribus.study.events import folder_of
from paribus.study.sequence import Step

PUBLISHED = Path("experiments/results")
LOOKS: Shape = {"seeds": int, "share": (int, float), "arms": Items(str)}


def rows_of(looks: Sequence[Step]) -> list[dict[str, object]]:
    """Looks as a file keeps them."""
    return [
        {"seeds": look.seeds, "share": round(look.share, 12), "arms": list(look.arms)}
        for look in looks
    ]


def recorded(name: str) -> tuple[Step, ...]:
    """The looks that a study has taken, as far as a file of it is there.

    Args:
        name: of the study.
    """
    shape: Shape = {"looks": Optional(Items(LOOKS))}
    longest: list[dict[str, Any]] = []
    for path in (folder_of(name) / "looks.json", PUBLISHED / f"{name}.json"):
        rows = (read_json(path, shape, move=False) or {}).get("looks") or []
        if len(rows) > len(longest):
            longest = rows
    looks = [Step(row["seeds"], float(row["share"]), tuple(row["arms"])) for row in longest]
    return tuple(looks)


def note(name: str, looks: Sequence[Step]) -> None:
    """Keep the looks that a study has taken.

    Args:
        name: of the study.
        looks: all of them, in order.
    """
    path = folder_of(name) / "looks.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"looks": rows_of(looks)})
