"""Word problems: the one scorer, the intervals, and an evaluation that a kill cannot change."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import combinations
from pathlib import Path

import pyarrow.parquet
import pytest
from support.talker import PROBLEMS, codec, problem, random_model, talker

from paribus.config import Config, Gsm8k
from paribus.data.answers import final_answer
from paribus.errors import UserError
from paribus.evaluate.gsm8k import (
    chat_prompt,
    evaluate_gsm8k,
    few_shot_prompt,
    is_cut_off,
    line_ends,
    n_without_room,
    read_result,
    score,
    solution_steps,
    write_items,
)
from paribus.evaluate.intervals import compare, mcnemar_exact, mean_and_stderr, pass_at_k, wilson
from paribus.generate import Completion, Engine


@pytest.fixture
def cfg(tiny_config: Config) -> Gsm8k:
    return dataclasses.replace(
        tiny_config.eval.gsm8k,
        questions=None,
        sampled_questions=6,
        samples=4,
        max_new_tokens=50,
        rows=64,
    )


# ---------------------------------------------------------------- scorer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so it is 12.\n#### 12", "12"),
        ("#### 1,234", "1234"),
        ("#### $5.50", "5.5"),
        ("#### 12.00", "12"),
        ("####7", "7"),
        ("#### -3<|end|>", "-3"),
        ("#### -$3", "-3"),
        ("#### $-3", "-3"),
        ("#### 12.", "12"),
        ("#### .5", "0.5"),
        ("#### -0", "0"),
        ("#### 007", "7"),
        ("#### 0", "0"),
        ("#### 5 apples #### 6", "5"),
        ("#### so #### 6", "6"),
        ("12", None),
        ("####", None),
        ("#### twelve", None),
        ("#### ,", None),
        ("### 12", None),
        ("#### ٣", None),
    ],
)
def test_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_score_tells_wrong_from_unformatted() -> None:
    reference = "3*4=<<3*4=12>>12\n#### 12"
    assert score("#### 12.0", reference) == (True, True)
    assert score("#### 13", reference) == (False, True)
    assert score("It is 12.", reference) == (False, False)
    with pytest.raises(UserError, match="does not end in"):
        score("#### 1", "the answer is 12")


def test_every_gsm8k_reference_answers_itself(shared_data: Path) -> None:
    for split in ("train", "test"):
        for line in (shared_data / f"gsm8k/{split}.jsonl").open(encoding="utf-8"):
            answer = json.loads(line)["answer"]
            assert score(answer, answer).correct
            assert final_answer(answer) == answer.rpartition("####")[2].strip().replace(",", "")


def test_solution_steps() -> None:
    assert [solution_steps(one) for one in PROBLEMS[:2]] == [1, 2]
    assert solution_steps({"answer": "first\nsecond\n#### 3"}) == 2
    assert solution_steps({"answer": "#### 3"}) == 1


# ---------------------------------------------------------------- statistics


def test_wilson_against_published_values() -> None:
    """Newcombe (1998), table I, method 3."""
    for (k, n), expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson(k, n) == pytest.approx(expected, abs=5e-5)
    assert wilson(29, 29)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer() -> None:
    outcomes = [True, False, False, True, False, False, False]
    for k in range(1, 8):
        subsets = [any(subset) for subset in combinations(outcomes, k)]
        assert pass_at_k(7, 2, k) == pytest.approx(sum(subsets) / len(subsets))
    with pytest.raises(ValueError, match="pass@9"):
        pass_at_k(8, 2, 9)


def test_mcnemar_is_a_two_sided_sign_test() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(3, 3) == 1.0
    assert mcnemar_exact(1, 8) == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar_exact(400, 900) == mcnemar_exact(900, 400) < 1e-40
    both = compare([True, True, False, False], [True, False, True, True])
    assert (both["only_first"], both["only_second"], both["difference"], both["p"]) == (
        1,
        2,
        0.25,
        1.0,
    )


def test_mean_and_stderr() -> None:
    assert mean_and_stderr([0.0, 1.0, 1.0]) == pytest.approx((2 / 3, math.sqrt(1 / 3 / 3)))
    assert mean_and_stderr([0.5]) == (0.5, None)


# ---------------------------------------------------------------- prompts


def test_few_shot_prompt_is_prose_and_drops_shots_that_do_not_fit() -> None:
    prompt = few_shot_prompt(codec(), PROBLEMS[:3], "How many?")
    text = codec().decode(prompt)
    assert text.startswith(
        f"<|bos|>Question: {PROBLEMS[0]['question']}\nAnswer: 3+4=7 shells. #### 7\n\nQuestion: "
    )
    assert text.endswith("\n\nQuestion: How many?\nAnswer:")
    assert "<<" not in text
    shorter = codec().decode(
        few_shot_prompt(codec(), PROBLEMS[:3], "How many?", room=len(prompt) - 1)
    )
    assert shorter == "<|bos|>" + text.partition("\n\n")[2]
    bare = few_shot_prompt(codec(), PROBLEMS[:3], "How many?", room=5)
    assert codec().decode(bare) == "<|bos|>Question: How many?\nAnswer:"


def test_questions_asked_with_fewer_examples_are_counted() -> None:
    shots, questions = PROBLEMS[:3], PROBLEMS[3:9]
    prompts = [few_shot_prompt(codec(), shots, one["question"]) for one in questions]
    lengths = sorted(map(len, prompts))
    for room in (lengths[0] - 1, lengths[2], lengths[-1]):
        longer = sum(length > room for length in lengths)
        assert n_without_room(codec(), shots, questions, room) == longer
    assert n_without_room(codec(), [], questions, 0) == 0


def test_line_ends_are_all_tokens_with_a_line_end() -> None:
    ends = line_ends(codec())
    assert set(codec().encode(".\n\n")) & ends
    assert not set(codec().encode("no line end. 12 #### 3")) & ends


# ---------------------------------------------------------------- evaluation


def test_summary_counts_what_the_items_say(cfg: Gsm8k) -> None:
    result = evaluate_gsm8k(talker(), PROBLEMS, cfg, stage="sft", seed=1)
    items, summary = result.items, result.summary
    assert summary["n"] == len(items) == 12
    assert summary["n_sampled"] == 6
    assert summary["samples"] == 4
    right = [item.correct for item in items]
    assert summary["accuracy"] == sum(right) / 12
    assert (
        summary["ci_low"],
        summary["ci_high"],
    ) == wilson(sum(right), 12)
    assert summary["accuracy"] > 0.5, "the talker has learned its problems"
    for item in items:
        assert item.correct == (item.prediction == final_answer(item.reference))
        assert item.text.count("<|end|>") == item.finished
    sampled = [item for item in items if item.n_samples]
    assert [item.index for item in sampled] == list(range(6))
    assert summary["pass_at_1"] == pytest.approx(sum(item.n_correct for item in sampled) / 24)
    assert summary["pass_at_1"] < summary["pass_at_2"] < summary["pass_at_4"]
    assert "pass_at_8" not in summary
    assert 0 < summary["well_formed"] <= 1
    assert summary["tool_calls"] > 0.9
    assert summary["formatted"] > 0.9
    assert summary["by_steps"]["1"]["n"] == 4
    assert summary["by_steps"]["2"]["n"] == 8


def test_rows_change_nothing(cfg: Gsm8k) -> None:
    first, second = (
        evaluate_gsm8k(talker(), PROBLEMS, dataclasses.replace(cfg, rows=rows), stage="sft", seed=1)
        for rows in (5, 64)
    )
    assert first == second


class _Killed(Exception):
    pass


def test_a_killed_evaluation_ends_in_the_same_result(cfg: Gsm8k, tmp_path: Path) -> None:
    whole = evaluate_gsm8k(talker(), PROBLEMS, cfg, stage="sft", seed=1)
    for kill_at in (3, 15):
        cache = tmp_path / str(kill_at)

        def kill(done: int, total: int, kill_at: int = kill_at) -> None:
            assert total == 18
            if done == kill_at:
                raise _Killed

        with pytest.raises(_Killed):
            evaluate_gsm8k(
                talker(), PROBLEMS, cfg, stage="sft", seed=1, cache=cache, on_progress=kill
            )
        file = cache / "answers.jsonl"
        assert (
            len(file.read_bytes().splitlines()) == kill_at + 1
        )  # one a question, after the header
        file.write_bytes(
            file.read_bytes()[:-7]
        )  # the last line cut off, as a kill in the middle of a write leaves it
        seen: list[int] = []

        def note(done: int, total: int, seen: list[int] = seen) -> None:
            seen.append(done)

        again = evaluate_gsm8k(
            talker(),
            PROBLEMS,
            cfg,
            stage="sft",
            seed=1,
            cache=cache,
            on_progress=note,
        )
        assert again == whole
        assert min(seen) >= min(kill_at - 1, 12), "it went on from what was kept"
        assert seen[-1] == 18, "it went on from what was kept"


def test_a_cache_of_another_evaluation_is_not_used(cfg: Gsm8k, tmp_path: Path) -> None:
    evaluate_gsm8k(talker(), PROBLEMS, cfg, stage="sft", seed=1, cache=tmp_path)
    others = [problem(a, 1) for a in range(1, 9)]
    fresh = evaluate_gsm8k(talker(), others, cfg, stage="sft", seed=1)
    assert evaluate_gsm8k(talker(), others, cfg, stage="sft", seed=1, cache=tmp_path) == fresh


def test_base_model_is_asked_in_prose_and_stops_at_the_line_end(cfg: Gsm8k) -> None:
    engine = _Recorder(random_model(seq_len=256), codec())
    result = evaluate_gsm8k(
        engine,
        PROBLEMS[:2],
        dataclasses.replace(cfg, few_shot=2, samples=1),
        stage="base",
        shots=PROBLEMS[4:],
        seed=1,
    )
    assert codec().decode(engine.prompts[0]).count("Question:") == 3
    assert result.summary["few_shot"] == 2
    assert engine.options["stop"] == line_ends(codec())
    assert not engine.options["tools"]


class _Recorder(Engine):
    """Notes what it is asked."""

    def generate(self, prompts, **options):  # type: ignore[no-untyped-def]
        self.prompts, self.options = prompts, options
        return super().generate(prompts, **options)


def test_questions_that_fill_the_context_are_wrong_not_fatal(cfg: Gsm8k) -> None:
    endless = {"question": "How many shells? " * 60, "answer": "#### 7"}
    result = evaluate_gsm8k(talker(), [endless, PROBLEMS[0]], cfg, stage="sft", seed=1)
    assert not result.items[0].correct
    assert result.summary["no_room"] == 1
    assert result.items[1].tokens > 0


def test_files_say_what_the_result_says(cfg: Gsm8k, tmp_path: Path) -> None:
    result = evaluate_gsm8k(talker(), [*PROBLEMS, problem(1, 1, 9)], cfg, stage="sft", seed=1)
    write_items(tmp_path, result)
    rows = pyarrow.parquet.read_table(tmp_path / "items.parquet").to_pylist()
    assert rows == [dataclasses.asdict(item) for item in result.items]
    failures = [
        json.loads(line)
        for line in (tmp_path / "failures.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert (
        [one["index"] for one in failures]
        == [item.index for item in result.items if not item.correct]
        != []
    )
    assert all(one["prediction"] != one["expected"] for one in failures)
    assert len(json.loads((tmp_path / "samples.json").read_text())) == 12
    assert read_result(tmp_path, "do it again") == result


def test_completion_is_what_the_engine_promises() -> None:
    assert [field.name for field in dataclasses.fields(Completion)] == [
        "tokens",
        "sampled",
        "finished",
        "tool_calls",
        "well_formed_tool_calls",
    ]


def test_an_answer_is_cut_off_by_the_context_too_but_not_by_a_new_document() -> None:
    bos = codec().bos
    cases = [([5, 6], False, True), ([], False, True), ([5, bos], False, False), ([5], True, False)]
    for tokens, finished, expected in cases:
        answer = Completion(tokens, [True] * len(tokens), finished, 0, 0)
        assert is_cut_off(answer, bos) is expected


def test_answers_that_were_cut_off_are_counted(cfg: Gsm8k) -> None:
    whole = evaluate_gsm8k(talker(), PROBLEMS, cfg, stage="sft", seed=1).summary
    short = dataclasses.replace(cfg, max_new_tokens=5)
    cut = evaluate_gsm8k(talker(), PROBLEMS, short, stage="sft", seed=1)
    assert whole["cut_off"] == 0
    assert cut.summary["cut_off"] == 1 - cut.summary["finished"] == 1
    assert all(item.cut_off and item.tokens == 5 for item in cut.items)


def test_answers_that_end_with_the_context_are_cut_off_too(cfg: Gsm8k) -> None:
    engine = Engine(random_model(seq_len=64), codec())
    room = 64 - len(chat_prompt(codec(), PROBLEMS[0]["question"]))
    long = dataclasses.replace(cfg, max_new_tokens=500, sampled_questions=0)
    filling = {"question": "Mia has shells. " * 40, "answer": "#### 5"}
    items = evaluate_gsm8k(engine, [PROBLEMS[0], filling], long, stage="sft", seed=1).items
    assert [item.tokens for item in items] == [room, 0]
    assert all(item.cut_off and not item.finished for item in items)
