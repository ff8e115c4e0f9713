"""CORE: the published table, bundles whole, partial and broken, error bars, resume, kept outcomes."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support.core_bundle import TASKS, make_bundle, tiny_model

from paribus.config import Config
from paribus.data.core_bundle import CORE_LABELS, read_bundle
from paribus.data.tokenizer import Tokenizer
from paribus.errors import UserError
from paribus.evaluate.core import (
    centre,
    evaluate_core,
    score_task,
    stderr_of_mean,
    texts_of,
    write_items,
)
from paribus.model.gpt import GPT

# A published 22-task table (accuracy) and the baselines of the public bundle (per cent).
PUBLISHED = {
    "hellaswag_zeroshot": (0.385680, 25), "jeopardy": (0.035427, 0), "bigbench_qa_wikidata": (0.475469, 0),
    "arc_easy": (0.610269, 25), "arc_challenge": (0.304608, 25), "copa": (0.69, 50), "commonsense_qa": (0.266175, 20),
    "piqa": (0.656692, 50), "openbook_qa": (0.35, 25), "lambada_openai": (0.336697, 0), "hellaswag": (0.387572, 25),
    "winograd": (0.578755, 50), "winogrande": (0.502762, 50), "bigbench_dyck_languages": (0.095, 0),
    "agi_eval_lsat_ar": (0.278261, 20), "bigbench_cs_algorithms": (0.356818, 0), "bigbench_operators": (0.157143, 0),
    "bigbench_repeat_copy_logic": (0.0, 0), "squad": (0.132829, 0), "coqa": (0.168608, 0), "boolq": (0.592355, 62),
    "bigbench_language_identification": (0.2522, 9.1),
}  # fmt: skip


@pytest.fixture(scope="session", name="model")
def model_fixture(tiny_config: Config, word_tokenizer: Tokenizer) -> GPT:
    return tiny_model(tiny_config, word_tokenizer.vocab_size, seq_len=512)


def test_centring_reproduces_the_published_core() -> None:
    assert set(PUBLISHED) == CORE_LABELS
    centred = [centre(accuracy, baseline / 100) for accuracy, baseline in PUBLISHED.values()]
    assert sum(centred) / len(centred) == pytest.approx(0.179563, abs=5e-7)


def test_error_bars_match_a_simulation() -> None:
    """Draw 30 of 120 items again and again: the scatter of the accuracy is what score_task says."""
    generator = torch.Generator().manual_seed(0)
    population = torch.rand(120, generator=generator) < 0.6
    draws = [
        population[torch.randperm(120, generator=generator)[:30]].float().mean()
        for _ in range(4000)
    ]
    scatter = torch.stack(draws).std().item()
    p = population.float().mean().item()
    correct = [True] * round(30 * p) + [False] * (30 - round(30 * p))
    score = score_task(correct, baseline=0.25, population=120)
    assert score.subsample_stderr == pytest.approx(scatter, rel=0.05)
    assert score.stderr == pytest.approx(math.sqrt(score.accuracy * (1 - score.accuracy) / 30))
    assert score.centered_stderr == pytest.approx(score.stderr / 0.75)
    assert score_task(correct, 0.25, population=30).subsample_stderr == 0
    assert stderr_of_mean([0.03, 0.04]) == pytest.approx(0.025)


def test_questions_about_one_text_widen_the_error_bar() -> None:
    """40 texts, each with 5 questions that a model gets right or wrong together: the bar is that of 40 questions."""
    rng = random.Random(1)
    stories = ["x" * 250 + str(number) for number in range(40)]
    rows = []
    for story in stories:
        rows += [{"context": f"Read.\n{story}\nQuestion {n}:"} for n in range(5)]
    correct = []
    for _ in stories:
        correct += [rng.random() < 0.5] * 5
    texts = texts_of(rows)
    assert len(set(texts)) == 40
    clustered = score_task(correct, 0.0, 200, texts).stderr
    assert clustered == pytest.approx(score_task(correct[::5], 0.0, 40).stderr)
    assert clustered > 2 * score_task(correct, 0.0, 200).stderr


def test_an_instruction_is_no_text_and_short_prompts_share_none() -> None:
    told = [
        {"query": "Answer the question. " * 20 + f"\n{number} + 1 =" * 3} for number in range(9)
    ]
    short = [{"context": "The capital of France is"}] * 9
    options = [{"context_options": ["a", "b"]}] * 9
    for rows in (told, short, options):
        assert len(set(texts_of(rows))) == 9


def test_partial_bundle_is_never_called_core(
    model: GPT, word_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = make_bundle(tmp_path / "bundle")
    (folder / "eval_data" / "either.jsonl").unlink()
    result = evaluate_core(model, word_tokenizer, folder, max_per_task=2, batch_size=8)
    summary = result.summary()
    assert summary["core"] is None
    assert summary["partial"]
    assert summary["missing"] == ["either"]
    assert summary["core_partial"] == pytest.approx(
        sum(s.centered for s in result.tasks.values()) / 5
    )
    assert len(summary["bundle"]) == 64
    with pytest.raises(UserError, match="either.jsonl: missing"):
        evaluate_core(model, word_tokenizer, folder, max_per_task=2, batch_size=8, synthetic=True)


def test_whole_and_synthetic_bundles_have_a_core(
    model: GPT, word_tokenizer: Tokenizer, bundle: Path, tmp_path: Path
) -> None:
    every = make_bundle(
        tmp_path / "bundle", dict.fromkeys(CORE_LABELS, ("multiple_choice", 0, " ", 25.0, 3))
    )
    summary = evaluate_core(model, word_tokenizer, every, max_per_task=None, batch_size=8).summary()
    assert summary["core"] is not None
    assert not summary["partial"]
    assert summary["core_partial"] is None
    summary = evaluate_core(
        model, word_tokenizer, bundle, max_per_task=2, batch_size=8, synthetic=True
    ).summary()
    assert summary["bundle"] == "synthetic"
    assert summary["core"] is not None
    assert not summary["partial"]


def test_every_broken_file_is_named_before_any_compute(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    data = folder / "eval_data"
    lines = (data / "choice.jsonl").read_text().splitlines()
    lines[2] = lines[2][:-3]
    lines[4] = json.dumps({"query": "q", "choices": ["a", "b"], "gold": 2})
    lines[5] = json.dumps({"query": "q", "options": ["a", "b"], "gold": 0})
    (data / "choice.jsonl").write_text("\n".join(lines) + "\n")
    (data / "word.jsonl").write_bytes(
        b'{"context": "caf\xe9", "continuation": "x"}\n{"context": "a", "continuation": " "}\n'
    )
    (data / "either.jsonl").write_text("")
    table = (
        (folder / "eval_meta_data.csv")
        .read_text()
        .replace("word_shown,testing,0", "word_shown,testing,often")
    )
    (folder / "eval_meta_data.csv").write_text(table)
    with pytest.raises(UserError) as caught:
        evaluate_core(None, None, folder, max_per_task=None, batch_size=8)  # type: ignore[arg-type]  # reads no model
    text = str(caught.value)
    for part in (
        "choice.jsonl:3: not JSON",
        "choice.jsonl:5: gold is 2",
        "choice.jsonl:6: no column 'choices'",
        "word.jsonl:1: not JSON in UTF-8",
        "word.jsonl:2: continuation is blank",
        "either.jsonl: empty",
        "eval_meta_data.csv:7: Random baseline 'often'",
    ):
        assert part in text
    assert len(caught.value.problems) == 7


def add_line(path: Path, line: str) -> None:
    path.write_text(f"{path.read_text()}{line}\n")


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda f: add_line(f / "eval_meta_data.csv", "word_shown,testing,25"),
            "Random baseline '25' of word_shown, after 0 further up",
        ),
        (
            lambda f: change(f / "eval_meta_data.csv", "choice,testing,25", "choice,testing,0.25"),
            r"eval_meta_data.csv:2: Random baseline '0.25' of choice .* write 25 for a share of 0.25",
        ),
        (
            lambda f: change(f / "core.yaml", "continuation_delimiter", "continuation_delimeter"),
            "task 1: continuation_delimeter: unknown key; did you mean continuation_delimiter",
        ),
        (
            lambda f: change(f / "core.yaml", '"num_fewshot"', '"seed": 3, "num_fewshot"'),
            "task 1: seed: unknown key; allowed: label",
        ),
        (
            lambda f: change(f / "core.yaml", "{", '{"max_items": 3, '),
            "core.yaml: max_items: unknown key; allowed: icl_tasks",
        ),
        (
            lambda f: (f / "eval_meta_data.csv").write_bytes(b"Eval Task\n\xe9t\xe9,50\n"),
            "eval_meta_data.csv:2: not UTF-8: byte 1 of the line is 0xe9",
        ),
        (lambda f: (f / "core.yaml").unlink(), "core.yaml: No such file"),
        (lambda f: (f / "core.yaml").write_text("icl_tasks: 3"), "icl_tasks: expected a list"),
        (
            lambda f: (f / "core.yaml").write_text(
                "icl_tasks: [{label: a, dataset_uri: a, icl_task_type: mc}]"
            ),
            "task 1: icl_task_type: expected one of multiple_choice, schema, language_modeling, not 'mc'",
        ),
        (lambda f: (f / "eval_meta_data.csv").unlink(), "eval_meta_data.csv: cannot be read"),
        (
            lambda f: (f / "eval_meta_data.csv").write_text(
                "Eval Task,Random baseline,Random baseline\n"
            ),
            "more than one column is named 'Random baseline'",
        ),
        (
            lambda f: (f / "eval_meta_data.csv").write_text("Task,Baseline\n"),
            "no column 'Eval Task' and 'Random baseline'",
        ),
        (lambda f: (f / "eval_data").rename(f / "elsewhere"), "holds the data of none"),
    ],
)
def test_broken_bundle_explains_itself(damage: Any, message: str, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    damage(folder)
    with pytest.raises(UserError, match=message):
        read_bundle(folder)


def test_killed_run_goes_on_with_the_next_task(
    model: GPT, word_tokenizer: Tokenizer, bundle: Path, tmp_path: Path, tiny_config: Config
) -> None:
    def killed(label: str, done: int, n: int) -> None:
        if label == "either":
            raise KeyboardInterrupt

    def run(on_progress: Any, model: GPT = model) -> Any:
        return evaluate_core(
            model,
            word_tokenizer,
            bundle,
            max_per_task=None,
            batch_size=8,
            cache=tmp_path,
            on_progress=on_progress,
        )

    with pytest.raises(KeyboardInterrupt):
        run(killed)
    seen: set[str] = set()
    resumed = run(lambda label, done, n: seen.add(label))
    assert seen == {"either", "either_shown", "word", "word_shown"}
    assert resumed == evaluate_core(model, word_tokenizer, bundle, max_per_task=None, batch_size=8)
    seen.clear()
    run(
        lambda label, done, n: seen.add(label),
        tiny_model(tiny_config, word_tokenizer.vocab_size, 512, seed=2),
    )
    assert seen == set(TASKS), "another model's outcomes must not be taken over"


def test_outcomes_are_kept_item_by_item(
    model: GPT, word_tokenizer: Tokenizer, bundle: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    result = evaluate_core(model, word_tokenizer, bundle, max_per_task=None, batch_size=8)
    write_items(tmp_path, result)
    kept = pq.read_table(tmp_path / "items.parquet").to_pylist()
    assert [(row["task"], row["index"], row["correct"], tuple(row["losses"])) for row in kept] == [
        (item.task, item.index, item.correct, item.losses) for item in result.items
    ]
    summary = json.loads((tmp_path / "summary.json").read_text())
    for label, score in summary["tasks"].items():
        mine = [row["correct"] for row in kept if row["task"] == label]
        assert score["accuracy"] == sum(mine) / len(mine)
        assert score["n"] == len(mine) == TASKS[label][4]
