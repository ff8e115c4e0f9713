"""Values that are valid alone and cannot work together: each rule yields the problems, with the fix.

A rule reads only keys that were understood: where one of its keys is wrong itself, the rule is left out and the others
still speak. So a rule reads the keys it needs, and not a section as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from paribus.config import corpus_rules
from paribus.config.conditions import EMBEDDINGS, SCALARS, heads, hidden_width, width
from paribus.config.corpus_rules import Rule
from paribus.config.courses import (
    FIELDS,
    GROUPS,
    course_of,
    groups_apart,
    has_plateau,
    has_warm_down,
)
from paribus.config.libraries import is_foreign, kind_problems
from paribus.config.limits import STEPS
from paribus.config.schema import Config
from paribus.config.training_schema import Optimizer
from paribus.curriculum import SUPERVISED_STAGES, TRAINING_STAGES
from paribus.errors import did_you_mean, escaped, shown

MAX_WEIGHTS = 10**12  # weights of a model; the largest published ones have as many
MAX_APPLIED_BLOCKS = 1_024  # four times the deepest model that model.depth allows
MAX_NAME = 500  # characters of an experiment's name in MLflow


class NotUnderstood(Exception):
    """A rule asked for a key whose value was refused."""


class Understood:
    """A section of which only the values that were understood can be read."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> object:
        values = self.__dict__.get("_values", {})
        if name not in values:
            raise NotUnderstood(name)
        return values[name]


def combination_problems(understood: Understood | Config) -> list[str]:
    """The problems of the values in combination."""
    config = cast(Config, understood)
    problems: list[str] = []
    for rule in RULES:
        try:
            problems += rule(config)
        except NotUnderstood:
            continue
    return problems


# ---------------------------------------------------------------- the model


def width_fits(config: Config) -> Iterator[str]:
    """The width is a multiple of `head_dim`, and `n_heads`, where given, are as many heads as fit it."""
    model = config.model
    stream = width(model)
    if stream % model.head_dim:
        yield f"model.width: {stream} is not a multiple of model.head_dim ({model.head_dim})"
    elif model.n_heads is not None and model.n_heads * model.head_dim != stream:
        yield (
            f"model.n_heads: {model.n_heads} x head_dim {model.head_dim} is not the width {stream}; "
            f"set it to {stream // model.head_dim} or null"
        )


def width_is_bounded(config: Config) -> Iterator[str]:
    """A width that follows from `depth` and `aspect_ratio` is at most 65,536."""
    model = config.model
    stream = width(model)
    if model.width is None and stream > 65_536:
        yield (
            f"model.aspect_ratio: depth {model.depth} x {model.aspect_ratio} makes a width of {stream:,}; "
            "at most 65,536 is allowed (four times the widest published models)"
        )


def heads_share_keys(config: Config) -> Iterator[str]:
    """Every key/value head serves the same number of query heads."""
    model = config.model
    n_heads = heads(model)
    if model.n_kv_heads is not None and n_heads % model.n_kv_heads:
        yield f"model.n_kv_heads: {model.n_kv_heads} does not divide n_heads ({n_heads})"


def rotary_pairs(config: Config) -> Iterator[str]:
    """Rotary positions turn pairs of numbers, so `head_dim` is even."""
    model = config.model
    if model.position == "rope" and model.head_dim % 2:
        yield f"model.head_dim: {model.head_dim} must be even for rotary positions"


def window_letters(config: Config) -> Iterator[str]:
    """A window pattern consists of 1 to 256 letters S (sliding window) and L (full context)."""
    pattern = config.model.window_pattern
    if not re.fullmatch("[SL]{1,256}", pattern):
        yield (
            f"model.window_pattern: {shown(pattern)} is not allowed; expected letters S and L, "
            "at most 256"
        )


def window_fits(config: Config) -> Iterator[str]:
    """A sliding window is no longer than a sequence."""
    model = config.model
    if model.window is not None and model.window > model.seq_len:
        yield f"model.window: {model.window} is longer than model.seq_len ({model.seq_len})"


def weights_fit(config: Config) -> Iterator[str]:
    """Block matrices, embeddings and head, roughly: what no machine holds is refused without a planner."""
    model = config.model
    stream = width(model)
    if stream > 65_536:
        return
    blocks = model.depth * stream * stream * (4 + 2 * model.mlp_ratio)
    embeddings = config.tokenizer.vocab_size * stream * 2
    weights = blocks + embeddings
    if weights > MAX_WEIGHTS:
        yield (
            f"model.depth: {model.depth} blocks of width {stream:,} have about {weights:.1e} weights; at most "
            f"{MAX_WEIGHTS:.0e} are allowed (the largest published models)"
        )


def value_embeddings_fit(config: Config) -> Iterator[str]:
    """Each block with value embeddings has a table of the vocabulary's size."""
    model = config.model
    if model.value_embeddings == "none":
        return
    share = model.n_kv_heads / heads(model) if model.n_kv_heads else 1.0
    tables = model.depth * config.tokenizer.vocab_size * width(model) * share
    if tables > MAX_WEIGHTS:
        yield (
            f"model.value_embeddings: {model.value_embeddings} makes tables of about {tables:.1e} weights; at most "
            f"{MAX_WEIGHTS:.0e} are allowed (the largest published models); set none"
        )


def softcap_is_felt(config: Config) -> Iterator[str]:
    """A softcap is 0 (off) or at least 0.01: logits are divided by it in 32 bits."""
    for name in ("softcap", "attention_softcap"):
        softcap = getattr(config.model, name)
        if 0 < softcap < 0.01:
            yield (
                f"model.{name}: {softcap:g} is out of range; expected 0 (off) or a number >= 0.01, as logits are "
                "divided by it in 32 bits"
            )


def passes_are_bounded(config: Config) -> Iterator[str]:
    """Passes over the blocks cost as much as blocks of their own."""
    model = config.model
    applied = model.depth * model.recurrence
    if applied > MAX_APPLIED_BLOCKS:
        yield (
            f"model.recurrence: {model.recurrence} passes over {model.depth} blocks apply {applied:,}; at most "
            f"{MAX_APPLIED_BLOCKS:,} are allowed"
        )


# ---------------------------------------------------------------- training


def compiled_shards(config: Config) -> Iterator[str]:
    """FSDP and `torch.compile` exclude each other."""
    if config.train.sharding == "fsdp" and config.train.compile:
        yield "train.compile: true does not go with train.sharding: fsdp; turn one of them off"


def tf32_is_of_float32(config: Config) -> Iterator[str]:
    """TF32 is a way to multiply float32 numbers on a CUDA card."""
    train = config.train
    if train.tf32 and train.dtype != "float32":
        yield f"train.tf32: true is for train.dtype: float32, and not for {train.dtype}"
    if train.tf32 and train.device in ("cpu", "mps"):
        yield f"train.tf32: true is for CUDA cards, and train.device is {train.device}"


def decode_graphs_are_of_cards(config: Config) -> Iterator[str]:
    """CUDA has graphs; in a sharded model's forward pass streams wait for one another, which one graph does not hold."""
    train = config.train
    if train.decode_graphs and train.device in ("cpu", "mps"):
        yield f"train.decode_graphs: true is for CUDA cards, and train.device is {train.device}"
    if train.decode_graphs and train.sharding == "fsdp" and train.processes > 1:
        yield "train.decode_graphs: true does not go with train.sharding: fsdp; set train.sharding: ddp"


def fp8_fits(config: Config) -> Iterator[str]:
    """8-bit products take bf16 in and out, on a card, and sides that are multiples of 16."""
    train, model = config.train, config.model
    if not train.fp8:
        return
    if train.dtype == "float32":
        yield f"train.fp8: true is for train.dtype: bfloat16, and not for {train.dtype}"
    if train.device in ("cpu", "mps"):
        yield f"train.fp8: true is for CUDA cards, and train.device is {train.device}"
    sides = {
        "the width": width(model),
        "the width of keys and values": (model.n_kv_heads or heads(model)) * model.head_dim,
        "the MLP's hidden width": hidden_width(model),
    }
    for name, side in sides.items():
        if side % 16:
            yield f"train.fp8: {name}: {side} is not a multiple of 16"


def optimizer_is_there(config: Config) -> Iterator[str]:
    """A library's optimiser is installed, and takes the arguments that it is given."""
    yield from kind_problems(config.optimizer.kind, config.optimizer.arguments)


def optimizer_takes_shards(config: Config) -> Iterator[str]:
    """A library's optimiser needs whole matrices that stay where they are."""
    kind = config.optimizer.kind
    if is_foreign(kind) and config.train.sharding == "fsdp" and config.train.processes > 1:
        yield (
            f"optimizer.kind: {escaped(kind)} does not go with train.sharding: fsdp, as it keeps the state of whole "
            "matrices; set ddp, or muon or adamw"
        )


def norms_are_above_zero(config: Config) -> Iterator[str]:
    """The norm that a matrix keeps is the one that it starts with."""
    optimizer = config.optimizer
    if optimizer.kind != "muon" or not optimizer.muon_hyperball:
        return
    if config.model.initialisation == "zero_outputs":
        yield (
            "optimizer.muon_hyperball: true does not go with model.initialisation: zero_outputs: a matrix that starts "
            "at zero would stay there; set another initialisation"
        )


def cores_for_processes(config: Config) -> Iterator[str]:
    """On a CPU each process runs its own threads."""
    train = config.train
    if train.device != "cpu" or train.threads is None:
        return
    if train.processes > 1 and train.threads * train.processes > 1_024:
        yield (
            f"train.threads: {train.threads} in each of {train.processes} processes are "
            f"{train.threads * train.processes:,} threads; at most 1,024 are allowed"
        )


def schedule_adds_up(name: str) -> Rule:
    """The rule for stage `name`: warmup and warmdown together take no more than all of its steps."""

    def rule(config: Config) -> Iterator[str]:
        schedule = _stage(config, name)
        if schedule.warmup_fraction + schedule.warmdown_fraction > 1:
            yield (
                f"{name}.warmup_fraction: {schedule.warmup_fraction:g} + {name}.warmdown_fraction "
                f"{schedule.warmdown_fraction:g} is over 1; they are shares of the same steps"
            )

    return rule


def groups_are_there(name: str) -> Rule:
    """The rule for stage `name`: a group with a course of its own is one that the model has, and the course adds up."""

    def rule(config: Config) -> Iterator[str]:
        schedule = _stage(config, name)
        absent = {"embedding": EMBEDDINGS, "scalar": SCALARS}
        for group in groups_apart(schedule):
            fields = [key for key in FIELDS if group in getattr(schedule, f"group_{key}")]
            path = f"{name}.group_{fields[0]}.{escaped(group)}"
            if group not in GROUPS:
                hint = did_you_mean(group, GROUPS)
                yield f"{path}: no such group; {hint + ' ' if hint else ''}there are: {', '.join(GROUPS)}"
            elif group in absent and not absent[group].holds(config.optimizer, config):
                yield f"{path}: the model has no such parameters: they take {absent[group].words}"
            else:
                yield from _course_problems(schedule, name, group)

    return rule


def _course_problems(schedule: Any, name: str, group: str) -> Iterator[str]:
    """What is wrong with the course of a group in stage `name`."""
    course, steps = course_of(schedule, group), schedule.steps or int(STEPS.value)
    if course.warmup_fraction + course.warmdown_fraction > 1:
        yield (
            f"{name}: warmup_fraction {course.warmup_fraction:g} + warmdown_fraction {course.warmdown_fraction:g} of the "
            f"group {group} are over 1; they are shares of the same steps"
        )
    for key, acts in (
        ("warmdown_shape", has_warm_down(course, steps)),
        ("final_lr_fraction", has_warm_down(course, steps)),
        ("power", has_plateau(course, steps)),
    ):
        if group in getattr(schedule, f"group_{key}") and not acts:
            part = "steps between warm-up and warm-down" if key == "power" else "warm-down"
            yield f"{name}.group_{key}.{group}: without an effect: the group has no {part}"


def batch_is_whole_rows(name: str) -> Rule:
    """The rule for stage `name`: a batch consists of whole sequences.

    Only pretraining may leave `batch_tokens` open (null).
    """

    def rule(config: Config) -> Iterator[str]:
        batch = _stage(config, name).batch_tokens
        seq_len = config.model.seq_len
        if batch is not None and batch % seq_len:
            yield f"{name}.batch_tokens: {batch} is not a multiple of model.seq_len ({seq_len})"
        if batch is None and name != "pretrain":
            yield f"{name}.batch_tokens: null is for pretrain only; give a number of tokens"

    return rule


def batch_grows(config: Config) -> Iterator[str]:
    """A batch that grows begins with fewer rows, whole ones, than it ends with."""
    pretrain, seq_len = config.pretrain, config.model.seq_len
    first, batch = pretrain.first_batch_tokens, pretrain.batch_tokens
    if first is None:
        return
    if first % seq_len:
        yield f"pretrain.first_batch_tokens: {first} is not a multiple of model.seq_len ({seq_len})"
    if batch is None:
        yield "pretrain.first_batch_tokens: needs a pretrain.batch_tokens to grow to, not null"
    elif first >= batch:
        yield f"pretrain.first_batch_tokens: {first} is not below pretrain.batch_tokens ({batch}), to which it grows"


def passes_fit_memory(name: str) -> Rule:
    """Tokens of one forward pass; their residual stream alone is four bytes times the width each."""

    def rule(config: Config) -> Iterator[str]:
        stage = _stage(config, name)
        rows = stage.device_batch_size
        if name != "rl" and stage.batch_tokens is not None:
            rows = min(rows, stage.batch_tokens // config.model.seq_len)
        numbers = rows * config.model.seq_len * width(config.model)
        if numbers > 2**43:
            yield (
                f"{name}.device_batch_size: {stage.device_batch_size:,} rows of {config.model.seq_len:,} tokens and width "
                f"{width(config.model):,} take {4 * numbers / 1e12:,.0f} TB for the residual stream alone; "
                "`paribus plan` tells what fits"
            )

    return rule


def _decaying_rates(optimizer: Optimizer) -> list[str]:
    """Keys of the rates of what decays."""
    rates = ["adamw_matrix_lr" if optimizer.kind == "adamw" else "matrix_lr"]
    if optimizer.weight_decay and optimizer.weight_decay_of != "matrices":
        rates += ["embedding_lr", "head_lr"]
    if optimizer.weight_decay and optimizer.weight_decay_of == "all":
        rates.append("scalar_lr")
    return rates


def decay_leaves_weights(name: str) -> Rule:
    """A step takes lr x weight_decay of each weight; more than all of it turns the weights' signs and they grow."""

    def rule(config: Config) -> Iterator[str]:
        optimizer = config.optimizer
        stage = _stage(config, name)
        for key in _decaying_rates(optimizer):
            taken = getattr(optimizer, key) * stage.lr_scale * optimizer.weight_decay
            if taken > 1:
                yield (
                    f"optimizer.weight_decay: {optimizer.weight_decay:g} x optimizer.{key} x {name}.lr_scale is {taken:g}: "
                    "each step would take more than the whole of every weight; lower it until this is below 1"
                )

    return rule


# ---------------------------------------------------------------- answers


def rollouts_fit(config: Config) -> Iterator[str]:
    """One RL step samples at most 2^33 tokens."""
    rl = config.rl
    longest = min(rl.max_new_tokens, config.model.seq_len)
    numbers = rl.questions_per_step * rl.samples_per_question * longest
    if numbers > 2**33:
        yield (
            f"rl.questions_per_step: {rl.questions_per_step:,} questions x {rl.samples_per_question:,} samples x "
            f"{longest:,} tokens are {numbers:.1e} tokens in one step; at most 8.6e+09 are held"
        )


def experiment_has_a_name(config: Config) -> Iterator[str]:
    """MLflow needs a name of 1 to 500 characters for an experiment."""
    name = config.tracking.experiment
    if not name.strip():
        yield "tracking.experiment: empty; MLflow needs a name"
    elif len(name) > MAX_NAME:
        yield (
            f"tracking.experiment: {shown(name)} has {len(name):,} characters; MLflow takes {MAX_NAME}"
        )


def _stage(config: Config, name: str) -> Any:
    return getattr(config, name)


RULES: tuple[Rule, ...] = (
    width_fits,
    width_is_bounded,
    heads_share_keys,
    rotary_pairs,
    window_letters,
    window_fits,
    weights_fit,
    value_embeddings_fit,
    softcap_is_felt,
    passes_are_bounded,
    compiled_shards,
    tf32_is_of_float32,
    fp8_fits,
    decode_graphs_are_of_cards,
    optimizer_is_there,
    optimizer_takes_shards,
    norms_are_above_zero,
    cores_for_processes,
    *corpus_rules.RULES,
    *(schedule_adds_up(name) for name in SUPERVISED_STAGES),
    *(groups_are_there(name) for name in SUPERVISED_STAGES),
    *(batch_is_whole_rows(name) for name in SUPERVISED_STAGES),
    *(passes_fit_memory(name) for name in TRAINING_STAGES),
    *(decay_leaves_weights(name) for name in TRAINING_STAGES),
    batch_grows,
    rollouts_fit,
    experiment_has_a_name,
)
