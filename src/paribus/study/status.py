"""How an ablation stands: a table of arm, seed, stage, step and time left, live on a terminal and a line a while elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus import runtime
from paribus.journal import read_json
from paribus.report import duration, number
from paribus.study.experiment import Run
from paribus.study.queue import Task
from paribus.study.results import Result, events_of

if TYPE_CHECKING:
    from rich.table import Table

LINE_SECONDS = 10.0
TAIL = 65_536  # bytes of a log that its rate is taken from


@dataclass(frozen=True)
class Live:
    """What a running stage says of itself."""

    stage: str
    step: int
    steps: int | None
    seconds_left: float | None


def live(name: str) -> Live | None:
    """The stage that the experiment NAME is in, from its log; None before the first."""
    newest: tuple[float, Path, dict[str, Any]] | None = None
    for path in (runtime.state_root() / "runs").glob("*/run.json"):
        if newest and path.stat().st_mtime <= newest[0]:
            continue
        run = read_json(path)
        if run and run["tags"].get("dvc.experiment") == name and run["status"] == "RUNNING":
            newest = (path.stat().st_mtime, path, run)
    if newest is None:
        return None
    _, path, run = newest
    rows = _last_rows(path.with_name("metrics.jsonl"))
    steps = run["params"].get(f"{run['stage']}.steps")
    total = int(steps) if steps and steps.isdigit() else None
    if not rows:
        return Live(run["stage"], 0, total, None)
    first, last = rows[0], rows[-1]
    rate = (
        (last["time"] - first["time"]) / (last["step"] - first["step"])
        if last["step"] > first["step"]
        else None
    )
    left = rate * (total - last["step"]) if rate is not None and total else None
    return Live(run["stage"], last["step"], total, left)


def _last_rows(path: Path) -> list[dict[str, Any]]:
    """The steps at the end of a log."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - TAIL, 0))
        lines = file.read().split(b"\n")[1 if path.stat().st_size > TAIL else 0 : -1]
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if "event" not in row and row["step"] > 0][-20:]


# ---------------------------------------------------------------- the table


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
        states = ("done", "running", "queued", "waiting", "failed")
        return {state: sum(row.state == state for row in self.rows) for state in states}

    def end(self) -> str:
        """When the last will be done."""
        if not self.seconds_left:
            return ""
        when = time.strftime("%H:%M", time.localtime(time.time() + self.seconds_left))
        return f"finish about {when}, in {duration(self.seconds_left)}"

    def line(self) -> str:
        """In one line."""
        words = [f"{count} {state}" for state, count in self.counts().items() if count]
        running = [
            f"{row.arm}-s{row.seed} {row.stage} {row.step}".strip()
            for row in self.rows
            if row.state == "running"
        ]
        return "; ".join(
            filter(
                None, [f"{len(self.rows)} runs: {', '.join(words)}", ", ".join(running), self.end()]
            )
        )


def table(
    study: Any,
    runs: Sequence[Run],
    have: Mapping[str, Result],
    tasks: Mapping[str, Task],
    failures: Mapping[str, str],
    workers: int,
) -> Standing:
    """How every run stands."""
    rows, work, ahead = [], 0.0, 0.0
    took = durations(study.experiment.name)
    usual = sum(took.values()) / len(took) if took else None
    for run in runs:
        row = _row(run, have, tasks, failures)
        rows.append(row)
        if row.state == "running":
            own = (
                row.left
                if usual is None or (row.left or 0) > usual
                else usual / 2
                if row.left is None
                else row.left
            )
            work, ahead = work + (own or 0.0), max(ahead, own or 0.0)
        elif row.state in ("queued", "waiting"):
            work += took.get(run.name, usual or 0.0)
    waits = any(row.state in ("queued", "waiting") for row in rows)
    known = usual is not None or (not waits and any(row.left for row in rows))
    return Standing(rows, max(work / workers, ahead) if known and work else None)


def _row(
    run: Run, have: Mapping[str, Result], tasks: Mapping[str, Task], failures: Mapping[str, str]
) -> Row:
    if run.name in have:
        return Row(run.arm, run.seed, "done", value=have[run.name].value)
    if run.name in failures:
        return Row(run.arm, run.seed, "failed", stage=failures[run.name])
    task = tasks.get(run.name)
    if task is None or task.state != "running":
        return Row(run.arm, run.seed, "queued" if task and task.state == "queued" else "waiting")
    now = live(run.name)
    if now is None or (task.stage and now.stage != task.stage):
        return Row(run.arm, run.seed, "running", stage=task.stage or "set-up")
    return Row(
        run.arm,
        run.seed,
        "running",
        now.stage,
        f"{now.step:,}/{now.steps:,}" if now.steps else "",
        now.seconds_left,
    )


def durations(name: str) -> dict[str, float]:
    """Run -> seconds from its last start to its end, of those done."""
    began: dict[str, float] = {}
    ended: dict[str, float] = {}
    for row in events_of(name):
        if row["event"] == "started":
            began[row["run"]] = row["time"]
        elif row["event"] == "done" and row["run"] in began:
            ended[row["run"]] = row["time"] - began[row["run"]]
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

        return Live(console=self.console, auto_refresh=False)

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
    """The table of every run."""
    from rich.table import Table

    colours = {"done": "green", "running": "cyan", "failed": "red", "queued": "", "waiting": "dim"}
    title = f"{name}: {standing.counts()['done']} of {len(standing.rows)} runs done"
    made = Table(title=title, caption=standing.end(), title_justify="left")
    for column in ("arm", "seed", "state", "stage", "step", "left", "value"):
        made.add_column(
            column, justify="right" if column in ("seed", "step", "left", "value") else "left"
        )
    for row in standing.rows:
        made.add_row(
            row.arm,
            str(row.seed),
            row.state,
            row.stage,
            row.step,
            duration(row.left) if row.left is not None else "",
            number(row.value, 4) if row.value is not None else "",
            style=colours[row.state],
        )
    return made
