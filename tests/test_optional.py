"""A command whose package is absent ends before it computes, with the command that installs it."""

from __future__ import annotations

import re
import sys

import pytest
from click.testing import CliRunner
from support.checkout import ROOT

from paribus.cli.commands import commands
from paribus.optional import INSTALL


def test_an_absent_package_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    ended = CliRunner().invoke(commands, ["eval", "lm", "--tasks", "hellaswag"])
    assert ended.exit_code == 2, ended.output
    assert f"needs the package lm_eval; {INSTALL['lm_eval']}" in ended.output


def test_the_cures_install_what_the_locks_pin() -> None:
    locks = "".join(path.read_text() for path in ROOT.glob("requirements*.lock")).splitlines()
    for package, command in INSTALL.items():
        named = re.search(r"(requirements-\w+\.lock)", command)
        if named:
            assert re.search(rf"(?m)^{package}==", (ROOT / named[1]).read_text())
        else:
            assert command.removeprefix("pip install ") in locks
