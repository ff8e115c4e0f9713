"""A stage's code, worked out once for each state of the sources: parsing them takes half a second of each start."""

from __future__ import annotations

import gc
import hashlib
import json
from pathlib import Path

from paribus.files import Values, read_json, write_atomic
from paribus.graph import closure, outline
from paribus.graph.closure import ENTRY_POINTS, stage_code
from paribus.graph.sources import Sources, working_sources

MEMO = "code.json"
STATES_KEPT = 8  # of the sources: the checkout's, and those of arms that are code
_MEMO = Values(Values(Values(str)))  # state of the sources -> stage -> source file -> digest


def remembered_code(stage: str, folder: Path) -> dict[str, str]:
    """`stage_code` of the working folder's sources.

    Args:
        stage: its name in dvc.yaml, with or without `@item`.
        folder: keeps in a file what was worked out.
    """
    memo = folder / MEMO
    name = stage.partition("@")[0]
    sources = working_sources()
    if name not in ENTRY_POINTS:
        return stage_code(stage, sources)
    state = _digest(sources)
    known = read_json(memo, _MEMO) or {}
    if name not in known.get(state, {}):
        known[state] = known.pop(state, {}) | {name: _worked_out(name, sources)}
        kept = dict(list(known.items())[-STATES_KEPT:])
        write_atomic(memo, json.dumps(kept))
    return dict(known[state][name])


def _worked_out(stage: str, sources: Sources) -> dict[str, str]:
    """`stage_code` without the garbage collector: syntax trees are many objects and no garbage, and it looks at all of them."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        return stage_code(stage, sources)
    finally:
        if collecting:
            gc.enable()


def _digest(sources: Sources) -> str:
    """Of the sources, and of the code that works closures out, which another paribus may have otherwise."""
    digest = hashlib.sha256()
    for module in (closure, outline):
        digest.update(Path(str(module.__file__)).read_bytes())
    for path, content in sources.files.items():
        digest.update(f"{path} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
