"""progress.py: plain lines and a live bar."""

import contextlib
import io
import os
import pty
import time

import pytest

from paribus import progress
from paribus.progress import Progress


def test_plain_lines_show_step_values_and_time_left_and_are_throttled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    stream = io.StringIO()
    began = time.monotonic()
    with Progress("pretrain", 200, "step", stream=stream) as bar:
        for step in range(1, 201):
            bar.update(step, loss=2.13456, tokens_per_second=21_900.4)
            time.sleep(0.001)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "pretrain: step 1/200  loss 2.135  21,900 tokens/s"  # no rate yet
    assert lines[1].endswith("left")
    assert lines[-1] == "pretrain: step 200/200  loss 2.135  21,900 tokens/s  0:00 left"
    assert 2 <= len(lines) <= 3 + (time.monotonic() - began) / 0.05


def test_time_left_follows_the_rate_without_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    bar = Progress("sft", 110, stream=io.StringIO())
    now = 1000.0  # a long compilation
    bar.update(10)
    now = 1005.0
    bar.update(20)
    assert bar.seconds_left(now) == pytest.approx(45)


def test_the_last_step_is_shown_when_the_stage_is_paused() -> None:
    stream = io.StringIO()
    with pytest.raises(SystemExit), Progress("rl", 10, "step", stream=stream) as bar:
        bar.update(4, **{"rl/reward": 0.5})
        raise SystemExit(75)
    assert stream.getvalue() == "rl: step 4/10  reward 0.5000\n"


def test_what_a_stage_is_for_comes_first_and_keeps_its_last_measurement() -> None:
    stream = io.StringIO()
    with Progress("pretrain", 10, "step", stream=stream) as bar:
        bar.measured({"val/bpb": 0.75, "train/grad_norm": 3.0})
        bar.update(5, loss=2.0, tokens_per_second=900.0)
    with Progress("rl", 10, "step", stream=stream) as bar:
        bar.measured({"watch/accuracy": 0.25})
        bar.update(5, loss=0.0, tokens_per_second=9.0, **{"rl/mean_reward": 0.5})
    assert stream.getvalue().splitlines() == [
        "pretrain: step 5/10  bpb 0.7500  loss 2.000  900.0 tokens/s",
        "rl: step 5/10  mean reward 0.5000  held-out accuracy 0.2500  loss 0.000  9.000 tokens/s",
    ]


def test_a_line_says_that_it_evaluates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    stream = io.StringIO()
    with Progress("pretrain", 10, "step", stream=stream) as bar:
        bar.update(5, loss=2.0)
        bar.within("passes", 1, 4)
        bar.within("validation rows", 3, 12)
    lines = stream.getvalue().splitlines()
    assert lines[1] == "pretrain: step 5/10  passes 1/4"
    assert lines[2] == "pretrain: step 5/10  evaluating: validation rows 3/12"


def test_parts_are_counted_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    stream = io.StringIO()
    with Progress("core", stream=stream) as bar:
        for part in ("arc", "piqa"):
            for done in (5, 10):
                bar.count(part, done, 10)
    lines = [line.split("  ")[0] for line in stream.getvalue().splitlines()]
    assert lines[:4] == ["core: arc 5/10", "core: arc 10/10", "core: piqa 5/10", "core: piqa 10/10"]


def test_a_terminal_gets_a_live_bar() -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal, Progress("core", 3, "task", stream=terminal) as bar:
        for task in range(1, 4):
            bar.update(task, accuracy=0.25)
    shown = b""
    with contextlib.suppress(
        OSError
    ):  # the kernel's word for the end: nobody has the terminal any more
        while chunk := os.read(master, 100_000):
            shown += chunk
    os.close(master)
    assert "task 3/3" in shown.decode()
    assert "accuracy 0.25" in shown.decode()
    assert "━" in shown.decode()
