"""The four training stages: each is the one loop with an objective; metrics are written last.

Of several processes (`launch.py`, or torchrun) all train; rank 0 alone logs, evaluates, saves and writes outputs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus import graph
from paribus.config import (
    Conversations,
    Pretrain,
    flatten,
    load_config,
    read_yaml,
    resolve_model,
    resolve_pretrain,
)
from paribus.curriculum import CHECKPOINTS, CORPUS, TOKENS
from paribus.errors import UserError
from paribus.files import read_value
from paribus.journal import logged_steps
from paribus.machine.interrupt import EXIT_PAUSED
from paribus.progress import Progress
from paribus.stages.context import (
    Session,
    core_is_synthetic,
    load_model,
    load_tokenizer,
    load_trained_tokenizer,
    new_model,
    rows_of,
    session,
)
from paribus.stages.earlier import remember_parts, why_anew
from paribus.stages.launch import on_processes
from paribus.stages.outputs import say_cut_off, write_outputs
from paribus.summary import rl_metrics, supervised_metrics

if TYPE_CHECKING:
    from paribus.data.loader import Batch, DocumentLoader
    from paribus.data.packing import PackedLoader
    from paribus.data.tokenizer import Tokenizer
    from paribus.generate import Engine
    from paribus.model.gpt import GPT
    from paribus.train.checkpoint import State, StateStore
    from paribus.train.loop import Hooks, Loop, Position
    from paribus.train.objectives import Objective
    from paribus.train.within import Within

LONG_SECONDS = 120.0  # from which on the planned time is said at the start


@on_processes
def pretrain() -> None:
    """Token shards -> checkpoints/base, metrics/pretrain.json, plots/pretrain.csv."""
    from paribus.data.loader import DocumentLoader
    from paribus.evaluate.bpb import bits_per_byte
    from paribus.model.accounting import (
        flops_per_token,
        optimizer_flops_per_step,
        parameters,
    )
    from paribus.train import parallel
    from paribus.train.objectives import NextToken
    from paribus.train.within import Within

    with session("pretrain") as run:
        config, words = run.config, load_trained_tokenizer()
        within = Within(run.interrupt.requested, parallel.ranks)
        model_config = resolve_model(config.model)
        counts = parameters(model_config, words.vocab_size)
        schedule = resolve_pretrain(config.pretrain, counts["total"], model_config.seq_len)
        model = new_model(run, words.vocab_size)
        model.initialise(config.seed)
        validation = DocumentLoader(TOKENS, "val", model_config.seq_len, config.seed)

        def val_bpb(max_tokens: int | None) -> float:
            rows = validation.validation_rows(schedule.device_batch_size, max_tokens)
            size = min(len(validation.shards), max_tokens or len(validation.shards))
            told = telling(rows, within, -(-size // model_config.seq_len))
            return bits_per_byte(model, told, words.token_bytes).bpb

        estimate = core_estimate(model, words, schedule, config.eval.core.batch_size, within)

        def evaluate(step: int) -> dict[str, float]:
            bpb_due = (
                schedule.eval_every
                and step % schedule.eval_every == 0
                and step < (schedule.steps or 0)
            )
            core_due = schedule.core_every and step % schedule.core_every == 0
            if not bpb_due and not core_due:
                return {}
            return parallel.leads(
                model,
                lambda: (
                    ({"val/bpb": val_bpb(schedule.eval_tokens)} if bpb_due else {})
                    | (estimate() if core_due else {})
                ),
            )

        loader = document_rows(schedule, model_config.seq_len, config.seed)
        rows = rows_of(schedule, model_config.seq_len)
        if (
            parallel.rank() == 0
            and (epochs := (schedule.steps or 0) * rows / loader.rows_per_epoch) > 1
        ):
            print(
                f"paribus pretrain: the horizon reads data/tokens {epochs:.1f} times; for more text: corpus.*",
                file=sys.stderr,
            )
        objective = NextToken(
            loader, rows, schedule.device_batch_size, parallel.rank(), parallel.ranks()
        )
        params = flatten(model_config, "model.") | flatten(schedule, "pretrain.")
        with train(run, model, objective, schedule, evaluate, params, within) as (log, position):
            summary = supervised_metrics(position) | {
                "val_bpb": val_bpb(config.eval.bpb_tokens),
                "parameters": counts["total"],
                "flops_per_token": flops_per_token(model_config, words.vocab_size),
                "optimizer_flops_per_step": optimizer_flops_per_step(
                    model_config, config.optimizer
                ),
            }
            write_outputs(run, log, model, "base", "pretrain", summary)


def telling(batches: Iterable[Batch], within: Within, total: int) -> Iterator[Batch]:
    """The batches of a validation of `total` rows, told as they are read."""
    done = 0
    for batch in batches:
        within("validation rows", done, total)
        yield batch
        done += len(batch.inputs)


def core_estimate(
    model: GPT, words: Tokenizer, schedule: Pretrain, batch_size: int, within: Within
) -> Callable[[], dict[str, float]]:
    """CORE on a few items of each task; with `core_every` the bundle is checked now, before any training.

    It draws from no generator of the training's, so that the weights are the same with it and without.
    """
    from paribus.data.core_bundle import read_bundle
    from paribus.evaluate.core import evaluate_core

    if schedule.core_every:
        read_bundle(CORPUS / "core", schedule.core_max_per_task, complete=core_is_synthetic())

    def estimate() -> dict[str, float]:
        found = evaluate_core(
            model,
            words,
            CORPUS / "core",
            max_per_task=schedule.core_max_per_task,
            batch_size=batch_size,
            synthetic=core_is_synthetic(),
            on_progress=within,
        ).summary()
        name = "core_partial" if found["partial"] else "core"
        return {f"val/{name}": found[name], "val/core_stderr": found["core_stderr"]}

    return estimate


def document_rows(schedule: Pretrain, seq_len: int, seed: int) -> DocumentLoader | PackedLoader:
    """Rows of training documents as `pretrain.packing` says."""
    from paribus.data.loader import DocumentLoader
    from paribus.data.packing import PackedLoader

    if schedule.packing == "best_fit":
        return PackedLoader(TOKENS, "train", seq_len, seed)
    return DocumentLoader(TOKENS, "train", seq_len, seed)


@on_processes
def midtrain() -> None:
    """checkpoints/base -> checkpoints/mid: the chat format and the tool."""
    converse("midtrain", "base", "mid", load_config().midtrain)


@on_processes
def sft() -> None:
    """checkpoints/mid -> checkpoints/sft."""
    converse("sft", "mid", "sft", load_config().sft)


def converse(stage: str, source: str, target: str, schedule: Conversations) -> None:
    """Train the `source` checkpoint on a mixture of conversations."""
    from paribus.data.chat import load_sources
    from paribus.data.loader import ConversationLoader, DocumentLoader, shuffle_key
    from paribus.train import parallel
    from paribus.train.objectives import NextToken
    from paribus.train.within import Within

    with session(stage) as run:
        within = Within(run.interrupt.requested, parallel.ranks)
        words, model = load_tokenizer(CHECKPOINTS / source), load_model(run, source)
        seq_len, seed = (
            model.config.seq_len,
            shuffle_key(run.config.seed, stage),
        )  # not pretraining's order again
        names = [
            name for name, amount in (schedule.mixture | schedule.epochs).items() if amount > 0
        ]
        sources: dict[str, Any] = dict(
            load_sources(CORPUS, [name for name in names if name != "documents"])
        )
        if "documents" in names:
            sources["documents"] = DocumentLoader(TOKENS, "train", seq_len, seed)
        loader = ConversationLoader(
            sources,
            schedule.mixture,
            words,
            seq_len,
            seed,
            schedule.attend_across,
            schedule.epochs,
            schedule.steps * rows_of(schedule, seq_len) * seq_len,
        )
        objective = NextToken(
            loader,
            rows_of(schedule, seq_len),
            schedule.device_batch_size,
            parallel.rank(),
            parallel.ranks(),
        )
        params = flatten(model.config, "model.") | flatten(schedule, f"{stage}.")
        with train(run, model, objective, schedule, lambda step: {}, params, within) as trained:
            log, position = trained
            write_outputs(run, log, model, target, stage, supervised_metrics(position))


@on_processes
def rl() -> None:
    """checkpoints/sft -> checkpoints/rl, metrics/rl.json with the sparsity of the reward, plots/rl.csv."""
    from paribus.data import contents
    from paribus.generate import Engine
    from paribus.model.kernels import length_step
    from paribus.train import parallel
    from paribus.train.objectives import PolicyGradient
    from paribus.train.rollout import rollout
    from paribus.train.within import Within

    with session("rl") as run:
        cfg, seed = run.config.rl, run.config.seed
        words, model = load_tokenizer(CHECKPOINTS / "sft"), load_model(run, "sft")
        engine, within = Engine(model, words), Within(run.interrupt.requested, parallel.ranks)
        problems = list(contents.rows(CORPUS, "problems/train.jsonl"))
        watched = list(contents.rows(CORPUS, "problems/validation.jsonl"))[: cfg.watch_questions]

        def evaluate(step: int) -> dict[str, float]:
            last = step == cfg.steps
            due = last or cfg.watch_every and step % cfg.watch_every == 0
            return (
                parallel.leads(model, partial(watch, engine, watched, run, within, sample=last))
                if due
                else {}
            )

        def sample(step: int) -> Any:
            model.eval()
            with parallel.whole(model):
                drawn = rollout(engine, problems, cfg=cfg, seed=seed, step=step, within=within)
            model.train()
            return drawn

        objective = PolicyGradient(
            sample,
            cfg.device_batch_size,
            parallel.rank(),
            parallel.ranks(),
            cfg.temperature,
            cfg.top_k,
            length_step(run.hardware.compile),
        )
        params = flatten(model.config, "model.") | flatten(cfg, "rl.")
        look = partial(watch, engine, watched, run, within, sample=True)
        before = partial(parallel.leads, model, look)
        with train(run, model, objective, cfg, evaluate, params, within, before) as trained:
            log, position = trained
            metrics = rl_metrics(logged_steps(run.folder), position)
            write_outputs(run, log, model, "rl", "rl", metrics)
            key, context = "rl.max_new_tokens", model.config.seq_len
            say_cut_off("rl", metrics["cut_off"], key, cfg.max_new_tokens, context)


def watch(
    engine: Engine,
    problems: list[dict[str, str]],
    run: Session,
    within: Within,
    sample: bool = False,
) -> dict[str, float]:
    """Accuracy on problems held out of train: greedy, and with `sample` pass@k too."""
    from dataclasses import replace

    from paribus.evaluate.gsm8k import evaluate_gsm8k

    rl, seed = run.config.rl, run.config.seed
    engine.model.eval()
    settings = replace(
        run.config.eval.gsm8k,
        questions=None,
        max_new_tokens=rl.max_new_tokens,
        rows=rl.rollout_rows,
        sampled_questions=None if sample else 0,
    )
    summary = evaluate_gsm8k(
        engine, problems, settings, stage="rl", seed=seed, within=within
    ).summary
    keys = ["accuracy", *(key for key in summary if sample and key.startswith("pass_at_"))]
    return {f"watch/{key}": summary[key] for key in keys}


@contextmanager
def train(
    run: Session,
    model: GPT,
    objective: Objective,
    schedule: Any,
    evaluate: Callable[[int], dict[str, float]],
    params: dict[str, Any],
    within: Within,
    before: Callable[[], dict[str, float]] | None = None,
) -> Iterator[tuple[Any, Position]]:
    """Run the loop from wherever it stood to its end, then yield (log, position) to write the outputs, on rank 0 only.

    within: called between the parts of steps and evaluations; it tells the progress bar from here on.
    before: measured once, at step 0, and logged there.
    """
    from paribus.plan.probe import remember
    from paribus.train import parallel
    from paribus.train.checkpoint import StateStore
    from paribus.train.loop import Hooks

    store = StateStore(
        run.folder / "state", run.config.train.keep_states, run.folder / "metrics.jsonl"
    )
    if parallel.rank() == 0 and asked_again(run):
        store.clear()
    state = parallel.newest(store)
    prepared = partial(prepare, run, model, objective, schedule, store)
    if parallel.rank() > 0:
        run_loop(prepared(Hooks.silent(evaluate)), run, state, before, {})
        raise SystemExit(0)
    # Before the log is open: its feeder's start would take a core from what is timed.
    expected = {} if state else predicted(run)
    print_where_it_begins(run, state, schedule.steps)
    print_long_plan(run.stage, expected)
    with (
        Progress(run.stage, schedule.steps, "step") as bar,
        run.open_log(params, state.step if state else None) as log,
        giving_way(run),
    ):
        within.say = bar.within
        hooks = Hooks(
            log.log,
            log.event,
            log.sync,
            log.rewind,
            evaluate,
            lambda step, metrics: bar.update(step, **metrics),
            within,
        )
        loop = prepared(hooks)
        run_loop(loop, run, state, before, expected)
        remember(run.config, run.stage, loop.position.seconds)
        log.refuse_lost_rows()
        yield log, loop.position


@contextmanager
def giving_way(run: Session) -> Iterator[None]:
    """Exits with EXIT_PAUSED where an evaluation before the first step or after the last was given up."""
    from paribus.train.within import Abandoned

    try:
        yield
    except Abandoned:
        print(
            f"paribus {run.stage}: {run.interrupt.reason}, within an evaluation: the next start repeats it",
            file=sys.stderr,
        )
        raise SystemExit(EXIT_PAUSED) from None


def print_where_it_begins(run: Session, state: State | None, steps: int) -> None:
    """Say that training goes on, or why it does not although there are states of this stage."""
    if state and state.step:
        print(f"paribus {run.stage}: going on from step {state.step} of {steps}", file=sys.stderr)
    elif why := why_anew(run.folder, run.stage, run.parts):
        print(f"paribus {run.stage}: {why}", file=sys.stderr)
    remember_parts(run.folder, run.parts)


def print_long_plan(stage: str, expected: dict[str, float]) -> None:
    """Say what a long training is expected to take: its first step alone, without which nothing is shown, may be hours."""
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


def prepare(
    run: Session, model: GPT, objective: Objective, schedule: Any, store: StateStore, hooks: Hooks
) -> Loop:
    """The loop of a stage, at its beginning."""
    from paribus.model.accounting import flops_per_token
    from paribus.plan.devices import peak_flops
    from paribus.train import parallel
    from paribus.train.loop import Loop, Plan
    from paribus.train.optim import MuonAdamW, lr_factor

    config = run.config
    warmdown = getattr(schedule, "warmdown_fraction", 1.0)

    def factor(step: int) -> float:
        shape = lr_factor(
            step, schedule.steps, schedule.warmup_fraction, warmdown, schedule.final_lr_fraction
        )
        scale: float = schedule.lr_scale
        return scale * shape

    plan = Plan(
        schedule.steps,
        factor,
        flops_per_token(model.config, model.vocab_size),
        peak_flops(run.hardware) * parallel.ranks(),
        config.train.save_seconds,
        config.train.log_every,
    )
    forward = parallel.wrap(
        model, config.train.sharding, run.hardware.compile, objective.ragged
    )  # before the optimiser is made
    return Loop(
        model,
        forward,
        MuonAdamW(model, config.optimizer),
        objective,
        plan,
        store,
        run.interrupt,
        hooks,
    )


def run_loop(
    loop: Loop,
    run: Session,
    state: State | None,
    before: Callable[[], dict[str, float]] | None,
    expected: dict[str, float],
) -> None:
    """Train to the end; the model is whole then, and each process on its own. Exits with EXIT_PAUSED when paused.

    expected: what the plan says, logged at step 0 with what `before` measures.
    """
    from paribus.train import parallel
    from paribus.train.loop import Paused

    with parallel.together():
        if state:
            loop.restore(state)
        else:
            loop.hooks.log(0, expected | (before() if before else {}))
        try:
            loop.run()
        except Paused as paused:
            if parallel.rank() > 0:  # the exit status of the stage is rank 0's
                raise SystemExit(0) from None
            print(f"paribus {run.stage}: {paused}", file=sys.stderr)
            raise SystemExit(EXIT_PAUSED) from None
        parallel.gather(loop.model)
    parallel.leave()
    refuse_spoilt_weights(run.stage, loop)
    loop.model.eval()


def refuse_spoilt_weights(stage: str, loop: Loop) -> None:
    """Raises UserError if the last updates left a weight that is not finite: no later loss was there to show it."""
    spoilt = [
        name
        for name, parameter in loop.model.named_parameters()
        if not bool(parameter.isfinite().all())
    ]
    if spoilt:
        raise UserError(
            f"{stage}: diverged by step {loop.position.step}: {len(spoilt)} tensors are not finite, {spoilt[0]} "
            "among them; lower the learning rate (lr_scale, optimizer.*) or the weight decay"
        )


def predicted(run: Session) -> dict[str, float]:
    """What the planner expects of this stage, to be logged beside what it takes."""
    from paribus.plan.probe import prediction

    try:
        return prediction(run.config, run.stage)
    except UserError as unknown:
        print(f"paribus {run.stage}: no prediction: {unknown}", file=sys.stderr)
        return {}


def asked_again(run: Session) -> bool:
    """Whether DVC has this run's outputs and asks for them from the start (`dvc repro -f`).

    It does not where the process of a finished state was killed before DVC took the outputs, nor where DVC runs the
    stage because its code reads otherwise and does the same (a comment): both hand over what there is.
    """
    digest = read_value(run.folder / "delivered.json", str)
    if digest is None or not Path("dvc.lock").exists():
        return False
    entry = read_yaml("dvc.lock")["stages"].get(run.stage, {})
    has_outputs = digest in [out.get("md5") for out in entry.get("outs", [])]
    return has_outputs and not code_reads_otherwise(run.stage, entry)


def code_reads_otherwise(stage: str, entry: dict[str, Any]) -> bool:
    """Whether the files of a stage's code are others, or have other texts, than dvc.lock's entry of the stage says."""
    then = {
        dep["path"]: dep.get("md5") for dep in entry.get("deps", []) if graph.is_code(dep["path"])
    }
    now = {}
    for dep in graph.stage_definition(stage).deps:
        if graph.is_code(dep):
            now[dep] = graph.computed_hash(Path(dep))
    return then != now
