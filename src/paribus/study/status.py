"""How an ablation stands: a table of arm, seed, stage, step and time left, live on a terminal and a line a while elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paribus.execute.live import live
from paribus.places import state_root
from paribus.study.events import GivenUp, events_of
from paribus.study.experiment import Run
from paribus.study.results import Result
from paribus.text import duration, number

if TYPE_CHECKING:
    from rich.table import Table

LINE_SECONDS = 10.0


# ---------------------------------------------------------------- the table


STATES = ("done", "diverged", "running", "waiting", "failed")


@dataclass(frozen=True)
class Row:
    """One run: its state in a word, and what is known of it."""

    arm: str
    seed: int
    state: str
    stage: str = ""
    step: str = ""
    left: float | None = None
    value: float | None = None


@dataclass(frozen=True)
class Standing:
    """All runs, and when the last will be done (seconds from now), by what runs took so far."""

    rows: list[Row]
    seconds_left: float | None

    def counts(self) -> dict[str, int]:
        """State -> how many runs are in it."""
        states = [row.state for row in self.rows]
        return {state: states.count(state) for state in STATES}

    def end(self) -> str:
        """When the last will be done."""
        if not self.seconds_left:
            return ""
        when = time.strftime("%H:%M", time.localtime(time.time() + self.seconds_left))
        return f"finish about {when}, in {duration(self.seconds_left)}"

    def line(self) -> str:
        """In one line."""
        counts = [f"{count} {state}" for state, count in self.counts().items() if count]
        running = [
            f"{row.arm}-s{row.seed} {row.stage} {row.step}".strip()
            for row in self.rows
            if row.state == "running"
        ]
        parts = [f"{len(self.rows)} runs: {', '.join(counts)}", ", ".join(running), self.end()]
        return "; ".join(part for part in parts if part)


def table(
    study: Any,
    runs: Sequence[Run],
    have: Mapping[str, Result],
    stages: Mapping[str, str],
    failures: Mapping[str, GivenUp],
    diverged: Mapping[str, Sequence[int]],
    workers: int,
) -> Standing:
    """How every run stands.

    Args:
        study: whose runs they are.
        runs: that are asked for.
        have: the results there are, by the run's name.
        stages: of each active run, the one it is in.
        failures: why runs were given up, by the run's name.
        diverged: arm -> seeds that diverged.
        workers: runs side by side.
    """
    rows = [_row(run, have, stages, failures, diverged) for run in runs]
    took = durations(study.experiment.name)
    usual = sum(took.values()) / len(took) if took else None
    of_running = [_time_left(row.left, usual) for row in rows if row.state == "running"]
    waiting = [run for run, row in zip(runs, rows, strict=True) if row.state == "waiting"]
    of_waiting = [took.get(run.name, usual or 0.0) for run in waiting]
    work = sum(of_running) + sum(of_waiting)
    can_tell = usual is not None or (not waiting and any(row.left for row in rows))
    if not can_tell or not work:
        return Standing(rows, None)
    return Standing(rows, max(work / workers, max(of_running, default=0.0)))


def _time_left(said: float | None, usual: float | None) -> float:
    """Seconds left of a running run: what its stage says, or half of what runs took so far."""
    if said is not None:
        return said
    return usual / 2 if usual is not None else 0.0


def _row(
    run: Run,
    have: Mapping[str, Result],
    stages: Mapping[str, str],
    failures: Mapping[str, GivenUp],
    diverged: Mapping[str, Sequence[int]],
) -> Row:
    if run.seed in diverged.get(run.arm, ()):
        words = failures[run.name].words if run.name in failures else "its metric is not finite"
        return Row(run.arm, run.seed, "diverged", stage=words)
    if run.name in have:
        return Row(run.arm, run.seed, "done", value=have[run.name].value)
    if run.name in failures:
        return Row(run.arm, run.seed, "failed", stage=failures[run.name].words)
    if run.name not in stages:
        return Row(run.arm, run.seed, "waiting")
    stage, now = stages[run.name], live(run.id, state_root())
    machine = f" on {now.machine}" if now and now.machine else ""
    if now is None or (stage and now.stage != stage):
        return Row(run.arm, run.seed, "running", stage=(stage or "set-up") + machine)
    steps = f"{now.step:,}/{now.steps:,}" if now.steps else ""
    return Row(run.arm, run.seed, "running", now.stage + machine, steps, now.seconds_left)


def durations(name: str) -> dict[str, float]:
    """Run -> seconds from its last start to its end, of those done."""
    began: dict[str, float] = {}
    ended: dict[str, float] = {}
    for event in events_of(name):
        if event.event == "started":
            began[event.run] = event.time
        elif event.event == "done" and event.run in began:
            ended[event.run] = event.time - began[event.run]
    return ended


# ---------------------------------------------------------------- showing it


class Display:
    """`with Display(name) as display: display.show(standing)`; on stderr. live: redraw in place, where it can be."""

    def __init__(self, name: str, live: bool = True) -> None:
        from rich.console import Console

        self.name, self.console = name, Console(stderr=True)
        self._live = self._new() if live and self.console.is_terminal else None
        self._due, self._before = 0.0, ""

    def _new(self) -> Any:
        from rich.live import Live

        # What is printed at exit, as the reset of a library's colours, would come out as text through a redirected stdout.
        return Live(console=self.console, auto_refresh=False, redirect_stdout=False)

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, standing: Callable[[], Standing]) -> None:
        """The table; elsewhere than on a terminal a line, when one is due and it says something new."""
        if self._live:
            self._live.update(render(self.name, standing()), refresh=True)
        elif time.monotonic() >= self._due:
            self._due = time.monotonic() + LINE_SECONDS
            line = standing().line()
            if line != self._before:
                print(f"{self.name}: {line}", file=sys.stderr, flush=True)
            self._before = line

    def print(self, standing: Standing) -> None:
        """Once, on stdout."""
        from rich.console import Console

        Console().print(render(self.name, standing))

    def say(self, text: str) -> None:
        """A line above the table."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def render(name: str, standing: Standing) -> Table:
    """The table of every run.

    Args:
        name: of the study.
        standing: of its runs.
    """
    from rich.table import Table

    colours = {
        "done": "green",
        "running": "cyan",
        "failed": "red",
        "diverged": "red",
        "waiting": "dim",
    }
    counts = standing.counts()
    title = f"{name}: {counts['done']} of {len(standing.rows)} runs done"
    if counts["diverged"]:
        title += f", {counts['diverged']} diverged"
    table = Table(title=title, caption=standing.end(), title_justify="left")
    for column in ("arm", "seed", "state", "stage", "step", "left", "value"):
        table.add_column(
            column, justify="right" if column in ("seed", "step", "left", "value") else "left"
        )
    for row in standing.rows:
        table.add_row(
            row.arm,
            str(row.seed),
            row.state,
            row.stage,
            row.step,
            duration(row.left) if row.left is not None else "",
            number(row.value, 4) if row.value is not None else "",
            style=colours[row.state],
        )
    return table
