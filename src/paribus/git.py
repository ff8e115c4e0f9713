"""Git, the one place that calls it: what a command prints, or its words where it fails."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from paribus.errors import UserError

# A hook of git's that calls us would point every command at its own repository.
_LOCAL = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")
_SUBMODULE = "160000 "  # the mode of a submodule among git's files
_SECONDS = 600.0  # a clone of a large repository on a slow disk; no prompt ever waits


class GitError(UserError):
    """A git command failed; its words."""


def git(
    *arguments: str, at: Path | None = None, text: str | None = None, index: Path | None = None
) -> str:
    """What a git command prints, without the last line break.

    Args:
        *arguments: of the command, after `git`.
        at: the folder to run it in; the working folder by default.
        text: the standard input.
        index: a file to use in place of the user's index.

    Raises:
        GitError: with git's own message, or that there is no git.
    """
    printed = git_bytes(*arguments, at=at, text=text, index=index)
    return printed.decode(errors="surrogateescape").rstrip("\n")


def try_git(*arguments: str, at: Path | None = None) -> str | None:
    """As `git`; None where it fails.

    Args:
        arguments: of git.
        at: the folder in which it runs; None: the current one.
    """
    try:
        return git(*arguments, at=at)
    except GitError:
        return None


def git_bytes(
    *arguments: str, at: Path | None = None, text: str | None = None, index: Path | None = None
) -> bytes:
    """As `git`, the bytes as they are: contents of a file, an archive.

    Args:
        arguments: of git.
        at: the folder in which it runs; None: the current one.
        text: that it reads on stdin.
        index: file that serves as the index, so that the user's stays as it is.
    """
    environment = {key: value for key, value in os.environ.items() if key not in _LOCAL}
    environment |= {"LC_ALL": "C.UTF-8", "GIT_TERMINAL_PROMPT": "0"}
    if index is not None:
        environment["GIT_INDEX_FILE"] = str(index)
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=at,
            env=environment,
            input=(text or "").encode(errors="surrogateescape"),
            capture_output=True,
            timeout=_SECONDS,
        )
    except FileNotFoundError:
        raise GitError("git is not installed (Debian: apt-get install git)") from None
    except OSError as error:
        raise GitError(f"git cannot be started: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise GitError(f"git {arguments[0]}: no answer in {_SECONDS:g} seconds") from None
    if done.returncode != 0:
        words = " ".join(done.stderr.decode(errors="replace").split())
        raise GitError(f"git {arguments[0]}: {words or f'exit status {done.returncode}'}")
    return done.stdout


def committed_bytes(commit: str, path: str) -> bytes | None:
    """A file of a commit, its path from the working folder; None where the commit has none."""
    try:
        return git_bytes("cat-file", "blob", f"{commit}:./{path}")
    except GitError:
        return None


def fill_submodules(clone: Path, source: Path) -> None:
    """Check out the submodules of a clone, at the commits that it names, from those of the repository it comes from.

    Nothing is fetched. A submodule that is empty in `source` stays empty, as what runs there does without it too.

    Args:
        clone: the folder of the clone, with a commit checked out.
        source: the folder of the repository.

    Raises:
        GitError: a submodule of `source` lacks the commit that the clone needs.
    """
    for path, commit in _submodules(clone):
        if (source / path / ".git").exists():
            there = clone / path
            options = ("-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0")
            git(
                "clone",
                "--quiet",
                "--shared",
                "--no-checkout",
                *options,
                "--",
                str(source / path),
                str(there),
            )
            git("checkout", "--quiet", "--detach", commit, at=there)
            fill_submodules(there, source / path)


def filled_submodules(top: Path) -> list[str]:
    """The paths of the submodules that a repository has checked out. top: its folder."""
    return [path for path, _ in _submodules(top) if (top / path / ".git").exists()]


def _submodules(top: Path) -> list[tuple[str, str]]:
    """(path, commit) of each submodule, as the index of the repository in the folder `top` names them."""
    if not (top / ".gitmodules").is_file():
        return []
    found = []
    for entry in git("ls-files", "--stage", "-z", at=top).split("\0"):
        about, _, path = entry.partition("\t")
        if about.startswith(_SUBMODULE):
            found.append((path, about.split(" ")[1]))
    return found


def is_in_repository(folder: Path) -> bool:
    """Whether a folder lies in a git repository, one that git refuses to read included."""
    here = folder.resolve()
    return any((above / ".git").exists() for above in (here, *here.parents))


def refusal() -> str | None:
    """Why git does not read the repository that is here, with the cure; None where it does, or without a repository."""
    if not is_in_repository(Path()):
        return None
    try:
        git("rev-parse", "--git-dir")
    except GitError as error:
        words = error.problems[0].removeprefix("git rev-parse: ").removeprefix("fatal: ")
        owned = re.search(r"safe\.directory (\S+)", words)
        if owned is None:
            return words
        return (
            "dubious ownership: it belongs to another user, so that no commit of it can be read; "
            f"`git config --global --add safe.directory {owned[1]}` lets you use it"
        )
    return None
