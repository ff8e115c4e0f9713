"""The text of a package's source files, as a checkout or a commit has it."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from paribus.errors import UserError
from paribus.git import GitError, git, git_bytes
from paribus.graph.digests import files_below

SOURCE_FOLDER = "src/paribus"
ALL_SOURCES = "src"


@dataclass(frozen=True)
class Sources:
    """The package's source files: path from the project's root -> contents."""

    files: Mapping[str, bytes]

    def path_of(self, module: str) -> str | None:
        """The file of a module or package; None without one."""
        stem = "src/" + module.replace(".", "/")
        for path in (f"{stem}/__init__.py", f"{stem}.py"):
            if path in self.files:
                return path
        return None


def working_sources(root: Path = Path()) -> Sources:
    """The sources of the checkout at `root` as they are now, committed or not.

    A folder without a source tree of its own, as the outputs of an installed paribus may have, stands for
    the package that runs.
    """
    folder = root / SOURCE_FOLDER
    if not folder.is_dir():
        folder = Path(__file__).resolve().parents[1]
    found = {f"{SOURCE_FOLDER}/{name}": path for name, path in files_below(folder)}
    if (root / SOURCE_FOLDER).is_dir():
        others = files_below(root / ALL_SOURCES)
        found |= {f"{ALL_SOURCES}/{name}": path for name, path in others if name.endswith(".py")}
    return Sources({name: found[name].read_bytes() for name in sorted(found)})


@functools.lru_cache(maxsize=64)
def committed_sources(commit: str, root: Path = Path()) -> Sources:
    """The sources of a commit, links followed. Raises UserError where git does not have it.

    Args:
        commit: a full hash; a name that may move would be remembered at its old place.
        root: of the checkout.
    """
    try:
        return Sources(_contents(commit, _source_names(commit, root), root))
    except GitError as error:
        reason = error.problems[0]
        raise UserError(f"{commit}: its {SOURCE_FOLDER} cannot be read: {reason}") from None


def _source_names(commit: str, root: Path) -> list[str]:
    """The files of a commit that may be a stage's code, from the project's root."""
    listed = git("ls-tree", "-r", "-z", "--name-only", commit, "--", f"{ALL_SOURCES}/", at=root)
    names = []
    for name in listed.split("\0"):
        if name.startswith(f"{SOURCE_FOLDER}/") or name.endswith(".py"):
            names.append(name)
    return names


def _contents(commit: str, names: list[str], root: Path) -> dict[str, bytes]:
    """File -> what a commit holds in it, links followed; a link that leads out of the commit counts as its own text."""
    prefix = git("rev-parse", "--show-prefix", at=root)
    asked = "".join(f"{commit}:{prefix}{name}\n" for name in names)
    answer = git_bytes("cat-file", "--batch", "--follow-symlinks", at=root, text=asked)
    lines = io.BytesIO(answer)
    files = {}
    for name in names:
        words = lines.readline().split()
        if words[-1].isdigit():  # a submodule has no contents here
            files[name] = lines.read(int(words[-1]))
            lines.readline()
    return files
