"""`execute.yaml`: how runs are spread over machines. Optional, beside params.yaml.

git: ssh://desk/home/ann/paribus     # the repository that all machines reach; default: the git remote `origin`
state_minutes: 10                    # between two copies of a training state in the DVC remote
mixed_hardware: false                # whether the runs of one seed may be on different classes of hardware

No stage reads it, so that changing it makes nothing stale: it decides where runs are computed, never what they compute.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paribus.config import read_yaml
from paribus.errors import UserError, shown
from paribus.git import try_git

FILE = "execute.yaml"
LONGEST_MINUTES = 24 * 60.0


@dataclass(frozen=True)
class Settings:
    """The values of execute.yaml.

    Attributes:
        git: the address of the repository that all machines reach; "" where there is none.
        state_minutes: between two copies of a training state in the DVC remote.
        mixed_hardware: whether the runs of one seed may be on different classes of hardware.
    """

    git: str = ""
    state_minutes: float = 10.0
    mixed_hardware: bool = False


def read_settings(root: Path) -> Settings:
    """The settings of the checkout at `root`. Raises UserError with every problem of the file."""
    origin = try_git("remote", "get-url", "origin", at=root) or ""
    path = root / FILE
    if not path.exists():
        return Settings(git=origin)
    raw = read_yaml(path)
    problems = [*_unknown(raw), *_wrong(raw)]
    if problems:
        raise UserError(problems)
    return Settings(
        git=raw.get("git", origin),
        state_minutes=float(raw.get("state_minutes", Settings.state_minutes)),
        mixed_hardware=raw.get("mixed_hardware", Settings.mixed_hardware),
    )


def _unknown(raw: Mapping[str, object]) -> list[str]:
    known = list(Settings.__dataclass_fields__)
    problems = []
    for key in raw:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            problems.append(f"{FILE}: {shown(key)}: no such key; {hint}")
    return problems


def _wrong(raw: dict[str, Any]) -> list[str]:
    problems = []
    address = raw.get("git", "-")
    if not isinstance(address, str) or not address.strip():
        problems.append(
            f"{FILE}: git: {shown(address)}: expected the address of a git repository, as "
            "ssh://HOST/FOLDER"
        )
    minutes = raw.get("state_minutes", 1)
    is_number = isinstance(minutes, (int, float)) and not isinstance(minutes, bool)
    if not is_number or not 0 < minutes <= LONGEST_MINUTES:
        problems.append(
            f"{FILE}: state_minutes: {shown(minutes)}: expected a number above 0, at most {LONGEST_MINUTES:g}"
        )
    mixed = raw.get("mixed_hardware", False)
    if not isinstance(mixed, bool):
        problems.append(f"{FILE}: mixed_hardware: {shown(mixed)}: expected true or false")
    return problems
