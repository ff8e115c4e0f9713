"""Why a stage begins at its first step although states of it exist: its parts differ from theirs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paribus.config import flatten
from paribus.files import write_atomic

PARTS = "made_of.json"  # in a run's folder: what its fingerprint was made of
SHOWN = 4  # differences on the line


@dataclasses.dataclass(frozen=True)
class Earlier:
    """A run of the same stage that another configuration, input or machine made."""

    step: int  # of its newest state
    parts: dict[str, object]


def remember_parts(folder: Path, parts: dict[str, Any]) -> None:
    """Record the parts of a run's fingerprint beside its states.

    Args:
        folder: of the run.
        parts: `runtime.fingerprint_parts`.
    """
    path = folder / PARTS
    if not path.exists():
        write_atomic(path, json.dumps(parts, indent=1, sort_keys=True))


def newest_other_run(folder: Path, stage: str) -> Earlier | None:
    """The run of `stage` in the other folders beside `folder` that saved a state last; None if none did."""
    newest, found = 0.0, None
    for state in folder.parent.glob(f"{stage.replace('@', '-')}-*/state/step-*.json"):
        run = state.parent.parent
        step = int(state.stem.removeprefix("step-"))
        if run == folder or not step:
            continue
        parts = _read(run / PARTS)
        changed = _modified(state)
        if parts is not None and parts.get("stage") == stage and changed > newest:
            newest, found = changed, Earlier(step, parts)
    return found


def why_anew(folder: Path, stage: str, parts: dict[str, Any]) -> str | None:
    """Why a run that begins does not go on from the newest state of its stage, in one sentence.

    None where there is no such state.

    Args:
        folder: of all states of the project.
        stage: that begins.
        parts: of its fingerprint.
    """
    other = newest_other_run(folder, stage)
    if other is None:
        return None
    differences = list(_differences(other.parts, parts))
    if not differences:
        return None
    shown = ", ".join(differences[:SHOWN])
    left = len(differences) - SHOWN
    more = f" and {left} more" if left > 0 else ""
    return f"begins at step 1, and not from the newest state (step {other.step}): {shown}{more}"


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """The differences, the most informative first: keys, inputs, machine, code."""
    yield from _changed_values(before.get("params"), now.get("params"))
    for path in _changed_keys(before.get("deps"), now.get("deps")):
        yield f"{path} has other contents"
    yield from _changed_values(before.get("hardware"), now.get("hardware"))
    files = _changed_keys(before.get("code"), now.get("code"))
    if files:
        names = ", ".join(Path(path).name for path in files[:SHOWN])
        yield f"other code in {len(files)} files ({names}{', …' if len(files) > SHOWN else ''})"


def _changed_values(
    before: Mapping[str, object] | None, now: Mapping[str, object] | None
) -> Iterator[str]:
    ours, theirs = flatten(now or {}), flatten(before or {})
    for key in _changed_keys(theirs, ours):
        yield f"{key}: {_shown(ours, key)}, was {_shown(theirs, key)}"


def _changed_keys(
    before: Mapping[str, object] | None, now: Mapping[str, object] | None
) -> list[str]:
    theirs, ours = before or {}, now or {}
    absent = object()
    keys = sorted(theirs.keys() | ours.keys())
    return [key for key in keys if theirs.get(key, absent) != ours.get(key, absent)]


def _shown(values: Mapping[str, object], key: str) -> str:
    return json.dumps(values[key]) if key in values else "not there"


def _read(path: Path) -> dict[str, object] | None:
    """A JSON object; None where it is missing or damaged, as only a message depends on it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # pruned meanwhile by the run that goes on
        return 0.0
