"""`paribus pause`: ask what runs to save and stop."""

from __future__ import annotations

import click

from paribus.machine.lock import lock_holder
from paribus.places import state_root


def pause_all() -> None:
    """Leave a request in the state folder of every running stage."""
    running = [
        folder for folder in sorted((state_root() / "runs").glob("*")) if lock_holder(folder)
    ]
    for folder in running:
        (folder / "pause").touch()
        click.echo(f"asked {folder.name} to save and stop")
    if not running:
        click.echo("no stage is running")
