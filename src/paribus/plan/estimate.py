"""A whole run before it runs: memory, largest device batch, hours with an interval, what bounds it, and the rest of the bill."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from paribus.config import (
    RL,
    Architecture,
    Config,
    Conversations,
    Pretrain,
    resolve_model,
    resolve_pretrain,
)
from paribus.model import footprint
from paribus.model.accounting import flops_per_token, parameters
from paribus.plan.memory import PROMPT_TOKENS, STAGES, Memory, max_device_batch, stage_memory
from paribus.plan.throughput import (
    Device,
    Work,
    decode,
    forward_backward,
    step_seconds,
    update,
)

COMPILE_SECONDS = 60.0  # of a stage's first step with torch.compile (FIELD: 45 to 57 s on a CPU)
CORE_ITEMS, CORE_TASKS, CORE_TOKENS = (
    4_000,
    22,
    600,
)  # a task's items when not limited; tokens an item with its choices
MEAN_ANSWER = 0.6  # of max_new_tokens: answers end early


@dataclass(frozen=True)
class StagePlan:
    """What one stage will need. Seconds are on the device asked for; work is of the whole stage."""

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

    @property
    def hours(self) -> float:
        return sum(stage.seconds for stage in self.stages.values()) / 3600

    def spread_of(self, stage: str) -> float:
        """The factor by which a stage's time may be off, either way: what was measured on one card says less of several."""
        return self.device.unmeasured_spread if self.gpus > 1 else self.device.spread_of(stage)

    @property
    def hours_low(self) -> float:
        stages = self.stages.items()
        return sum(stage.seconds / self.spread_of(name) for name, stage in stages) / 3600

    @property
    def hours_high(self) -> float:
        stages = self.stages.items()
        return sum(stage.seconds * self.spread_of(name) for name, stage in stages) / 3600


def make_plan(
    config: Config,
    device: Device,
    *,
    dtype: str,
    vram: int,
    gpus: int = 1,
    price: float | None = None,
    seeds: int = 1,
) -> Plan:
    """The plan of a configuration on `gpus` devices with `vram` bytes each."""
    model, vocab = resolve_model(config.model), config.tokenizer.vocab_size
    stages = {stage: stage_plan(config, stage, device, dtype, vram, gpus) for stage in STAGES}
    flops = flops_per_token(model, vocab)
    total = sum(stage.seconds for stage in stages.values()) / 3600
    return Plan(
        device,
        gpus,
        dtype,
        vram,
        parameters(model, vocab),
        flops,
        stages,
        _bill(config, model, stages, device, total, gpus, price, seeds),
    )


def stage_plan(
    config: Config, stage: str, device: Device, dtype: str, vram: int | None = None, gpus: int = 1
) -> StagePlan:
    """One stage of the curriculum, or `evaluation`; `vram` bytes a card, by default what the device has."""
    model = resolve_model(config.model)
    item = 4 if dtype == "float32" else 2
    work, tokens, speed = _work(config, model, stage, device, item, gpus)
    correction = device.correction(stage)
    seconds = work.total * correction
    compiling = COMPILE_SECONDS if config.train.compile and stage != "evaluation" else 0.0
    rows = (
        config.eval.gsm8k.rows
        if stage == "evaluation"
        else getattr(config, stage).device_batch_size
    )
    return StagePlan(
        stage,
        stage_memory(config, stage, device=device.kind, dtype=dtype),
        rows,
        max_device_batch(config, stage, vram or device.memory, device=device.kind, dtype=dtype),
        tokens,
        work,
        seconds + compiling,
        speed / correction if speed else None,
        _looks(config, stage, model, device, item).total * correction,
    )


def _looks(config: Config, stage: str, model: Architecture, device: Device, item: int) -> Work:
    """What a stage measures besides training, which the first card does alone while others wait."""
    if stage == "pretrain":
        total = parameters(model, config.tokenizer.vocab_size)["total"]
        schedule = resolve_pretrain(config.pretrain, total, model.seq_len)
        return _validations(config, schedule, model, device, item)
    if stage == "rl":
        return _watch(config, config.rl, model, device, item)
    return Work()


def _work(
    config: Config, model: Architecture, stage: str, device: Device, item: int, gpus: int
) -> tuple[Work, int, float | None]:
    """(work of the whole stage, tokens, tokens per second while training)."""
    if stage == "evaluation":
        return _evaluation(config, model, device, item)
    vocab = config.tokenizer.vocab_size
    if stage == "rl":
        return _rl(config, config.rl, model, device, item, gpus)
    schedule = getattr(config, stage)
    evaluations = Work()
    if stage == "pretrain":
        schedule = resolve_pretrain(schedule, parameters(model, vocab)["total"], model.seq_len)
        evaluations = _validations(config, schedule, model, device, item)
    step = training_step_work(config, schedule, model, device, item, gpus)
    tokens = schedule.steps * schedule.batch_tokens
    return step.times(schedule.steps).plus(evaluations), tokens, schedule.batch_tokens / step.total


def training_step_work(
    config: Config,
    schedule: Pretrain | Conversations,
    model: Architecture,
    device: Device,
    item: int,
    gpus: int = 1,
) -> Work:
    """One optimiser step of a supervised stage."""
    assert schedule.batch_tokens
    rows = min(schedule.device_batch_size, schedule.batch_tokens // model.seq_len)
    return step_seconds(
        model,
        config.tokenizer.vocab_size,
        config.optimizer,
        device,
        batch_tokens=schedule.batch_tokens,
        device_tokens=rows * model.seq_len,
        gpus=gpus,
        compiled=config.train.compile,
        itemsize=item,
        checkpointing=config.train.activation_checkpointing,
    )


def _validations(
    config: Config, schedule: Pretrain, model: Architecture, device: Device, item: int
) -> Work:
    """Bits per byte on the way and at the end, and CORE on the way."""
    steps = schedule.steps or 1
    looks = steps // schedule.eval_every if schedule.eval_every else 0
    tokens = looks * schedule.eval_tokens + (config.eval.bpb_tokens or schedule.eval_tokens)
    if schedule.core_every:
        items = CORE_TASKS * schedule.core_max_per_task
        tokens += steps // schedule.core_every * items * min(CORE_TOKENS, 4 * model.seq_len)
    return _forward(config, model, device, item, tokens)


def _forward(config: Config, model: Architecture, device: Device, item: int, tokens: int) -> Work:
    """A forward pass over many tokens, in batches of 16,384."""
    batch = forward_backward(
        model,
        config.tokenizer.vocab_size,
        16384,
        device,
        compiled=False,
        itemsize=item,
        backward=False,
    )
    return batch.times(tokens / 16384)


def _answers(
    config: Config,
    model: Architecture,
    device: Device,
    item: int,
    answers: int,
    rows: int,
    new: int,
) -> Work:
    """So many answers, `rows` side by side. Rows that end are refilled, so that only the mean length counts."""
    rows = min(rows, max(answers, 1))
    steps = math.ceil(answers / rows) * MEAN_ANSWER * new
    return decode(
        model, config.tokenizer.vocab_size, rows, PROMPT_TOKENS + new // 2, device, item
    ).times(steps)


def _rl(
    config: Config, rl: RL, model: Architecture, device: Device, item: int, gpus: int
) -> tuple[Work, int, float]:
    """Answers and their gradients are shared out over the cards."""
    answers = rl.questions_per_step * rl.samples_per_question
    share = math.ceil(answers / gpus)
    row = min(PROMPT_TOKENS + round(MEAN_ANSWER * rl.max_new_tokens), model.seq_len)
    passes = math.ceil(share / rl.device_batch_size)
    vocab = config.tokenizer.vocab_size
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
    step = step.plus(
        _answers(config, model, device, item, share, rl.rollout_rows, rl.max_new_tokens)
    )
    work = step.times(rl.steps).plus(_watch(config, rl, model, device, item))
    tokens = answers * row
    return work, rl.steps * tokens, tokens / step.total


def _watch(config: Config, rl: RL, model: Architecture, device: Device, item: int) -> Work:
    """Accuracy on held-out problems: at the start, the end and on the way."""
    looks = 2 + (rl.steps // rl.watch_every if rl.watch_every else 0)
    one = _answers(
        config, model, device, item, rl.watch_questions, rl.rollout_rows, rl.max_new_tokens
    )
    return one.times(looks)


def _evaluation(
    config: Config, model: Architecture, device: Device, item: int
) -> tuple[Work, int, None]:
    """CORE of the base model, and word problems after each of four stages."""
    gsm = config.eval.gsm8k
    questions = gsm.questions or 1319  # GSM8K's test split
    answers = questions + gsm.samples * (
        gsm.sampled_questions if gsm.sampled_questions is not None else questions
    )
    problems = _answers(config, model, device, item, answers, gsm.rows, gsm.max_new_tokens).times(4)
    tokens = (
        CORE_TASKS
        * (config.eval.core.max_per_task or CORE_ITEMS)
        * min(CORE_TOKENS, 4 * model.seq_len)
    )
    return problems.plus(_forward(config, model, device, item, tokens)), tokens, None


def _bill(
    config: Config,
    model: Architecture,
    stages: dict[str, StagePlan],
    device: Device,
    hours: float,
    gpus: int,
    price: float | None,
    seeds: int,
) -> dict[str, float]:
    """Everything else a run takes: decimal gigabytes, kWh, and USD where a price is known."""
    vocab = config.tokenizer.vocab_size
    tokens = stages["pretrain"].tokens
    bytes_per_token = max(
        0.4 * math.log2(vocab) - 1.6, 1.0
    )  # English, byte-level BPE: 2.4 at 1,024 words, 4.8 at 65,536
    weights = 4 * parameters(model, vocab)["total"]
    state = weights + footprint.optimizer_state(model, vocab, config.optimizer)
    bill = {
        "train_tokens": float(
            sum(stage.tokens for name, stage in stages.items() if name != "evaluation")
        ),
        "text_gb": config.corpus.world.megabytes / 1000
        if config.corpus.source == "world"
        else tokens * bytes_per_token / 1e9,
        "shards_gb": (2 if vocab <= 65536 else 4) * tokens / 1e9
        if config.corpus.source != "world"
        else config.corpus.world.megabytes / bytes_per_token * 2 / 1000,
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


def _stage_json(stage: StagePlan, spread: float) -> dict[str, Any]:
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
