"""The keys of the GPT: its size, its blocks, what each of them may do otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paribus.config import conditions as when
from paribus.config import limits
from paribus.config.keys import key
from paribus.config.limits import Limit


@dataclass(frozen=True)
class Model:
    """The GPT. `depth` is the one dial; what is null follows from it. Every field is an ablation."""

    depth: int = key(
        "transformer blocks", ge=1, le=Limit(256, "twice the deepest published models")
    )
    aspect_ratio: int = key(
        "width per block of depth",
        ge=8,
        le=Limit(1_024, "eight times that of the widest published models"),
        acts_when=when.NO_WIDTH,
    )
    width: int | None = key(
        "residual stream; null: depth x aspect_ratio, up to a multiple of head_dim",
        ge=8,
        le=limits.WIDTH,
    )
    head_dim: int = key(
        "width of one attention head",
        ge=8,
        le=Limit(1_024, "four times that of any published model"),
    )
    n_heads: int | None = key(
        "query heads; null: width / head_dim",
        ge=1,
        le=limits.HEADS,
        acts_when=when.NEVER_HEADS,
    )
    n_kv_heads: int | None = key(
        "key/value heads (grouped-query attention); null: n_heads",
        ge=1,
        le=Limit(8_192, "no more than query heads"),
        acts_when=when.SEVERAL_HEADS,
    )
    seq_len: int = key("context, tokens", ge=16, le=limits.CONTEXT)
    recurrence: int = key(
        "passes over the blocks, which share their weights between passes (arXiv:1807.03819)",
        ge=1,
        le=Limit(64, "twice that of published models"),
        formerly=1,
    )
    mlp: Literal["relu", "relu2", "leaky_relu2", "gelu", "geglu", "swiglu"] = key(
        "activation; geglu and swiglu are gated, at equal parameters (2/3 hidden); leaky_relu2 is the square of a "
        "leaky ReLU of slope 0.5"
    )
    mlp_ratio: float = key(
        "hidden width of the MLP / width",
        gt=0,
        le=Limit(64.0, "eight times that of the widest published models"),
    )
    mlp_bias: bool = key("biases of the MLP's matrices", formerly=False)
    qkv_bias: bool = key("biases of queries, keys and values", formerly=False)
    out_bias: bool = key("bias of attention's output matrix", formerly=False)
    parallel_blocks: bool = key(
        "attention and MLP read the same normalised stream (arXiv:2204.02311)", formerly=False
    )
    norm: Literal["rms", "layer"] = key("normalisation")
    norm_position: Literal["pre", "post", "sandwich"] = key(
        "of a block's norms: before attention and MLP, after each sum, or before and after attention and MLP",
        formerly="pre",
    )
    norm_gain: bool = key(
        "norms of the residual stream multiply each channel by a learned gain", formerly=False
    )
    norm_bias: bool = key(
        "norms of the residual stream add a learned bias to each channel", formerly=False
    )
    qk_norm: bool = key("normalise queries and keys (arXiv:2010.04245)")
    qk_norm_position: Literal["after_rotary", "before_rotary"] = key(
        "where queries and keys are normalised; a rotation changes no RMS, so that without gains this is rounding alone",
        acts_when=when.NORMALISED_ROTARY,
        formerly="after_rotary",
    )
    qk_gain: bool = key(
        "normalised queries and keys multiply each channel by a learned gain",
        acts_when=when.QK_NORM,
        formerly=False,
    )
    attention_softcap: float = key(
        "attention's logits become softcap x tanh(logits / softcap); 0: off (arXiv:2408.00118)",
        ge=0,
        le=Limit(1e6, "the same as off, in 32 bits"),
        formerly=0.0,
    )
    attention_gate: Literal["none", "head"] = key(
        "multiply each head's output by 2 x sigmoid of a product with the stream's first channels (arXiv:2505.06708)",
        formerly="none",
    )
    head_gain: bool = key("multiply each head's output by a learned factor", formerly=False)
    value_residual: bool = key(
        "blocks after the first add a learned multiple of the first one's values (arXiv:2410.17897)",
        acts_when=when.SEVERAL_BLOCKS,
        formerly=False,
    )
    position: Literal["rope", "learned", "none"] = key("position signal")
    rotary_fraction: float = key(
        "share of each head's channels that are rotated, to the next pair",
        gt=0,
        le=1,
        acts_when=when.ROPE,
        formerly=1.0,
    )
    rope_base: float = key(
        "period of the slowest rotary pair / 2 pi, tokens",
        gt=1,
        le=Limit(1e12, "a million times the longest context"),
        acts_when=when.ROPE,
    )
    window_pattern: str = key(
        "attention of successive blocks, repeated: L full, S sliding window; the last is full",
        acts_when=when.PATTERNED,
    )
    window: int | None = key(
        "tokens a sliding window sees; null: half of seq_len",
        ge=1,
        le=limits.CONTEXT,
        acts_when=when.SLIDING,
    )
    value_embeddings: Literal["none", "alternate", "all"] = key(
        "blocks whose values add a gated token embedding"
    )
    x0_scalars: bool = key("each block adds a learned multiple of the first residual stream")
    residual_scalars: bool = key("each block scales the residual stream by a learned factor")
    tied_head: bool = key("output head shares the token embedding")
    embedding_norm: bool = key("normalise the embedding before the first block", formerly=True)
    embedding_scale: float = key(
        "multiplies the embedding where it is not normalised",
        gt=0,
        le=Limit(1e4, "the square root of any width is less"),
        acts_when=when.EMBEDDED_AS_IT_IS,
        formerly=1.0,
    )
    embedding_std: float | None = key(
        "standard deviation of the token embedding's first values; null: 1, or 0.02 with a tied head or gpt2's "
        "initialisation",
        gt=0,
        le=Limit(100.0, "a hundred times the widest published"),
    )
    initialisation: Literal["zero_outputs", "depth_scaled", "gpt2", "orthogonal"] = key(
        "first values of matrices: normal, of variance 1 / inputs, those that write to the residual stream 0; these 1 / "
        "sqrt(2 x blocks) smaller; normal of 0.02, these smaller likewise; orthogonal, these smaller likewise. The head "
        "starts at 0, but with gpt2",
        formerly="zero_outputs",
    )
    attention_dropout: float = key(
        "share of attention's weights dropped in supervised training", ge=0, le=0.9, formerly=0.0
    )
    mlp_dropout: float = key(
        "share of the MLP's hidden values dropped in supervised training",
        ge=0,
        le=0.9,
        formerly=0.0,
    )
    residual_dropout: float = key(
        "share of what attention and MLP add that is dropped in supervised training",
        ge=0,
        le=0.9,
        formerly=0.0,
    )
    embedding_dropout: float = key(
        "share of the embedding dropped in supervised training", ge=0, le=0.9, formerly=0.0
    )
    softcap: float = key(
        "logits become softcap x tanh(logits / softcap); 0: off",
        ge=0,
        le=Limit(1e6, "the same as off, in 32 bits"),
    )
    future_tokens: int = key(
        "tokens after the next one that pretraining predicts too, each by a matrix of its own before the shared head "
        "(after arXiv:2404.19737); no checkpoint keeps these",
        ge=0,
        le=Limit(8, "twice that of published models"),
        formerly=0,
    )


@dataclass(frozen=True)
class Architecture(Model):
    """A model with every derived value filled in."""

    width: int = key("residual stream", ge=8, le=limits.WIDTH)
    n_heads: int = key("query heads", ge=1, le=limits.HEADS)
    n_kv_heads: int = key("key/value heads", ge=1, le=limits.HEADS)
    window: int = key("tokens a sliding window sees", ge=1, le=limits.CONTEXT)
