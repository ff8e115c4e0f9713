"""A whole run before it runs: memory, largest device batch, hours with an interval, what bounds it, and the rest of the bill."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from paribus.config import Corpus
from paribus.data import english
from paribus.model import optimizer_footprint
from paribus.plan import library
from paribus.plan.devices import suited
from paribus.plan.memory import PROMPT_TOKENS, STAGES, Memory, max_device_batch, stage_memory
from paribus.plan.throughput import (
    Device,
    Work,
    decode,
    forward_backward,
    step_seconds,
    update,
)
from paribus.recipe import Recipe

COMPILE_SECONDS = 60.0  # of a stage's first step with torch.compile; measured on a CPU: 45 to 57 s
CORE_TASKS = 22
CORE_ITEMS = 4_000  # of a task, when not limited
CORE_TOKENS = 600  # of an item with all its choices
MEAN_ANSWER = 0.6  # of max_new_tokens: answers end early


@dataclass(frozen=True)
class StagePlan:
    """The needs of one stage. Seconds are on the requested device; work is of the whole stage."""

    stage: str
    memory: Memory
    device_batch_size: int
    max_device_batch_size: int
    tokens: int  # that go through the model with a gradient; of evaluation: without
    work: Work
    seconds: float
    tokens_per_second: float | None
    validation_seconds: float = (
        0.0  # of `seconds`: looks on the way and at the end, by the first card alone
    )


@dataclass(frozen=True)
class Plan:
    """The page that `paribus plan` prints."""

    device: Device
    gpus: int
    dtype: str
    vram: int
    parameters: dict[str, int]
    flops_per_token: float
    stages: dict[str, StagePlan]
    bill: dict[str, float]
    fp8: bool = False  # whether block matrices multiply 8-bit floats in supervised training

    @property
    def hours(self) -> float:
        """Hours of all stages together."""
        return sum(stage.seconds for stage in self.stages.values()) / 3600

    def spread_of(self, stage: str) -> float:
        """The factor by which a stage's time may be off, either way; a measurement on one card is less certain for several."""
        return self.device.unmeasured_spread if self.gpus > 1 else self.device.spread_of(stage)

    @property
    def hours_low(self) -> float:
        """Hours if every stage is as fast as its spread allows."""
        stages = self.stages.items()
        return sum(stage.seconds / self.spread_of(name) for name, stage in stages) / 3600

    @property
    def hours_high(self) -> float:
        """Hours if every stage is as slow as its spread allows."""
        stages = self.stages.items()
        return sum(stage.seconds * self.spread_of(name) for name, stage in stages) / 3600


def make_plan(
    recipe: Recipe,
    device: Device,
    *,
    dtype: str,
    vram: int,
    gpus: int = 1,
    price: float | None = None,
    seeds: int = 1,
) -> Plan:
    """The plan of a recipe on `gpus` devices with `vram` bytes each.

    device: its kind and rates. dtype: of forward passes. price: of a card an hour; None: costs are left out. seeds:
    runs of the curriculum.
    """
    stages = {stage: stage_plan(recipe, stage, device, dtype, vram, gpus) for stage in STAGES}
    total = sum(stage.seconds for stage in stages.values()) / 3600
    return Plan(
        device,
        gpus,
        dtype,
        vram,
        recipe.parameters,
        recipe.flops_per_token,
        stages,
        _bill(recipe, stages, device, total, gpus, price, seeds),
        recipe.config.train.fp8,
    )


def stage_plan(
    recipe: Recipe, stage: str, device: Device, dtype: str, vram: int | None = None, gpus: int = 1
) -> StagePlan:
    """One stage of the curriculum, or `evaluation`; `vram` bytes a card, by default what the device has.

    recipe: of the run. device: its kind and rates. dtype: of forward passes. gpus: cards. Raises UserError where the
    device lacks what `train` asks for.
    """
    device = suited(device, recipe.config.train)
    recipe = dataclasses.replace(recipe, architecture=recipe.trained_in(stage))
    config = recipe.config
    item = 4 if dtype == "float32" else 2
    work, tokens, speed = _work(recipe, stage, device, item, gpus)
    correction = device.correction(stage)
    seconds = work.total * correction
    compiling = COMPILE_SECONDS if config.train.compile and stage != "evaluation" else 0.0
    rows = config.eval.gsm8k.rows
    if stage != "evaluation":
        rows = recipe.schedule(stage).device_batch_size
    return StagePlan(
        stage,
        stage_memory(recipe, stage, device=device.kind, dtype=dtype),
        rows,
        max_device_batch(recipe, stage, vram or device.memory, device=device.kind, dtype=dtype),
        tokens,
        work,
        seconds + compiling,
        speed / correction if speed else None,
        _looks(recipe, stage, device, item).total * correction,
    )


def _looks(recipe: Recipe, stage: str, device: Device, item: int) -> Work:
    """What a stage measures besides training, which the first card does alone while others wait."""
    if stage == "pretrain":
        return _validations(recipe, device, item)
    if stage == "rl":
        return _watch(recipe, device, item)
    return Work()


def _work(
    recipe: Recipe, stage: str, device: Device, item: int, gpus: int
) -> tuple[Work, int, float | None]:
    """(work of the whole stage, tokens, tokens per second while training)."""
    if stage == "evaluation":
        return _evaluation(recipe, device, item)
    if stage == "rl":
        return _rl(recipe, device, item, gpus)
    step = training_step_work(recipe, stage, device, item, gpus)
    training = step.times(recipe.steps(stage))
    looks = _looks(recipe, stage, device, item)
    return training.plus(looks), recipe.tokens(stage), recipe.batch_tokens(stage) / step.total


def training_step_work(
    recipe: Recipe, stage: str, device: Device, item: int, gpus: int = 1
) -> Work:
    """One optimiser step of a supervised stage.

    recipe: of the run. stage: its name. device: its kind and rates. item: bytes of a number.
    """
    config = recipe.config
    device = suited(device, config.train)
    rows = min(recipe.schedule(stage).device_batch_size, recipe.rows(stage))
    return step_seconds(
        recipe.architecture,
        recipe.vocab_size,
        config.optimizer,
        device,
        batch_tokens=recipe.batch_tokens(stage),
        device_tokens=rows * recipe.architecture.seq_len,
        gpus=gpus,
        compiled=config.train.compile,
        itemsize=item,
        checkpointing=config.train.activation_checkpointing,
        fp8=config.train.fp8,
    )


def _validations(recipe: Recipe, device: Device, item: int) -> Work:
    """Bits per byte on the way and at the end, and CORE on the way."""
    schedule, steps = recipe.pretrain, recipe.steps("pretrain")
    looks = steps // schedule.eval_every if schedule.eval_every else 0
    at_the_end = recipe.config.eval.bpb_tokens or schedule.eval_tokens
    tokens = looks * schedule.eval_tokens + at_the_end
    if schedule.core_every:
        items = CORE_TASKS * schedule.core_max_per_task
        tokens += steps // schedule.core_every * items * _core_tokens(recipe)
    return _forward(recipe, device, item, tokens)


def _core_tokens(recipe: Recipe) -> int:
    """Tokens of an item of CORE with all its choices."""
    return min(CORE_TOKENS, 4 * recipe.architecture.seq_len)


def _forward(recipe: Recipe, device: Device, item: int, tokens: int) -> Work:
    """A forward pass over many tokens, in batches of 16,384."""
    batch = forward_backward(
        recipe.architecture,
        recipe.vocab_size,
        16384,
        device,
        compiled=False,
        itemsize=item,
        backward=False,
    )
    return batch.times(tokens / 16384)


def _answers(recipe: Recipe, device: Device, item: int, answers: int, rows: int, new: int) -> Work:
    """Work of decoding answers, `rows` side by side. Rows that end are refilled, so that only the mean length counts."""
    rows = min(rows, max(answers, 1))
    steps = math.ceil(answers / rows) * MEAN_ANSWER * new
    one = decode(
        recipe.architecture, recipe.vocab_size, rows, PROMPT_TOKENS + new // 2, device, item
    )
    return one.times(steps)


def _rl(recipe: Recipe, device: Device, item: int, gpus: int) -> tuple[Work, int, float]:
    """Answers and their gradients are shared out over the cards."""
    config, model, vocab = recipe.config, recipe.architecture, recipe.vocab_size
    rl = config.rl
    answers = rl.questions_per_step * rl.samples_per_question
    share = math.ceil(answers / gpus)
    row = min(PROMPT_TOKENS + round(MEAN_ANSWER * rl.max_new_tokens), model.seq_len)
    passes = math.ceil(share / rl.device_batch_size)
    one = forward_backward(
        model,
        vocab,
        share * row // passes,
        device,
        compiled=config.train.compile,
        itemsize=item,
        length=row,
        checkpointing=config.train.activation_checkpointing,
    )
    step = one.times(passes).plus(update(model, vocab, config.optimizer, device, gpus))
    sampling = _answers(recipe, device, item, share, rl.rollout_rows, rl.max_new_tokens)
    step = step.plus(sampling)
    work = step.times(rl.steps).plus(_watch(recipe, device, item))
    tokens = answers * row
    return work, rl.steps * tokens, tokens / step.total


def _watch(recipe: Recipe, device: Device, item: int) -> Work:
    """Accuracy on held-out problems: at the start, the end and on the way."""
    rl = recipe.config.rl
    looks = 2 + (rl.steps // rl.watch_every if rl.watch_every else 0)
    one = _answers(recipe, device, item, rl.watch_questions, rl.rollout_rows, rl.max_new_tokens)
    return one.times(looks)


def _evaluation(recipe: Recipe, device: Device, item: int) -> tuple[Work, int, None]:
    """CORE of the base model, and word problems after each of four stages."""
    gsm, core = recipe.config.eval.gsm8k, recipe.config.eval.core
    questions = gsm.questions or 1319  # GSM8K's test split
    sampled = questions if gsm.sampled_questions is None else gsm.sampled_questions
    answers = questions + gsm.samples * sampled
    problems = _answers(recipe, device, item, answers, gsm.rows, gsm.max_new_tokens).times(4)
    tokens = CORE_TASKS * (core.max_per_task or CORE_ITEMS) * _core_tokens(recipe)
    return problems.plus(_forward(recipe, device, item, tokens)), tokens, None


def _text_bytes(corpus: Corpus, trained: float) -> float:
    """Bytes of the corpus's documents.

    trained: bytes that pretraining reads, which stand for text of the user's own, as its size is unknown before it is read.
    """
    if corpus.texts:
        return trained
    if corpus.source == "world":
        return corpus.world.megabytes * 1e6
    if corpus.source == "text":
        return min(corpus.megabytes or math.inf, english.MEGABYTES) * 1e6
    return trained


def _bill(
    recipe: Recipe,
    stages: dict[str, StagePlan],
    device: Device,
    hours: float,
    gpus: int,
    price: float | None,
    seeds: int,
) -> dict[str, float]:
    """Everything else a run takes: decimal gigabytes, kWh, and USD where a price is known."""
    config, vocab = recipe.config, recipe.vocab_size
    tokens = stages["pretrain"].tokens
    bytes_per_token = max(
        0.4 * math.log2(vocab) - 1.6, 1.0
    )  # English, byte-level BPE: 2.4 at 1,024 words, 4.8 at 65,536
    text_bytes = _text_bytes(config.corpus, tokens * bytes_per_token)
    weights = 4 * recipe.parameters["total"]
    state = weights + optimizer_footprint.optimizer_state(
        recipe.architecture, vocab, config.optimizer
    )
    state += library.memory_of(recipe.architecture, config.optimizer).state
    bill = {
        "train_tokens": float(
            sum(stage.tokens for name, stage in stages.items() if name != "evaluation")
        ),
        "text_gb": text_bytes / 1e9,
        "shards_gb": (2 if vocab <= 65536 else 4) * text_bytes / bytes_per_token / 1e9,
        "checkpoints_gb": 4 * weights / 1e9,
        "states_gb": (config.train.keep_states + 1) * state / 1e9,
        "energy_kwh": hours * gpus * device.watts / 1000,
        "runs": float(seeds),
        "hours_of_all_seeds": hours * seeds,
    }
    rate = price if price is not None else device.price
    return bill | (
        {"price_per_hour": rate, "cost": rate * hours * gpus * seeds} if rate is not None else {}
    )


# ---------------------------------------------------------------- as JSON


def as_json(plan: Plan) -> dict[str, Any]:
    """What `paribus plan --json` prints: `hours` is the whole curriculum's, `stages` has each; names are a contract."""
    stages = {name: _stage_json(stage, plan.spread_of(name)) for name, stage in plan.stages.items()}
    longest = max(plan.stages.values(), key=lambda stage: stage.seconds)
    return {
        "device": plan.device.name,
        "gpus": plan.gpus,
        "dtype": plan.dtype,
        "fp8": plan.fp8,
        "vram_bytes": plan.vram,
        "calibrated": bool(plan.device.corrections),
        "hours": plan.hours,
        "hours_low": plan.hours_low,
        "hours_high": plan.hours_high,
        "bound_by": longest.work.bound_by,
        "memory_bytes": {name: stage.memory.total for name, stage in plan.stages.items()},
        "max_device_batch_size": {
            name: stage.max_device_batch_size for name, stage in plan.stages.items()
        },
        "fits": {name: stage.memory.total <= plan.vram for name, stage in plan.stages.items()},
        "parameters": plan.parameters["total"],
        "flops_per_token": plan.flops_per_token,
        "stages": stages,
        "bill": plan.bill,
    }


def _stage_json(stage: StagePlan, spread: float) -> dict[str, object]:
    hours = stage.seconds / 3600
    return {
        "hours": hours,
        "hours_low": hours / spread,
        "hours_high": hours * spread,
        "validation_hours": stage.validation_seconds / 3600,
        "bound_by": stage.work.bound_by,
        "memory_bytes": stage.memory.total,
        "device_batch_size": stage.device_batch_size,
        "max_device_batch_size": stage.max_device_batch_size,
        "tokens": stage.tokens,
        "tokens_per_second": stage.tokens_per_second,
        "memory": dataclasses.asdict(stage.memory),
        "seconds_by_work": dataclasses.asdict(stage.work),
    }
