"""A long step says how far it is, and gives way to a stop without losing or changing anything."""

from __future__ import annotations

import dataclasses
import io
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.talker import PROBLEMS, talker
from support.toy_loop import STEPS, Journal, Rows, make, weights

from paribus.config import Config
from paribus.evaluate.gsm8k import evaluate_gsm8k
from paribus.progress import Progress
from paribus.train import objectives
from paribus.train.loop import Loop, Paused
from paribus.train.objectives import NextToken
from paribus.train.rollout import rollout
from paribus.train.within import Abandoned, Within

PASSES = 4  # of a step, where a row is a pass


def of_single_rows(config: Config, folder: Path) -> tuple[Loop, Journal]:
    return make(config, folder, device_batch_size=1)


def stopping(loop: Loop, at_step: int, what: str) -> list[tuple[str, int, int]]:
    """Have the loop asked to stop in the middle of a step or of its evaluation. What it told until then."""
    told: list[tuple[str, int, int]] = []
    within = Within(lambda: loop.interrupt.reason is not None, patience=0)

    def tell(part: str, done: int, total: int) -> None:
        told.append((part, done, total))
        if loop.position.step == at_step and part == what and done == 2:
            loop.interrupt.reason = "the test"
        within(part, done, total)

    def evaluate(step: int) -> dict[str, float]:
        for done in range(PASSES):
            tell("questions", done, PASSES)
        return {"val/bpb": float(step)}

    journal: Any = loop.callback
    journal.within, journal.evaluate = tell, evaluate
    journal.is_due = lambda step: True
    return told


@pytest.fixture(scope="module")
def reference(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    loop, _ = of_single_rows(tiny_config, tmp_path_factory.mktemp("reference"))
    loop.run()
    return weights(loop)


def goes_on(config: Config, folder: Path) -> tuple[Loop, Journal]:
    loop, journal = of_single_rows(config, folder)
    stopping(loop, -1, "")
    state = loop.store.load()
    assert state is not None
    loop.restore(state)
    loop.run()
    return loop, journal


def test_a_stop_within_a_step_saves_what_was_before_it(
    tiny_config: Config, tmp_path: Path, reference: torch.Tensor
) -> None:
    loop, before = of_single_rows(tiny_config, tmp_path)
    loop.plan = dataclasses.replace(loop.plan, save_seconds=3600.0)
    told = stopping(loop, 3, "passes")
    with pytest.raises(Paused, match=f"the test, within a step: saved at step 3 of {STEPS}"):
        loop.run()
    assert told[-1] == ("passes", 2, PASSES)
    again, after = goes_on(tiny_config, tmp_path)
    assert torch.equal(weights(again), reference)
    assert sorted([*before.rows, *after.rows]) == list(range(1, STEPS + 1))


def test_a_stop_within_an_evaluation_repeats_its_step(
    tiny_config: Config, tmp_path: Path, reference: torch.Tensor
) -> None:
    loop, before = of_single_rows(tiny_config, tmp_path)
    stopping(loop, 5, "questions")
    with pytest.raises(Paused, match=f"saved at step 4 of {STEPS}; the next start repeats the 1"):
        loop.run()
    again, after = goes_on(tiny_config, tmp_path)
    assert torch.equal(weights(again), reference)
    assert sorted([*before.rows, *after.rows]) == list(range(1, STEPS + 1))
    assert all("val/bpb" in row for row in (before.rows | after.rows).values())


def test_a_stop_while_the_rows_of_a_step_are_read_ends_the_reading(
    tiny_config: Config,
    tmp_path: Path,
    reference: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A row of the fourth step takes as long as it is waited for."""
    monkeypatch.setattr(objectives, "CHUNK_ROWS", 1)
    monkeypatch.setattr("paribus.data.loader.WAITING_SECONDS", 0.01)
    loop, _ = of_single_rows(tiny_config, tmp_path)
    stopping(loop, 3, "rows read")
    objective: Any = loop.objective
    read = objective.loader.batch

    def slow(step: int, rows: range, batch_rows: int) -> Any:
        if step == 3 and rows.start == 2:
            objective.making.called_off.wait(30)
        return read(step, rows, batch_rows)

    objective.loader.batch = slow
    with pytest.raises(Paused, match=f"within a step: saved at step 3 of {STEPS}"):
        loop.run()
    assert objective.making.done < PASSES
    again, _ = goes_on(tiny_config, tmp_path)
    assert torch.equal(weights(again), reference)


def test_rows_read_in_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = NextToken(Rows(), 10, 4).work(3)
    monkeypatch.setattr(objectives, "CHUNK_ROWS", 3)
    parts = NextToken(Rows(), 10, 4).work(3)
    assert whole.normaliser == parts.normaliser
    for one, other in zip(whole.micro_batches, parts.micro_batches, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.targets, other.targets)


def test_a_step_that_ends_soon_is_ended() -> None:
    within = Within(lambda: True, patience=60)
    for done in range(100):
        within("passes", done, 100)


def test_one_of_several_processes_does_not_leave_the_others_waiting() -> None:
    within = Within(lambda: True, ranks=lambda: 2, patience=0)
    within("passes", 1, 2)
    with pytest.raises(Abandoned):
        Within(lambda: True, ranks=lambda: 1, patience=0)("passes", 1, 2)


def test_rollouts_and_word_problems_tell_their_answers(tiny_config: Config) -> None:
    told: list[tuple[str, int, int]] = []

    def tell(*row: Any) -> None:
        told.append(row)

    cfg = dataclasses.replace(
        tiny_config.rl, questions_per_step=1, samples_per_question=6, max_new_tokens=20
    )
    rollout(talker(), PROBLEMS, cfg=cfg, seed=1, step=0, within=tell)
    assert {total for _, _, total in told} == {6}
    dones = [done for _, done, _ in told]
    assert dones[0] == 0
    assert dones == sorted(dones)
    assert len(set(dones)) > 1

    told.clear()
    gsm8k = dataclasses.replace(tiny_config.eval.gsm8k, samples=5, sampled_questions=1)
    evaluate_gsm8k(talker(), PROBLEMS[:3], gsm8k, stage="rl", seed=1, within=tell)
    assert {(part, total) for part, _, total in told} == {
        ("greedy answers", 3),
        ("sampled answers", 5),
    }


def test_the_parts_of_a_long_step_are_shown_and_those_of_short_ones_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    with Progress("rl", 3, "step", stream=stream) as bar:
        bar.within("answers", 1, 8)
        assert not stream.getvalue()
        monkeypatch.setattr(time, "monotonic", lambda: 10.0**9)
        bar.within("answers", 5, 8)
        bar.within("answers", 6, 8)
        bar.update(1, loss=2.0)
        monkeypatch.setattr(time, "monotonic", lambda: 10.0**9 + 11)
        bar.update(2, loss=2.0)
        bar.within("answers", 7, 8)
    first, *_ = stream.getvalue().splitlines()
    assert first.startswith("rl: step 0/3  answers 5/8 (")
    assert first.endswith(" left)")
    assert "6/8" not in stream.getvalue(), "a line each interval"
    assert "7/8" not in stream.getvalue(), "the line of a step that has just ended comes first"
