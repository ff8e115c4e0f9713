"""This process among those that torchrun started with it. Nothing else reads the variables that torchrun sets."""

from __future__ import annotations

import os
from dataclasses import dataclass

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Launched:
    """The place of a process: its number, from 0, of so many; and the same of those on this machine alone."""

    rank: int
    processes: int
    local_rank: int
    local_processes: int


def launched() -> Launched:
    """The place of this process; the first of one where no launcher started it."""
    return Launched(
        rank=_number("RANK", 0),
        processes=_number("WORLD_SIZE", 1),
        local_rank=_number("LOCAL_RANK", 0),
        local_processes=_number("LOCAL_WORLD_SIZE", 1),
    )


def is_launched() -> bool:
    """Whether a launcher started this process, be it the only one."""
    return "WORLD_SIZE" in os.environ


def _number(name: str, default: int) -> int:
    return int(os.environ.get(name, default))
