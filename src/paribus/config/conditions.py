"""When a key of params.yaml has an effect: each condition in words for people and as a test of the configuration."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paribus.config.courses import (
    Course,
    course_of,
    groups_apart,
    has_plateau,
    has_warm_down,
)
from paribus.config.libraries import is_foreign
from paribus.config.limits import STEPS
from paribus.launched import launched

if TYPE_CHECKING:
    from paribus.config.model_schema import Model
    from paribus.config.schema import Config
    from paribus.config.training_schema import Conversations, Pretrain


@dataclass(frozen=True)
class Condition:
    """When a key has an effect.

    words: for people; `{here}` stands for the section's name.
    holds: (section, config) -> whether the key has an effect there.
    """

    words: str
    holds: Callable[[Any, Config], bool]


WORLD_TEXT = Condition(
    "corpus.source: world", lambda corpus, config: config.corpus.source == "world"
)
TEXT = Condition(
    "corpus.source: text, local or hub, or corpus.texts",
    lambda corpus, _: corpus.source != "world" or bool(corpus.texts),
)
OWN_FILES = Condition(
    "corpus.source: local or hub", lambda corpus, _: corpus.source in ("local", "hub")
)
OWN_TEXT = Condition(
    "corpus.source: local or hub, or corpus.texts with files",
    lambda corpus, _: (
        corpus.source in ("local", "hub")
        or any(source != "text" for source in corpus.texts.values())
    ),
)
WORLD_PROBLEMS = Condition(
    "corpus.problems: world", lambda _, config: config.corpus.problems == "world"
)
WORLD_CORE = Condition("corpus.core: world", lambda _, config: config.corpus.core == "world")
NO_WIDTH = Condition("model.width: null", lambda model, _: model.width is None)
NEVER_HEADS = Condition(
    "nothing: its one value is width / head_dim, which null stands for", lambda model, _: False
)
SEVERAL_HEADS = Condition("two or more query heads", lambda model, _: heads(model) > 1)
ROPE = Condition("model.position: rope", lambda model, _: model.position == "rope")
SLIDING = Condition(
    "a letter S in model.window_pattern for a block that is not the last",
    lambda model, _: "S" in model.window_pattern[: model.depth - 1],
)
PATTERNED = Condition(
    "model.depth above 1 and model.window below model.seq_len",
    lambda model, _: model.depth > 1 and (model.window is None or model.window < model.seq_len),
)
QK_NORM = Condition("model.qk_norm: true", lambda model, _: model.qk_norm)
NORMALISED_ROTARY = Condition(
    "model.position: rope and model.qk_norm: true",
    lambda model, _: model.position == "rope" and model.qk_norm,
)
SEVERAL_BLOCKS = Condition("model.depth above 1", lambda model, _: model.depth > 1)
EMBEDDED_AS_IT_IS = Condition(
    "model.embedding_norm: false", lambda model, _: not model.embedding_norm
)
MUON = Condition("optimizer.kind: muon", lambda optimizer, _: optimizer.kind == "muon")
ADAMW = Condition("optimizer.kind: adamw", lambda optimizer, _: optimizer.kind == "adamw")
NOT_ADAMW = Condition(
    "an optimizer.kind other than adamw", lambda optimizer, _: optimizer.kind != "adamw"
)
FOREIGN = Condition("a class as optimizer.kind", lambda optimizer, _: is_foreign(optimizer.kind))
MUON_MOMENTUM = Condition(
    "optimizer.kind: muon and optimizer.muon_momentum above 0",
    lambda optimizer, _: optimizer.kind == "muon" and optimizer.muon_momentum > 0,
)
MUON_SCALED = Condition(
    "optimizer.kind: muon and optimizer.muon_hyperball: false",
    lambda optimizer, _: optimizer.kind == "muon" and not optimizer.muon_hyperball,
)
MUON_OF_NORMS = Condition(
    "optimizer.kind: muon and a model.initialisation other than zero_outputs",
    lambda optimizer, config: (
        optimizer.kind == "muon" and config.model.initialisation != "zero_outputs"
    ),
)
NORMUON = Condition(
    "optimizer.kind: muon and an optimizer.muon_normalisation",
    lambda optimizer, _: optimizer.kind == "muon" and optimizer.muon_normalisation != "none",
)
AVERAGED = Condition("optimizer.ema_decay above 0", lambda optimizer, _: optimizer.ema_decay > 0)
DECAY = Condition("optimizer.weight_decay above 0", lambda optimizer, _: optimizer.weight_decay > 0)
EMBEDDINGS = Condition(
    "an untied token embedding (model.tied_head: false), model.position: learned, or model.value_embeddings",
    lambda _, config: (
        not config.model.tied_head
        or config.model.position == "learned"
        or config.model.value_embeddings != "none"
    ),
)
SCALARS = Condition(
    "a bias, gain, gate or factor of the model",
    lambda _, config: has_scalars(config.model),
)
WIDTH_SCALED = Condition(
    "optimizer.lr_width_exponent other than 0",
    lambda optimizer, _: optimizer.lr_width_exponent != 0,
)
OTHER_WIDTH = Condition(
    "a width other than optimizer.lr_reference_width",
    lambda optimizer, config: width(config.model) != optimizer.lr_reference_width,
)
FLOAT32 = Condition("train.dtype: float32", lambda train, _: train.dtype == "float32")
BFLOAT16 = Condition("a train.dtype other than float32", lambda train, _: train.dtype != "float32")
SEVERAL_PROCESSES = Condition(
    "train.processes above 1, or torchrun",
    lambda train, _: train.processes > 1 or launched().processes > 1,
)
SHORT_CONTEXT = Condition(
    "a pretrain.short_context", lambda pretrain, _: pretrain.short_context is not None
)
FUTURE = Condition("model.future_tokens above 0", lambda _, config: config.model.future_tokens > 0)
OWN_HORIZON = Condition("pretrain.steps: null", lambda pretrain, _: pretrain.steps is None)
SMALL_FIRST = Condition(
    "a pretrain.first_batch_tokens", lambda pretrain, _: pretrain.first_batch_tokens is not None
)
GROWING = Condition(
    "a pretrain.growth_fraction that is a step or more",
    lambda pretrain, _: round(pretrain.growth_fraction * (pretrain.steps or STEPS.value)) > 0,
)
GROWING_FROM = Condition(
    "a pretrain.first_batch_tokens and a pretrain.growth_fraction that is two steps or more",
    lambda pretrain, _: (
        pretrain.first_batch_tokens is not None
        and round(pretrain.growth_fraction * (pretrain.steps or STEPS.value)) > 1
    ),
)
WARM_DOWN = Condition(
    "a {here}.warmdown_fraction that is a step or more",
    lambda schedule, _: any_course(schedule, has_warm_down),
)
PLATEAU = Condition(
    "steps between {here}.warmup_fraction and {here}.warmdown_fraction",
    lambda schedule, _: any_course(schedule, has_plateau),
)
CONVERSES = Condition(
    "a source other than documents in {here}.mixture or {here}.epochs",
    lambda stage, _: any(amounts > 0 for amounts in conversation_amounts(stage)),
)
AFTER_WARM_UP = Condition(
    "a {here}.warmup_fraction that leaves steps after it",
    lambda rl, _: round(rl.warmup_fraction * rl.steps) < rl.steps,
)
LOOKS = Condition(
    "a pretrain.eval_every above 0 and below pretrain.steps",
    lambda pretrain, _: 0 < pretrain.eval_every < (pretrain.steps or STEPS.value),
)
CORE_LOOKS = Condition(
    "a pretrain.core_every above 0 and up to pretrain.steps",
    lambda pretrain, _: 0 < pretrain.core_every <= (pretrain.steps or STEPS.value),
)


def any_course(schedule: Conversations | Pretrain, has: Callable[[Course, int], bool]) -> bool:
    """Whether the common course of a stage's rates, or that of any group, has a part.

    Args:
        schedule: of a stage.
        has: says of a course and a number of steps whether it has the part.
    """
    steps = schedule.steps or int(STEPS.value)
    groups = ["", *groups_apart(schedule)]
    return any(has(course_of(schedule, group), steps) for group in groups)


GATED_MLPS = ("geglu", "swiglu")


def conversation_amounts(stage: Conversations) -> list[float]:
    """Weights and passes of every source of a stage but the plain documents."""
    amounts = [*stage.mixture.items(), *stage.epochs.items()]
    return [amount for name, amount in amounts if name != "documents"]


def has_scalars(model: Model) -> bool:
    """Whether a model has parameters that the optimiser counts as scalars: biases, gains, gates and factors."""
    switches = (
        model.x0_scalars,
        model.residual_scalars,
        model.value_embeddings != "none",
        model.mlp_bias,
        model.qkv_bias,
        model.out_bias,
        model.norm_gain,
        model.norm_bias,
        model.qk_norm and model.qk_gain,
        model.attention_gate != "none",
        model.head_gain,
        model.value_residual and model.depth > 1,
    )
    return any(switches)


def width(model: Model) -> int:
    """Width of the residual stream; where it is null, depth x aspect_ratio, up to a multiple of head_dim."""
    wanted = model.depth * model.aspect_ratio
    return model.width or math.ceil(wanted / model.head_dim) * model.head_dim


def hidden_width(model: Model) -> int:
    """Hidden width of the MLP; a gated one has three matrices instead of two, so two thirds of it (arXiv:2002.05202)."""
    ratio = model.mlp_ratio * (2 / 3 if model.mlp in GATED_MLPS else 1)
    return max(int(ratio * width(model) / 8 + 0.5) * 8, 8)


def heads(model: Model) -> int:
    """Query heads; where they are null, as many as fill the width."""
    return model.n_heads or max(width(model) // model.head_dim, 1)
