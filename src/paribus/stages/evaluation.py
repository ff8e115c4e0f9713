"""The stages after training: CORE, word problems, the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus import tracking
from paribus.progress import Progress
from paribus.stages.context import (
    CHECKPOINTS,
    CORPUS,
    EVALS,
    METRICS,
    PLOTS,
    REPORT,
    STAGES,
    core_is_synthetic,
    load_model,
    load_tokenizer,
    session,
)
from paribus.summary import write_csv, write_json

if TYPE_CHECKING:
    from paribus.generate import Engine


def core() -> None:
    """CORE of checkpoints/base -> evals/core, metrics/core.json."""
    from paribus.evaluate.core import evaluate_core, write_items

    with session("core") as run:
        cfg = run.config.eval.core
        with Progress("core") as bar, run.open_log({}) as log:
            result = evaluate_core(
                load_model(run, "base"),
                load_tokenizer(CHECKPOINTS / "base"),
                CORPUS / "core",
                max_per_task=cfg.max_per_task,
                batch_size=cfg.batch_size,
                synthetic=core_is_synthetic(),
                cache=run.folder / "items",
                on_progress=bar.count,
            )
            write_items(EVALS / "core", result)
            log.artifact(EVALS / "core" / "items.parquet", "items")
            log.summary(result.summary() | {"missing": ", ".join(result.missing)})
            write_json(METRICS / "core.json", result.summary())


def gsm8k(stage: str) -> None:
    """Word problems, and the fixed prompts, answered by one checkpoint -> evals/gsm8k/<stage>."""
    from paribus.data import load_jsonl
    from paribus.evaluate.gsm8k import evaluate_gsm8k, write_items
    from paribus.generate import Engine

    with session(f"gsm8k_stage@{stage}") as run:
        cfg = run.config.eval.gsm8k
        problems = list(load_jsonl(CORPUS / f"problems/{cfg.split}.jsonl"))
        shots = list(load_jsonl(CORPUS / "problems/train.jsonl"))[: cfg.few_shot]
        engine = Engine(load_model(run, stage), load_tokenizer(CHECKPOINTS / stage))
        with Progress(f"gsm8k {stage}") as bar, run.open_log({}) as log:
            result = evaluate_gsm8k(
                engine,
                problems,
                cfg,
                stage=stage,
                shots=shots,
                seed=run.config.seed,
                cache=run.folder / "items",
                on_progress=bar.count,
            )
            folder = EVALS / "gsm8k" / stage
            write_items(folder, result)
            log.artifact(folder / "items.parquet", "items")
            log.summary(result.summary)
            answers = answer_prompts(engine, continues=stage == "base")
            write_json(folder / "prompts.json", answers)
            log.table("prompts", [{"checkpoint": stage} | row for row in answers])
            for name in ("samples.json", "failures.jsonl", "prompts.json"):
                log.artifact(folder / name, "answers")


def answer_prompts(engine: Engine, *, continues: bool) -> list[dict[str, str]]:
    """{prompt, answer} of the fixed prompts, greedy, to be read and compared between stages and runs.

    continues: a base model, which knows no turns and continues the text instead.
    """
    from paribus.data.chat import render_prompt
    from paribus.data.prompts import LONGEST, PROMPTS

    words: Any = engine.tokenizer
    ids = [
        [words.bos, *words.encode(prompt)]
        if continues
        else render_prompt([{"role": "user", "content": prompt}], words)
        for prompt in PROMPTS
    ]
    answers = engine.generate(ids, max_new_tokens=LONGEST, tools=not continues)
    return [
        {"prompt": prompt, "answer": words.decode(answer.tokens)}
        for prompt, (answer,) in zip(PROMPTS, answers, strict=True)
    ]


def compare_stages() -> None:
    """evals/gsm8k/* -> metrics/gsm8k.json with paired comparisons of neighbours, plots/gsm8k.csv."""
    from paribus.evaluate.gsm8k import read_correct
    from paribus.evaluate.intervals import compare

    folder = EVALS / "gsm8k"
    metrics: dict[str, Any] = {
        stage: json.loads((folder / stage / "summary.json").read_text()) for stage in STAGES
    }
    correct = {stage: read_correct(folder / stage) for stage in STAGES}
    metrics["paired"] = {
        f"{a}_{b}": compare(correct[a], correct[b])
        for a, b in zip(STAGES, STAGES[1:], strict=False)
    }
    metrics["dataset"] = json.loads((CORPUS / "manifest.json").read_text(encoding="utf-8"))[
        "problems"
    ]["source"]
    columns = ("accuracy", "ci_low", "ci_high")
    write_csv(
        PLOTS / "gsm8k.csv",
        ("stage", *columns),
        [(s, *(metrics[s][c] for c in columns)) for s in STAGES],
    )
    write_json(METRICS / "gsm8k.json", metrics)


def report() -> None:
    """Everything above -> report/report.html, and the same as an MLflow run."""
    from paribus.report import build_report, save_figures

    with session("report") as run, run.open_log({}) as log:
        page = build_report(Path.cwd(), REPORT / "report.html")
        log.artifact(page)
        for figure in save_figures(Path.cwd(), run.folder / "figures"):
            log.artifact(figure, "figures")
        for path in sorted(PLOTS.glob("*.csv")):
            log.artifact(path, "plots")
    tracking.close_execution(run.config)
