"""What a training stage leaves behind: checkpoint, curve, samples, metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paribus import graph, tracking
from paribus.stages.context import CHECKPOINTS, CORPUS, METRICS, PLOTS, STAGES, TOKENIZER, Session
from paribus.summary import write_curve, write_json

if TYPE_CHECKING:
    from paribus.data.tokenizer import Tokenizer
    from paribus.model.gpt import GPT


def write_outputs(run: Session, log: tracking.RunLog, model: GPT, target: str, stage: str, summary: dict[str, Any]) -> None:
    """Checkpoint, curve, metrics: in that order, so that metrics stand for a stage that is done."""
    from paribus.model.gpt import save_checkpoint

    source = TOKENIZER if target == "base" else CHECKPOINTS / STAGES[STAGES.index(target) - 1]
    save_checkpoint(CHECKPOINTS / target, model, source / "tokenizer.json", run.provenance)
    write_curve(PLOTS / f"{stage}.csv", stage, log.rows())
    log.artifact(PLOTS / f"{stage}.csv", "plots")
    log.summary(summary)
    write_json(run.folder / "delivered.json", graph.dvc_digest(CHECKPOINTS / target))
    write_json(METRICS / f"{stage}.json", summary)


PROMPTS = (
    "How many are 12 and 30 together?",
    "Tell me about yourself.",
    "Say hello.",
)


def log_samples(run: Session, log: tracking.RunLog, model: GPT, words: Tokenizer) -> None:
    """What the model says to fixed prompts and to held-out problems, to be read and compared between runs."""
    from paribus.data import load_jsonl
    from paribus.data.chat import render_prompt
    from paribus.generate import Engine

    problems = [row["question"] for row in load_jsonl(CORPUS / "problems/validation.jsonl")][:5]
    prompts = [*PROMPTS, *problems]
    if run.stage == "pretrain":
        ids = [[words.bos, *words.encode(prompt)] for prompt in prompts]
    else:
        ids = [render_prompt([{"role": "user", "content": prompt}], words) for prompt in prompts]
    room = model.config.seq_len // 2
    ids = [row[:room] for row in ids]
    answers = Engine(model, words).generate(ids, max_new_tokens=min(room, 100))
    text = "\n\n".join(f"> {prompt}\n\n{words.decode(group[0].tokens)}" for prompt, group in zip(prompts, answers, strict=True))
    path = run.folder / "samples.md"
    path.write_text(f"# {run.stage}: greedy answers\n\n{text}\n", encoding="utf-8")
    log.artifact(path, "samples")
