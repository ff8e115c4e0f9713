"""The stages after training: CORE, word problems, the report."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from paribus.config import load_config
from paribus.curriculum import CHECKPOINT_NAMES, CHECKPOINTS, CORPUS, EVALS, METRICS, PLOTS
from paribus.data.disk import writing
from paribus.machine.interrupt import EXIT_PAUSED, Interrupt
from paribus.progress import Progress
from paribus.stages.context import (
    core_is_synthetic,
    load_model,
    load_tokenizer,
    open_engine,
    say_if_stale,
    session,
)
from paribus.stages.outputs import say_cut_off
from paribus.summary import write_csv, write_json, write_metrics

if TYPE_CHECKING:
    from paribus.data.tokenizer import Tokenizer
    from paribus.evaluate.gsm8k import Item
    from paribus.generate import Engine


@contextmanager
def stoppable(name: str, interrupt: Interrupt) -> Iterator[None]:
    """Exits with EXIT_PAUSED where the block raises Stopped: what was computed is kept.

    Args:
        name: of the stage.
        interrupt: what asks it to stop.
    """
    from paribus.evaluate.kept import Stopped

    try:
        yield
    except Stopped:
        print(
            f"paribus {name}: stopped ({interrupt.reason}); what is done is kept, and the next start goes on from it",
            file=sys.stderr,
        )
        raise SystemExit(EXIT_PAUSED) from None


def core() -> None:
    """CORE of checkpoints/base -> evals/core, metrics/core.json."""
    from paribus.data.contents import check_files
    from paribus.evaluate.core import evaluate_core, write_items

    with session("core") as run, writing(EVALS / "core"):
        cfg = run.config.eval.core
        synthetic = core_is_synthetic()
        check_files(CORPUS, sorted(path for path in (CORPUS / "core").rglob("*") if path.is_file()))
        stopping = stoppable("core", run.interrupt)  # within the log, which says that it was paused
        with Progress("core") as bar, run.open_log({}) as log, stopping:
            result = evaluate_core(
                load_model(run, "base"),
                load_tokenizer(CHECKPOINTS / "base"),
                CORPUS / "core",
                max_per_task=cfg.max_per_task,
                batch_size=cfg.batch_size,
                synthetic=synthetic,
                cache=run.folder / "items",
                on_progress=bar.count,
                stop=run.interrupt.requested,
            )
            write_items(EVALS / "core", result)
            log.artifact(EVALS / "core" / "items.parquet", "items")
            # Words, not a list: DVC takes a list in a metrics file for the points of a curve.
            figures = result.summary() | {"missing": ", ".join(result.missing)}
            log.summary(figures)
            write_metrics("core", figures)


def gsm8k(stage: str) -> None:
    """Word problems, and the fixed prompts, answered by one checkpoint -> evals/gsm8k/<stage>."""
    from paribus.data import contents
    from paribus.evaluate.gsm8k import evaluate_gsm8k, write_items

    folder = EVALS / "gsm8k" / stage
    with session(f"gsm8k_stage@{stage}") as run, writing(folder):
        cfg = run.config.eval.gsm8k
        problems = list(contents.rows(CORPUS, f"problems/{cfg.split}.jsonl"))
        shots = list(contents.rows(CORPUS, "problems/train.jsonl"))[: cfg.few_shot]
        engine = open_engine(run, stage)
        context = engine.model.config.seq_len
        if stage == "base":
            asked = problems[: cfg.questions]
            say_shots_without_room(engine.tokenizer, shots, asked, context, cfg.max_new_tokens)
        stopping = stoppable(f"gsm8k {stage}", run.interrupt)
        with Progress(f"gsm8k {stage}") as bar, run.open_log({}) as log, stopping:
            result = evaluate_gsm8k(
                engine,
                problems,
                cfg,
                stage=stage,
                shots=shots,
                seed=run.config.seed,
                cache=run.folder / "items",
                on_progress=bar.count,
                stop=run.interrupt.requested,
                within=bar.within,
            )
            answers = answer_prompts(
                engine, continues=stage == "base", stop=run.interrupt.requested
            )
            write_json(folder / "prompts.json", answers)
            write_items(folder, result)
            log.artifact(folder / "items.parquet", "items")
            log.summary(result.summary)
            log.table("prompts", [prompt_row(stage, row) for row in answers])
            log.table("gsm8k", [answer_row(item) for item in result.items])
            for name in ("samples.json", "failures.jsonl", "prompts.json"):
                log.artifact(folder / name, "answers")
        share = result.summary["cut_off"]
        key = "eval.gsm8k.max_new_tokens"
        say_cut_off(f"gsm8k {stage}", share, key, cfg.max_new_tokens, context)


# Special tokens -> how a table shows them: a call of the calculator is [3*4 → 12].
MARKS = {"<|tool|>": "[", "<|tool_end|><|result|>": " → ", "<|result_end|>": "]", "<|end|>": ""}


def readable(text: str) -> str:
    """An answer as a table shows it."""
    for token, mark in MARKS.items():
        text = text.replace(token, mark)
    return text


def prompt_row(stage: str, row: dict[str, str]) -> dict[str, object]:
    """A fixed prompt and its answer, as a row of the table of one checkpoint.

    Args:
        stage: name of the checkpoint.
        row: {prompt, answer}.
    """
    return {"checkpoint": stage, "prompt": row["prompt"], "answer": readable(row["answer"])}


def answer_row(item: Item) -> dict[str, object]:
    """A problem and its answer, as a row of the table that MLflow compares over stages and runs."""
    from paribus.data.answers import final_answer

    return {
        "index": item.index,
        "question": item.question,
        "expected": final_answer(item.reference),
        "answer": readable(item.text),
        "right": item.correct,
    }


def say_shots_without_room(
    tokenizer: Tokenizer,
    shots: list[dict[str, str]],
    problems: list[dict[str, str]],
    context: int,
    max_new_tokens: int,
) -> None:
    """Warn where the context does not hold all worked examples beside the question and its answer.

    tokenizer: of the checkpoint. shots: worked examples. problems: that are asked. max_new_tokens: of an answer.
    """
    from paribus.evaluate.gsm8k import n_without_room

    short = n_without_room(tokenizer, shots, problems, context - max_new_tokens)
    if short:
        print(
            f"paribus gsm8k base: {short} of {len(problems)} questions are asked with fewer than {len(shots)} worked "
            f"examples (eval.gsm8k.few_shot): the context (model.seq_len: {context}) holds no more beside "
            f"eval.gsm8k.max_new_tokens: {max_new_tokens}",
            file=sys.stderr,
        )


def answer_prompts(
    engine: Engine, *, continues: bool, stop: Callable[[], bool] | None = None
) -> list[dict[str, str]]:
    """{prompt, answer} of the fixed prompts, greedy, to be read and compared between stages and runs.

    continues: a base model, which knows no turns and continues the text instead. stop() is asked before every
    token; raises Stopped where it says yes. engine: of the checkpoint.
    """
    from paribus.data.chat import render_prompt
    from paribus.data.prompts import LONGEST, PROMPTS
    from paribus.evaluate.kept import never, stop_if

    tokenizer = engine.tokenizer
    ids = []
    for prompt in PROMPTS:
        if continues:
            ids.append([tokenizer.bos, *tokenizer.encode(prompt)])
        else:
            ids.append(render_prompt([{"role": "user", "content": prompt}], tokenizer))
    answers = engine.generate(
        ids,
        max_new_tokens=LONGEST,
        tools=not continues,
        on_step=lambda _: stop_if(stop or never),
    )
    return [
        {"prompt": prompt, "answer": tokenizer.decode(answer.tokens)}
        for prompt, (answer,) in zip(PROMPTS, answers, strict=True)
    ]


def compare_stages() -> None:
    """evals/gsm8k/* -> metrics/gsm8k.json with paired comparisons of neighbours, plots/gsm8k.csv."""
    from paribus.data.contents import read_manifest
    from paribus.evaluate.gsm8k import read_result
    from paribus.evaluate.intervals import compare
    from paribus.evaluate.kept import stop_if

    minutes = load_config().train.session_minutes
    say_if_stale("gsm8k")
    with (
        Interrupt(None, minutes) as interrupt,
        stoppable("compare-stages", interrupt),
        writing(METRICS / "gsm8k.json"),
    ):
        metrics: dict[str, Any] = {}
        correct: dict[str, list[bool]] = {}
        for stage in CHECKPOINT_NAMES:
            stop_if(interrupt.requested)
            advice = f"make it again: `dvc repro --force gsm8k_stage@{stage}`"
            result = read_result(EVALS / "gsm8k" / stage, advice)
            metrics[stage] = result.summary
            correct[stage] = [item.correct for item in result.items]
        pairs = list(itertools.pairwise(CHECKPOINT_NAMES))
        metrics["paired"] = {f"{a}_{b}": compare(correct[a], correct[b]) for a, b in pairs}
        metrics["dataset"] = read_manifest(CORPUS)["problems"]["source"]
        stop_if(interrupt.requested)
        columns = ("accuracy", "ci_low", "ci_high")
        rows = [
            (stage, *(metrics[stage][column] for column in columns)) for stage in CHECKPOINT_NAMES
        ]
        write_csv(PLOTS / "gsm8k.csv", ("stage", *columns), rows)
        write_metrics("gsm8k", metrics)
