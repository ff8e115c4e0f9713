"""Whether dvc.yaml names the code that a stage runs: DVC takes a stage for done while what it names is as it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from paribus.files import Items, Values, read_json, write_atomic
from paribus.graph.closure import stage_files
from paribus.graph.dvcfile import StageDefinition
from paribus.graph.sources import SOURCE_FOLDER, Sources, working_sources

MOST_KEPT = 40  # closures in a memo: of the stages, for the last few states of the sources


def stale_note(stage: str, definition: StageDefinition, code: Iterable[str]) -> str | None:
    """Where dvc.yaml does not name the code that a stage runs: what differs, in a sentence. None where it does.

    Arguments:
        stage: its name in dvc.yaml.
        definition: what dvc.yaml says of it.
        code: the source files of the stage's closure.
    """
    if not Path(SOURCE_FOLDER).is_dir():  # an installed paribus: its files are not deps
        return None
    runs = {path for path in code if path.startswith("src/")}
    named = {dep for dep in definition.deps if dep.startswith("src/")}
    missing, needless = sorted(runs - named), sorted(named - runs)
    if missing:
        what = f"does not name {_few(missing)}, which it runs, so that `dvc repro` overlooks changes there"
    elif needless:
        what = f"names {_few(needless)}, which it does not run, so that `dvc repro` runs it without need"
    else:
        return None
    return f"dvc.yaml is stale: {stage} {what}; bring it up to date with `paribus deps`"


def _few(paths: list[str]) -> str:
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more}"


def remembered_files(stage: str, memo: Path) -> list[str]:
    """The source files of a stage's closure; worked out once for each state of the sources, as it takes a while.

    memo: a file that keeps them.
    """
    sources = working_sources()
    key = f"{stage} {_digest(sources)}"
    known = read_json(memo, Values(Items(str))) or {}
    if key not in known:
        known[key] = stage_files(stage, sources)
        kept = dict(list(known.items())[-MOST_KEPT:])
        write_atomic(memo, json.dumps(kept))
    return list(known[key])


def _digest(sources: Sources) -> str:
    digest = hashlib.sha256()
    for path, content in sources.files.items():
        digest.update(f"{path} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
