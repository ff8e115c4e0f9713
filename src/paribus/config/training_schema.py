"""The keys of what is learned and how: the optimiser, and the four training stages with their schedules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paribus.config import conditions as when
from paribus.config import limits
from paribus.config.keys import key
from paribus.config.limits import Limit

Shape = Literal["linear", "cosine", "sqrt", "square"]  # of a warm-down
Argument = bool | int | float | str | list[float]  # of a library's optimiser


@dataclass(frozen=True)
class Optimizer:
    """AdamW's rates of matrices, embeddings and head are given at `lr_reference_width`, and follow the width.

    They are multiplied by (width / lr_reference_width)^lr_width_exponent. `matrix_lr` (of Muon, or of a library's optimiser)
    and `scalar_lr` hold at every width. No rate follows the batch.
    """

    kind: str = key(
        "optimiser of the block matrices: muon, adamw, or a class of torch.optim, heavyball, pytorch_optimizer or "
        "own (train/own.py), as heavyball.SOAP; all else is always AdamW"
    )
    arguments: dict[str, Argument] = key(
        "arguments of such a class, but its rate and decay",
        le=Limit(1e9, "no argument of an optimiser is larger"),
        acts_when=when.FOREIGN,
    )
    matrix_lr: float = key(
        "block matrices, by Muon or a library's optimiser",
        gt=0,
        le=limits.RATE,
        acts_when=when.NOT_ADAMW,
    )
    adamw_matrix_lr: float = key(
        "AdamW: block matrices, when kind is adamw; follows the width",
        gt=0,
        le=limits.RATE,
        acts_when=when.ADAMW,
    )
    embedding_lr: float = key(
        "AdamW: token, position and value embeddings; follows the width",
        gt=0,
        le=limits.RATE,
        acts_when=when.EMBEDDINGS,
    )
    head_lr: float = key("AdamW: output head, tied or not; follows the width", gt=0, le=limits.RATE)
    scalar_lr: float = key(
        "AdamW: residual and x0 scalars, gates", gt=0, le=limits.RATE, acts_when=when.SCALARS
    )
    lr_reference_width: int = key(
        "width at which the AdamW rates of matrices, embeddings and head hold",
        ge=1,
        le=limits.WIDTH,
        acts_when=when.WIDTH_SCALED,
    )
    lr_width_exponent: float = key(
        "exponent of those rates in width; 0: none",
        ge=-2,
        le=Limit(2.0, "rates would change ten thousandfold between widths"),
        acts_when=when.OTHER_WIDTH,
    )
    clip_value: float = key(
        "largest gradient of a single number, before grad_clip; 0: off",
        ge=0,
        le=Limit(1e9, "no gradient is larger"),
    )
    weight_decay: float = key(
        "decoupled, per unit of learning rate",
        ge=0,
        le=Limit(10_000.0, "a ten-thousandth of it is a usual value"),
    )
    weight_decay_of: Literal["matrices", "embeddings", "all"] = key(
        "what decays: block matrices; embeddings and head too; scalars, gains and biases too",
        acts_when=when.DECAY,
    )
    weight_decay_schedule: Literal["rate", "constant", "linear", "rate_linear"] = key(
        "the decay follows the learning rate's schedule; stays as at the highest rate; falls from there to zero in a "
        "line over the stage; follows the rate and falls so too",
        acts_when=when.DECAY,
    )
    cautious_weight_decay: bool = key(
        "decay only numbers that their update brings nearer to zero (arXiv:2510.12402)",
        acts_when=when.DECAY,
    )
    beta1: float = key("AdamW first moment", ge=0, le=0.9999)
    beta2: float = key("AdamW second moment", ge=0, le=0.99999)
    eps: float = key(
        "AdamW epsilon", ge=limits.EPSILON, le=Limit(1.0, "the step would be that of plain descent")
    )
    muon_momentum: float = key("Muon momentum", ge=0, le=0.9999, acts_when=when.MUON)
    muon_nesterov: bool = key(
        "Muon looks one step of momentum ahead (Nesterov)", acts_when=when.MUON_MOMENTUM
    )
    muon_iterations: int = key(
        "Newton-Schulz iterations",
        ge=1,
        le=Limit(12, "it has converged after 5"),
        acts_when=when.MUON,
    )
    muon_coefficients: Literal["jordan", "newton_schulz", "polar_express"] = key(
        "of these iterations: the steepest, which end near 1; the classical; the best of each number of iterations "
        "(arXiv:2505.16932)",
        acts_when=when.MUON,
    )
    muon_scaling: Literal["tall", "spectral", "rms", "none"] = key(
        "Muon's step by shape: sqrt(outputs / inputs), at least 1; the same below 1 too (arXiv:2310.17813); 0.2 "
        "sqrt(larger side), for AdamW's rates (arXiv:2502.16982); 1",
        acts_when=when.MUON_SCALED,
    )
    muon_normalisation: Literal["none", "rows", "columns"] = key(
        "NorMuon (arXiv:2510.05491): each output's row steps as far as the others, or each input's column",
        acts_when=when.MUON,
    )
    muon_beta2: float = key(
        "second moment of these rows or columns", ge=0, le=0.9999, acts_when=when.NORMUON
    )
    muon_hyperball: bool = key(
        "each matrix keeps its first norm, and matrix_lr is the share of it that a step moves "
        "(https://whenwen.github.io/blog/2025/weight-decay-hyperball-part-1)",
        acts_when=when.MUON_OF_NORMS,
    )
    grad_clip: float = key(
        "largest global gradient norm; 0: off", ge=0, le=Limit(1e9, "no gradient is larger")
    )
    ema_decay: float = key(
        "exponential moving average of all weights over steps: what it keeps each step; 0: none",
        ge=0,
        le=Limit(0.999999, "a million steps"),
    )
    evaluate: Literal["weights", "ema"] = key(
        "which weights are validated and go on as the checkpoint; the others are saved beside them",
        acts_when=when.AVERAGED,
    )


@dataclass(frozen=True)
class Schedule:
    """Horizon, batch and learning-rate schedule of a supervised stage: warm-up, constant, warm-down."""

    batch_tokens: int | None = key(
        "tokens of one optimiser step; null: follows from the horizon (arXiv:2505.13738)",
        ge=1,
        le=limits.BATCH,
    )
    device_batch_size: int = key(
        "rows of one forward pass: memory, not results", ge=1, le=limits.ROWS
    )
    lr_scale: float = key("multiplies every learning rate", gt=0, le=limits.SCALE)
    warmup_fraction: float = key("share of steps of linear warm-up", ge=0, le=1)
    warmdown_fraction: float = key("share of steps of the warm-down", ge=0, le=1)
    warmdown_shape: Shape = key(
        "how the rate falls over the warm-down: in a line; half a cosine; 1 - sqrt, steep at first (arXiv:2405.18392); "
        "the square of the line",
        acts_when=when.WARM_DOWN,
    )
    final_lr_fraction: float = key(
        "learning rate of the last step / that before the warm-down",
        ge=0,
        le=1,
        acts_when=when.WARM_DOWN,
    )
    power: float = key(
        "between warm-up and warm-down the rate falls as tokens^-power: 0.5 is the inverse square root "
        "(arXiv:1706.03762, arXiv:2408.13359); 0: constant",
        ge=0,
        le=Limit(8.0, "a few steps later nothing is left of the rate"),
        acts_when=when.PLATEAU,
    )
    group_warmup_fraction: dict[str, float] = key(
        "warmup_fraction of a group of parameters, where it is another: matrix, embedding, head or scalar",
        ge=0,
        le=1,
    )
    group_warmdown_fraction: dict[str, float] = key(
        "warmdown_fraction of a group of parameters, where it is another", ge=0, le=1
    )
    group_warmdown_shape: dict[str, Shape] = key(
        "warmdown_shape of a group of parameters, where it is another"
    )
    group_final_lr_fraction: dict[str, float] = key(
        "final_lr_fraction of a group of parameters, where it is another", ge=0, le=1
    )
    group_power: dict[str, float] = key(
        "power of a group of parameters, where it is another",
        ge=0,
        le=Limit(8.0, "a few steps later nothing is left of the rate"),
    )
    z_loss: float = key(
        "weight of the squared logarithm of the softmax's sum in the loss (arXiv:2204.02311)",
        ge=0,
        le=Limit(10.0, "a ten-thousandth is usual"),
    )
    label_smoothing: float = key(
        "share of each target that is spread over the vocabulary (arXiv:1512.00567)", ge=0, le=0.9
    )
    eval_every: int = key("steps between validations; 0: only at the end", ge=0, le=limits.STEPS)


@dataclass(frozen=True)
class Pretrain(Schedule):
    """Next-token prediction on the documents."""

    steps: int | None = key(
        "optimiser steps; null: tokens_per_parameter decides", ge=1, le=limits.STEPS
    )
    tokens_per_parameter: float = key(
        "horizon in tokens / parameters, when steps is null",
        ge=1e-6,
        le=Limit(1e6, "fifty times the longest published trainings"),
        acts_when=when.OWN_HORIZON,
    )
    first_batch_tokens: int | None = key(
        "tokens of the first optimiser step: the batch grows from there to batch_tokens; null: it does not grow",
        ge=1,
        le=limits.BATCH,
        acts_when=when.GROWING,
    )
    growth_fraction: float = key(
        "share of steps, the first ones, in which the batch grows; learning rates keep to their tokens",
        ge=0,
        le=1,
        acts_when=when.SMALL_FIRST,
    )
    growth: Literal["linear", "doubling"] = key(
        "how the batch grows: in a line, or by doublings at equal distances (arXiv:2407.21783)",
        acts_when=when.GROWING_FROM,
    )
    packing: Literal["concatenate", "best_fit"] = key(
        "rows: documents end to end, or whole documents packed so that each "
        "row opens with one (arXiv:2404.10830)"
    )
    mixture: dict[str, float] = key(
        "share of tokens by source: `main` (corpus.source), or a name of corpus.texts; {}: all documents as they are",
        ge=0,
        le=Limit(1e6, "weights are relative; nobody needs larger ones"),
    )
    epochs: dict[str, float] = key(
        "passes over a source within the stage's tokens, in place of a share; the mixture's sources "
        "share what is left",
        ge=0,
        le=Limit(10_000.0, "the source would be known by heart"),
    )
    future_loss: float = key(
        "weight of the loss of each of model.future_tokens; the training loss contains them",
        gt=0,
        le=Limit(10.0, "the next token would hardly count"),
        acts_when=when.FUTURE,
    )
    unique_fraction: float = key(
        "share of each source's rows that is read, again and again where the horizon is longer (arXiv:2305.16264)",
        gt=0,
        le=1,
    )
    curriculum: Literal["none", "short_first", "long_first"] = key(
        "order of the run's rows: shuffled, or by the length of the document that a row begins in"
    )
    source_order: list[str] = key(
        "sources one after another, in this order, in place of mixed: each that mixture or epochs names"
    )
    short_context: int | None = key(
        "tokens of a row at first: rows of model.seq_len are cut into such ones; null: none are",
        ge=8,
        le=limits.CONTEXT,
    )
    short_fraction: float = key(
        "share of steps, the first ones, with rows of short_context",
        ge=0,
        le=1,
        acts_when=when.SHORT_CONTEXT,
    )
    eval_tokens: int = key(
        "validation tokens of one estimate of bits per byte",
        ge=1,
        le=limits.TOKENS,
        acts_when=when.LOOKS,
    )
    core_every: int = key(
        "steps between estimates of CORE, logged as the curve val/core; 0: none",
        ge=0,
        le=limits.STEPS,
    )
    core_max_per_task: int = key(
        "items of each task of such an estimate, after the protocol's shuffle",
        ge=2,
        le=limits.PROBLEMS,
        acts_when=when.CORE_LOOKS,
    )


@dataclass(frozen=True)
class Conversations(Schedule):
    """Training on conversations, loss on assistant tokens only."""

    steps: int = key("optimiser steps", ge=1, le=limits.STEPS)
    mixture: dict[str, float] = key(
        "share of tokens by source: a conversation file's name, `problems_worked`, "
        "`problems_direct` or `documents`",
        ge=0,
        le=Limit(1e6, "weights are relative; nobody needs larger ones"),
    )
    epochs: dict[str, float] = key(
        "passes over a source within the stage's tokens, in place of a share; the mixture's sources "
        "share what is left",
        ge=0,
        le=Limit(10_000.0, "the source would be known by heart"),
    )
    eval_every: int = key(
        "0: these stages are validated by the evaluations after them",
        ge=0,
        le=Limit(0, "no validation runs during this stage"),
    )
    attend_across: bool = key(
        "let packed conversations see those before them in the row", acts_when=when.CONVERSES
    )


@dataclass(frozen=True)
class RL:
    """On-policy policy gradient with a group-mean baseline on the GSM8K scorer."""

    steps: int = key("optimiser steps", ge=1, le=limits.STEPS)
    questions_per_step: int = key("groups of one step", ge=1, le=limits.QUESTIONS)
    samples_per_question: int = key("answers of one group", ge=2, le=limits.SAMPLES)
    max_new_tokens: int = key("longest answer, tokens", ge=1, le=limits.CONTEXT)
    temperature: float = key(
        "temperature of the policy: of sampling, and of the probabilities in the loss",
        ge=limits.COLDEST,
        le=limits.HOTTEST,
    )
    top_k: int = key(
        "the policy chooses among the k likeliest tokens, in sampling and in the loss; 0: all",
        ge=0,
        le=Limit(1_000_000, "as many as the largest vocabulary"),
    )
    advantage: Literal["group_mean", "group_mean_std"] = key(
        "reward minus the group's mean, or that over its std"
    )
    dynamic_sampling: int = key(
        "redraw groups without variance up to so many times (DAPO, arXiv:2503.14476); 0: off",
        ge=0,
        le=Limit(100, "a question that fails so often teaches nothing"),
    )
    curriculum: bool = key("easy questions first: fewest solution steps")
    format_reward: float = key("reward of a well-formed wrong answer", ge=0, le=1)
    device_batch_size: int = key(
        "rows of one forward pass: memory, not results", ge=1, le=limits.ROWS
    )
    rollout_rows: int = key(
        "answers sampled side by side: memory, not results", ge=1, le=limits.ROWS
    )
    lr_scale: float = key("multiplies every learning rate", gt=0, le=limits.SCALE)
    warmup_fraction: float = key("share of steps of linear warm-up", ge=0, le=1)
    final_lr_fraction: float = key(
        "learning rate of the last step / the first; linear",
        ge=0,
        le=1,
        acts_when=when.AFTER_WARM_UP,
    )
    watch_every: int = key(
        "steps between looks at the validation problems; 0: only at the end", ge=0, le=limits.STEPS
    )
    watch_questions: int = key("validation problems of one look", ge=1, le=limits.PROBLEMS)
