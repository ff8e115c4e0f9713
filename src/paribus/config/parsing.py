"""Nested plain values -> Config, or every problem at once, each with the fix."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from paribus.config.combinations import Understood, combination_problems
from paribus.config.data_schema import Tokenizer
from paribus.config.limits import LETTERS
from paribus.config.model_schema import Architecture
from paribus.config.reading import parse_leniently, read_text
from paribus.config.schema import Config, describe, types_of
from paribus.errors import UserError, did_you_mean, escaped, shown

_UNFIT = ("Cc", "Cs", "Zl", "Zp")  # control characters, half letters, line and paragraph ends
_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # the direction: what is seen is not what is there


def load_config(
    path: str | Path = "params.yaml", overrides: Mapping[str, object] | None = None
) -> Config:
    """Read and check a params file; `overrides` are dotted keys. Raises UserError with every problem at once.

    Args:
        path: of the file.
        overrides: dotted key -> value, in place of the file's.
    """
    values, problems = parse_leniently(read_text(path), str(path))
    return parse_config(merge(values, overrides or {}), problems)


def merge(values: Mapping[str, object], overrides: Mapping[str, object]) -> dict[str, object]:
    """A copy of nested `values` with dotted `overrides` written over it; names are checked by parse_config."""
    merged = _copy(values)
    for dotted, value in overrides.items():
        node = merged
        *parents, last = dotted.split(".")
        for name in parents:
            child = node.setdefault(name, {})
            if not isinstance(child, dict):
                raise UserError(f"{escaped(dotted)}: {escaped(name)} is a value, not a section")
            node = child
        node[last] = _copy(value) if isinstance(value, dict) else value
    return merged


def dotted(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested overrides as dotted keys; an empty mapping is a value, which empties what is there.

    Args:
        values: the overrides, as a file nests them.
        prefix: of the keys, its dot included.
    """
    found: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found |= dotted(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def lay_over(base: Mapping[str, object], more: Mapping[str, object]) -> dict[str, Any]:
    """Dotted overrides with others on top. Where those empty a mapping, what `base` puts into it goes.

    Args:
        base: dotted key -> value.
        more: dotted key -> value, which wins.
    """
    emptied = tuple(f"{key}." for key, value in more.items() if value == {})
    kept = {key: value for key, value in base.items() if not key.startswith(emptied)}
    return kept | dict(more)


def _copy(values: Mapping[str, object]) -> dict[str, object]:
    """Mappings copied all the way down; what they hold is shared."""
    return {
        name: _copy(value) if isinstance(value, dict) else value for name, value in values.items()
    }


def parse_config(values: Mapping[str, object], problems: Sequence[str] = ()) -> Config:
    """Nested plain values -> Config.

    problems: what is known to be wrong with them already.
    Raises UserError with every wrong key, type, range and combination at once.
    """
    found = list(problems)
    understood = _parse_section(Config, values, "", found)
    found += combination_problems(understood)
    if found or not isinstance(understood, Config):
        raise UserError(found)
    return understood


def parse_architecture(
    values: Mapping[str, object],
) -> tuple[Architecture | None, int | None, list[str]]:
    """(architecture, vocabulary size, what is wrong) of a checkpoint's {"model": …, "vocab_size": …}.

    Held to the types, bounds and combinations that params.yaml is held to; the architecture or the size is None where
    something is wrong with it.
    """
    problems: list[str] = []
    expected = {"model", "vocab_size"}
    for name in sorted(expected ^ values.keys()):
        word = "missing" if name in expected else "unknown key"
        problems.append(f"{escaped(str(name))}: {word}; expected are model and vocab_size")
    written = values.get("model", {})
    if isinstance(written, dict):
        written = _former_values() | written
    model = _parse_section(Architecture, written, "model.", problems)
    field = {one.name: one for one in dataclasses.fields(Tokenizer)}["vocab_size"]
    size = values.get("vocab_size")
    vocab_size = None
    if "vocab_size" in values:
        vocab_size = _parse_value(int, size, "vocab_size", field.metadata, problems)
    if not problems:
        tokenizer = Understood({"vocab_size": vocab_size})
        problems += combination_problems(Understood({"model": model, "tokenizer": tokenizer}))
    architecture = model if isinstance(model, Architecture) else None
    return architecture, vocab_size, problems


def _former_values() -> dict[str, object]:
    """What a checkpoint says of keys that did not exist when it was written; `embedding_std` was derived then as now."""
    former: dict[str, object] = {"embedding_std": None}
    for field in dataclasses.fields(Architecture):
        if field.metadata["formerly"] is not None:
            former[field.name] = field.metadata["formerly"]
    return former


def _parse_section(cls: type, values: object, prefix: str, problems: list[str]) -> Any:
    """An instance of `cls`; where something is wrong, the problem, and what could be understood."""
    if not isinstance(values, dict):
        problems.append(f"{prefix.rstrip('.')}: expected a section with keys, not {shown(values)}")
        return Understood({})
    hints = types_of(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            problems.append(_unknown_key(prefix, name))
    parsed: dict[str, object] = {}
    whole = True
    for name, field in fields.items():
        path = prefix + name
        if name not in values:
            problems.append(f"{path}: missing; it is: {field.metadata['doc']}")
            whole = False
            continue
        before = len(problems)
        if dataclasses.is_dataclass(hints[name]):
            section = typing.cast(type, hints[name])
            parsed[name] = _parse_section(section, values[name], f"{path}.", problems)
            whole = whole and not isinstance(parsed[name], Understood)
            continue
        value = _parse_value(hints[name], values[name], path, field.metadata, problems)
        if len(problems) == before:
            parsed[name] = value
        else:
            whole = False
    return cls(**parsed) if whole else Understood(parsed)


def _unknown_key(prefix: str, name: object) -> str:
    dotted = prefix + str(name)
    known = [path for path, *_ in describe()]
    hint = _key_meant(dotted, known) if isinstance(name, str) else ""
    if not hint:
        siblings = [path.removeprefix(prefix) for path in known if path.startswith(prefix)]
        hint = f"allowed here: {', '.join(one for one in siblings if '.' not in one)}"
    return f"{escaped(dotted)}: unknown key; {hint}"


def _key_meant(dotted: str, known: list[str]) -> str:
    """How to write the key that was meant: the same one, one of a similar name, or one of the same last name."""
    if dotted in known:
        return "a dotted name is for -S and for experiments; here write " + _nested(dotted)
    last = dotted.rpartition(".")[2]
    same = [path for path in known if path.rpartition(".")[2] == last]
    return did_you_mean(dotted, known) or (f"did you mean {same[0]}?" if same else "")


def _nested(dotted: str) -> str:
    """`a.b` as the nested mapping that params.yaml has."""
    *parents, last = dotted.split(".")
    return "".join(f"{name}: {{" for name in parents) + f"{last}: …" + "}" * len(parents)


def _parse_value(hint: object, value: object, path: str, meta: Any, problems: list[str]) -> Any:
    """The value as its type, or None and a problem."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    nullable = type(None) in options
    if value is None and nullable:
        return None
    hint = next(option for option in options if option is not type(None))
    parsed = _as_type(hint, value)
    if parsed is None:
        place, wrong = _wrong_item(hint, value, path)
        expected = allowed(hint, meta, nullable)
        problems.append(f"{place}: {wrong} is not allowed; expected {expected}")
        return None
    items = parsed if isinstance(parsed, dict) else {"": parsed}
    for name, item in items.items():
        if not _in_range(item, meta):
            place = f"{path}.{escaped(name)}" if name else path
            expected = allowed(hint, meta, nullable)
            reason = f" ({meta['why']})" if meta["why"] and item > meta["le"] else ""
            problems.append(f"{place}: {shown(item)} is out of range; expected {expected}{reason}")
    return parsed


def _wrong_item(hint: object, value: object, path: str) -> tuple[str, str]:
    """(place, value) of what is wrong: an item of a mapping or list where the rest is right, else the value."""
    origin = typing.get_origin(hint)
    if origin is dict and isinstance(value, dict):
        kind = typing.get_args(hint)[1]
        for name, item in value.items():
            if not isinstance(name, str) or not _is_text(name):
                return path, f"the name {shown(name)}"
            if _as_type(kind, item) is None:
                return f"{path}.{escaped(name)}", shown(item)
    if origin is list and isinstance(value, list):
        kind = typing.get_args(hint)[0]
        for number, item in enumerate(value):
            if _as_type(kind, item) is None:
                return f"{path}[{number}]", shown(item)
    return path, shown(value)


def _as_type(hint: Any, value: object) -> Any:
    """`value` if it is of the type (an int serves as a float), else None."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value if isinstance(value, str) and value in typing.get_args(hint) else None
    if origin is types.UnionType:
        return _as_any_of(typing.get_args(hint), value)
    if origin is list:
        return _as_list(typing.get_args(hint)[0], value)
    if origin is dict:
        return _as_mapping(typing.get_args(hint)[1], value)
    return _as_plain(hint, value)


def _as_plain(hint: type, value: object) -> Any:
    """The same for a type that is no generic one. A bool is no number here."""
    if isinstance(value, bool):
        return value if hint is bool else None
    if hint is float:
        return _as_float(value) if isinstance(value, (int, float)) else None
    if isinstance(value, str) and not _is_text(value):
        return None
    return value if isinstance(value, hint) else None


def _as_any_of(hints: Sequence[Any], value: object) -> Any:
    """`value` as the first of these types that it is of, else None."""
    for hint in hints:
        parsed = _as_type(hint, value)
        if parsed is not None:
            return parsed
    return None


def _as_list(kind: object, value: object) -> list[Any] | None:
    if not isinstance(value, list):
        return None
    items = [_as_type(kind, item) for item in value]
    return None if None in items else items


def _as_mapping(kind: object, value: object) -> dict[str, object] | None:
    if not isinstance(value, dict):
        return None
    parsed: dict[str, object] = {}
    for name, item in value.items():
        parsed[name] = _as_type(kind, item)
        if not isinstance(name, str) or not _is_text(name) or parsed[name] is None:
            return None
    return parsed


def _as_float(value: int | float) -> float | None:
    """A finite number; refuses a whole number beyond the range of floats."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _is_text(value: str) -> bool:
    """Whether a text can be shown, written and sent as it is: some letters, no control characters, no half letters."""
    if not value.strip() or len(value) > LETTERS:
        return False
    return not any(unicodedata.category(letter) in _UNFIT or letter in _TURNING for letter in value)


def _in_range(value: object, meta: Any) -> bool:
    """Whether a number is within the bounds of its key; what is no number has none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    ge, gt, le = meta["ge"], meta["gt"], meta["le"]
    if ge is not None and value < ge:
        return False
    if gt is not None and value <= gt:
        return False
    return le is None or bool(value <= le)


_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: f"a string of 1 to {LETTERS:,} printable characters",
}


def allowed(hint: Any, meta: object, nullable: bool) -> str:
    """What a key takes, in words.

    Args:
        hint: type of the key, as the schema writes it.
        meta: what else the schema says of it, its bounds.
        nullable: whether null is a value too.
    """
    origin = typing.get_origin(hint)
    if origin is Literal:
        text = "one of " + ", ".join(typing.get_args(hint))
    elif origin is list:
        text = "a list of strings of printable characters"
    elif origin is dict:
        kind = typing.get_args(hint)[1]
        items = {float: "numbers", str: "strings"}.get(kind, "plain values")
        if typing.get_origin(kind) is Literal:
            items = "one of " + ", ".join(typing.get_args(kind))
        text = f"a mapping of names to {items}"
    else:
        text = _KINDS[hint]
    return text + _bounds(meta) + (" or null" if nullable else "")


def _bounds(meta: Any) -> str:
    """The bounds of a number, in signs."""
    signs = (("ge", ">="), ("gt", ">"), ("le", "<="))
    bounds = [f"{sign} {_figure(meta[name])}" for name, sign in signs if meta[name] is not None]
    return " " + " and ".join(bounds) if bounds else ""


def _figure(bound: float) -> str:
    """A bound as people write it; a very large or small one as a power of ten."""
    if isinstance(bound, int):
        return f"{bound:,}"
    return f"{bound:,.0f}" if bound >= 1_000 and bound < 1e7 else f"{bound:g}"


def fingerprint(**parts: object) -> str:
    """Names a run: a hash of everything it is a function of. Values must be JSON."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:20]
