"""What the small commands do: keys, profiles, pause, the MLflow page."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from paribus import runtime
from paribus.config import allowed, describe, flatten, load_config, parse_config, read_yaml
from paribus.errors import UserError

PROFILES = Path("experiments/profiles")


def print_keys(pattern: str) -> None:
    """Print every key whose dotted name contains `pattern`."""
    values = flatten(load_config())
    for path, hint, meta in describe():
        if path in values and pattern in path:
            options = getattr(hint, "__args__", ()) if type(None) in getattr(hint, "__args__", ()) else ()
            kind = next((option for option in options if option is not type(None)), hint)
            click.echo(f"{path}: {json.dumps(values[path])}\n    {meta['doc']} ({allowed(kind, meta, bool(options))})")


def read_profile(name: str) -> dict[str, Any]:
    """The dotted overrides of a profile, checked against params.yaml. Raises UserError."""
    path = PROFILES / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"no profile {name!r}; there are: {', '.join(sorted(p.stem for p in PROFILES.glob('*.yaml')))}")
    overrides = flatten(read_yaml(path))
    load_config(overrides=overrides)
    return overrides


def list_profiles() -> None:
    """Name and first comment line of every profile."""
    for path in sorted(PROFILES.glob("*.yaml")):
        click.echo(f"{path.stem:16} {path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")


def print_profile_args(name: str) -> None:
    """The profile as arguments of `dvc exp run`, quoted for a shell."""
    click.echo(" ".join(f"-S {shlex.quote(f'{key}={_hydra(value)}')}" for key, value in read_profile(name).items()))


def _hydra(value: Any) -> str:
    """A value as DVC's -S reads it: YAML, but for null and quotes."""
    return "null" if value is None else json.dumps(value) if isinstance(value, (bool, list)) else str(value)


def apply_profile(name: str) -> None:
    """Write the profile's values into params.yaml, comments and order kept."""
    from ruamel.yaml import YAML

    overrides = read_profile(name)
    yaml = YAML()
    yaml.preserve_quotes = True
    path = Path("params.yaml")
    document = yaml.load(path.read_text(encoding="utf-8"))
    for key, value in overrides.items():
        node = document
        *parents, last = key.split(".")
        for parent in parents:
            node = node[parent]
        before = node.get(last)
        node[last] = value
        if before != value:
            click.echo(f"{key}: {before} -> {value}")
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(document, file)
    parse_config(read_yaml(path))


def pause() -> None:
    """Leave a request in the state folder of every running stage."""
    from paribus.session import lock_holder

    running = [folder for folder in sorted((runtime.state_root() / "runs").glob("*")) if lock_holder(folder)]
    for folder in running:
        (folder / "pause").touch()
        click.echo(f"asked {folder.name} to save and stop")
    if not running:
        click.echo("no stage is running")


def mlflow_ui(port: int) -> None:
    """Become `mlflow ui` on this project's store."""
    from paribus.tracking import tracking_uri

    os.environ |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = ["mlflow", "ui", "--backend-store-uri", tracking_uri(), "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", *command])
