"""The loop: exact resume at any step, pause, spikes, and micro-batches that change memory and nothing else."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy_loop import ROWS, STEPS, Journal, make, weights

from paribus.config import Config
from paribus.errors import MachineError, UserError
from paribus.files import Extent, read_rows
from paribus.journal import Journal as FileJournal
from paribus.journal import keep_rows
from paribus.train.callback import Callback, Callbacks
from paribus.train.checkpoint import StateStore
from paribus.train.loop import MAX_NONFINITE, Loop, Paused, Plan


class LongPlan(Plan):
    """As of a run of which 2 steps are the last part."""

    @property
    def last_steps(self) -> int:
        return 2


def logging(every: int) -> Plan:
    return LongPlan(STEPS, lambda step: 1.0, 1.0, 1.0, 0.0, every)


@pytest.fixture(scope="module")
def reference(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    loop, _ = make(tiny_config, tmp_path_factory.mktemp("reference"))
    loop.run()
    return weights(loop)


@pytest.mark.parametrize("pause", range(1, STEPS))
def test_resume_at_any_step_ends_in_the_same_bits(
    tiny_config: Config, tmp_path: Path, reference: torch.Tensor, pause: int
) -> None:
    first, before = make(tiny_config, tmp_path, stop_after=pause)
    with pytest.raises(Paused, match=f"saved at step {pause} of {STEPS}"):
        first.run()
    second, after = make(tiny_config, tmp_path)
    state = second.store.load()
    assert state is not None
    assert state.step == pause
    second.restore(state)
    second.run()
    assert torch.equal(weights(second), reference)
    assert sorted([*before.rows, *after.rows]) == list(range(1, STEPS + 1))
    assert second.position.tokens == STEPS * ROWS * 16


def test_resume_in_bf16_ends_in_the_same_bits(tiny_config: Config, tmp_path: Path) -> None:
    """Where AdamW is torch's kernel, and Muon's iterations of wide matrices go in pairs."""
    whole, _ = make(tiny_config, tmp_path / "whole", dtype=torch.bfloat16)
    whole.run()
    first, _ = make(tiny_config, tmp_path / "parts", stop_after=3, dtype=torch.bfloat16)
    with pytest.raises(Paused):
        first.run()
    second, _ = make(tiny_config, tmp_path / "parts", dtype=torch.bfloat16)
    state = second.store.load()
    assert state is not None
    second.restore(state)
    second.run()
    assert torch.equal(weights(second), weights(whole))


def test_death_between_saves_goes_back_to_the_last_state(
    tiny_config: Config, tmp_path: Path, reference: torch.Tensor
) -> None:
    """As after kill -9: the loop is abandoned mid-way, and what it did since its last save is done again."""
    first, journal = make(tiny_config, tmp_path)

    def die(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    journal.look = die
    with pytest.raises(KeyboardInterrupt):
        first.run()
    first.store.wait()
    second, _ = make(tiny_config, tmp_path)
    state = second.store.load()
    assert state is not None
    assert state.step == 4
    second.restore(state)
    second.run()
    assert torch.equal(weights(second), reference)


def test_micro_batches_change_memory_not_results(
    tiny_config: Config, tmp_path: Path, reference: torch.Tensor
) -> None:
    loop, _ = make(tiny_config, tmp_path, device_batch_size=1)
    loop.run()
    # AdamW makes a full step of a gradient that is all rounding, so single weights may part; their sum must not.
    assert (weights(loop) - reference).norm() < 1e-3 * reference.norm()


def spoil(loop: Loop, *steps: int) -> None:
    """Make the gradient of these steps not a number."""
    loop.model.embedding.weight.register_hook(
        lambda grad: grad * float("nan") if loop.position.step in steps else grad
    )


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    tiny_config: Config, tmp_path: Path
) -> None:
    loop, journal = make(tiny_config, tmp_path)
    spoil(loop, 3)
    position = loop.run()
    assert position.nonfinite == 1
    assert journal.events == [(3, "nonfinite")]
    assert torch.isfinite(weights(loop)).all()
    assert journal.rows[STEPS]["train/nonfinite"] == 1


def test_a_run_of_them_rolls_back_and_passes_the_steps_over(
    tiny_config: Config, tmp_path: Path
) -> None:
    bad = tuple(range(3, 3 + MAX_NONFINITE))
    loop, journal = make(tiny_config, tmp_path)
    spoil(loop, *bad)
    position = loop.run()
    assert position.rollbacks == 1
    assert position.skipped == list(bad)
    assert [name for _, name in journal.events] == ["nonfinite"] * MAX_NONFINITE + ["rollback"]
    assert position.step == STEPS
    assert torch.isfinite(weights(loop)).all()


def test_training_that_cannot_go_on_says_so(tiny_config: Config, tmp_path: Path) -> None:
    loop, _ = make(tiny_config, tmp_path)
    spoil(loop, *range(STEPS))
    with pytest.raises(UserError, match="lr_scale"):
        loop.run()


def test_nothing_is_saved_more_often_than_asked(tiny_config: Config, tmp_path: Path) -> None:
    loop, _ = make(tiny_config, tmp_path, save_seconds=1000.0)
    loop.run()
    assert loop.store.steps() == [STEPS, 0]


class Clock:
    """A second between any two looks at the wall clock, a millisecond between two of a stopwatch, on any machine."""

    def __init__(self) -> None:
        self.seconds, self.milliseconds = 0, 0

    def monotonic(self) -> float:
        self.seconds += 1
        return float(self.seconds)

    def perf_counter(self) -> float:
        self.milliseconds += 1
        return self.milliseconds / 1000


def saves_of(config: Config, folder: Path, write_seconds: float, save_seconds: float) -> int:
    """States written in a run whose disk takes so long for each."""

    class SlowStore(StateStore):
        saved = 0

        def save(self, *state: Any) -> None:
            self.saved += 1
            super().save(*state)
            self.wait()

        @property
        def cost(self) -> float:
            return write_seconds if self.saved else 0.0

    loop, _ = make(config, folder, save_seconds=save_seconds)
    loop.store = SlowStore(folder / "state", 2)
    loop.run()
    return loop.store.saved


def test_saves_that_cost_much_are_spaced_out(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First and last state are saved in any case."""
    monkeypatch.setattr("paribus.train.loop.time", Clock())
    assert saves_of(tiny_config, tmp_path / "slow", 10.0, 1e-9) == 2
    assert saves_of(tiny_config, tmp_path / "quick", 0.0, 1e-9) > 2


def test_a_run_without_a_least_time_saves_every_step(tiny_config: Config, tmp_path: Path) -> None:
    assert saves_of(tiny_config, tmp_path, 10.0, 0.0) == 1 + STEPS


@pytest.mark.parametrize("save_seconds", [0.0, 1000.0])
def test_divergence_goes_the_same_way_however_often_states_are_saved(
    tiny_config: Config, tmp_path: Path, save_seconds: float
) -> None:
    """Steps 2 to 4 have no gradient: passed over, whether the state to go back to is that of step 2 or the first."""
    loop, journal = make(tiny_config, tmp_path, save_seconds=save_seconds)
    spoil(loop, 2, 3, 4)
    position = loop.run()
    assert (position.rollbacks, position.skipped, position.nonfinite) == (1, [2, 3, 4], 3)
    assert list(journal.rows) == [1, 2, 6, 7, 8]
    assert position.tokens == (STEPS - 3) * ROWS * 16
    reference, _ = make(tiny_config, tmp_path / "reference")
    reference.position.skipped = [2, 3, 4]
    reference.run()
    assert torch.equal(weights(loop), weights(reference))


@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("save_seconds", [0.0, 1000.0])
def test_a_run_that_never_is_finite_again_is_refused_and_says_from_which_step(
    tiny_config: Config, tmp_path: Path, first: int, save_seconds: float
) -> None:
    loop, _ = make(tiny_config, tmp_path, save_seconds=save_seconds)
    spoil(loop, *range(first, STEPS))
    with pytest.raises(UserError, match=f"step {first + 1} of {STEPS}: diverged"):
        loop.run()
    again, _ = make(tiny_config, tmp_path, save_seconds=save_seconds)
    state = again.store.load()
    assert state is not None
    again.restore(state)
    spoil(again, *range(first, STEPS))
    with pytest.raises(UserError, match="diverged"):
        again.run()


@pytest.mark.parametrize("pause", [None, 1, 5])
def test_the_last_losses_are_of_all_steps_whatever_is_logged(
    tiny_config: Config, tmp_path: Path, pause: int | None
) -> None:
    found = {}
    for log_every in (1, 3):
        folder = tmp_path / str(log_every)
        loop, _ = make(tiny_config, folder, stop_after=pause, plan=logging(log_every))
        if pause:
            with pytest.raises(Paused):
                loop.run()
            loop, _journal = make(tiny_config, folder, plan=logging(log_every))
            state = loop.store.load()
            assert state is not None
            loop.restore(state)
        found[log_every] = loop.run().last_losses
    assert found[1] == found[3]
    assert len(found[1]) == 2


def test_a_loss_that_is_not_finite_is_not_among_the_last_losses(
    tiny_config: Config, tmp_path: Path
) -> None:
    loop, _ = make(tiny_config, tmp_path, plan=logging(1))
    loss = loop.stepper.forward

    def spoilt(*batch: torch.Tensor | None) -> torch.Tensor:
        return loss(*batch) * (float("nan") if loop.position.step == STEPS - 1 else 1.0)

    loop.stepper.forward = spoilt
    position = loop.run()
    assert position.nonfinite == 1
    assert len(position.last_losses) == 2
    assert all(math.isfinite(one) for one in position.last_losses)


def test_a_pause_in_a_step_without_gradient_says_what_is_saved(
    tiny_config: Config, tmp_path: Path
) -> None:
    loop, _ = make(tiny_config, tmp_path, stop_after=4)
    spoil(loop, 3)
    with pytest.raises(Paused, match=f"saved at step 3 of {STEPS}; the next start repeats the 1"):
        loop.run()


def test_memory_of_the_most_hungry_session_is_remembered(
    tiny_config: Config, tmp_path: Path
) -> None:
    first, _ = make(tiny_config, tmp_path, stop_after=2)
    with pytest.raises(Paused):
        first.run()
    second, _ = make(tiny_config, tmp_path)
    state = second.store.load()
    assert state is not None
    assert state.values["position"]["peak_memory_bytes"] > 0
    state.values["position"]["peak_memory_bytes"] = 2**60
    second.restore(state)
    assert second.run().peak_memory_bytes == 2**60


def test_no_state_is_ahead_of_a_log_that_the_disk_does_not_take(
    tiny_config: Config, tmp_path: Path
) -> None:
    class FullDisk(Journal):
        def before_save(self) -> None:
            if loop.position.step >= 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    loop, _ = make(tiny_config, tmp_path, journal=FullDisk())
    with pytest.raises(MachineError) as refused:
        loop.run()
    newest = loop.store.newest_step
    assert newest is not None
    assert newest < 3
    assert f"training goes on from step {newest}" in str(refused.value)


# ---------------------------------------------------------------- the log that led to a state


def logged_on_disk(config: Config, folder: Path, die_at: int | None = None) -> Loop:
    """A loop that logs to metrics.jsonl as a stage does, brought to the newest state that there is.

    die_at: the step after which it dies, in the middle of the next one.
    """
    loop, calls = make(config, folder)
    log = folder / "metrics.jsonl"
    loop.store = StateStore(folder / "state", 2, log)
    state = loop.store.load()
    keep_rows(log, lambda row: state is not None and row["step"] <= state.step)
    journal = FileJournal(log, print)

    class OnDisk(Callback):
        def on_log(self, step: int, metrics: dict[str, float]) -> None:
            journal.append({"step": step, "loss": metrics["train/loss"]})

        def before_save(self) -> Extent:
            return journal.sync()

    def die(step: int) -> None:
        if step == die_at:
            raise KeyboardInterrupt

    calls.look = die
    loop.callback = Callbacks([OnDisk(), calls])
    if state is not None:
        loop.restore(state)
    return loop


def logged(folder: Path) -> list[int]:
    return [row["step"] for row in read_rows(folder / "metrics.jsonl")]


@pytest.mark.parametrize("what", ["a lost row", "an altered row", "a lost file", "a lost end"])
def test_a_log_with_a_hole_before_the_state_is_made_whole_again(
    tiny_config: Config,
    tmp_path: Path,
    reference: torch.Tensor,
    capsys: pytest.CaptureFixture[str],
    what: str,
) -> None:
    first = logged_on_disk(tiny_config, tmp_path, die_at=6)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    first.store.wait()
    log = tmp_path / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5
    damaged = {
        "a lost row": lines[:1] + lines[2:],
        "an altered row": [lines[0], lines[1].replace(b"5", b"6"), *lines[2:]],
        "a lost end": lines[:3],
    }
    log.unlink()
    if what in damaged:
        log.write_bytes(b"".join(damaged[what]))
    second = logged_on_disk(tiny_config, tmp_path)
    second.run()
    assert logged(tmp_path) == list(range(1, STEPS + 1))
    assert log.read_bytes().splitlines(keepends=True)[:5] == lines
    assert torch.equal(weights(second), reference)
    assert second.position.step == STEPS
    said = capsys.readouterr().err
    assert "metrics.jsonl" in said
    assert "lost or altered" in said


def test_a_state_whose_log_is_lost_altogether_is_passed_over(
    tiny_config: Config,
    tmp_path: Path,
    reference: torch.Tensor,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = logged_on_disk(tiny_config, tmp_path, die_at=6)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    first.store.wait()
    for path in (tmp_path / "metrics.jsonl", *(tmp_path / "state").glob("*.jsonl")):
        path.unlink()
    second = logged_on_disk(tiny_config, tmp_path)
    assert second.position.step == 0
    second.run()
    assert logged(tmp_path) == list(range(1, STEPS + 1))
    assert torch.equal(weights(second), reference)
    said = capsys.readouterr().err
    assert "step-00000005.json cannot be used, as rows of the log" in said


def test_rows_lost_while_training_goes_on_are_noticed_by_its_end(
    tiny_config: Config, tmp_path: Path
) -> None:
    loop = logged_on_disk(tiny_config, tmp_path)
    log = tmp_path / "metrics.jsonl"

    class Loses(Callback):
        def is_due(self, step: int) -> bool:
            return step == 4

        def evaluate(self, step: int) -> dict[str, float]:
            lines = log.read_bytes().splitlines(keepends=True)
            os.truncate(log, len(lines[0]))
            return {}

    loop.callback = Callbacks([loop.callback, Loses()])
    with pytest.raises(MachineError, match="saves in a row failed"):
        loop.run()
    second = logged_on_disk(tiny_config, tmp_path)
    second.run()
    assert logged(tmp_path) == list(range(1, STEPS + 1))


def test_a_journal_knows_whether_its_file_holds_every_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    journal = FileJournal(path, print)
    journal.append({"step": 2})
    journal.refuse_lost_rows()
    journal.keep(lambda row: row["step"] == 1)
    journal.append({"step": 2})
    journal.refuse_lost_rows()
    path.write_bytes(path.read_bytes().replace(b"1", b"7"))
    with pytest.raises(MachineError, match=r"metrics\.jsonl: rows of the log were lost or altered"):
        journal.refuse_lost_rows()
    journal.close()
