"""A study is committed before it runs: the ablation's file, the parameters, and the code that decides the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from paribus.errors import UserError
from paribus.git import try_git
from paribus.graph import (
    ENTRY_POINTS,
    SOURCE_FOLDER,
    Sources,
    StageDefinition,
    committed_sources,
    is_code,
    stage_code,
    working_sources,
)
from paribus.study.ideas import dirty_submodules
from paribus.study.identity import definitions


def registered(path: Path) -> str:
    """The git blob hash of a committed file. Raises UserError where it is not committed as it is."""
    blob = try_git("rev-parse", "--quiet", "--verify", f"HEAD:./{path}")
    now = try_git("hash-object", str(path))
    if blob is None or blob != now:
        how = "is not committed" if blob is None else "differs from what is committed"
        raise UserError(
            f"{path}: {how}; what is asked is committed before it runs: git add {path} && git commit"
        )
    return blob


Code = dict[str, dict[str, str]]  # stage -> source file -> digest of what the stage reaches of it


def code_of(stages: Sequence[str], there: Sources) -> Code:
    """The code of a chain of stages; {} for stages that are not paribus's own.

    Args:
        stages: of the chain.
        there: the sources to read.
    """
    own = [stage for stage in stages if stage.partition("@")[0] in ENTRY_POINTS]
    return {stage: stage_code(stage, there) for stage in own}


def committed_code(stages: Sequence[str], commit: str) -> Code:
    """The code of a chain of stages in a commit; the package's that runs, where the commit holds none. Raises UserError."""
    full = try_git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    holds_code = try_git("rev-parse", "--verify", "--quiet", f"{commit}:./{SOURCE_FOLDER}")
    if full is None or holds_code is None:
        return code_of(stages, working_sources())
    return code_of(stages, committed_sources(full))


def sources(stages: Sequence[str], known: Mapping[str, StageDefinition] | None = None) -> list[str]:
    """The deps of stages that git has: those that no stage writes, without paribus's code, of which they declare all.

    Args:
        stages: of the chain.
        known: the stages of dvc.yaml; those of the working folder by default.
    """
    known = definitions() if known is None else known
    outs: set[str] = set()
    for definition in known.values():
        outs.update(definition.outs)
    declared = set()
    for name in stages:
        own = name.partition("@")[0] in ENTRY_POINTS
        for dep in known[name].deps:
            written = any(dep == out or dep.startswith(f"{out}/") for out in outs)
            if not written and not (own and is_code(dep)):
                declared.add(dep)
    return sorted(declared)


def tracking_notes(path: str) -> list[str]:
    """The .dvc files by which `dvc add` may track a path: its own, and those of the folders it lies in."""
    own = PurePosixPath(path)
    return [f"{place}.dvc" for place in (own, *own.parents) if place.name]


def check_sources(stages: Sequence[str]) -> None:
    """Raises UserError where code or parameters are not committed: a result must follow from a commit."""
    paths = ["params.yaml", "dvc.yaml"]
    for path in sources(stages):
        paths.append(path)
        paths += [note for note in tracking_notes(path) if Path(note).is_file()]
    status = try_git("status", "--porcelain", "--", *paths) or ""
    changed = {line[3:] for line in status.splitlines()} | _changed_code(stages)
    problems = [
        f"{path}: changed and not committed; a result has to follow from a commit"
        for path in sorted(changed)
    ]
    problems += undeclared_code(stages)
    problems += dirty_submodules(moved=True)
    if problems:
        raise UserError(problems)


def _changed_code(stages: Sequence[str]) -> set[str]:
    """Source files that differ from the last commit."""
    committed = committed_code(stages, "HEAD")
    changed = set()
    for stage, here in code_of(stages, working_sources()).items():
        there = committed[stage]
        for path in here.keys() | there.keys():
            if here.get(path) != there.get(path):
                changed.add(path)
    return changed


def undeclared_code(stages: Sequence[str]) -> list[str]:
    """Code that a stage reaches and dvc.yaml does not name, in sentences: DVC would reuse outputs of older code."""
    if not Path(SOURCE_FOLDER).is_dir():
        return []
    known = definitions()
    problems = []
    for stage, code in code_of(stages, working_sources()).items():
        missing = sorted(code.keys() - set(known[stage].deps))
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            problems.append(
                f"dvc.yaml: {stage} does not name {missing[0]}{more}, which it runs, so that DVC would take results of older "
                "code for its own; `paribus deps` writes them, then commit dvc.yaml"
            )
    return problems
