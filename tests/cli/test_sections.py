"""`paribus --help` fits a terminal of 80 columns and names every command under a heading."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from paribus.cli.commands import commands
from paribus.cli.examples import EXAMPLES
from paribus.cli.sections import SECTIONS


def test_help_is_not_cut_at_80_columns() -> None:
    shown = CliRunner().invoke(commands, ["--help"], terminal_width=80).output
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert not any(line.endswith("...") and "COMMAND" not in line for line in shown.splitlines())


def test_every_command_is_under_a_heading() -> None:
    named = {name for rows in SECTIONS.values() for name in rows}
    assert named == set(commands.commands)


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command that runs by itself, by what is typed."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def groups(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield (*path, name)
            yield from groups(command, (*path, name))


COMMANDS = dict(leaves(commands))


@pytest.mark.parametrize("path", groups(commands), ids=" ".join)
def test_no_summary_of_a_group_is_cut_at_80_columns(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(commands, [*path, "--help"], terminal_width=80).output
    listed = shown[shown.index("Commands:") : shown.find("Examples:")]
    assert "..." not in listed


@pytest.mark.parametrize("path", COMMANDS)
def test_the_examples_of_a_command_are_what_it_takes(path: str) -> None:
    """Each is parsed, not run; those of other programs name one of ours beside them."""
    own = []
    for example in EXAMPLES[path]:
        command = example.partition("  #")[0].rpartition("| ")[2]
        if command.startswith(f"paribus {path}"):
            own.append(shlex.split(command.removeprefix(f"paribus {path}")))
    assert own
    for arguments in own:
        COMMANDS[path].make_context(path, arguments)
