"""`paribus deps`: bring the deps on code in dvc.yaml up to date."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from paribus import graph
from paribus.files import write_atomic


def write_deps(check: bool) -> None:
    """Bring the deps on code in dvc.yaml up to date, or with `check` exit with status 1 where they are not."""
    path = Path("dvc.yaml")
    text = path.read_text(encoding="utf-8")
    current = graph.with_generated_deps(text, graph.generated_deps(graph.working_sources()))
    if current == text:
        click.echo("dvc.yaml names the code of every stage")
        return
    if check:
        click.echo("dvc.yaml is stale; bring it up to date: paribus deps", err=True)
        sys.exit(1)
    write_atomic(path, current)
    click.echo("dvc.yaml: the deps on code are up to date now; commit it")
