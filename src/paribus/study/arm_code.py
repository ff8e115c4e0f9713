"""The code of an arm: a branch, a tag, a commit or a patch file, settled as one commit.

    refs/paribus/ideas/studies/STUDY/ARM/KEY    the commit that an arm was settled at; KEY names what the file says and
                                                the baseline's code

A branch that moves, or goes, after a study began changes nothing in that study. A patch is applied to the baseline's
commit, whichever that is when the study runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paribus.config import fingerprint, flatten, parse_yaml, read_yaml
from paribus.errors import UserError
from paribus.git import try_git
from paribus.study.fields import hint, shown
from paribus.study.ideas import REFERENCES, commit_of_patch, is_patch, keep


@dataclass(frozen=True)
class ArmCode:
    """The code that an arm's runs start from.

    Attributes:
        asked: a branch, tag, commit or patch file, as the study's file says.
        commit: what it is settled as, a full hash.
        params: dotted key -> value of params.yaml in that commit.
        new: of these, the keys that the baseline's params.yaml lacks: the arm's values hold.
        absent: keys of the baseline's params.yaml that the commit lacks.
        note: what a reader has to know: the branch moved, the patch no longer applies; "" for nothing.
        applies: whether `commit` is what `asked` means for the baseline's present commit.
    """

    asked: str
    commit: str
    params: Mapping[str, Any]
    new: Mapping[str, Any] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    note: str = ""
    applies: bool = True

    def known(self, overrides: Mapping[str, object]) -> dict[str, Any]:
        """The overrides of keys that the baseline's code has too.

        Args:
            overrides: dotted key -> value.
        """
        return {key: value for key, value in overrides.items() if key not in self.new}

    def added(self, overrides: Mapping[str, object]) -> dict[str, object]:
        """The values of the keys that only the arm's code has.

        Args:
            overrides: dotted key -> value, which hold in place of the values in the arm's params.yaml.
        """
        return {key: overrides.get(key, value) for key, value in self.new.items()}


# ---------------------------------------------------------------- from a name to a commit


def settled_code(study: str, arm: str, asked: str, code_of_baseline: str) -> ArmCode:
    """The code of an arm: as it was settled when the study began, else as it is now.

    Args:
        study: its name.
        arm: its name.
        asked: what the file says under `code`.
        code_of_baseline: the key of the baseline's code; another one settles arms anew.

    Raises:
        UserError: where there is no such branch, tag, commit or patch, the patch does not apply, or params.yaml of the
            commit cannot be read.
    """
    before = try_git(
        "rev-parse", "--verify", "--quiet", _reference(study, arm, asked, code_of_baseline)
    )
    try:
        now = _patched(asked) if is_patch(asked) else _commit(asked)
    except UserError as error:
        kept = before or _settled_last(study, arm)
        if kept is None:
            raise
        # What is done can still be reported; `paribus ablate run` refuses a patch that does not apply.
        applies = before is not None and not is_patch(asked)
        return _read(asked, kept, error.problems[0], applies)
    if before is None or is_patch(asked) or before == now:
        return _read(asked, now)
    note = (
        f"{asked} has moved to {now[:10]} since the study began with it at {before[:10]}, which it keeps to; "
        "another name for the arm asks about the new one"
    )
    return _read(asked, before, note)


def settle_code(study: str, arm: str, code: ArmCode, code_of_baseline: str) -> None:
    """Keep the commit of an arm, whatever becomes of its branch.

    Args:
        study: its name.
        arm: its name.
        code: of the arm.
        code_of_baseline: the key of the baseline's code.
    """
    place = _reference(study, arm, code.asked, code_of_baseline)
    keep(code.commit, place.removeprefix(f"{REFERENCES}/"))


def _reference(study: str, arm: str, asked: str, code_of_baseline: str) -> str:
    key = fingerprint(asked=asked, baseline=code_of_baseline)[:12]
    return f"{_folder(study, arm)}/{key}"


def _folder(study: str, arm: str) -> str:
    return f"{REFERENCES}/studies/{study}/{arm}"


def _settled_last(study: str, arm: str) -> str | None:
    """The commit that an arm was settled at last, of whatever baseline."""
    options = ("--sort=-committerdate", "--count=1", "--format=%(objectname)")
    return try_git("for-each-ref", *options, _folder(study, arm)) or None


def _patched(asked: str) -> str:
    path = Path(asked)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{shown(asked)}: a patch is a file of this repository, by its path in it")
    if not path.is_file():
        there = sorted(str(one) for one in path.parent.glob("*.patch"))
        near = hint(asked, there) if there else f"{path.parent} has no .patch file"
        raise UserError(f"{shown(asked)}: no such file; {near}")
    return commit_of_patch(path, "HEAD")


def _commit(asked: str) -> str:
    found = None
    if not asked.startswith("-"):
        found = try_git("rev-parse", "--verify", "--quiet", f"{asked}^{{commit}}")
    if found is None:
        places = ("refs/heads", "refs/tags", "refs/remotes")
        names = (try_git("for-each-ref", "--format=%(refname:short)", *places) or "").splitlines()
        raise UserError(
            f"{shown(asked)}: no branch, tag or commit here has this name; {hint(asked, names)}"
        )
    return found


def _read(asked: str, commit: str, note: str = "", applies: bool = True) -> ArmCode:
    """The arm's code with its params.yaml. Raises UserError where that cannot be read."""
    where = f"params.yaml at {asked} ({commit[:10]})"
    text = try_git("cat-file", "blob", f"{commit}:./params.yaml")
    if text is None:
        raise UserError(
            f"{asked} ({commit[:10]}) has no params.yaml, so that no run can start there"
        )
    own = flatten(parse_yaml(text, where))
    base = flatten(read_yaml("params.yaml"))
    new = {key: value for key, value in own.items() if key not in base}
    absent = tuple(key for key in base if key not in own)
    return ArmCode(asked, commit, own, new, absent, note, applies)
