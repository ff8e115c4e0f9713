"""The four training stages: each is the one loop with an objective; metrics are written last."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus import runtime
from paribus.config import Conversations, flatten, load_config, read_yaml, resolve_model, resolve_pretrain
from paribus.errors import UserError
from paribus.progress import Progress
from paribus.session import EXIT_PAUSED
from paribus.stages.context import CHECKPOINTS, CORPUS, TOKENS, Session, load_model, load_tokenizer, new_model, rows_of, session
from paribus.stages.outputs import log_samples, write_outputs
from paribus.summary import rl_metrics, supervised_metrics

if TYPE_CHECKING:
    from paribus.generate import Engine
    from paribus.model.gpt import GPT
    from paribus.train.loop import Position
    from paribus.train.objectives import Objective


def pretrain() -> None:
    """Token shards -> checkpoints/base, metrics/pretrain.json, plots/pretrain.csv."""
    from paribus.data.loader import DocumentLoader
    from paribus.evaluate.bpb import bits_per_byte
    from paribus.model.accounting import flops_per_token, parameters
    from paribus.train.objectives import NextToken

    with session("pretrain") as run:
        config, words = run.config, load_tokenizer()
        model_config = resolve_model(config.model)
        counts = parameters(model_config, words.vocab_size)
        schedule = resolve_pretrain(config.pretrain, counts["total"], model_config.seq_len)
        model = new_model(run, words.vocab_size)
        model.initialise(config.seed)
        validation = DocumentLoader(TOKENS, "val", model_config.seq_len, config.seed)

        def val_bpb(max_tokens: int | None) -> float:
            rows = validation.validation_rows(schedule.device_batch_size, max_tokens)
            return bits_per_byte(model, rows, words.token_bytes).bpb

        def evaluate(step: int) -> dict[str, float]:
            due = schedule.eval_every and step % schedule.eval_every == 0 and step < (schedule.steps or 0)
            return {"val/bpb": val_bpb(schedule.eval_tokens)} if due else {}

        loader = DocumentLoader(TOKENS, "train", model_config.seq_len, config.seed)
        objective = NextToken(loader, rows_of(schedule, model_config.seq_len), schedule.device_batch_size)
        params = flatten(model_config, "model.") | flatten(schedule, "pretrain.")
        with train(run, model, objective, schedule, evaluate, params) as (log, position):
            summary = supervised_metrics(log.rows(), position) | {
                "val_bpb": val_bpb(config.eval.bpb_tokens),
                "parameters": counts["total"],
                "flops_per_token": flops_per_token(model_config, words.vocab_size),
            }
            log_samples(run, log, model, words)
            write_outputs(run, log, model, "base", "pretrain", summary)


def midtrain() -> None:
    """checkpoints/base -> checkpoints/mid: the chat format and the tool."""
    converse("midtrain", "base", "mid", load_config().midtrain)


def sft() -> None:
    """checkpoints/mid -> checkpoints/sft."""
    converse("sft", "mid", "sft", load_config().sft)


def converse(stage: str, source: str, target: str, schedule: Conversations) -> None:
    """Train the `source` checkpoint on a mixture of conversations."""
    from paribus.data.chat import load_sources
    from paribus.data.loader import ConversationLoader, DocumentLoader, shuffle_key
    from paribus.train.objectives import NextToken

    with session(stage) as run:
        words, model = load_tokenizer(CHECKPOINTS / source), load_model(run, source)
        seq_len, seed = model.config.seq_len, shuffle_key(run.config.seed, stage)  # not pretraining's order again
        names = [name for name, weight in schedule.mixture.items() if weight > 0]
        sources: dict[str, Any] = dict(load_sources(CORPUS, [name for name in names if name != "documents"]))
        if "documents" in names:
            sources["documents"] = DocumentLoader(TOKENS, "train", seq_len, seed)
        loader = ConversationLoader(sources, schedule.mixture, words, seq_len, seed, schedule.attend_across)
        objective = NextToken(loader, rows_of(schedule, seq_len), schedule.device_batch_size)
        params = flatten(model.config, "model.") | flatten(schedule, f"{stage}.")
        with train(run, model, objective, schedule, lambda step: {}, params) as (log, position):
            log_samples(run, log, model, words)
            write_outputs(run, log, model, target, stage, supervised_metrics(log.rows(), position))


def rl() -> None:
    """checkpoints/sft -> checkpoints/rl, metrics/rl.json with the sparsity of the reward, plots/rl.csv."""
    from paribus.data import load_jsonl
    from paribus.generate import Engine
    from paribus.train.objectives import PolicyGradient
    from paribus.train.rollout import rollout

    with session("rl") as run:
        cfg, seed = run.config.rl, run.config.seed
        words, model = load_tokenizer(CHECKPOINTS / "sft"), load_model(run, "sft")
        engine = Engine(model, words)
        problems = list(load_jsonl(CORPUS / "problems/train.jsonl"))
        watched = list(load_jsonl(CORPUS / "problems/validation.jsonl"))[: cfg.watch_questions]

        def evaluate(step: int) -> dict[str, float]:
            if step == cfg.steps:
                return watch(engine, watched, run, sample=True)
            return watch(engine, watched, run) if cfg.watch_every and step % cfg.watch_every == 0 else {}

        def sample(step: int) -> Any:
            model.eval()
            drawn = rollout(engine, problems, cfg=cfg, seed=seed, step=step)
            model.train()
            return drawn

        objective = PolicyGradient(sample, cfg.device_batch_size)
        params = flatten(model.config, "model.") | flatten(cfg, "rl.")
        before = partial(watch, engine, watched, run, sample=True)
        with train(run, model, objective, cfg, evaluate, params, before) as (log, position):
            log_samples(run, log, model, words)
            write_outputs(run, log, model, "rl", "rl", rl_metrics(log.rows(), position))


def watch(engine: Engine, problems: list[dict[str, str]], run: Session, sample: bool = False) -> dict[str, float]:
    """Accuracy on problems held out of train: greedy, and with `sample` pass@k too."""
    from dataclasses import replace

    from paribus.evaluate.gsm8k import evaluate_gsm8k

    rl, seed = run.config.rl, run.config.seed
    engine.model.eval()
    settings = replace(run.config.eval.gsm8k, questions=None, max_new_tokens=rl.max_new_tokens, rows=rl.rollout_rows,
                       sampled_questions=None if sample else 0)
    summary = evaluate_gsm8k(engine, problems, settings, stage="rl", seed=seed).summary
    keys = ["accuracy", *(key for key in summary if sample and key.startswith("pass_at_"))]
    return {f"watch/{key}": summary[key] for key in keys}


@contextmanager
def train(run: Session, model: GPT, objective: Objective, schedule: Any, evaluate: Callable[[int], dict[str, float]],
          params: dict[str, Any], before: Callable[[], dict[str, float]] | None = None) -> Iterator[tuple[Any, Position]]:
    """Run the loop from wherever it stood to its end, then yield (log, position) to write the outputs.

    before: measured once, at step 0, and logged there.
    """
    import torch

    from paribus.model.accounting import flops_per_token
    from paribus.train.checkpoint import StateStore
    from paribus.train.loop import Hooks, Loop, Paused, Plan
    from paribus.train.optim import MuonAdamW, lr_factor

    config = run.config
    warmdown = getattr(schedule, "warmdown_fraction", 1.0)

    def factor(step: int) -> float:
        shape = lr_factor(step, schedule.steps, schedule.warmup_fraction, warmdown, schedule.final_lr_fraction)
        return schedule.lr_scale * shape

    store = StateStore(run.folder / "state", config.train.keep_states)
    plan = Plan(schedule.steps, factor, flops_per_token(model.config, model.vocab_size),
                runtime.peak_flops(run.hardware), config.train.save_seconds, config.train.log_every)
    forward = torch.compile(model) if run.hardware.compile else model
    if delivered(run):
        store.clear()
    state = store.load()
    if state:
        print(f"paribus {run.stage}: going on from step {state.step} of {schedule.steps}", file=sys.stderr)
    with Progress(run.stage, schedule.steps, "step") as bar, run.open_log(params, state.step if state else None) as log:
        hooks = Hooks(log.log, log.event, log.sync, log.rewind, evaluate, lambda step, metrics: bar.update(step, **metrics))
        loop = Loop(model, forward, MuonAdamW(model, config.optimizer), objective, plan, store, run.interrupt, hooks)
        if state:
            loop.restore(state)
        else:
            log.log(0, predicted(run) | (before() if before else {}))
        try:
            loop.run()
        except Paused as paused:
            print(f"paribus {run.stage}: {paused}", file=sys.stderr)
            raise SystemExit(EXIT_PAUSED) from None
        model.eval()
        yield log, loop.position


def predicted(run: Session) -> dict[str, float]:
    """What the planner expects of this stage, to be logged beside what it takes (law 6)."""
    from paribus.plan.probe import prediction

    try:
        return prediction(run.config, run.stage)
    except UserError as unknown:
        print(f"paribus {run.stage}: no prediction: {unknown}", file=sys.stderr)
        return {}


def delivered(run: Session) -> bool:
    """Whether DVC has this run's outputs already. Asked for them again, it means from the start (`dvc repro -f`);
    otherwise a finished state is one whose process was killed before DVC took the outputs."""
    receipt = run.folder / "delivered.json"
    if not receipt.exists():
        return False
    lock = read_yaml("dvc.lock")["stages"].get(run.stage, {}) if Path("dvc.lock").exists() else {}
    return json.loads(receipt.read_text()) in [out.get("md5") for out in lock.get("outs", [])]
