"""The stages of dvc.yaml: the declarations of each, and their dependencies."""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paribus import config
from paribus.errors import UserError

LOCK = (
    "requirements.lock"  # all libraries' versions; the hardware class has those that decide bytes
)


def is_code(dep: str) -> bool:
    """Whether a dep of dvc.yaml is code, which git versions; DVC versions the others."""
    return dep.startswith("src/") or dep == LOCK


@dataclass(frozen=True)
class StageDefinition:
    """One stage's entry in dvc.yaml; `outs` with metrics and plots."""

    params: list[str]  # dotted keys or sections of params.yaml
    deps: list[str]
    outs: list[str]


# How a stage runs, where it logs and how long: not what it computes. The hardware class stands for what does.
_NOT_IN_FINGERPRINT = ("train", "tracking")


def stage_definitions(path: str | Path = "dvc.yaml") -> dict[str, StageDefinition]:
    """Every stage by the name DVC gives it; `matrix` and `foreach` stages as `name@key`. Raises UserError."""
    return definitions_in(config.read_text(path), str(path))


def definitions_in(text: str, path: str) -> dict[str, StageDefinition]:
    """Every stage in the text of a dvc.yaml. path: named in errors."""
    return dict(_definitions(text, path))


@functools.lru_cache(maxsize=8)
def _definitions(text: str, path: str) -> dict[str, StageDefinition]:
    """The stages in the text of a dvc.yaml, which takes a while to parse. path: named in errors."""
    definitions = {}
    for name, raw in (config.parse_yaml(text, path).get("stages") or {}).items():
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
    """One stage of dvc.yaml. Raises UserError with the names there are.

    Args:
        name: of the stage, with `@item` where it has one.
        path: of the file.
    """
    definitions = stage_definitions(path)
    if name not in definitions:
        raise UserError(f"{path}: no stage {name!r}; there are: {', '.join(definitions)}")
    return definitions[name]


def with_generated_deps(text: str, deps: dict[str, list[str]]) -> str:
    """The text of a dvc.yaml with each stage's deps on code replaced; data deps, order and comments stay.

    deps: stage -> its code (`closure.generated_deps`).
    """
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 4096  # no line of the file is folded
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(text)
    for name, sources in deps.items():
        entry = document["stages"][name]
        body = entry.get("do", entry)
        data = [dep for dep in body.get("deps", []) if not is_code(str(dep))]
        body["deps"] = [*data, *sources]
    written = io.StringIO()
    yaml.dump(document, written)
    return written.getvalue()


def chain(targets: Iterable[str], definitions: dict[str, StageDefinition]) -> list[str]:
    """The targets and every stage that they come from, in the order of dvc.yaml.

    Args:
        targets: names of stages.
        definitions: name -> stage, in the order of dvc.yaml.
    """
    made: dict[Parts, set[str]] = {}  # path -> the stages that make it
    within: dict[Parts, set[str]] = {}  # path -> the stages that make it, or something in it
    for name, definition in definitions.items():
        for out in map(_parts, definition.outs):
            made.setdefault(out, set()).add(name)
            for above in _above(out):
                within.setdefault(above, set()).add(name)
    found: set[str] = set()
    waiting = set(targets)
    while waiting:
        name = waiting.pop()
        found.add(name)
        for dep in map(_parts, definitions[name].deps):
            makers = within.get(dep, set()).union(*(made.get(above, ()) for above in _above(dep)))
            waiting |= makers - found
    return [name for name in definitions if name in found]


Parts = tuple[str, ...]  # of a path


def _parts(path: str) -> Parts:
    return Path(path).parts


def _above(parts: Parts) -> list[Parts]:
    """The folders that a path lies in, and the path."""
    return [parts[:length] for length in range(1, len(parts) + 1)]


def assignments(overrides: Mapping[str, object]) -> list[str]:
    """Dotted overrides as `dvc exp run -S` takes them.

    They are `key=value`, `+key=value` where params.yaml has no such key, and `~key +key={}` for an empty mapping, as DVC
    merges mappings.
    """
    known = config.flatten(config.load_config())
    words = []
    for key, value in overrides.items():
        if value == {}:
            words += [f"~{key}", f"+{key}={{}}"]
        else:
            sign = "" if key in known else "+"
            words.append(f"{sign}{key}={_hydra(value)}")
    return words


def _hydra(value: object) -> str:
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
        rows: list[tuple[list[str], dict[str, object]]] = [([], {})]
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


def _fill(text: str, values: Mapping[str, object], where: str) -> str:
    """`text` with `${item}` and `${item.name}` replaced."""

    def look_up(match: re.Match[str]) -> str:
        value: object = values
        for part in match[1].strip().split("."):
            if not isinstance(value, dict) or part not in value:
                raise UserError(f"{where}: ${{{match[1]}}} is not a value of its matrix or foreach")
            value = value[part]
        return str(value)

    return re.sub(r"\$\{([^}]*)\}", look_up, text)


def declared_params(definition: StageDefinition, settings: config.Config) -> dict[str, object]:
    """Dotted key -> value of what a stage declares, sections spelt out; how it runs (`train`, `tracking`) left out.

    Args:
        definition: of the stage.
        settings: params.yaml as it is.
    """
    flat = config.flatten(settings)
    found: dict[str, object] = {}
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
