"""The files of a commit: git's by git's hashes, those that DVC caches by the hashes in the commit's dvc.lock."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from paribus import graph, runtime
from paribus.config import parse_yaml
from paribus.errors import UserError
from paribus.git import GitError, git, try_git


class CommittedFiles:
    """`CommittedFiles(commit).json("metrics/pretrain.json")`; paths are the project's."""

    def __init__(self, commit: str) -> None:
        self.commit = commit

    # ------------------------------------------------------------ git's

    def blob(self, path: str) -> str | None:
        """Git's hash of a file; None where the commit has none."""
        return try_git("rev-parse", "--quiet", "--verify", f"{self.commit}:{_prefix()}{path}")

    def text(self, path: str) -> str | None:
        """A text that git has; None where the commit has none."""
        try:
            return git("cat-file", "blob", f"{self.commit}:{_prefix()}{path}") + "\n"
        except GitError:
            return None

    def trailer(self, name: str) -> str:
        """The value of a line `Name: value` in the commit's message; "" where there is none."""
        message = try_git("log", "-1", "--format=%B", self.commit) or ""
        for line in message.splitlines():
            key, _, value = line.partition(": ")
            if key == name:
                return value.strip()
        return ""

    # ------------------------------------------------------------ DVC's

    @functools.cached_property
    def outs(self) -> dict[str, str]:
        """Output -> its hash, by dvc.lock."""
        try:
            return graph.locked_outs(parse_yaml(self.text("dvc.lock") or "", "dvc.lock"))
        except UserError:
            return {}

    def hash(self, path: str) -> str | None:
        """DVC's hash of a file below an output; None where it has none, or its listing is not in the cache."""
        out = next((one for one in self.outs if path == one or path.startswith(f"{one}/")), None)
        if out is None:
            return None
        mark = self.outs[out]
        if not mark.endswith(".dir"):
            return mark
        return _listing(mark).get(path.removeprefix(f"{out}/"))

    def data(self, path: str) -> bytes | None:
        """A file below an output; None where it has none, or DVC lost it. What differs from its hash is lost."""
        mark = self.hash(path)
        if mark is None:
            return None
        data = _object(mark)
        return data if data is not None else _from_remote(self.commit, path, mark)

    # ------------------------------------------------------------ either

    def json(self, path: str) -> dict[str, Any] | None:
        """The object in a file that git or DVC has; None where neither has, or it is none."""
        data: str | bytes | None = self.text(path)
        if data is None:
            data = self.data(path)
        if data is None:
            return None
        try:
            return dict(json.loads(data))
        except (ValueError, TypeError):
            return None


@functools.lru_cache(maxsize=1)
def _prefix_at(_: Path) -> str:
    return try_git("rev-parse", "--show-prefix") or ""


def _prefix() -> str:
    """The project's folder in its repository, as git names it in a commit."""
    return _prefix_at(Path.cwd())


def _object(mark: str) -> bytes | None:
    """What the cache has under a hash, if it has just that."""
    path = _cache(runtime.main_checkout()) / mark[:2] / mark[2:]
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return data if digest == mark.removesuffix(".dir") else None


@functools.lru_cache(maxsize=4)
def _cache(root: Path) -> Path:
    return graph.cache_folder(root)


@functools.lru_cache(maxsize=256)
def _listing(mark: str) -> dict[str, str]:
    """File -> its hash, of an output that is a folder; {} where the cache has no listing."""
    data = _object(mark)
    if data is None:
        return {}
    return {entry["relpath"]: str(entry["md5"]) for entry in json.loads(data)}


def _from_remote(commit: str, path: str, mark: str) -> bytes | None:
    """A file that only a DVC remote has."""
    root = runtime.main_checkout()
    if not graph.has_remote(root):
        return None
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    try:
        with DVCFileSystem(str(root), rev=commit).open(path, "rb") as file:
            data = bytes(file.read())
    except (OSError, DvcException):
        return None
    same = hashlib.md5(data, usedforsecurity=False).hexdigest() == mark
    return data if same else None
