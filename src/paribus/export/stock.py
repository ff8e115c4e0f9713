"""Which of transformers' own architectures a checkpoint is, and its tensors under their names.

A stock architecture holds a checkpoint where every switch has a value that it can express. What it always has and the
checkpoint lacks is filled in neutrally: gains of one, biases of zero. The norm of the embedding is computed once, into
the embedding, where the head has a matrix of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paribus.config import Architecture
from paribus.model.layers import normalise
from paribus.model.shapes import mlp_hidden, window_of

Tensors = dict[str, Tensor]
Needs = Mapping[str, tuple[object, ...]]

RMS_EPSILON = torch.finfo(torch.float32).eps  # as `layers.normalise` has it
LAYER_EPSILON = 1e-5  # torch's

# Keys that every stock architecture can express whatever their value, and keys of training alone.
FREE = frozenset(
    {
        "depth", "aspect_ratio", "width", "head_dim", "n_heads", "n_kv_heads", "seq_len", "mlp_ratio", "rope_base",
        "window", "window_pattern", "norm_gain", "tied_head", "embedding_std", "initialisation",
        "future_tokens", "attention_dropout", "mlp_dropout", "residual_dropout", "embedding_dropout",
    }
)  # fmt: skip
# Key -> the values that no stock architecture goes without.
PLAIN: Needs = {
    "recurrence": (1,),
    "parallel_blocks": (False,),
    "norm_position": ("pre",),
    "attention_softcap": (0.0,),
    "attention_gate": ("none",),
    "head_gain": (False,),
    "value_residual": (False,),
    "value_embeddings": ("none",),
    "x0_scalars": (False,),
    "residual_scalars": (False,),
}
EITHER = (False, True)
LLAMA: Needs = {
    **PLAIN,
    "norm": ("rms",),
    "norm_bias": (False,),
    "mlp": ("swiglu", "geglu"),
    "mlp_bias": EITHER,
    "qkv_bias": EITHER,
    "out_bias": EITHER,
    "qk_norm": (False,),
    "qk_norm_position": ("after_rotary", "before_rotary"),
    "qk_gain": EITHER,
    "position": ("rope",),
    "rotary_fraction": (1.0,),
    "softcap": (0.0,),
    "embedding_norm": EITHER,
    "embedding_scale": (1.0,),
}
QWEN3: Needs = {**LLAMA, "qk_norm": (True,), "mlp_bias": (False,)}
NANOCHAT: Needs = {
    **QWEN3,
    "mlp": ("relu", "relu2", "gelu"),
    "norm_gain": (False,),
    "qk_gain": (False,),
    "softcap": (),  # any
    "embedding_norm": (True,),
}
GPT2: Needs = {
    **LLAMA,
    "norm": ("layer",),
    "norm_bias": EITHER,
    "mlp": ("relu", "relu2", "gelu"),
    "position": ("learned",),
    "rotary_fraction": (),
    "embedding_norm": (False,),
}
ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu", "gelu": "gelu", "relu": "relu", "relu2": "relu2"}


@dataclass(frozen=True)
class Stock:
    """An architecture of transformers.

    Attributes:
        model_type: its name there.
        architecture: its class there.
        needs: key -> the values that it can express; () stands for any.
        conditions: further reasons why it does not fit.
        settings: what config.json says besides the common facts.
        tensors: a checkpoint's tensors -> those of the class.
    """

    model_type: str
    architecture: str
    needs: Needs
    conditions: Callable[[Architecture], list[str]]
    settings: Callable[[Architecture], dict[str, object]]
    tensors: Callable[[Architecture, Tensors], Tensors]

    def misfits(self, config: Architecture) -> list[str]:
        """Why the architecture cannot hold a model of this configuration; [] where it can."""
        found = []
        for key, value in dataclasses.asdict(config).items():
            allowed = self.needs.get(key)
            if allowed and value not in allowed:
                found.append(f"model.{key} is {value}")
        if windowed(config):
            found.append(f"model.window_pattern is {config.window_pattern}")
        return found + self.conditions(config)


def windowed(config: Architecture) -> bool:
    """Whether some block does not see the whole context."""
    layers = range(config.depth)
    sliding = any(window_of(config, layer) == "S" for layer in layers)
    return sliding and config.window < config.seq_len


def known_keys() -> frozenset[str]:
    """Every key of the architecture that an export accounts for."""
    return FREE | LLAMA.keys() | NANOCHAT.keys() | GPT2.keys()


# ---------------------------------------------------------------- conditions of several keys


def _shared_embedding(config: Architecture) -> list[str]:
    if config.tied_head and config.embedding_norm:
        return ["model.embedding_norm is true with a tied head"]
    return []


def _heads_of_width(config: Architecture) -> list[str]:
    width = config.n_heads * config.head_dim
    return (
        [] if width == config.width else [f"heads of {width} channels, a stream of {config.width}"]
    )


def _gain_before_rotary(config: Architecture) -> list[str]:
    if config.qk_gain and config.qk_norm_position == "after_rotary":
        return ["model.qk_gain is true with model.qk_norm_position after_rotary"]
    return []


def _qwen3_conditions(config: Architecture) -> list[str]:
    return _shared_embedding(config) + _gain_before_rotary(config)


def _gpt2_conditions(config: Architecture) -> list[str]:
    found = _heads_of_width(config)
    if config.n_kv_heads != config.n_heads:
        found.append(f"model.n_kv_heads is {config.n_kv_heads}")
    return found


# ---------------------------------------------------------------- what config.json says


def _rotary_settings(config: Architecture) -> dict[str, object]:
    return {
        "hidden_size": config.width,
        "intermediate_size": mlp_hidden(config),
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "max_position_embeddings": config.seq_len,
        "hidden_act": ACTIVATIONS[config.mlp],
        "attention_bias": config.qkv_bias or config.out_bias,
        "rms_norm_eps": RMS_EPSILON,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "tie_word_embeddings": config.tied_head,
    }


def _llama_settings(config: Architecture) -> dict[str, object]:
    return _rotary_settings(config) | {"head_dim": config.head_dim, "mlp_bias": config.mlp_bias}


def _qwen3_settings(config: Architecture) -> dict[str, object]:
    return _rotary_settings(config) | {"head_dim": config.head_dim}


def _nanochat_settings(config: Architecture) -> dict[str, object]:
    return _rotary_settings(config) | {"final_logit_softcapping": config.softcap or None}


def _gpt2_settings(config: Architecture) -> dict[str, object]:
    return {
        "n_embd": config.width,
        "n_inner": mlp_hidden(config),
        "n_layer": config.depth,
        "n_head": config.n_heads,
        "n_positions": config.seq_len,
        "activation_function": ACTIVATIONS[config.mlp],
        "layer_norm_epsilon": LAYER_EPSILON,
        "tie_word_embeddings": config.tied_head,
    }


# ---------------------------------------------------------------- tensors


def _embedding(config: Architecture, tensors: Tensors) -> Tensor:
    """The embedding (V, D), normalised where the model normalises it before its first block."""
    embedding = tensors["embedding.weight"]
    if not config.embedding_norm:
        return embedding
    return normalise(embedding, config.norm) * _gain(tensors, "embedding_norm.gain", config.width)


def _ends(config: Architecture, tensors: Tensors) -> Tensors:
    """The final norm's gain and the head."""
    found = {"model.norm.weight": _gain(tensors, "final_norm.gain", config.width)}
    if not config.tied_head:
        found["lm_head.weight"] = tensors["head.weight"]
    return found


def _gain(tensors: Tensors, name: str, size: int) -> Tensor:
    """A norm's gain (size,); ones where the model has none."""
    return tensors.get(name, torch.ones(size))


def _linear(
    tensors: Tensors, source: str, target: str, bias: bool, rows: Tensor | None = None
) -> Tensors:
    """A product's weight, and its bias where the target has one.

    Args:
        tensors: of the checkpoint.
        source: its name there.
        target: its name in the stock architecture.
        bias: whether that has a bias, 0 where the checkpoint has none.
        rows: the order of its outputs; None: as they are.
    """
    weight = tensors[f"{source}.weight"]
    shift = tensors.get(f"{source}.bias", torch.zeros(len(weight)))
    if rows is not None:
        weight, shift = weight[rows], shift[rows]
    found = {f"{target}.weight": weight}
    if bias:
        found[f"{target}.bias"] = shift
    return found


def _attention(
    config: Architecture, tensors: Tensors, layer: int, rows: Callable[[int], Tensor | None]
) -> Tensors:
    """The four products of a block's attention. rows: number of heads -> the order of the outputs of q and k."""
    bias = config.qkv_bias or config.out_bias
    heads = {"q": config.n_heads, "k": config.n_kv_heads}
    found: Tensors = {}
    for source, target in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "o_proj")):
        order = rows(heads[source]) if source in heads else None
        found |= _linear(
            tensors,
            f"blocks.{layer}.attention.{source}",
            f"model.layers.{layer}.self_attn.{target}",
            bias,
            order,
        )
    return found


def _as_they_are(heads: int) -> None:
    return None


def _llama_tensors(config: Architecture, tensors: Tensors) -> Tensors:
    found = {"model.embed_tokens.weight": _embedding(config, tensors)} | _ends(config, tensors)
    for layer in range(config.depth):
        block, stock = f"blocks.{layer}", f"model.layers.{layer}"
        found |= _attention(config, tensors, layer, _as_they_are)
        for norm, join in (("input", "attention_join"), ("post_attention", "mlp_join")):
            gain = _gain(tensors, f"{block}.{join}.norm.gain", config.width)
            found[f"{stock}.{norm}_layernorm.weight"] = gain
        for name in ("gate", "up", "down"):
            target = f"{stock}.mlp.{name}_proj"
            found |= _linear(tensors, f"{block}.mlp.{name}", target, config.mlp_bias)
    return found


def _qwen3_tensors(config: Architecture, tensors: Tensors) -> Tensors:
    found = _llama_tensors(config, tensors)
    for layer in range(config.depth):
        for name in ("q", "k"):
            gain = _gain(tensors, f"blocks.{layer}.attention.{name}_gain", config.head_dim)
            found[f"model.layers.{layer}.self_attn.{name}_norm.weight"] = gain
    return found


def _nanochat_tensors(config: Architecture, tensors: Tensors) -> Tensors:
    """NanoChat rotates the other way round: with the two halves of every head exchanged that is the same."""

    def exchanged(heads: int) -> Tensor:
        channels = torch.arange(config.head_dim).roll(config.head_dim // 2)
        first = torch.arange(heads)[:, None] * config.head_dim
        return (first + channels).flatten()

    found = {"model.embed_tokens.weight": tensors["embedding.weight"]}
    if not config.tied_head:
        found["lm_head.weight"] = tensors["head.weight"]
    for layer in range(config.depth):
        found |= _attention(config, tensors, layer, exchanged)
        for source, target in (("up", "fc1"), ("down", "fc2")):
            name = f"model.layers.{layer}.mlp.{target}"
            found |= _linear(tensors, f"blocks.{layer}.mlp.{source}", name, False)
    return found


def _gpt2_tensors(config: Architecture, tensors: Tensors) -> Tensors:
    """GPT-2 keeps its matrices transposed, and queries, keys and values as one."""
    found = {
        "transformer.wte.weight": tensors["embedding.weight"],
        "transformer.wpe.weight": tensors["positions.weight"],
    }
    norms = {"transformer.ln_f": "final_norm"}
    for layer in range(config.depth):
        block, stock = f"blocks.{layer}", f"transformer.h.{layer}"
        parts: Tensors = {}
        for name in ("q", "k", "v"):
            parts |= _linear(tensors, f"{block}.attention.{name}", name, True)
        found[f"{stock}.attn.c_attn.weight"] = torch.cat([parts[f"{n}.weight"] for n in "qkv"]).T
        found[f"{stock}.attn.c_attn.bias"] = torch.cat([parts[f"{n}.bias"] for n in "qkv"])
        for source, target in (
            ("attention.out", "attn.c_proj"),
            ("mlp.up", "mlp.c_fc"),
            ("mlp.down", "mlp.c_proj"),
        ):
            pair = _linear(tensors, f"{block}.{source}", target, True)
            found[f"{stock}.{target}.weight"] = pair[f"{target}.weight"].T
            found[f"{stock}.{target}.bias"] = pair[f"{target}.bias"]
        norms |= {f"{stock}.ln_1": f"{block}.attention_join.norm"}
        norms |= {f"{stock}.ln_2": f"{block}.mlp_join.norm"}
    for target, source in norms.items():
        found[f"{target}.weight"] = _gain(tensors, f"{source}.gain", config.width)
        found[f"{target}.bias"] = tensors.get(f"{source}.bias", torch.zeros(config.width))
    if not config.tied_head:
        found["lm_head.weight"] = tensors["head.weight"]
    return found


STOCKS = (
    Stock("llama", "LlamaForCausalLM", LLAMA, _shared_embedding, _llama_settings, _llama_tensors),
    Stock("qwen3", "Qwen3ForCausalLM", QWEN3, _qwen3_conditions, _qwen3_settings, _qwen3_tensors),
    Stock(
        "nanochat",
        "NanoChatForCausalLM",
        NANOCHAT,
        _heads_of_width,
        _nanochat_settings,
        _nanochat_tensors,
    ),
    Stock("gpt2", "GPT2LMHeadModel", GPT2, _gpt2_conditions, _gpt2_settings, _gpt2_tensors),
)


def stock_for(config: Architecture, among: Sequence[Stock] = STOCKS) -> Stock | None:
    """The first of some stock architectures that holds a model of this configuration; None where none does."""
    for stock in among:
        if not stock.misfits(config):
            return stock
    return None
