"""The files of a commit: git's by git's hashes, those that DVC caches by the hashes in the commit's dvc.lock."""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from paribus import graph
from paribus.config import flatten, parse_yaml
from paribus.errors import UserError
from paribus.files import write_atomic
from paribus.git import GitError, git, git_bytes, try_git
from paribus.places import main_checkout
from paribus.study import run_cache

LINK = "120000"  # git's mode of a symbolic link


class CommittedFiles:
    """`CommittedFiles(commit).json("metrics/pretrain.json")`; paths are the project's."""

    def __init__(self, commit: str) -> None:
        self.commit = commit
        self._mappings: dict[str, dict[str, object]] = {}  # YAML takes long to read

    # ------------------------------------------------------------ git's

    @functools.cached_property
    def _entries(self) -> dict[str, tuple[str, str]]:
        """Every file and folder of the commit -> (git's mode of it, its hash)."""
        listed = try_git("ls-tree", "-r", "-t", "-z", "--full-tree", self.commit) or ""
        prefix = _prefix()
        entries = {}
        for entry in filter(None, listed.split("\0")):
            about, _, path = entry.partition("\t")
            mode, _, blob = about.split(" ")
            if path.startswith(prefix):
                entries[path.removeprefix(prefix)] = (mode, blob)
        return entries

    @functools.cached_property
    def tree(self) -> dict[str, str]:
        """Every file and folder of the commit -> git's hash of it."""
        return {path: blob for path, (_, blob) in self._entries.items()}

    @property
    def links(self) -> list[str]:
        """The symbolic links of the commit."""
        return [path for path, (mode, _) in self._entries.items() if mode == LINK]

    def blob(self, path: str) -> str | None:
        """Git's hash of a file or folder; None where the commit has none."""
        return self.tree.get(PurePosixPath(path).as_posix())

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
    def lock(self) -> dict[str, Any]:
        """The commit's dvc.lock; {} where it has none that can be read."""
        try:
            return self.mapping("dvc.lock")
        except UserError:
            return {}

    def mapping(self, path: str) -> dict[str, Any]:
        """The values in a YAML file that git has; {} where the commit lacks it. Raises UserError where it is damaged."""
        if path not in self._mappings:
            text = self.text(path) or ""
            written = _as_dvc_writes(text) if path == "dvc.lock" else None
            if written is None:
                written = parse_yaml(text, f"{path} at {self.commit[:10]}")
            self._mappings[path] = written
        return self._mappings[path]

    @functools.cached_property
    def outs(self) -> dict[str, str]:
        """Output -> its hash, by dvc.lock."""
        return graph.locked_outs(self.lock)

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
        """A file below an output; None where it is missing, or DVC lost it. A file that differs from its hash counts as lost."""
        mark = self.hash(path)
        if mark is None:
            return None
        return _kept(mark)

    def place(self, path: str) -> Path | None:
        """The path of a file below an output in DVC's cache, whether or not it matches its hash; None where it is missing."""
        mark = self.hash(path)
        if mark is None:
            return None
        place = _place(mark)
        return place if place.is_file() else None

    # ------------------------------------------------------------ either

    def content(self, path: str) -> bytes | None:
        """A file that git or DVC has; None where neither has.

        A file below an output that DVC keeps is DVC's, even if git holds another in its place.
        """
        kept_by_dvc = path not in self.outs and self.hash(path) is not None
        own = None if kept_by_dvc else self._blob_bytes(path)
        return self.data(path) if own is None else own

    def _blob_bytes(self, path: str) -> bytes | None:
        """A file that git has; None where the commit has none."""
        if path not in self.tree:
            return None
        try:
            return git_bytes("cat-file", "blob", self.tree[path])
        except GitError:  # a folder
            return None

    def json(self, path: str) -> dict[str, Any] | None:
        """The object in a file that git or DVC has; None where neither has, or it is none."""
        data = self.content(path)
        if data is None:
            return None
        try:
            return dict(json.loads(data))
        except (ValueError, TypeError):
            return None


class FilesAsTheyLie(CommittedFiles):
    """The files of a commit for a check for damage: the cache's contents here, whether or not they match their hashes."""

    def data(self, path: str) -> bytes | None:
        """A file below an output; None where the cache here has none."""
        place = self.place(path)
        return place.read_bytes() if place else None


# ---------------------------------------------------------------- whether it is as it was


def altered(files: CommittedFiles, stages: Collection[str]) -> list[str]:
    """Files of a run's commit that changed after DVC noted them at the run's end, sorted.

    dvc.lock holds the parameters and a hash of every file that a stage read and wrote. A commit that a run made agrees
    with its own dvc.lock; one that somebody edited afterwards does not. Where somebody edited dvc.lock with it, DVC's
    run-cache has what the run left, as long as it is kept.

    Args:
        files: of the commit.
        stages: that the run consists of.
    """
    changed = set()
    read: dict[str, str] = {}
    made: dict[str, str] = {}
    for stage in stages:
        entry = (files.lock.get("stages") or {}).get(stage)
        if entry is None:
            changed.add("dvc.lock")
            continue
        if not _same_params(files, entry):
            changed.add("params.yaml")
        changed.update(edited_in_lock(entry))
        read.update(_committed_files(files, entry.get("deps", [])))
        made.update(_committed_files(files, entry.get("outs", [])))
    expected = (
        read | made
    )  # what read an older version of a file that was made again is stale, and nothing was edited
    blobs = {files.tree[path] for path in expected}
    have = _md5_of_blobs(frozenset(blobs))
    for path, mark in expected.items():
        if have.get(files.tree[path]) != mark and _md5_in_checkout(files.commit, path) != mark:
            changed.add(path)
    return sorted(changed)


def _committed_files(files: CommittedFiles, entries: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Path -> md5 by dvc.lock, of the single files that git has too."""
    found = {}
    for file in entries:
        if file["path"] in files.tree and not str(file.get("md5", ".dir")).endswith(".dir"):
            found[file["path"]] = str(file["md5"])
    return found


def edited_in_lock(entry: dict[str, Any]) -> list[str]:
    """Outputs in a stage's entry of dvc.lock that differ from DVC's run-cache (`run_cache.edited`)."""
    return run_cache.edited(entry, _runs(), _object)


def _same_params(files: CommittedFiles, entry: dict[str, Any]) -> bool:
    """Whether params.yaml of the commit has the values that the stage ran with."""
    noted = flatten((entry.get("params") or {}).get("params.yaml") or {})
    try:
        there = flatten(files.mapping("params.yaml"))
    except UserError:
        return False
    return all(key in there and there[key] == value for key, value in noted.items())


@functools.lru_cache(maxsize=64)
def _md5_of_blobs(blobs: frozenset[str]) -> dict[str, str]:
    """Git's hash of a file -> its md5, for those that git has."""
    asked = "".join(f"{blob}\n" for blob in sorted(blobs))
    lines = io.BytesIO(git_bytes("cat-file", "--batch", text=asked))
    sums = {}
    while words := lines.readline().split():
        if words[-1].isdigit():
            content = lines.read(int(words[-1]))
            lines.readline()
            sums[words[0].decode()] = graph.md5_of(content)
    return sums


def _md5_in_checkout(commit: str, path: str) -> str | None:
    """md5 of a file as a checkout has it, where git changes line ends or keeps it elsewhere."""
    try:
        return graph.md5_of(git_bytes("cat-file", "--filters", f"{commit}:{_prefix()}{path}"))
    except GitError:
        return None


def _prefix_at(_: Path) -> str:
    return try_git("rev-parse", "--show-prefix") or ""


def _prefix() -> str:
    """The project's folder in its repository, as git names it in a commit."""
    return _prefix_at(Path.cwd())


def _object(mark: str) -> bytes | None:
    """The content that the cache has under a hash, if it matches the hash."""
    try:
        data = _place(mark).read_bytes()
    except OSError:
        return None
    return data if graph.md5_of(data) == mark.removesuffix(".dir") else None


def _runs() -> Path:
    """The folder of DVC's run-cache."""
    return _cache(main_checkout()).parents[1] / "runs"


def _place(mark: str) -> Path:
    """Where the cache keeps what has this hash."""
    return _cache(main_checkout()) / mark[:2] / mark[2:]


@functools.lru_cache(maxsize=4)
def _cache(root: Path) -> Path:
    return graph.cache_folder(root)


@functools.lru_cache(maxsize=256)
def _listing(mark: str) -> dict[str, str]:
    """File -> its hash, of an output that is a folder; {} where the cache has no listing."""
    data = _kept(mark)
    if data is None:
        return {}
    return {entry["relpath"]: str(entry["md5"]) for entry in json.loads(data)}


def _kept(mark: str) -> bytes | None:
    """The content that the cache, or else the default remote, has under a hash."""
    data = _object(mark)
    return data if data is not None else _from_remote(mark)


def _from_remote(mark: str) -> bytes | None:
    """The content that only the default remote has under a hash, as of a run on another machine; the cache keeps it."""
    fetch = _remote(main_checkout())
    data = fetch(mark) if fetch else None
    if data is None or graph.md5_of(data) != mark.removesuffix(".dir"):
        return None
    place = _place(mark)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(place, data)
    place.chmod(0o444)  # as DVC keeps them
    return data


@functools.lru_cache(maxsize=4)
def _remote(root: Path) -> Callable[[str], bytes | None] | None:
    """What reads an object of the default remote by its hash; None without a remote."""
    if not graph.has_remote(root):
        return None
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        store = Repo(str(root)).cloud.get_remote_odb()
    except DvcException:
        return None

    def read(mark: str) -> bytes | None:
        try:
            return bytes(store.fs.cat_file(store.oid_to_path(mark)))
        except Exception:  # whatever the remote's library raises: it has none, or cannot be reached
            return None

    return read


class _Reader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """YAML 1.2, as DVC writes it, read by libyaml: some thousand lines of dvc.lock in a tenth of ruamel's time."""


_Reader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Reader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
    )


def _as_dvc_writes(text: str) -> dict[str, Any] | None:
    """The mapping in a dvc.lock; None where DVC did not write it so, for the reader that explains."""
    try:
        values = yaml.load(text, Loader=_Reader)
    except (yaml.YAMLError, ValueError):
        return None
    return values if isinstance(values, dict) else None
