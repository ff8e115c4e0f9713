"""Whether dvc.yaml names the code that a stage runs: DVC takes a stage for done while what it names is as it was."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from paribus.graph.dvcfile import StageDefinition
from paribus.graph.sources import SOURCE_FOLDER


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
