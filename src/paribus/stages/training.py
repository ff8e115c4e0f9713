"""The four training stages: what is trained, on what, and what is written; metrics come last.

Of several processes (`launch.py`, or torchrun) all train; rank 0 alone logs, evaluates, saves and writes outputs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus import graph, tracking
from paribus.config import flatten, read_yaml
from paribus.curriculum import CHECKPOINTS, CORPUS, TOKENIZER, TOKENS
from paribus.errors import UserError
from paribus.files import read_value
from paribus.journal import logged_steps
from paribus.machine.interrupt import EXIT_PAUSED
from paribus.progress import Progress
from paribus.recipe import Recipe
from paribus.stages.context import (
    Session,
    load_model,
    load_tokenizer,
    load_trained_tokenizer,
    new_model,
    open_engine,
    session,
)
from paribus.stages.earlier import remember_parts, why_anew
from paribus.stages.launch import on_processes
from paribus.stages.outputs import say_cut_off, write_outputs
from paribus.summary import rl_metrics, supervised_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from paribus.config import Conversations
    from paribus.data.conversation_rows import ConversationLoader
    from paribus.data.loader import RowLoader
    from paribus.data.tokenizer import Tokenizer
    from paribus.generate import Engine
    from paribus.model.gpt import GPT
    from paribus.train.callback import Callback
    from paribus.train.checkpoint import State, StateStore
    from paribus.train.loop import Loop, Position
    from paribus.train.objectives import Objective, PolicyGradient
    from paribus.train.trainer import Trainer
    from paribus.train.within import Within

LONG_SECONDS = 120.0  # from which on the planned time is reported at the start


@on_processes
def pretrain() -> None:
    """Token shards -> checkpoints/base, metrics/pretrain.json, plots/pretrain.csv."""
    from paribus.data.mixture import document_rows
    from paribus.data.shards import check_tokenizer
    from paribus.evaluate.bpb import HeldOut
    from paribus.stages.callbacks import CoreEstimate, Validation
    from paribus.train.trainer import next_token

    with session("pretrain") as run:
        within = giving_way_to(run)
        tokenizer = load_trained_tokenizer()
        check_tokenizer(TOKENS, tokenizer, TOKENIZER / "tokenizer.json")
        recipe = Recipe.of(run.config, tokenizer.vocab_size)
        model = new_model(run, recipe)

        held_out = HeldOut(model, TOKENS, tokenizer.token_bytes, recipe, within)
        validation = Validation(held_out, recipe)
        core_estimate = CoreEstimate(model, tokenizer, recipe, within)

        rows = document_rows(TOKENS, recipe)
        print_epochs(rows, recipe)
        trainer = trainer_of(run, recipe, model, next_token(rows, recipe, "pretrain"))

        with training(run, trainer, within) as started:
            position = started.run_to_the_end([validation, core_estimate])
            summary = supervised_metrics(position)
            summary["val_bpb"] = held_out.bits_per_byte(run.config.eval.bpb_tokens)
            summary |= size_metrics(recipe)
            write_outputs(run, started.log, model, "base", summary, started.beside)


def size_metrics(recipe: Recipe) -> dict[str, float]:
    """Parameters and FLOPs of a recipe."""
    from paribus.model.accounting import optimizer_flops_per_step

    return {
        "parameters": recipe.parameters["total"],
        "flops_per_token": recipe.flops_per_token,
        "optimizer_flops_per_step": optimizer_flops_per_step(
            recipe.architecture, recipe.config.optimizer
        ),
    }


def print_epochs(rows: RowLoader, recipe: Recipe) -> None:
    """Warn that pretraining reads its documents more than once.

    Args:
        rows: that pretraining reads.
        recipe: says how many steps read them.
    """
    from paribus.train import parallel

    epochs = recipe.batches("pretrain").total / rows.rows_per_epoch
    if epochs > 1 and parallel.rank() == 0:
        print(
            f"paribus pretrain: the horizon reads data/tokens {epochs:.1f} times; for more text: corpus.*",
            file=sys.stderr,
        )


@on_processes
def midtrain() -> None:
    """checkpoints/base -> checkpoints/mid: the chat format and the tool."""
    converse("midtrain", "base", "mid")


@on_processes
def sft() -> None:
    """checkpoints/mid -> checkpoints/sft."""
    converse("sft", "mid", "sft")


def converse(stage: str, source: str, target: str) -> None:
    """Train the `source` checkpoint on a mixture of conversations.

    stage: midtrain or sft. target: the checkpoint that it writes.
    """
    from paribus.train.trainer import next_token

    with session(stage) as run:
        within = giving_way_to(run)
        tokenizer = load_tokenizer(CHECKPOINTS / source)
        model = load_model(run, source)
        recipe = Recipe.of(run.config, model.vocab_size, model.config)

        rows = conversation_rows(stage, source, tokenizer, recipe)
        trainer = trainer_of(run, recipe, model, next_token(rows, recipe, stage))

        with training(run, trainer, within) as started:
            position = started.run_to_the_end()
            summary = supervised_metrics(position)
            write_outputs(run, started.log, model, target, summary, started.beside)


def conversation_rows(
    stage: str, source: str, tokenizer: Tokenizer, recipe: Recipe
) -> ConversationLoader:
    """Rows of conversations, and of documents where the mixture has them, in an order of the stage's own.

    source: the checkpoint whose tokenizer it is. stage: whose mixture is meant. recipe: names its parts and their
    weights.
    """
    from paribus.data.chat import load_sources
    from paribus.data.conversation_rows import ConversationLoader
    from paribus.data.loader import DocumentLoader, shuffle_key
    from paribus.data.shards import check_tokenizer

    schedule: Conversations = getattr(recipe.config, stage)
    seq_len = recipe.architecture.seq_len
    seed = shuffle_key(recipe.config.seed, stage)  # not pretraining's order again
    amounts = schedule.mixture | schedule.epochs
    names = [name for name, amount in amounts.items() if amount > 0]
    conversations = [name for name in names if name != "documents"]
    sources: dict[str, Any] = dict(load_sources(CORPUS, conversations))
    if "documents" in names:
        check_tokenizer(TOKENS, tokenizer, CHECKPOINTS / source / "tokenizer.json")
        sources["documents"] = DocumentLoader(TOKENS, "train", seq_len, seed)
    return ConversationLoader(
        sources,
        schedule.mixture,
        tokenizer,
        seq_len,
        seed,
        schedule.attend_across,
        schedule.epochs,
        recipe.steps(stage) * recipe.rows(stage) * seq_len,
    )


@on_processes
def rl() -> None:
    """checkpoints/sft -> checkpoints/rl, metrics/rl.json with the sparsity of the reward, plots/rl.csv."""
    from paribus.data import contents
    from paribus.stages.callbacks import Watch

    with session("rl") as run:
        schedule = run.config.rl
        within = giving_way_to(run)
        engine = open_engine(run, "sft")
        model = engine.model
        recipe = Recipe.of(run.config, model.vocab_size, model.config)

        problems = list(contents.rows(CORPUS, "problems/train.jsonl"))
        held_out = list(contents.rows(CORPUS, "problems/validation.jsonl"))
        watched = held_out[: schedule.watch_questions]
        trainer = trainer_of(run, recipe, model, sampled_answers(run, engine, problems, within))

        with training(run, trainer, within) as started:
            position = started.run_to_the_end([Watch(engine, watched, run.config, within)])
            metrics = rl_metrics(logged_steps(run.folder), position)
            write_outputs(run, started.log, model, "rl", metrics, started.beside)
            key, context = "rl.max_new_tokens", model.config.seq_len
            say_cut_off("rl", metrics["cut_off"], key, schedule.max_new_tokens, context)


def sampled_answers(
    run: Session, engine: Engine, problems: list[dict[str, str]], within: Within
) -> PolicyGradient:
    """RL's objective: answers that the model gives to problems, and their rewards.

    run: of the stage. engine: samples with the weights of the step. within: called between the parts of a rollout.
    """
    from paribus.model.kernels import length_step
    from paribus.train import parallel
    from paribus.train.objectives import PolicyGradient
    from paribus.train.rollout import Rollout, rollout

    schedule, seed, model = run.config.rl, run.config.seed, engine.model

    def sample(step: int) -> Rollout:
        model.eval()
        with parallel.whole(model):
            drawn = rollout(engine, problems, cfg=schedule, seed=seed, step=step, within=within)
        model.train()
        return drawn

    return PolicyGradient(
        sample,
        schedule.device_batch_size,
        parallel.rank(),
        parallel.ranks(),
        schedule.temperature,
        schedule.top_k,
        length_step(run.hardware.compile),
    )


# ---------------------------------------------------------------- what the four have in common


def giving_way_to(run: Session) -> Within:
    """The callable for the parts of a long step: it shows them, and abandons the step for a stop."""
    from paribus.train import parallel
    from paribus.train.within import Within

    return Within(run.interrupt.requested, parallel.ranks)


def trainer_of(run: Session, recipe: Recipe, model: GPT, objective: Objective) -> Trainer:
    """The trainer of a stage on the session's hardware.

    Args:
        run: of the stage, with its hardware.
        recipe: optimizer, schedule and lengths.
        model: what is trained.
        objective: its loss.
    """
    from paribus.plan.devices import peak_flops
    from paribus.train import parallel
    from paribus.train.trainer import Trainer

    peak = peak_flops(run.hardware) * parallel.ranks()
    return Trainer(recipe, run.stage, model, objective, run.hardware, peak_flops=peak)


@dataclass(frozen=True)
class Started:
    """A training whose log is open.

    state: the one that it resumes from, if any. record: rank 0's callback. beside: name -> weights to keep beside the
    model's, filled at the end.
    """

    run: Session
    trainer: Trainer
    store: StateStore
    state: State | None
    run_log: tracking.RunLog | None
    record: Callback | None
    beside: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def log(self) -> tracking.RunLog:
        """The log, which rank 0 has; only rank 0 gets past `run_to_the_end`."""
        assert self.run_log is not None
        return self.run_log

    def run_to_the_end(self, callbacks: Sequence[Callback] = ()) -> Position:
        """Train to the last step; the model is whole then. Rank 0 returns, the other processes end.

        Raises SystemExit with EXIT_PAUSED when paused, UserError for a run that diverged.
        """
        from paribus.plan.probe import remember
        from paribus.train import parallel

        recorded = [] if self.record is None else [self.record]
        loop = self.trainer.loop(self.store, self.run.interrupt, [*recorded, *callbacks])
        is_first = parallel.rank() == 0
        with parallel.together():
            if self.state:
                loop.restore(self.state)
            run_or_pause(self.run.stage, loop)
            others = loop.optimizer.settle()
            parallel.gather(loop.model)
        parallel.leave()
        refuse_spoilt_weights(self.run.stage, loop)
        loop.model.eval()
        if not is_first:
            raise SystemExit(0)
        remember(Recipe.of(self.run.config), self.run.stage, loop.position.seconds)
        self.log.refuse_lost_rows()
        if others:
            averaged = self.run.config.optimizer.evaluate == "ema"
            self.beside["weights" if averaged else "ema"] = others
        return loop.position


@contextmanager
def training(run: Session, trainer: Trainer, within: Within) -> Iterator[Started]:
    """Find the state to resume from, report the planned time, and open the log; training has not begun.

    Args:
        run: of the stage.
        trainer: what trains.
        within: called between the parts of steps and evaluations.
    """
    from paribus.stages.callbacks import Record
    from paribus.train import parallel
    from paribus.train.checkpoint import StateStore

    log_file = run.folder / "metrics.jsonl"
    store = StateStore(run.folder / "state", run.config.train.keep_states, log_file)
    if parallel.rank() == 0 and asked_again(run):
        store.clear()
    state = parallel.newest(store)
    if parallel.rank() > 0:
        yield Started(run, trainer, store, state, None, None)
        return
    # Before the log is open: its feeder's start would take a core from what is timed.
    expected = {} if state else predicted(run)
    steps = trainer.recipe.steps(run.stage)
    print_where_it_begins(run, state, steps)
    print_long_plan(run.stage, expected)
    params = flatten(trainer.model.config, "model.")
    params |= flatten(trainer.recipe.schedule(run.stage), f"{run.stage}.")
    went_on_from = state.step if state else None
    with (
        Progress(run.stage, steps, "step") as bar,
        run.open_log(params, went_on_from) as log,
        pausing_outside_of_steps(run),
    ):
        record = Record(log, bar, within, expected)
        yield Started(run, trainer, store, state, log, record)


@contextmanager
def pausing_outside_of_steps(run: Session) -> Iterator[None]:
    """Exits with EXIT_PAUSED where an evaluation before the first step or after the last was abandoned."""
    from paribus.train.within import Abandoned

    try:
        yield
    except Abandoned:
        print(
            f"paribus {run.stage}: {run.interrupt.reason}, within an evaluation: the next start repeats it",
            file=sys.stderr,
        )
        raise SystemExit(EXIT_PAUSED) from None


def run_or_pause(stage: str, loop: Loop) -> None:
    """Train to the last step. Raises SystemExit where the run was asked to stop: its status is rank 0's.

    Args:
        stage: its name, for what is printed.
        loop: ready to begin or to go on.
    """
    from paribus.train import parallel
    from paribus.train.loop import Paused

    try:
        loop.run()
    except Paused as paused:
        if parallel.rank() > 0:
            raise SystemExit(0) from None
        print(f"paribus {stage}: {paused}", file=sys.stderr)
        raise SystemExit(EXIT_PAUSED) from None


def print_where_it_begins(run: Session, state: State | None, steps: int) -> None:
    """Report that training resumes, or why it does not although states of this stage exist.

    Args:
        run: of the stage.
        state: the one found; None: training begins.
        steps: of the whole training.
    """
    if state and state.step:
        print(f"paribus {run.stage}: going on from step {state.step} of {steps}", file=sys.stderr)
    elif why := why_anew(run.folder, run.stage, run.parts):
        print(f"paribus {run.stage}: {why}", file=sys.stderr)
    remember_parts(run.folder, run.parts)


def print_long_plan(stage: str, expected: dict[str, float]) -> None:
    """Report the planned time of a long training: until its first step ends, perhaps hours later, nothing else appears.

    Args:
        stage: its name.
        expected: planned figures by their logged names.
    """
    seconds = expected.get("predicted/seconds", 0.0)
    if seconds < LONG_SECONDS:
        return
    duration = f"{seconds / 60:,.0f} minutes"
    if seconds >= 2 * 3_600:
        duration = f"{seconds / 3_600:,.0f} hours"
    if seconds >= 2 * 86_400:
        duration = f"{seconds / 86_400:,.0f} days"
    print(
        f"paribus {stage}: the plan expects {duration} (`paribus plan` says why)", file=sys.stderr
    )


def refuse_spoilt_weights(stage: str, loop: Loop) -> None:
    """Raises UserError if the last updates left a weight that is not finite: no later loss was there to show it.

    Args:
        stage: its name.
        loop: at its last step.
    """
    spoilt = []
    for name, parameter in loop.model.named_parameters():
        if not bool(parameter.isfinite().all()):
            spoilt.append(name)
    if spoilt:
        raise UserError(
            f"{stage}: diverged by step {loop.position.step}: {len(spoilt)} tensors are not finite, {spoilt[0]} "
            "among them; lower the learning rate (lr_scale, optimizer.*) or the weight decay"
        )


def predicted(run: Session) -> dict[str, float]:
    """The planner's predictions for this stage, to be logged beside the measurements."""
    from paribus.plan.probe import prediction

    try:
        return prediction(Recipe.of(run.config), run.stage)
    except UserError as unknown:
        print(f"paribus {run.stage}: no prediction: {unknown}", file=sys.stderr)
        return {}


def asked_again(run: Session) -> bool:
    """Whether DVC has this run's outputs and requests them from the start (`dvc repro -f`).

    It does not where the process of a finished state was killed before DVC took the outputs, nor where DVC runs the
    stage because of a change in its code without effect (a comment): both reuse the existing outputs.
    """
    digest = read_value(run.folder / "delivered.json", str)
    if digest is None or not Path("dvc.lock").exists():
        return False
    entry = read_yaml("dvc.lock")["stages"].get(run.stage, {})
    has_outputs = digest in [out.get("md5") for out in entry.get("outs", [])]
    return has_outputs and not code_reads_otherwise(run.stage, entry)


def code_reads_otherwise(stage: str, entry: dict[str, Any]) -> bool:
    """Whether the files of a stage's code, or their texts, differ from dvc.lock's entry of the stage."""
    then = {
        dep["path"]: dep.get("md5") for dep in entry.get("deps", []) if graph.is_code(dep["path"])
    }
    now = {}
    for dep in graph.stage_definition(stage).deps:
        if graph.is_code(dep):
            now[dep] = graph.computed_hash(Path(dep))
    return then != now
