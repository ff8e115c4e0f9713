"""`pytest --processor-times`: what each test costs in processor time, its processes included, and how long it takes.

Where other work shares the machine, wall time says little; and a test whose wall time is far above its processor time
waits for something. The times of a process that has ended are in its parent's, once that has waited for it. A process
whose parent is gone (a worker of a study, what feeds MLflow) would fall out of the account: pytest therefore runs below
a process that adopts such orphans and waits for them. One process at a time: without `-n`.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

SHOWN_SECONDS = 0.5  # a test or a fixture that costs less is only in its file's sum
SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--processor-times", action="store_true", help="processor and wall seconds of each test"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--processor-times"):
        _run_below_a_reaper()
        config.pluginmanager.register(ProcessorTimes(), "processor-times")


def _run_below_a_reaper() -> None:
    """Go on as a child of a process that adopts and waits for whatever loses its parent below it."""
    child = os.fork()
    if child == 0:
        return
    ctypes.CDLL(None, use_errno=True).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    while True:
        ended, status = os.wait()
        if ended == child:
            os._exit(os.waitstatus_to_exitcode(status))


def processor_seconds() -> float:
    """Of the reaper and everything below it, whether it runs or has ended."""
    root = psutil.Process(os.getppid())
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


class ProcessorTimes:
    """Adds up what tests and the fixtures that several of them share cost."""

    def __init__(self) -> None:
        self._costs: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._files: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._shared = [0.0, 0.0]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[Any]:
        before = _now()
        self._shared = [0.0, 0.0]
        result = yield
        costs = _since(before)
        own = [cost - shared for cost, shared in zip(costs, self._shared, strict=True)]
        _add(self._costs[item.nodeid], own)
        _add(self._files[Path(item.nodeid.partition("::")[0]).name], costs)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Iterator[Any]:
        before, within = _now(), list(self._shared)
        result = yield
        if fixturedef.scope != "function":
            costs = _since(before)
            nested = [now - then for now, then in zip(self._shared, within, strict=True)]
            own = [cost - inner for cost, inner in zip(costs, nested, strict=True)]
            _add(self._costs[f"{fixturedef.scope}'s fixture {fixturedef.argname}"], own)
            _add(self._shared, own)
        return result

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("processor seconds, wall seconds")
        for costs in (self._costs, self._files):
            ordered = sorted(costs.items(), key=lambda item: -max(item[1]))
            for name, (processor, wall) in ordered:
                if max(processor, wall) >= SHOWN_SECONDS:
                    terminalreporter.write_line(f"{processor:8.1f} {wall:8.1f}  {name}")
            terminalreporter.write_line("")
        total = sum(processor for processor, _ in self._files.values())
        terminalreporter.write_line(f"{total:8.1f} processor seconds in all")


def _now() -> tuple[float, float]:
    return processor_seconds(), time.monotonic()


def _since(before: tuple[float, float]) -> list[float]:
    return [now - then for now, then in zip(_now(), before, strict=True)]


def _add(sums: list[float], costs: list[float]) -> None:
    for place, cost in enumerate(costs):
        sums[place] += cost
