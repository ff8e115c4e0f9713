"""Every key of params.yaml: its type, bounds, unit and meaning. No values: `params.yaml` owns those.

A key whose value may be `null` is *derived* when it is null; `derived.py` says how.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any, Literal


def key(
    doc: str, *, ge: float | None = None, gt: float | None = None, le: float | None = None
) -> Any:
    """A configuration key: its documentation (with unit) and the bounds of its value (or of its items)."""
    return dataclasses.field(metadata={"doc": doc, "ge": ge, "gt": gt, "le": le})


@dataclass(frozen=True)
class World:
    """The embedded synthetic world."""

    seed: int = key("names the world: its cast, facts, texts and problems", ge=0)
    megabytes: float = key("size of the pretraining documents, MB", gt=0)
    problems: int = key("word problems to train on", ge=1)
    test_problems: int = key("held-out word problems for the report", ge=1)
    conversations: int = key("conversations of each kind", ge=1)
    core_items: int = key("items of each CORE-format task", ge=8)


@dataclass(frozen=True)
class Corpus:
    """Where text, problems and tasks come from. Relative paths start at the main checkout."""

    source: Literal["world", "local", "hub"] = key(
        "documents: the embedded world, files of your own, or Hugging Face"
    )
    paths: list[str] = key(
        "local: files, folders or globs of .txt, .jsonl, .parquet (also .gz, .zst); "
        "hub: OWNER/NAME@COMMIT:PATTERN of such files in a dataset repository"
    )
    text_column: str = key("column that holds the text in .jsonl and .parquet")
    megabytes: float | None = key(
        "text to take from local or hub, MB (4.8: about a million tokens of English); null: all",
        gt=0,
    )
    drop_contaminated: bool = key(
        "leave out documents that share 13 words in a row with a test problem or a CORE item"
    )
    drop_near_duplicates: bool = key(
        "leave out documents that share most of their runs of 5 words with an earlier one (MinHash, "
        "arXiv:2406.17557)"
    )
    conversations: dict[str, str] = key(
        "more sources for the mixtures: name -> a path, or OWNER/NAME@COMMIT:PATTERN; "
        "rows of messages (SmolTalk), choices (MMLU, ARC) or GSM8K problems"
    )
    problems: str = key(
        "word problems: `world`, a folder with train.jsonl and test.jsonl in GSM8K's format, "
        "or OWNER/NAME@COMMIT:PATTERN of files named train* and test*"
    )
    validation_problems: int = key(
        "problems held out of train, for tuning and for watching RL", ge=8
    )
    core: str = key(
        "CORE tasks: `world`, a folder in the layout of the public DCLM bundle, or https://…/x.zip#sha256=HEX of one"
    )
    world: World = key("the embedded world")


@dataclass(frozen=True)
class Tokenizer:
    """Byte-level BPE."""

    vocab_size: int = key("tokens, special ones included", ge=300, le=1_000_000)
    max_digits: int = key("longest run of digits that may become one token", ge=1, le=9)
    train_megabytes: float = key("text the merges are learned from, MB", gt=0)


@dataclass(frozen=True)
class Tokens:
    """Token shards of the pretraining documents."""

    val_fraction: float = key(
        "share of documents held out for bits per byte, chosen by their hash", gt=0, le=0.5
    )
    shard_tokens: int = key("tokens of one shard file", ge=1_000)


@dataclass(frozen=True)
class Model:
    """The GPT. `depth` is the one dial; what is null follows from it. Every field is an ablation."""

    depth: int = key("transformer blocks", ge=1, le=256)
    aspect_ratio: int = key("width per block of depth", ge=8)
    width: int | None = key(
        "residual stream; null: depth x aspect_ratio, up to a multiple of head_dim", ge=8
    )
    head_dim: int = key("width of one attention head", ge=8)
    n_heads: int | None = key("query heads; null: width / head_dim", ge=1)
    n_kv_heads: int | None = key("key/value heads (grouped-query attention); null: n_heads", ge=1)
    seq_len: int = key("context, tokens", ge=16)
    mlp: Literal["relu2", "gelu", "swiglu"] = key(
        "activation; swiglu is gated, at equal parameters (2/3 hidden)"
    )
    mlp_ratio: float = key("hidden width of the MLP / width", gt=0)
    norm: Literal["rms", "layer"] = key("normalisation; neither has learned gains")
    qk_norm: bool = key("normalise queries and keys (arXiv:2010.04245)")
    position: Literal["rope", "learned", "none"] = key("position signal")
    rope_base: float = key("period of the slowest rotary pair / 2 pi, tokens", gt=1)
    window_pattern: str = key(
        "attention of successive blocks, repeated: L full, S sliding window; the last is full"
    )
    window: int | None = key("tokens a sliding window sees; null: half of seq_len", ge=1)
    value_embeddings: Literal["none", "alternate", "all"] = key(
        "blocks whose values add a gated token embedding"
    )
    x0_scalars: bool = key("each block adds a learned multiple of the first residual stream")
    residual_scalars: bool = key("each block scales the residual stream by a learned factor")
    tied_head: bool = key("output head shares the token embedding")
    softcap: float = key("logits become softcap x tanh(logits / softcap); 0: off", ge=0)


@dataclass(frozen=True)
class Architecture(Model):
    """A model with every derived value filled in."""

    width: int = key("residual stream", ge=8)
    n_heads: int = key("query heads", ge=1)
    n_kv_heads: int = key("key/value heads", ge=1)
    window: int = key("tokens a sliding window sees", ge=1)


@dataclass(frozen=True)
class Optimizer:
    """AdamW's rates of matrices, embeddings and head are given at `lr_reference_width`, and follow the width.

    They are multiplied by (width / lr_reference_width)^lr_width_exponent. `matrix_lr` (Muon) and `scalar_lr` hold at every
    width. No rate follows the batch.
    """

    kind: Literal["muon", "adamw"] = key(
        "optimiser of the block matrices; all else is always AdamW"
    )
    matrix_lr: float = key("Muon: block matrices", gt=0)
    adamw_matrix_lr: float = key(
        "AdamW: block matrices, when kind is adamw; follows the width", gt=0
    )
    embedding_lr: float = key(
        "AdamW: token, position and value embeddings; follows the width", gt=0
    )
    head_lr: float = key("AdamW: output head, tied or not; follows the width", gt=0)
    scalar_lr: float = key("AdamW: residual and x0 scalars, gates", gt=0)
    lr_reference_width: int = key(
        "width at which the AdamW rates of matrices, embeddings and head hold", ge=1
    )
    lr_width_exponent: float = key("exponent of those rates in width; 0: none")
    weight_decay: float = key("decoupled, of block matrices, per unit of learning rate", ge=0)
    beta1: float = key("AdamW first moment", ge=0, le=0.9999)
    beta2: float = key("AdamW second moment", ge=0, le=0.99999)
    eps: float = key("AdamW epsilon", gt=0)
    muon_momentum: float = key("Muon momentum (Nesterov)", ge=0, le=0.9999)
    muon_iterations: int = key("Newton-Schulz iterations", ge=1, le=12)
    grad_clip: float = key("largest global gradient norm; 0: off", ge=0)


@dataclass(frozen=True)
class Train:
    """How every training stage runs; no key here is meant to change what is learned."""

    device: Literal["auto", "cpu", "cuda", "mps"] = key("auto: cuda, else cpu")
    dtype: Literal["auto", "float32", "bfloat16"] = key(
        "matrix products; auto: bfloat16 where the hardware is quick at it"
    )
    threads: int | None = key(
        "CPU threads of torch; null: the cores this process may use; part of the fingerprint", ge=1
    )
    processes: int = key(
        "processes that train together, each on a GPU or on its share of the cores", ge=1
    )
    sharding: Literal["ddp", "fsdp"] = key(
        "several processes: ddp copies the model to each; fsdp shards it too, for what does not fit"
    )
    compile: bool = key("torch.compile the training step")
    deterministic: bool = key("bit-for-bit repeatable kernels")
    activation_checkpointing: bool = key(
        "recompute block activations in the backward pass: less memory, a third more work"
    )
    session_minutes: float | None = key(
        "save and exit 75 after so long; the next start goes on; null: no limit", gt=0
    )
    save_seconds: float = key(
        "least time between saves of the training state, seconds, and never under 50 times what a save "
        "costs; 0: after every step",
        ge=0,
    )
    keep_states: int = key("whole training states kept", ge=1)
    log_every: int = key(
        "steps between logged lines; metrics count all steps, and RL logs every one", ge=1
    )


@dataclass(frozen=True)
class Schedule:
    """Horizon, batch and learning-rate schedule of a supervised stage: warm-up, constant, warm-down."""

    batch_tokens: int | None = key(
        "tokens of one optimiser step; null: follows from the horizon (arXiv:2505.13738)", ge=1
    )
    device_batch_size: int = key("rows of one forward pass: memory, not results", ge=1)
    lr_scale: float = key("multiplies every learning rate", gt=0)
    warmup_fraction: float = key("share of steps of linear warm-up", ge=0, le=1)
    warmdown_fraction: float = key("share of steps of linear warm-down", ge=0, le=1)
    final_lr_fraction: float = key("learning rate of the last step / the highest", ge=0, le=1)
    eval_every: int = key("steps between validations; 0: only at the end", ge=0)


@dataclass(frozen=True)
class Pretrain(Schedule):
    """Next-token prediction on the documents."""

    steps: int | None = key("optimiser steps; null: tokens_per_parameter decides", ge=1)
    tokens_per_parameter: float = key("horizon in tokens / parameters, when steps is null", gt=0)
    packing: Literal["concatenate", "best_fit"] = key(
        "rows: documents end to end, or whole documents packed so that each "
        "row opens with one (arXiv:2404.10830)"
    )
    eval_tokens: int = key("validation tokens of one estimate of bits per byte", ge=1)
    core_every: int = key(
        "steps between estimates of CORE, logged as the curve val/core; 0: none", ge=0
    )
    core_max_per_task: int = key(
        "items of each task of such an estimate, after the protocol's shuffle", ge=2
    )


@dataclass(frozen=True)
class Conversations(Schedule):
    """Training on conversations, loss on assistant tokens only."""

    steps: int = key("optimiser steps", ge=1)
    mixture: dict[str, float] = key(
        "share of tokens by source: a conversation file's name, `problems_worked`, "
        "`problems_direct` or `documents`",
        ge=0,
    )
    epochs: dict[str, float] = key(
        "passes over a source within the stage's tokens, in place of a share; the mixture's sources "
        "share what is left",
        ge=0,
    )
    attend_across: bool = key("let packed conversations see those before them in the row")


@dataclass(frozen=True)
class RL:
    """On-policy policy gradient with a group-mean baseline on the GSM8K scorer."""

    steps: int = key("optimiser steps", ge=1)
    questions_per_step: int = key("groups of one step", ge=1)
    samples_per_question: int = key("answers of one group", ge=2)
    max_new_tokens: int = key("longest answer, tokens", ge=1)
    temperature: float = key(
        "temperature of the policy: of sampling, and of the probabilities in the loss", gt=0
    )
    top_k: int = key(
        "the policy chooses among the k likeliest tokens, in sampling and in the loss; 0: all", ge=0
    )
    advantage: Literal["group_mean", "group_mean_std"] = key(
        "reward minus the group's mean, or that over its std"
    )
    dynamic_sampling: int = key(
        "redraw groups without variance up to so many times (DAPO, arXiv:2503.14476); 0: off", ge=0
    )
    curriculum: bool = key("easy questions first: fewest solution steps")
    format_reward: float = key("reward of a well-formed wrong answer", ge=0, le=1)
    device_batch_size: int = key("rows of one forward pass: memory, not results", ge=1)
    rollout_rows: int = key("answers sampled side by side: memory, not results", ge=1)
    lr_scale: float = key("multiplies every learning rate", gt=0)
    warmup_fraction: float = key("share of steps of linear warm-up", ge=0, le=1)
    final_lr_fraction: float = key("learning rate of the last step / the first; linear", ge=0, le=1)
    watch_every: int = key(
        "steps between looks at the validation problems; 0: only at the end", ge=0
    )
    watch_questions: int = key("validation problems of one look", ge=1)


@dataclass(frozen=True)
class Core:
    """DCLM CORE (arXiv:2406.11794)."""

    max_per_task: int | None = key(
        "items of each task, after the protocol's shuffle; null: all", ge=2
    )
    batch_size: int = key("rows of one forward pass: memory, not results", ge=1)


@dataclass(frozen=True)
class Gsm8k:
    """Word problems, scored as GSM8K is."""

    split: Literal["validation", "test"] = key("validation to tune, test for the report")
    questions: int | None = key("problems answered greedily; null: the whole split", ge=1)
    samples: int = key("sampled answers per problem for pass@k", ge=1)
    sampled_questions: int | None = key(
        "problems answered by sampling; null: as many as greedily", ge=1
    )
    temperature: float = key("of the sampled answers", gt=0)
    few_shot: int = key("worked examples before the question, base model only", ge=0)
    max_new_tokens: int = key("longest answer, tokens", ge=1)
    rows: int = key("answers generated side by side: memory, not results", ge=1)


@dataclass(frozen=True)
class Eval:
    """Evaluation of checkpoints."""

    bpb_tokens: int | None = key("validation tokens for the final bits per byte; null: all", ge=1)
    core: Core = key("CORE")
    gsm8k: Gsm8k = key("word problems")


@dataclass(frozen=True)
class Tracking:
    """MLflow."""

    experiment: str = key("MLflow experiment")
    system_metrics: bool = key("log CPU, memory and GPU use")


@dataclass(frozen=True)
class Config:
    """All of params.yaml."""

    seed: int = key("initial weights, data order, sampling", ge=0)
    corpus: Corpus = key("documents, conversations, problems, tasks")
    tokenizer: Tokenizer = key("byte-level BPE")
    tokens: Tokens = key("token shards")
    model: Model = key("the GPT")
    optimizer: Optimizer = key("optimiser")
    train: Train = key("how training runs")
    pretrain: Pretrain = key("pretraining")
    midtrain: Conversations = key("midtraining: chat format, tool")
    sft: Conversations = key("supervised fine-tuning")
    rl: RL = key("reinforcement learning")
    eval: Eval = key("evaluation")
    tracking: Tracking = key("experiment tracking")


def describe(cls: type = Config, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Every dotted key with its type and metadata, sections included, in order."""
    rows = []
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        rows.append((prefix + field.name, hints[field.name], field.metadata))
        if dataclasses.is_dataclass(hints[field.name]):
            rows += describe(hints[field.name], f"{prefix}{field.name}.")
    return rows


def flatten(section: Any, prefix: str = "") -> dict[str, Any]:
    """A dataclass (or mapping) as dotted keys -> plain values."""
    flat: dict[str, Any] = {}
    names = (
        section
        if isinstance(section, dict)
        else [field.name for field in dataclasses.fields(section)]
    )
    items = [
        (name, section[name] if isinstance(section, dict) else getattr(section, name))
        for name in names
    ]
    for name, value in items:
        if dataclasses.is_dataclass(value) or isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
