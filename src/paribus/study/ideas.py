"""Ideas as commits: an uncommitted change, or a patch file, becomes a commit under a reference of its own.

    refs/paribus/ideas/NAME    keeps such a commit, which no branch leads to

The user's branch, index and files stay as they are: trees are built in an index of their own. The same change on the
same commit gives the same commit, whoever makes it and whenever.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paribus.config import parse_yaml
from paribus.errors import UserError
from paribus.git import GitError, git, try_git
from paribus.graph import (
    ENTRY_POINTS,
    SOURCE_FOLDER,
    committed_sources,
    definitions_in,
    generated_deps,
    is_code,
    with_generated_deps,
)

REFERENCES = "refs/paribus/ideas"
PATCHES = (".patch", ".diff")
_AUTHOR = "paribus <paribus@localhost>"  # the same for everyone, so that the commit is
LARGEST_NEW_FILE = 50_000_000  # bytes; a larger file without a name in git is data, not an idea


# ---------------------------------------------------------------- making commits


def commit_of_changes(message: str, root: Path = Path()) -> str:
    """A commit of the checkout as it is now: what is changed, staged or new, without what git ignores.

    Args:
        message: of the commit.
        root: a folder of the checkout.

    Returns:
        The commit, a child of HEAD; HEAD itself where nothing is changed.

    Raises:
        UserError: for a submodule with changes of its own, and for large files that git does not know.
    """
    head = git("rev-parse", "HEAD^{commit}", at=root)
    problems = [*dirty_submodules(root), *_large_new_files(root)]
    if problems:
        raise UserError(problems)
    with _index(root) as index:
        users = Path(git("rev-parse", "--path-format=absolute", "--git-path", "index", at=root))
        if users.is_file():
            shutil.copyfile(users, index)  # it knows which files are as they were
        top = _top(root)
        git("add", "--all", at=top, index=index)
        return _commit(index, head, message, root)


def commit_of_patch(patch: Path, base: str, root: Path = Path()) -> str:
    """A commit of a patch file applied to a commit.

    Args:
        patch: its path, as `git diff` or `git format-patch` made it: paths are the repository's.
        base: the commit to apply it to.
        root: a folder of the repository.

    Raises:
        UserError: where it does not apply, with git's words.
    """
    base = git("rev-parse", "--verify", f"{base}^{{commit}}", at=root)
    where = _top(root)
    with _index(root) as index:
        git("read-tree", base, at=where, index=index)
        try:
            git("apply", "--cached", "--3way", str((root / patch).resolve()), at=where, index=index)
        except GitError as error:
            words = error.problems[0].removeprefix("git apply: ")
            raise UserError(f"{patch}: does not apply to {base[:10]}: {words}") from None
        return _commit(index, base, subject_of(patch, root), root)


def keep(commit: str, name: str, root: Path = Path()) -> None:
    """Keep a commit under `refs/paribus/ideas/NAME`.

    Args:
        commit: a full hash.
        name: may have slashes.
        root: a folder of the repository.
    """
    git("update-ref", f"{REFERENCES}/{name}", commit, at=root)


def is_patch(code: str) -> bool:
    """Whether `code` of an arm names a patch file, and no branch, tag or commit."""
    return code.endswith(PATCHES)


def subject_of(patch: Path, root: Path = Path()) -> str:
    """What a patch says of itself: its subject, where `git format-patch` made it, else the name of its file."""
    text = (root / patch).read_text(encoding="utf-8", errors="replace")
    match = re.search(r"^Subject: (?:\[PATCH[^]]*\] )?(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else patch.stem


def _commit(index: Path, base: str, message: str, root: Path) -> str:
    """The commit of an index on top of `base`, with dvc.yaml naming the code that the stages run."""
    top = _top(root)
    tree = git("write-tree", at=top, index=index)
    if _name_code(index, tree, root):
        tree = git("write-tree", at=top, index=index)
    if tree == git("rev-parse", f"{base}^{{tree}}", at=root):
        return base
    when = git("show", "--no-patch", "--format=%ct", base, at=root)
    lines = [
        f"tree {tree}",
        f"parent {base}",
        f"author {_AUTHOR} {when} +0000",
        f"committer {_AUTHOR} {when} +0000",
        "",
        message,
        "",
    ]
    return git("hash-object", "-t", "commit", "-w", "--stdin", at=root, text="\n".join(lines))


def _name_code(index: Path, tree: str, root: Path) -> bool:
    """Bring dvc.yaml's deps on code up to date in an index; whether that changed anything.

    An idea that adds a module or an import would else let DVC take results of older code for its own.
    """
    prefix = git("rev-parse", "--show-prefix", at=root)
    place = f"{tree}:{prefix}"
    text = try_git("cat-file", "blob", f"{place}dvc.yaml", at=root)
    if text is None or try_git("rev-parse", "--verify", f"{place}{SOURCE_FOLDER}", at=root) is None:
        return False
    entries = parse_yaml(text, "dvc.yaml").get("stages") or {}
    if not entries.keys() & ENTRY_POINTS.keys():
        return False
    needed = generated_deps(committed_sources(tree, root))
    named = definitions_in(text, "dvc.yaml")
    stale = {}
    for stage, code in needed.items():
        deps = [one.deps for name, one in named.items() if name.partition("@")[0] == stage]
        if any(sorted(filter(is_code, one)) != sorted(code) for one in deps):
            stale[stage] = code
    if not stale:
        return False
    written = with_generated_deps(text + "\n", stale)
    blob = git("hash-object", "-w", "--stdin", at=root, text=written)
    entry = f"100644,{blob},{prefix}dvc.yaml"
    git("update-index", "--cacheinfo", entry, at=_top(root), index=index)
    return True


@contextmanager
def _index(root: Path) -> Iterator[Path]:
    """An index of git's in a folder that goes away."""
    with tempfile.TemporaryDirectory(prefix="paribus-index-") as folder:
        yield Path(folder) / "index"


def _top(root: Path) -> Path:
    return Path(git("rev-parse", "--show-toplevel", at=root))


# ---------------------------------------------------------------- what cannot be recorded


def dirty_submodules(root: Path = Path(), moved: bool = False) -> list[str]:
    """Submodules with changes that no commit of theirs has, each in a sentence.

    Args:
        root: a folder of the checkout.
        moved: name those too that stand at another commit than the one this repository has recorded.
    """
    listed = try_git("status", "--porcelain=v2", "-z", "--ignore-submodules=none", at=root) or ""
    found = []
    for entry in listed.split("\0"):
        words = entry.split(" ", 8)
        # `1 XY SCMU …`: S a submodule, C another commit, M changed files, U files that git does not know.
        if words[0] != "1" or not words[2].startswith("S"):
            continue
        path = words[8]
        if words[2][2] == "M":
            found.append(
                f"{path}: a submodule with changes that are not committed in it, so that no commit of this repository can "
                f"hold them: git -C {path} commit -a, then git add {path} && git commit"
            )
        elif moved and words[2][1] == "C":
            found.append(
                f"{path}: a submodule that stands at another commit than the one recorded here; a result has to follow "
                f"from a commit: git add {path} && git commit"
            )
    return found


def _large_new_files(root: Path) -> list[str]:
    top = _top(root)
    listed = git("ls-files", "--others", "--exclude-standard", "-z", at=top)
    found = []
    for name in filter(None, listed.split("\0")):
        path = top / name
        size = path.stat().st_size if path.is_file() else 0
        if size > LARGEST_NEW_FILE:
            found.append(
                f"{name}: {size:,} bytes that git does not know would become part of the change; "
                "name it in .gitignore, or track it with `dvc add`"
            )
    return found
