"""A trial start: each arm that is code takes two steps at a tiny size before the first long run.

The embedded world stands for the study's data, and sizes are tiny; switches, optimizer, precision and device are the
study's. What a trial start computes is no result, and is not kept.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from paribus.config import RESERVED_SOURCES, Config, fingerprint
from paribus.errors import EXIT_MACHINE, UserError
from paribus.execute.engine import Engine
from paribus.execute.finished_states import remove_states_of
from paribus.execute.run import Outcome, RunSpec, folder_of_run
from paribus.files import Values, read_json, write_atomic
from paribus.machine.interrupt import EXIT_PAUSED
from paribus.places import main_checkout, state_root
from paribus.run_id import RunId
from paribus.study.events import folder_of
from paribus.study.experiment import Experiment
from paribus.study.gpus import cards_of
from paribus.study.specs import spec_of

POLL_SECONDS = 1.0
BUSY_SECONDS = 5.0

_TINY: dict[str, object] = {
    "corpus.source": "world",
    "corpus.paths": [],
    "corpus.megabytes": None,
    "corpus.drop_contaminated": False,
    "corpus.drop_near_duplicates": False,
    "corpus.texts": {},
    "corpus.problems": "world",
    "corpus.core": "world",
    "corpus.validation_problems": 8,
    "corpus.world.megabytes": 0.2,
    "corpus.world.problems": 60,
    "corpus.world.test_problems": 16,
    "corpus.world.conversations": 40,
    "corpus.world.core_items": 8,
    "tokenizer.vocab_size": 400,
    "tokenizer.train_megabytes": 0.1,
    "tokens.val_fraction": 0.05,
    "tokens.shard_tokens": 20_000,
    "model.depth": 2,
    "model.width": None,
    "model.aspect_ratio": 16,
    "model.head_dim": 16,
    "model.n_heads": None,
    "model.n_kv_heads": None,
    "model.seq_len": 64,
    "train.processes": 1,
    "train.session_minutes": None,
    "pretrain.steps": 2,
    "pretrain.mixture": {},
    "pretrain.epochs": {},
    "pretrain.source_order": [],
    "pretrain.short_context": None,
    "pretrain.eval_every": 1,
    "pretrain.eval_tokens": 256,
    "pretrain.core_every": 0,
    "midtrain.steps": 2,
    "sft.steps": 2,
    "rl.steps": 2,
    "rl.questions_per_step": 2,
    "rl.samples_per_question": 2,
    "rl.max_new_tokens": 12,
    "rl.device_batch_size": 4,
    "rl.rollout_rows": 4,
    "rl.watch_every": 1,
    "rl.watch_questions": 4,
    "eval.bpb_tokens": 512,
    "eval.core.max_per_task": 4,
    "eval.core.batch_size": 4,
    "eval.gsm8k.questions": 4,
    "eval.gsm8k.samples": 2,
    "eval.gsm8k.sampled_questions": 2,
    "eval.gsm8k.few_shot": 1,
    "eval.gsm8k.max_new_tokens": 12,
    "eval.gsm8k.rows": 4,
}
_ROWS = {"batch_tokens": 256, "device_batch_size": 4}
WINDOW = 16


def tiny(config: Config) -> dict[str, object]:
    """Overrides that make every stage of an arm take seconds, dotted.

    Args:
        config: of the arm.
    """
    overrides = dict(_TINY)
    if config.model.window is not None:
        overrides["model.window"] = WINDOW
    for stage in ("pretrain", "midtrain", "sft"):
        for key, value in _ROWS.items():
            overrides[f"{stage}.{key}"] = value
    for stage in ("midtrain", "sft"):
        overrides |= _of_the_world(stage, getattr(config, stage).mixture)
    overrides["tracking.experiment"] = f"{config.tracking.experiment}-trial-starts"
    return overrides


def _of_the_world(stage: str, mixture: dict[str, float]) -> dict[str, object]:
    """The sources of a mixture that the embedded world has; the others at weight 0."""
    overrides: dict[str, object] = {}
    for name in mixture:
        if name not in RESERVED_SOURCES:
            overrides[f"{stage}.mixture.{name}"] = 0.0
    if not any(mixture.get(name) for name in RESERVED_SOURCES):
        overrides[f"{stage}.mixture.facts"] = 1.0
    return overrides


def spec_of_start(experiment: Experiment, arm: str, commit: str) -> RunSpec:
    """The specification of an arm's trial start.

    Args:
        experiment: the study.
        arm: its name.
        commit: the baseline's.
    """
    run = experiment.run(arm, 0, tiny(experiment.config(arm)))
    # No arm's name has a plus sign.
    name = RunId(experiment.name, f"{arm}+start", run.seed)
    return replace(spec_of(experiment, run, commit), id=name, kept=False)


def start_arms(experiment: Experiment, engine: Engine, commit: str) -> None:
    """Make every arm that is code start, unless it has before.

    Args:
        experiment: the study.
        engine: computes the starts.
        commit: the baseline's.

    Raises:
        UserError: with the words of every arm that did not start.
    """
    memo = folder_of(experiment.name) / "starts.json"
    known = read_json(memo, Values(str)) or {}
    specs = {}
    for arm in experiment.arms:
        if experiment.code(arm) is not None:
            spec = spec_of_start(experiment, arm, commit)
            if known.get(arm) != _key(spec):
                specs[arm] = spec
    outcomes = _run_all(experiment, engine, list(specs.values()))
    problems = []
    for arm, spec in specs.items():
        outcome = outcomes[spec.id]
        if outcome.state == "done":
            known[arm] = _key(spec)
            remove_states_of(spec.id.experiment_name(), main_checkout(), state_root())
            shutil.rmtree(folder_of_run(state_root(), spec.id), ignore_errors=True)
        else:
            problems.append(_problem(experiment, arm, spec, outcome))
    memo.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(memo, json.dumps(known))
    if problems:
        raise UserError(problems)


def _key(spec: RunSpec) -> str:
    return fingerprint(commit=spec.commit, overrides=spec.overrides, stages=spec.stages)


def _problem(experiment: Experiment, arm: str, spec: RunSpec, outcome: Outcome) -> str:
    code = experiment.code(arm)
    assert code
    log = folder_of_run(state_root(), spec.id) / "log.txt"
    return (
        f"{experiment.file}: arms.{arm}.code: {code.asked} ({code.commit[:10]}) does not take two steps at a tiny size: "
        f"{outcome.stage or 'its set-up'}: {_words(outcome.problems)} (log: {log})"
    )


def _words(problems: Sequence[str]) -> str:
    """Why a run ended; of a traceback its last line, which says what went wrong."""
    if any(line.startswith(('File "', "Traceback (")) for line in problems):
        return problems[-1]
    return " ".join(problems) or "no reason was given"


def _run_all(
    experiment: Experiment, engine: Engine, specs: Sequence[RunSpec]
) -> dict[RunId, Outcome]:
    """Run to their outcomes; exits where the study is asked to stop, or the machine is at fault."""
    waiting = {spec.id: spec for spec in specs}
    outcomes: dict[RunId, Outcome] = {}
    again: dict[RunId, float] = {spec.id: 0.0 for spec in specs}
    train = experiment.config(extra={"train.processes": 1}).train
    cards = cards_of(train, engine.resources().device)
    while waiting:
        for run, when in list(again.items()):
            if time.monotonic() >= when:
                del again[run]
                engine.submit(waiting[run], cards)
        if (folder_of(experiment.name) / "stop").exists():
            raise SystemExit(EXIT_PAUSED)
        for event in engine.poll(POLL_SECONDS):
            if event.outcome is None or event.run not in waiting:
                continue
            if event.outcome.state == "busy":
                again[event.run] = time.monotonic() + BUSY_SECONDS
            elif event.outcome.state == "paused":
                raise SystemExit(EXIT_PAUSED)
            elif event.outcome.state == "machine":
                print(*event.outcome.problems, sep="\n", file=sys.stderr)
                raise SystemExit(EXIT_MACHINE)
            else:
                outcomes[event.run] = event.outcome
                del waiting[event.run]
    return outcomes
