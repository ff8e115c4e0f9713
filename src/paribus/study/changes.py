"""What a commit changes against another, of all that can decide the results of a chain of stages.

That is the code in the stages' import closure, the inputs that git has, and the commands of dvc.yaml. A file that changed in
comments, docstrings or layout alone is no change, nor is a file that no stage reaches.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from paribus.errors import UserError
from paribus.git import git, try_git
from paribus.graph import StageDefinition, definitions_in
from paribus.study.committed import CommittedFiles
from paribus.study.registration import committed_code, sources, tracking_notes
from paribus.study.results import commands_of, version_of

Kind = Literal["code", "input", "commands"]


@dataclass(frozen=True)
class ChangedFile:
    """A file that decides results and differs.

    Attributes:
        path: from the project's folder.
        kind: code of a stage, an input of one, or the commands in dvc.yaml.
        added, removed: lines.
    """

    path: str
    kind: Kind
    added: int
    removed: int


@dataclass(frozen=True)
class Change:
    """What one commit changes against another.

    Attributes:
        base, commit: full hashes.
        files: that differ, sorted by path.
        diff: of these files, as `git diff` writes it.
    """

    base: str
    commit: str
    files: tuple[ChangedFile, ...]
    diff: str

    def summary(self) -> str:
        """`2 files, +41 −6`."""
        added = sum(file.added for file in self.files)
        removed = sum(file.removed for file in self.files)
        many = "s" if len(self.files) != 1 else ""
        return f"{len(self.files)} file{many}, +{added} −{removed}"


def change_between(stages: Sequence[str], base: str, commit: str) -> Change:
    """What `commit` changes against `base` of all that decides the results of `stages`.

    Args:
        stages: a chain, as in dvc.yaml.
        base: a commit, by any of its names.
        commit: another.

    Raises:
        UserError: where the code of one cannot be read, with the commit named.
    """
    base = git("rev-parse", "--verify", f"{base}^{{commit}}")
    commit = git("rev-parse", "--verify", f"{commit}^{{commit}}")
    found: dict[str, Kind] = {}
    found |= dict.fromkeys(_changed_code(stages, base, commit), "code")
    found |= dict.fromkeys(_changed_inputs(stages, base, commit), "input")
    before, after = CommittedFiles(base), CommittedFiles(commit)
    if commands_of(before, stages) != commands_of(after, stages):
        found["dvc.yaml"] = "commands"
    lines = _lines(base, commit, found)
    files = [ChangedFile(path, found[path], *lines.get(path, (0, 0))) for path in sorted(found)]
    return Change(base, commit, tuple(files), _diff(base, commit, found))


def definitions_at(commit: str) -> dict[str, StageDefinition]:
    """The stages in a commit's dvc.yaml; {} where it has none. Raises UserError where it cannot be read."""
    text = CommittedFiles(commit).text("dvc.yaml")
    return definitions_in(text, f"dvc.yaml at {commit[:10]}") if text else {}


def code_at(stages: Sequence[str], commit: str) -> dict[str, dict[str, str]]:
    """Stage -> file -> digest, of the code in a commit. Raises UserError with the commit named."""
    try:
        return committed_code(stages, commit)
    except UserError as error:
        raise UserError(f"{problem} (at {commit[:10]})" for problem in error.problems) from None


def _changed_code(stages: Sequence[str], base: str, commit: str) -> set[str]:
    before, after = code_at(stages, base), code_at(stages, commit)
    changed = set()
    for stage in before.keys() | after.keys():
        there, here = before.get(stage, {}), after.get(stage, {})
        changed |= {
            path for path in there.keys() | here.keys() if there.get(path) != here.get(path)
        }
    return changed


def _changed_inputs(stages: Sequence[str], base: str, commit: str) -> set[str]:
    """Inputs of stages that git has, or whose `.dvc` file it has, and that differ."""
    before, after = CommittedFiles(base), CommittedFiles(commit)
    paths = {*_inputs(stages, base), *_inputs(stages, commit)}
    return {path for path in paths if version_of(before, path) != version_of(after, path)}


def _inputs(stages: Sequence[str], commit: str) -> list[str]:
    there = definitions_at(commit)
    return sources([stage for stage in stages if stage in there], there)


def _lines(base: str, commit: str, paths: Mapping[str, Kind]) -> dict[str, tuple[int, int]]:
    """Path -> lines (added, removed); (0, 0) for what is no text."""
    if not paths:
        return {}
    listed = git(
        "diff", "--numstat", "--no-renames", "--relative", "-z", base, commit, "--", *_places(paths)
    )
    lines: dict[str, tuple[int, int]] = {}
    for entry in filter(None, listed.split("\0")):
        added, removed, path = entry.split("\t", 2)
        counted = (int(added), int(removed)) if added.isdigit() else (0, 0)
        owner = next((one for one in paths if path in _places([one])), None)
        owner = owner or next((one for one in paths if path.startswith(f"{one}/")), path)
        before = lines.get(owner, (0, 0))
        lines[owner] = before[0] + counted[0], before[1] + counted[1]
    return lines


def _diff(base: str, commit: str, paths: Collection[str]) -> str:
    if not paths:
        return ""
    options = ("--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "--relative")
    return try_git("diff", *options, base, commit, "--", *_places(paths)) or ""


def _places(paths: Collection[str]) -> list[str]:
    """The paths, and the `.dvc` files that may track them."""
    places = list(paths)
    for path in paths:
        places += tracking_notes(path)
    return places
