"""Profiles: listed, as arguments of `dvc exp run`, written into params.yaml."""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from paribus.config import (
    PROFILES,
    flatten,
    load_config,
    parse_config,
    parse_value,
    parse_yaml,
    profile_overrides,
    read_text,
)
from paribus.errors import UserError, escaped, shown
from paribus.files import write_atomic
from paribus.graph import assignments

WIDTH, INDENT = 80, "    "


def read_profile(name: str) -> dict[str, object]:
    """The dotted overrides of a profile, checked against params.yaml. Raises UserError."""
    overrides = profile_overrides(name)
    load_config(overrides=overrides)
    return overrides


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """Turn `key=value` arguments into dotted overrides.

    A value is read like one in params.yaml, and a mapping is merged, both as `dvc exp run -S` does. Raises UserError with every
    problem.
    """
    overrides: dict[str, Any] = {}
    problems: list[str] = []
    for one in assignments:
        key, sign, text = one.partition("=")
        if not sign or not key:
            problems.append(f"-S {shown(one)}: expected KEY=VALUE")
            continue
        try:
            value = parse_value(text, f"-S {escaped(key)}")
        except UserError as error:
            problems += error.problems
            continue
        if isinstance(value, dict):
            overrides |= flatten(value, f"{key}.")
        else:
            overrides[key] = value
    if problems:
        raise UserError(problems)
    return overrides


def list_profiles() -> None:
    """The name of every profile, and the first line of its comment."""
    for path in sorted(PROFILES.glob("*.yaml")):
        first = read_text(path).partition("\n")[0].lstrip("# ")
        click.echo(path.stem)
        click.echo(click.wrap_text(escaped(first, limit=None), WIDTH, INDENT, INDENT))


def print_profile_args(name: str) -> None:
    """The profile as arguments of `dvc exp run`, quoted for a shell."""
    click.echo(" ".join(f"-S {shlex.quote(word)}" for word in assignments(read_profile(name))))


def apply_profile(name: str) -> None:
    """Write the profile's values into params.yaml, comments and order kept; as it was where anything goes wrong."""
    path = Path("params.yaml")
    text, changes = _with_values(read_text(path), read_profile(name))
    parse_config(parse_yaml(text, f"{path} with {name}"))
    write_atomic(path, text)
    for change in changes:
        click.echo(change)


def _with_values(text: str, overrides: Mapping[str, object]) -> tuple[str, list[str]]:
    """(text of params.yaml with dotted `overrides` in it, a line for each value that changed)."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 2**20  # long values stay on their line
    document = yaml.load(text)
    changes: list[str] = []
    for key, value in overrides.items():
        node = document
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        before = node.get(last)
        node[last] = value
        if before != value:
            changes.append(f"{key}: {shown(before)} -> {shown(value)}")
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue(), changes
