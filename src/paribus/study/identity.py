"""What a run computes: params.yaml with overrides, the stages of dvc.yaml, and the key of both."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from paribus.config import Config, fingerprint, flatten, merge, parse_config, read_yaml
from paribus.graph import StageDefinition, declared_params, stage_definitions


def settings(overrides: Mapping[str, object] | None = None) -> Config:
    """params.yaml with overrides. The file is read again only when it changed, as a study calls this hundreds of times."""
    return parse_config(params_with(overrides or {}))


def params_with(overrides: Mapping[str, object]) -> dict[str, object]:
    """The values of params.yaml as they were written, with overrides."""
    return merge(_read(*_stamp("params.yaml")), dict(overrides))


def definitions() -> dict[str, StageDefinition]:
    """The stages of dvc.yaml, read again when it changed."""
    return _define(*_stamp("dvc.yaml"))


Stamp = tuple[str, int, int]  # path, time of change, size

_HELD: dict[str, Stamp] | None = None  # while a study runs: the files as they were when it began


@contextlib.contextmanager
def unchanged_sources() -> Iterator[None]:
    """Within it `settings` and `definitions` use the files as they are now, whatever the user edits meanwhile."""
    global _HELD
    _HELD = {name: _stamp_now(name) for name in ("params.yaml", "dvc.yaml")}
    settings()
    definitions()
    try:
        yield
    finally:
        _HELD = None


def _stamp(name: str) -> Stamp:
    return _HELD[name] if _HELD is not None else _stamp_now(name)


def _stamp_now(name: str) -> Stamp:
    path = Path(name).resolve()
    about = path.stat() if path.is_file() else None
    return str(path), about.st_mtime_ns if about else 0, about.st_size if about else 0


@functools.lru_cache(maxsize=4)
def _read(path: str, *_: int) -> dict[str, object]:
    return read_yaml(path)


@functools.lru_cache(maxsize=4)
def _define(path: str, *_: int) -> dict[str, StageDefinition]:
    return stage_definitions(path)


def chain_key(stages: Sequence[str], config: Config) -> str:
    """A key for what a chain of stages computes, as far as params.yaml decides it.

    Args:
        stages: of the chain.
        config: their parameters.
    """
    return fingerprint(**{name: all_params(definitions()[name], config) for name in stages})


def key_with_code(key: str, added: Mapping[str, object]) -> str:
    """A key for what a chain computes with an arm's code.

    Args:
        key: of the parameters that the baseline's code has too.
        added: values of the keys that only the arm's code has.
    """
    return fingerprint(chain=key, added=dict(added))


def split_params(flat: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    """(values of keys that params.yaml has, values of keys that it lacks).

    Args:
        flat: dotted key -> value, of the params.yaml of another commit.
    """
    base = flatten(_read(*_stamp("params.yaml")))
    known = {key: value for key, value in flat.items() if key in base}
    added = {key: value for key, value in flat.items() if key not in base}
    return known, added


def all_params(definition: StageDefinition, config: Config) -> dict[str, object]:
    """What a stage declares, `train.*` too: a number of threads changes results.

    Args:
        definition: of the stage in dvc.yaml.
        config: where the values are.
    """
    values = flatten(config)
    declared = {key: values[key] for key in values if is_declared(key, definition.params)}
    return declared | declared_params(definition, config)


def is_declared(key: str, names: Sequence[str]) -> bool:
    """Whether a key, or a section that it is in, is among those that a stage declares.

    Args:
        key: dotted.
        names: of the keys and sections.
    """
    return any(key == name or key.startswith(f"{name}.") for name in names)


def writer_of(path: str) -> str | None:
    """The stage that writes a file."""
    for name, definition in definitions().items():
        for out in definition.outs:
            if path == out or path.startswith(f"{out}/"):
                return name
    return None
