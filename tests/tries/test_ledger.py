"""The ledger loses no entry, has none twice, and is one for all worktrees of a repository."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.tried import BEGUN, begun, ended

from paribus.errors import UserError
from paribus.tries.ledger import Ledger, shared_folder
from paribus.tries.online import ErrorBudget


def test_an_entry_comes_back_as_it_was_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    entry = ledger.begin(BEGUN)
    ledger.end(entry.number, dataclasses.replace(ended("keep"), low=float("-inf")))
    [read] = ledger.entries()
    assert read.begun == BEGUN
    assert read.ended == dataclasses.replace(ended("keep"), low=float("-inf"))
    assert read.kept
    assert read.level == ErrorBudget(0.1).level()


def test_the_same_try_begins_once_and_ends_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    first = ledger.begin(BEGUN)
    assert ledger.begin(BEGUN) == first
    ledger.end(first.number, ended("discard"))
    assert ledger.end(first.number, ended("keep")).ended == ended("discard")
    assert len(ledger.entries()) == 1


def test_every_try_has_the_level_that_the_ones_before_leave(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    budget = ErrorBudget(0.1)
    for number, (verdict, p) in enumerate([("discard", 0.2), ("keep", 1e-5), ("undecided", 0.15)]):
        entry = ledger.begin(begun(str(number)))
        assert entry.level == budget.level()
        ledger.end(entry.number, ended(verdict, p))
        budget.note(p, verdict == "keep")
    under_way = ledger.begin(begun("under way"))
    budget.note(None, False)
    assert under_way.ended is None
    assert ledger.begin(begun("after it")).level == budget.level()


def test_tries_take_turns_at_the_seeds(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert [ledger.begin(begun(str(number))).window for number in range(4)] == [0, 8, 16, 0]


def test_a_line_that_a_power_cut_tore_is_dropped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.begin(begun("first"))
    with ledger.path.open("a") as file:
        file.write('{"event": "begun", "numb')
    assert [entry.begun.key for entry in ledger.entries()] == ["first"]
    ledger.begin(begun("second"))
    assert [entry.begun.key for entry in ledger.entries()] == ["first", "second"]
    assert all(json.loads(line) for line in ledger.path.read_text().splitlines())


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from support.tried import begun, ended
from paribus.tries.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    entry = ledger.begin(begun(f"{sys.argv[3]} {number}"))
    ledger.end(entry.number, ended())
    print(number, flush=True)
"""


def test_killed_writers_lose_nothing_that_they_reported_and_leave_nothing_twice(
    tmp_path: Path,
) -> None:
    tools = str(Path(__file__).parents[2] / "tools")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), tools, name],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    reported = []
    for writer in writers:
        assert writer.stdout
        for _ in range(3):
            reported.append(int(writer.stdout.readline()))
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
    entries = Ledger(tmp_path).entries()
    keys = [entry.begun.key for entry in entries]
    assert len(keys) == len(set(keys))
    assert [entry.number for entry in entries] == list(range(1, len(entries) + 1))
    whole = {entry.begun.key for entry in entries if entry.ended}
    assert {f"{name} {number}" for name in ("one", "two") for number in (1, 2, 3)} <= whole


def test_all_worktrees_of_a_repository_have_one_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        named = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *named, *arguments], check=True, capture_output=True)

    first = tmp_path / "first"
    first.mkdir()
    monkeypatch.chdir(first)
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "start")
    git("worktree", "add", "-q", "../second")
    Ledger().begin(BEGUN)
    monkeypatch.chdir(tmp_path / "second")
    assert [entry.begun for entry in Ledger().entries()] == [BEGUN]


def test_outside_of_a_repository_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="git init"):
        shared_folder()
