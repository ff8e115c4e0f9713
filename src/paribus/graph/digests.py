"""Names of data: sha256 of files and folders, and what DVC calls them."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import paribus
from paribus import config
from paribus.errors import UserError
from paribus.files import Values, read_json, write_atomic
from paribus.graph.dvcfile import StageDefinition, is_code


def file_digest(path: str | Path) -> str:
    """sha256 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class DigestMemo:
    """sha256 of large files, hashed once as long as inode, size and time of change stay (DVC's own state relies on the same).

    A hundred gigabytes of shards would else be read at each start. A file changed in the seconds before it was hashed
    is not noted: its time of change would not reveal a change right after.
    """

    LARGE = 1_000_000  # bytes; smaller files are hashed in a moment
    SETTLED = 2.0  # seconds

    def __init__(self, path: Path) -> None:
        self.path = path
        # Cut short by a power failure, it is put aside, and everything is hashed again.
        self._known: dict[str, str] = read_json(path, Values(str)) or {}
        self._new: dict[str, str] = {}

    def digest(self, path: Path) -> str:
        """The sha256 of a file."""
        about = path.stat()
        if about.st_size < self.LARGE:
            return file_digest(path)
        key = _key(about)
        if key not in self._known:
            digest = file_digest(path)
            if time.time() - about.st_mtime < self.SETTLED or _key(path.stat()) != key:
                return digest
            self._known[key] = self._new[key] = digest
        return self._known[key]

    def save(self) -> None:
        """Note the new hashes; the oldest entries go, and with them those of files that no longer exist."""
        if self._new:
            entries = dict(list(self._known.items())[-10_000:])
            write_atomic(self.path, json.dumps(entries))
            self._new = {}


def _key(about: os.stat_result) -> str:
    return f"{about.st_dev}-{about.st_ino}-{about.st_size}-{about.st_mtime_ns}"


def tree_digest(paths: Iterable[str | Path], memo: DigestMemo | None = None) -> str:
    """sha256 over names and contents of files and folders; Python's caches do not count. Raises UserError.

    Args:
        paths: of files and folders.
        memo: remembers the digests of large files; None: every file is read.
    """
    from concurrent.futures import ThreadPoolExecutor

    files: list[tuple[str, Path]] = []
    for path in sorted(Path(path) for path in paths):
        if not path.exists():
            raise UserError(
                f"{path}: does not exist; `dvc repro` makes what the stages before it write"
            )
        files += files_below(path) if path.is_dir() else [(path.name, path)]
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        digests = list(
            pool.map(lambda pair: memo.digest(pair[1]) if memo else file_digest(pair[1]), files)
        )
    if memo:
        memo.save()
    lines = [f"{digest}  {name}\n" for (name, _), digest in zip(files, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def files_below(folder: Path) -> list[tuple[str, Path]]:
    """(name relative to the folder, path) of every file below it, in order."""
    found = [
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    return sorted((path.relative_to(folder).as_posix(), path) for path in found)


def dvc_hash(path: str | Path) -> str:
    """What dvc.lock calls a file or folder: as the stage that wrote it recorded it, else computed the same way."""
    return outs_here().get(str(path)) or computed_hash(Path(path))


def computed_hash(path: Path) -> str:
    """The hash that DVC would give a file or folder in its present state."""
    return dvc_digest(path) if path.is_dir() else md5_of(path.read_bytes())


def data_versions(definition: StageDefinition) -> dict[str, str]:
    """Output -> DVC's name for it, of every output that a stage reads from, as in dvc.lock.

    A dep that no stage makes stands for itself. With these names the data can be fetched again from DVC's cache or a remote.
    """
    outs = outs_here()
    found: dict[str, str] = {}
    for dep in definition.deps:
        if not is_code(dep):
            holder = next((out for out in outs if dep == out or dep.startswith(out + "/")), dep)
            found[holder] = outs.get(holder) or dvc_hash(dep)
    return found


def outs_here() -> Mapping[str, str]:
    """Output -> md5 of every stage in the dvc.lock that lies here; nothing where there is none. Raises UserError."""
    lock = Path("dvc.lock")
    return _outs_in(config.read_text(lock)) if lock.exists() else {}


@functools.lru_cache(maxsize=4)
def _outs_in(text: str) -> Mapping[str, str]:
    """The outputs in the text of a dvc.lock, of some thousand lines.

    libyaml reads it in a tenth of ruamel's time. Only texts are taken from it, so that it decides nothing about types;
    what it refuses goes to the reader that explains.
    """
    import yaml

    try:
        lock = yaml.load(text, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))
        return MappingProxyType(locked_outs(lock))
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        return MappingProxyType(locked_outs(config.parse_yaml(text, "dvc.lock")))


def locked_outs(lock: dict[str, Any]) -> dict[str, str]:
    """Output -> md5 of every stage in a dvc.lock."""
    return {
        out["path"]: str(out.get("md5"))
        for stage in lock.get("stages", {}).values()
        for out in stage.get("outs", [])
    }


def cache_folder(root: Path) -> Path:
    """The folder of the objects in DVC's cache of the checkout at `root`."""
    return (
        Path(_dvc_settings(root).get("cache", {}).get("dir") or root / ".dvc/cache") / "files/md5"
    )


def has_remote(root: Path) -> bool:
    """Whether DVC knows a remote in the checkout at `root`."""
    return bool(_dvc_settings(root).get("remote"))


def _dvc_settings(root: Path) -> dict[str, Any]:
    from dvc.config import Config

    return Config(str(root / ".dvc")) if (root / ".dvc").is_dir() else {}


def cached_files(md5: str, cache: Path) -> dict[str, Path] | None:
    """File of an output (name relative to it; "" for a file) -> its object in the cache; None where DVC's listing is absent.

    The objects themselves may be absent or damaged: DVC looks at neither before it links them.

    Args:
        md5: of the output, as dvc.lock has it; a folder's ends with `.dir`.
        cache: DVC's cache.
    """
    if not md5.endswith(".dir"):
        return {"": cache / md5[:2] / md5[2:]}
    listing = cache / md5[:2] / md5[2:]
    if not listing.is_file():
        return None
    return {
        entry["relpath"]: cache / entry["md5"][:2] / entry["md5"][2:]
        for entry in json.loads(listing.read_text())
    }


def dvc_digest(folder: Path) -> str:
    """DVC's name for a folder: the md5 of the list of its files' md5s."""
    entries = [
        {"md5": md5_of(path.read_bytes()), "relpath": name} for name, path in files_below(folder)
    ]
    return (
        md5_of(
            json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True).encode()
        )
        + ".dir"
    )


def md5_of(data: bytes) -> str:
    """The MD5 of bytes, by which DVC names them."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def package_digest() -> str:
    """The digest of the code of the paribus that runs."""
    package = Path(paribus.__file__).parent
    return tree_digest(sorted(package.rglob("*.py")))
