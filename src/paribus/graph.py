"""What dvc.yaml and dvc.lock say: the stages, what each declares, its fingerprint, DVC's names for data."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paribus import config
from paribus.errors import UserError


@dataclass(frozen=True)
class StageDefinition:
    """What dvc.yaml says of one stage; `outs` with metrics and plots."""

    params: list[str]  # dotted keys or sections of params.yaml
    deps: list[str]
    outs: list[str]


# How a stage runs, where it logs and how long: not what it computes. The hardware class stands for what does.
_NOT_IN_FINGERPRINT = ("train", "tracking")


def stage_definitions(path: str | Path = "dvc.yaml") -> dict[str, StageDefinition]:
    """Every stage by the name DVC gives it; `matrix` and `foreach` stages as `name@key`. Raises UserError."""
    definitions = {}
    for name, raw in (config.read_yaml(path).get("stages") or {}).items():
        for suffix, values in _instances(raw):
            body = raw.get("do", raw)
            fields = {
                field: [
                    _fill(entry, values, f"{path}: {name}") for entry in _names(body.get(field))
                ]
                for field in ("params", "deps", "outs", "metrics", "plots")
            }
            outs = fields["outs"] + fields["metrics"] + fields["plots"]
            definitions[name + suffix] = StageDefinition(fields["params"], fields["deps"], outs)
    return definitions


def stage_definition(name: str, path: str | Path = "dvc.yaml") -> StageDefinition:
    """One stage of dvc.yaml. Raises UserError with the names there are."""
    definitions = stage_definitions(path)
    if name not in definitions:
        raise UserError(f"{path}: no stage {name!r}; there are: {', '.join(definitions)}")
    return definitions[name]


def chain(targets: Iterable[str], definitions: dict[str, StageDefinition]) -> list[str]:
    """The targets and every stage that they come from, in the order of dvc.yaml."""
    found: set[str] = set()
    waiting = list(targets)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            deps = [Path(dep) for dep in definitions[name].deps]
            waiting += [
                other
                for other, definition in definitions.items()
                if any(_overlap(dep, Path(out)) for dep in deps for out in definition.outs)
            ]
    return [name for name in definitions if name in found]


def _overlap(a: Path, b: Path) -> bool:
    return a == b or a in b.parents or b in a.parents


def assignments(overrides: dict[str, Any]) -> list[str]:
    """Dotted overrides as `dvc exp run -S` takes them: `key=value`, `+key=value` where params.yaml has no such key."""
    known = config.flatten(config.load_config())
    return [
        f"{key if key in known else '+' + key}={_hydra(value)}" for key, value in overrides.items()
    ]


def _hydra(value: Any) -> str:
    """A value as DVC's -S reads it: YAML, but for null and quotes."""
    if isinstance(value, str) and not re.fullmatch(r"[\w./-]+", value):
        return f"'{value}'"
    return (
        "null"
        if value is None
        else json.dumps(value)
        if isinstance(value, (bool, list))
        else str(value)
    )


def _instances(raw: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(suffix of the name, values of its `${...}`) of each stage that one entry of dvc.yaml stands for."""
    if "matrix" in raw:
        rows: list[tuple[list[str], dict[str, Any]]] = [([], {})]
        for key, values in raw["matrix"].items():
            short = [
                f"{key}{i}" if isinstance(value, dict | list) else str(value)
                for i, value in enumerate(values)
            ]
            rows = [
                ([*names, name], row | {key: value})
                for names, row in rows
                for name, value in zip(short, values, strict=True)
            ]
        yield from (("@" + "-".join(names), {"item": row}) for names, row in rows)
    elif isinstance(raw.get("foreach"), dict):
        yield from ((f"@{key}", {"key": key, "item": item}) for key, item in raw["foreach"].items())
    elif "foreach" in raw:
        yield from ((f"@{item}", {"item": item}) for item in raw["foreach"])
    else:
        yield "", {}


def _names(entries: Any) -> Iterator[str]:
    """The names in a list of dvc.yaml, whose entries are names or {name: options} ({params.yaml: [keys]})."""
    for entry in entries or []:
        if not isinstance(entry, dict):
            yield str(entry)
        else:
            for name, options in entry.items():
                yield from options if isinstance(options, list) else [name]


def _fill(text: str, values: dict[str, Any], where: str) -> str:
    """`text` with `${item}` and `${item.name}` replaced."""

    def look_up(match: re.Match[str]) -> str:
        value: Any = values
        for part in match[1].strip().split("."):
            if not isinstance(value, dict) or part not in value:
                raise UserError(f"{where}: ${{{match[1]}}} is not a value of its matrix or foreach")
            value = value[part]
        return str(value)

    return re.sub(r"\$\{([^}]*)\}", look_up, text)


def declared_params(definition: StageDefinition, settings: config.Config) -> dict[str, Any]:
    """Dotted key -> value of what a stage declares, sections spelt out; how it runs (`train`, `tracking`) left out."""
    flat = config.flatten(settings)
    found: dict[str, Any] = {}
    for declared in definition.params:
        matches = {
            key: value
            for key, value in flat.items()
            if key == declared or key.startswith(declared + ".")
        }
        if not matches:
            raise UserError(f"dvc.yaml: params: {declared} is no key of params.yaml")
        found |= matches
    return {
        key: value for key, value in found.items() if key.split(".")[0] not in _NOT_IN_FINGERPRINT
    }


# ---------------------------------------------------------------- names of data


def file_digest(path: str | Path) -> str:
    """sha256 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class DigestMemo:
    """sha256 of large files, hashed once as long as inode, size and time of change stay (what DVC's own state goes by).

    A hundred gigabytes of shards would else be read at each start. A file changed in the seconds before it was hashed
    is not noted: its time of change would not tell a change that comes right after.
    """

    LARGE = 1_000_000  # bytes; smaller files are hashed in a moment
    SETTLED = 2.0  # seconds

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._known: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        except (
            OSError,
            ValueError,
        ):  # none yet, or cut short by a power failure: everything is hashed again
            self._known = {}
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
        """Note what was hashed anew; entries of files long gone go with the oldest."""
        if self._new:
            entries = dict(list(self._known.items())[-10_000:])
            aside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            aside.write_text(json.dumps(entries), encoding="utf-8")
            aside.replace(self.path)
            self._new = {}


def _key(about: os.stat_result) -> str:
    return f"{about.st_dev}-{about.st_ino}-{about.st_size}-{about.st_mtime_ns}"


def tree_digest(paths: Iterable[str | Path], memo: DigestMemo | None = None) -> str:
    """sha256 over names and contents of files and folders; caches of Python's are no content. Raises UserError."""
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
    outs = locked_outs(config.read_yaml("dvc.lock")) if Path("dvc.lock").exists() else {}
    return outs.get(str(path)) or computed_hash(Path(path))


def computed_hash(path: Path) -> str:
    """What DVC would call a file or folder as it is now."""
    return dvc_digest(path) if path.is_dir() else _md5(path.read_bytes())


def data_versions(definition: StageDefinition) -> dict[str, str]:
    """Output -> DVC's name for it, of every output that a stage reads from, as dvc.lock has it; a dep that no stage makes
    stands for itself. With it the data can be had again from DVC's cache or a remote."""
    outs = locked_outs(config.read_yaml("dvc.lock")) if Path("dvc.lock").exists() else {}
    found: dict[str, str] = {}
    for dep in definition.deps:
        if not is_code(dep):
            holder = next((out for out in outs if dep == out or dep.startswith(out + "/")), dep)
            found[holder] = outs.get(holder) or dvc_hash(dep)
    return found


def locked_outs(lock: dict[str, Any]) -> dict[str, str]:
    """Output -> md5 of every stage in a dvc.lock."""
    return {
        out["path"]: str(out.get("md5"))
        for stage in lock.get("stages", {}).values()
        for out in stage.get("outs", [])
    }


def is_code(dep: str) -> bool:
    """Whether a dep of dvc.yaml is source code, which git versions; DVC versions the others."""
    return dep.startswith("src/")


def code_files(definition: StageDefinition, root: Path = Path()) -> dict[str, str]:
    """Source file -> sha256, of all the code that decides a stage's outputs; files that are not there are left out."""
    found: dict[str, str] = {}
    for dep in filter(is_code, definition.deps):
        place = root / dep
        files = files_below(place) if place.is_dir() else [("", place)] if place.is_file() else []
        found |= {f"{dep}/{name}".rstrip("/"): file_digest(path) for name, path in files}
    return found


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
        {"md5": _md5(path.read_bytes()), "relpath": name} for name, path in files_below(folder)
    ]
    return (
        _md5(
            json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True).encode()
        )
        + ".dir"
    )


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
