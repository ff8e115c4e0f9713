"""`paribus --help` fits a terminal of 80 columns and names every command under a heading."""

from __future__ import annotations

from click.testing import CliRunner

from paribus.cli.commands import commands
from paribus.cli.sections import SECTIONS


def test_help_is_not_cut_at_80_columns() -> None:
    shown = CliRunner().invoke(commands, ["--help"], terminal_width=80).output
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert not any(line.endswith("...") and "COMMAND" not in line for line in shown.splitlines())


def test_every_command_is_under_a_heading() -> None:
    named = {name for rows in SECTIONS.values() for name in rows}
    assert named == set(commands.commands)
