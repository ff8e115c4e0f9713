"""Giving disk space back: training states of runs whose checkpoint DVC holds, and what killed processes left behind."""

from __future__ import annotations

import json

import click

from paribus.execute.finished_states import finished_runs, remove_states
from paribus.places import main_checkout, state_root


def clean_finished(dry_run: bool, as_json: bool) -> None:
    """Remove the training states that finished runs no longer need, and say what that gave back."""
    runs = finished_runs(main_checkout(), state_root())
    for run in runs:
        if not dry_run:
            remove_states(run)
        if not as_json:
            click.echo(f"{run.folder.name}: {run.bytes / 1e6:,.1f} MB")
    total = sum(run.bytes for run in runs)
    if as_json:
        listed = [{"run": run.folder.name, "bytes": run.bytes} for run in runs]
        click.echo(json.dumps({"runs": listed, "bytes": total, "removed": not dry_run}))
        return
    click.echo(f"{total / 1e6:,.1f} MB of {len(runs)} runs {'to remove' if dry_run else 'removed'}")
