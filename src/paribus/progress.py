"""Progress a person can watch: a live bar on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from paribus.text import clock

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

BAR_SECONDS = 0.25
LINE_SECONDS = 10.0
MAX_VALUES = 4  # shown beside the step
FIRST = ("mean_reward", "bpb", "accuracy")  # what a stage is for comes before its loss and speed
# Metric -> its words, where the last part of its name is that of another.
OF_HELD_OUT = {"watch/accuracy": "held-out accuracy"}
OF_A_STEP = ("answers", "passes", "rows read")  # parts of a step; all others are of an evaluation


class Progress:
    """`with Progress("pretrain", 250) as bar: bar.update(12, loss=2.1, tokens_per_second=21_900)`.

    `update` may be called every step: it draws four times a second, or writes a line every ten seconds, and else
    costs about a microsecond. It goes to stderr, so that a command's own output stays clean.
    """

    def __init__(
        self, name: str, total: int = 0, unit: str = "", stream: TextIO | None = None
    ) -> None:
        """total: 0 where only `count` will show it."""
        self.name, self.total, self.unit = name, total, unit
        self._stream = stream or sys.stderr
        self._bar = _live_bar(self._stream) if self._stream.isatty() else None
        self._task = self._bar.add_task(name, total=total or None, text="") if self._bar else None
        self._every = BAR_SECONDS if self._bar else LINE_SECONDS
        self._due = 0.0
        self._moved = time.monotonic()
        self._first: tuple[float, int] | None = (
            None  # a first step that compiles says nothing of the rate
        )
        self._part, self._step, self._values = "", 0, dict[str, float]()
        self._measured = dict[str, float]()  # the newest of each evaluation
        self._shown: tuple[str, int] | None = None
        # The unit that the current step counts, when that began, and how much was done then.
        self._within: tuple[tuple[int, str, int], float, int] | None = None

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._first is not None and self._shown != (self._part, self._step):
            self._show(time.monotonic())
        if self._bar:
            self._bar.stop()

    def update(self, step: int, **values: float) -> None:
        """`step` units are done; the first few of `values` are shown beside them."""
        self._step, self._values = step, values
        self._moved = now = time.monotonic()
        self._first = self._first or (now, step)
        if now >= self._due:
            self._due = now + self._every
            self._show(now)

    def measured(self, metrics: Mapping[str, float]) -> None:
        """Show from now on what an evaluation measured: of `metrics` those of validation and of watched problems."""
        for name, value in metrics.items():
            if name in ("val/bpb", "watch/accuracy"):
                self._measured[name] = value

    def count(self, *done: Any) -> None:
        """`count(done, total)` or `count(part, done, total)`: where the total, or what is counted, shows on the way."""
        part = str(done[0]) if len(done) == 3 else ""
        if (part, done[-1]) != (self._part, self.total):
            self._part, self.total, self._first = part, done[-1], None
        self.update(done[-2])

    def within(self, part: str, done: int, total: int) -> None:
        """`done` of `total` parts of the current step; shown once the step has taken longer than a line's interval."""
        now = time.monotonic()
        whole = (self._step, part, total)
        if self._within is None or self._within[0] != whole:
            self._within = (whole, now, done)
        if total <= 1 or now < max(self._due, self._moved + self._every):
            return
        self._due = now + self._every
        _, began, first = self._within
        words = [f"{self.unit} {self._step:,}/{self.total:,}".strip()] if self.total else []
        left = ""
        if done > first:
            seconds = (total - done) * (now - began) / (done - first)
            left = f" ({clock(seconds)} left)"
        doing = "" if part in OF_A_STEP else "evaluating: "
        words.append(f"{doing}{part} {done:,}/{total:,}{left}")
        self._write(words)

    def seconds_left(self, now: float) -> float | None:
        """At the rate since the first update; None before there is one."""
        if self._first is None or self._step <= self._first[1]:
            return None
        return (self.total - self._step) * (now - self._first[0]) / (self._step - self._first[1])

    def _show(self, now: float) -> None:
        self._shown = (self._part, self._step)
        left = self.seconds_left(now)
        words = [" ".join(filter(None, (self._part, self.unit, f"{self._step:,}/{self.total:,}")))]
        words += [
            _value(name, value) for name, value in itertools.islice(self._in_order(), MAX_VALUES)
        ]
        if (
            not self._values
            and self._first is not None
            and self._step > self._first[1]
            and now > self._first[0]
        ):
            rate = (self._step - self._first[1]) / (now - self._first[0])
            words.append(f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s")
        words += [f"{clock(left)} left"] if left is not None else []
        self._write(words)

    def _in_order(self) -> list[tuple[str, float]]:
        """What is shown beside the step, what matters most first."""
        values = self._measured | self._values

        def place(name: str) -> int:
            short = name.rpartition("/")[2]
            return FIRST.index(short) if short in FIRST else len(FIRST)

        return sorted(values.items(), key=lambda one: place(one[0]))

    def _write(self, words: list[str]) -> None:
        if self._bar and self._task is not None:
            self._bar.update(
                self._task, completed=self._step, total=self.total, text="  ".join(words)
            )
            self._bar.refresh()
        else:
            print(f"{self.name}: {'  '.join(words)}", file=self._stream, flush=True)


def _live_bar(stream: TextIO) -> Bar:
    """A bar that draws only on request: a drawing thread would take time from the steps."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[text]}"),
    )
    return Bar(*columns, console=Console(file=stream), auto_refresh=False)


def _value(name: str, value: float) -> str:
    """tokens_per_second=21900.4 -> "21,900 tokens/s"; loss=2.13 -> "loss 2.130"; rl/reward -> "reward 0.5000"."""
    name = OF_HELD_OUT.get(name, name.rpartition("/")[2])
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"
    if name.endswith("_per_second"):
        return f"{number} {name.removesuffix('_per_second').replace('_', ' ')}/s"
    return f"{name.replace('_', ' ')} {number}"
