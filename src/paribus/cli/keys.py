"""The keys of params.yaml, printed with their documentation."""

from __future__ import annotations

import dataclasses
import json
import operator
from typing import Any

import click

from paribus.config import allowed, describe, inert, load_config
from paribus.errors import UserError, did_you_mean, shown


def print_keys(pattern: str) -> None:
    """Print every key whose dotted name contains `pattern`. Raises UserError where none does."""
    config = load_config()
    without = inert(config)
    keys = [row for row in describe() if not dataclasses.is_dataclass(row[1])]
    found = [row for row in keys if pattern in row[0]]
    if not found:
        names = [path for path, *_ in describe()]
        hint = did_you_mean(pattern, names)
        raise UserError(f"no key contains {shown(pattern)}{'; ' + hint if hint else ''}")
    for path, hint, meta in found:
        value = operator.attrgetter(path)(config)
        click.echo(_key_page(path, hint, meta, value, path in without))


def _key_page(path: str, hint: Any, meta: Any, value: Any, is_inert: bool) -> str:
    """A key's value, documentation, what it takes, and when it acts."""
    options = getattr(hint, "__args__", ())
    nullable = type(None) in options
    kinds = [option for option in options if option is not type(None)]
    kind = kinds[0] if nullable else hint
    lines = [f"{path}: {json.dumps(value)}", f"    {meta['doc']} ({allowed(kind, meta, nullable)})"]
    if meta["why"]:
        lines.append(f"    upper bound: {meta['why']}")
    if meta["acts_when"]:
        words = meta["acts_when"].words.replace("{here}", path.rpartition(".")[0])
        lines.append(f"    read only with {words}{'; not now' if is_inert else ''}")
    return "\n".join(lines)
