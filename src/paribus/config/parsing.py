"""Nested plain values -> Config, or every problem at once, each with the fix."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal

from paribus.config.derived import shape
from paribus.config.schema import Config, Corpus, describe
from paribus.config.sources import Archive, HubFiles, source_problem
from paribus.errors import UserError

# Sources of the mixtures that are always there: the world's, and what other data gives.
RESERVED_SOURCES = (
    "facts",
    "smalltalk",
    "instructions",
    "problems_worked",
    "problems_direct",
    "documents",
)


def load_config(
    path: str | Path = "params.yaml", overrides: dict[str, Any] | None = None
) -> Config:
    """Read and check a params file; `overrides` are dotted keys. Raises UserError with every problem at once."""
    return parse_config(merge(read_yaml(path), overrides or {}))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; 1e-3 is a number, as in YAML 1.2. Raises UserError."""
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """The mapping in a text of YAML, which is called `where` in errors. Raises UserError."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    number = re.compile(
        r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"
    )  # $: resolvers match prefixes, and a hash may begin with 4e90
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    try:
        values = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a mapping of keys to values")
    return values


def merge(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A copy of nested `values` with dotted `overrides` written over it; names are checked by parse_config."""
    merged = json.loads(json.dumps(values))
    for dotted, value in overrides.items():
        node = merged
        *parents, last = dotted.split(".")
        for name in parents:
            child = node.setdefault(name, {})
            if not isinstance(child, dict):
                raise UserError(f"{dotted}: {name} is a value, not a section")
            node = child
        node[last] = value
    return merged


def parse_config(values: dict[str, Any]) -> Config:
    """Nested plain values -> Config. Raises UserError with every wrong key, type, range and combination at once."""
    problems: list[str] = []
    config = _parse_section(Config, values, "", problems)
    if not problems:
        problems = _combinations(config)
    if problems:
        raise UserError(problems)
    return config


def _parse_section(cls: type, values: Any, prefix: str, problems: list[str]) -> Any:
    if not isinstance(values, dict):
        problems.append(f"{prefix.rstrip('.')}: expected a section with keys, not {values!r}")
        return None
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            problems.append(_unknown_key(prefix, str(name)))
    parsed = {}
    for name, field in fields.items():
        if name not in values:
            problems.append(f"{prefix}{name}: missing; it is: {field.metadata['doc']}")
        elif dataclasses.is_dataclass(hints[name]):
            parsed[name] = _parse_section(hints[name], values[name], f"{prefix}{name}.", problems)
        else:
            parsed[name] = _parse_value(
                hints[name], values[name], prefix + name, field.metadata, problems
            )
    return cls(**parsed) if len(parsed) == len(fields) else None


def _unknown_key(prefix: str, name: str) -> str:
    dotted = prefix + name
    known = [path for path, *_ in describe()]
    close = difflib.get_close_matches(dotted, known, n=1, cutoff=0.6) or [
        path for path in known if path.split(".")[-1] == name.split(".")[-1]
    ]
    siblings = [
        path.removeprefix(prefix)
        for path in known
        if path.startswith(prefix) and "." not in path[len(prefix) :]
    ]
    hint = f"did you mean {close[0]}?" if close else f"allowed here: {', '.join(siblings)}"
    return f"{dotted}: unknown key; {hint}"


def _parse_value(hint: Any, value: Any, path: str, meta: Any, problems: list[str]) -> Any:
    """The value as its type, or None and a problem."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    hint = next(option for option in options if option is not type(None))
    parsed = _as_type(hint, value)
    if parsed is None:
        problems.append(
            f"{path}: {value!r} is not allowed; expected {allowed(hint, meta, type(None) in options)}"
        )
        return None
    items = parsed.values() if isinstance(parsed, dict) else [parsed]
    for item in items:
        if (
            isinstance(item, (int, float))
            and not isinstance(item, bool)
            and not _in_range(item, meta)
        ):
            problems.append(
                f"{path}: {value!r} is out of range; expected {allowed(hint, meta, type(None) in options)}"
            )
    return parsed


def _as_type(hint: Any, value: Any) -> Any:
    """`value` if it is of the type (an int serves as a float), else None."""
    if typing.get_origin(hint) is Literal:
        return value if isinstance(value, str) and value in typing.get_args(hint) else None
    if typing.get_origin(hint) is list:
        return (
            list(value)
            if isinstance(value, list) and all(isinstance(item, str) for item in value)
            else None
        )
    if typing.get_origin(hint) is dict:
        kind = typing.get_args(hint)[1]
        items = (
            {str(name): _as_type(kind, item) for name, item in value.items()}
            if isinstance(value, dict)
            else {"": None}
        )
        return items if None not in items.values() else None
    if hint is bool or isinstance(value, bool):
        return value if hint is bool and isinstance(value, bool) else None
    if hint is float and isinstance(value, (int, float)):
        return float(value) if math.isfinite(value) else None
    return value if isinstance(value, hint) else None


def _in_range(value: float, meta: Any) -> bool:
    ge, gt, le = meta["ge"], meta["gt"], meta["le"]
    return (
        (ge is None or value >= ge) and (gt is None or value > gt) and (le is None or value <= le)
    )


def allowed(hint: Any, meta: Any, nullable: bool) -> str:
    """What a key takes, in words."""
    if typing.get_origin(hint) is Literal:
        text = "one of " + ", ".join(typing.get_args(hint))
    elif typing.get_origin(hint) is list:
        text = "a list of strings"
    elif typing.get_origin(hint) is dict:
        text = (
            "a mapping of names to " + {float: "numbers", str: "strings"}[typing.get_args(hint)[1]]
        )
    else:
        text = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}[
            hint
        ]
    signs = (("ge", ">="), ("gt", ">"), ("le", "<="))
    bounds = [f"{sign} {meta[name]:,}" for name, sign in signs if meta[name] is not None]
    return text + (" " + " and ".join(bounds) if bounds else "") + (" or null" if nullable else "")


def _combinations(config: Config) -> list[str]:
    """Values that are fine alone and not together, each with the fix."""
    problems = []
    model = config.model
    width, n_heads, n_kv_heads, _ = shape(model)
    if width % model.head_dim:
        problems.append(
            f"model.width: {width} is not a multiple of model.head_dim ({model.head_dim})"
        )
    elif n_heads * model.head_dim != width:
        problems.append(
            f"model.n_heads: {n_heads} x head_dim {model.head_dim} is not the width {width}; "
            f"set it to {width // model.head_dim} or null"
        )
    if n_heads % n_kv_heads:
        problems.append(f"model.n_kv_heads: {n_kv_heads} does not divide n_heads ({n_heads})")
    if model.position == "rope" and model.head_dim % 2:
        problems.append(f"model.head_dim: {model.head_dim} must be even for rotary positions")
    if not re.fullmatch("[SL]+", model.window_pattern):
        problems.append(
            f"model.window_pattern: {model.window_pattern!r} is not allowed; expected letters S and L"
        )
    if model.window is not None and model.window > model.seq_len:
        problems.append(
            f"model.window: {model.window} is longer than model.seq_len ({model.seq_len})"
        )
    if config.train.sharding == "fsdp" and config.train.compile:
        problems.append(
            "train.compile: true does not go with train.sharding: fsdp; turn one of them off"
        )
    problems += _source_problems(config.corpus)
    for name, stage in (("midtrain", config.midtrain), ("sft", config.sft)):
        if stage.batch_tokens is None:
            problems.append(
                f"{name}.batch_tokens: null is for pretrain only; give a number of tokens"
            )
        if sum(stage.mixture.values()) + sum(stage.epochs.values()) <= 0:
            problems.append(f"{name}.mixture: no source has a weight above 0")
        problems += [
            f"{name}.epochs: {source} has a share in {name}.mixture too; one of them decides"
            for source in stage.epochs
            if stage.mixture.get(source)
        ]
    for name, schedule in (
        ("pretrain", config.pretrain),
        ("midtrain", config.midtrain),
        ("sft", config.sft),
    ):
        if schedule.warmup_fraction + schedule.warmdown_fraction > 1:
            problems.append(f"{name}: warmup_fraction + warmdown_fraction is over 1")
        if schedule.batch_tokens is not None and schedule.batch_tokens % model.seq_len:
            problems.append(
                f"{name}.batch_tokens: {schedule.batch_tokens} is not a multiple of model.seq_len ({model.seq_len})"
            )
    return problems


def _source_problems(corpus: Corpus) -> list[str]:
    """What is wrong with the places that `corpus.*` names."""
    problems: list[str | None] = []
    if corpus.source == "world":
        only = "is for corpus.source local or hub"
        if corpus.megabytes:
            problems.append(
                f"corpus.megabytes: {corpus.megabytes:g} {only}; the world has corpus.world.megabytes"
            )
        if corpus.drop_contaminated:
            problems.append(
                f"corpus.drop_contaminated: {only}; the world keeps its test problems apart"
            )
        if corpus.drop_near_duplicates:
            problems.append(
                f"corpus.drop_near_duplicates: {only}; the world is made of templates, which repeat"
            )
    elif not corpus.paths:
        problems.append(f"corpus.paths: empty, but corpus.source is {corpus.source}; name files")
    else:
        kind = str if corpus.source == "local" else HubFiles
        problems += [source_problem("corpus.paths", path, (kind,)) for path in corpus.paths]
    problems.append(source_problem("corpus.problems", corpus.problems, (str, HubFiles)))
    problems.append(source_problem("corpus.core", corpus.core, (str, Archive)))
    for name, source in corpus.conversations.items():
        key = f"corpus.conversations.{name}"
        problems.append(source_problem(key, source, (str, HubFiles)))
        if name in RESERVED_SOURCES or not re.fullmatch(r"\w[\w-]*", name):
            problems.append(
                f"{key}: this name is taken or odd; taken are {', '.join(RESERVED_SOURCES)}"
            )
    return [problem for problem in problems if problem]


def fingerprint(**parts: Any) -> str:
    """Names a run: a hash of everything it is a function of (law 1). Values must be JSON."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:20]
