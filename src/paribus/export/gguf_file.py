"""A checkpoint as one GGUF file, for llama.cpp and what builds on it: fp32 weights, tokenizer, chat template.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package writes it and knows its names.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from paribus.config import Architecture
from paribus.data.tokenizer import SPECIAL, pre_split
from paribus.errors import UserError
from paribus.export.card import has_conversations
from paribus.export.folder import CHAT_TEMPLATE, END, refuse_unknown_keys
from paribus.export.stock import (
    RMS_EPSILON,
    STOCKS,
    Needs,
    Stock,
    stock_for,
)
from paribus.files import replacing
from paribus.model.gpt import load_checkpoint
from paribus.model.shapes import mlp_hidden
from paribus.optional import require
from paribus.study.finished import FinishedRun

if TYPE_CHECKING:
    from gguf import GGUFWriter

# Stock architectures as llama.cpp has them: with SiLU and without biases. Its GPT-2 approximates GELU by a tanh.
NEEDS: Needs = {
    "mlp": ("swiglu",),
    "mlp_bias": (False,),
    "qkv_bias": (False,),
    "out_bias": (False,),
}
HELD = [
    dataclasses.replace(stock, needs={**stock.needs, **NEEDS})
    for stock in STOCKS
    if stock.model_type in ("llama", "qwen3")
]
# tokenizer.max_digits -> the pre-tokenizer of llama.cpp that cuts text as paribus does, but for combining marks.
PRE_TOKENIZERS = {1: "qwen2", 3: "llama-bpe"}


def export_gguf(run: FinishedRun, checkpoint: Path, out: Path) -> Stock:
    """Write a checkpoint as a GGUF file; it is there whole or not at all.

    Args:
        run: what is known of the checkpoint.
        checkpoint: its folder.
        out: the file.

    Returns:
        The architecture that it is written as.

    Raises:
        UserError: the package gguf is missing, the checkpoint is damaged, or no architecture of the format holds it.
    """
    require("gguf", "--to gguf")
    import gguf

    model = load_checkpoint(checkpoint)
    refuse_unknown_keys(checkpoint, model.config)
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_bytes())
    pre_tokenizer = _pre_tokenizer(tokenizer)
    stock = stock_for(model.config, HELD)
    problems = _problems(model.config, pre_tokenizer)
    if problems or stock is None or pre_tokenizer is None:
        raise UserError([f"--to gguf: {checkpoint}: {problem}" for problem in problems])
    tensors = {name: tensor.detach() for name, tensor in model.named_parameters()}
    tensors = stock.tensors(model.config, tensors)
    architecture = gguf.MODEL_ARCH[stock.model_type.upper()]
    names = gguf.get_tensor_name_map(architecture, model.config.depth)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as aside:
        writer = gguf.GGUFWriter(aside, stock.model_type)
        _describe(writer, model.config, model.vocab_size, run.name)
        _add_tokenizer(writer, tokenizer, pre_tokenizer)
        if has_conversations(run):
            writer.add_chat_template(CHAT_TEMPLATE.read_text())
        for name, tensor in tensors.items():
            place = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert place is not None, f"{name} is a tensor of {stock.model_type}"
            values = _as_the_format_has_it(stock, model.config, name, tensor)
            writer.add_tensor(place, values.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return stock


def _problems(config: Architecture, pre_tokenizer: str | None) -> list[str]:
    """Why the format cannot hold a checkpoint, by the architecture that comes nearest."""
    problems = []
    if stock_for(config, HELD) is None:
        nearest = min(HELD, key=lambda each: len(each.misfits(config)))
        reasons = ", ".join(nearest.misfits(config))
        problems.append(
            f"GGUF has no such architecture; {nearest.model_type} is nearest, but {reasons}"
        )
    if pre_tokenizer is None:
        allowed = " or ".join(map(str, PRE_TOKENIZERS))
        problems.append(f"llama.cpp has byte-level BPE with tokenizer.max_digits {allowed} alone")
    return problems


def _pre_tokenizer(tokenizer: Mapping[str, Any]) -> str | None:
    """What llama.cpp calls a tokenizer's way to cut text; None where it has none like it."""
    if tokenizer["model"]["type"] != "BPE":
        return None
    written = json.dumps(tokenizer["pre_tokenizer"])
    for max_digits, name in PRE_TOKENIZERS.items():
        if json.dumps(pre_split(max_digits)) in written:
            return name
    return None


def _describe(writer: GGUFWriter, config: Architecture, vocab_size: int, name: str) -> None:
    """The sizes of the model."""
    writer.add_name(name)
    writer.add_file_type(0)  # all fp32
    writer.add_vocab_size(vocab_size)
    writer.add_context_length(config.seq_len)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.depth)
    writer.add_feed_forward_length(mlp_hidden(config))
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(RMS_EPSILON)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)


def _add_tokenizer(writer: GGUFWriter, written: Mapping[str, Any], pre_tokenizer: str) -> None:
    """Tokens by id, merges, and which tokens are special. written: the object of a tokenizer.json."""
    import gguf

    ids = dict(written["model"]["vocab"])
    ids |= {token["content"]: token["id"] for token in written.get("added_tokens", [])}
    tokens = sorted(ids, key=ids.__getitem__)
    kinds = [
        gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens
    ]
    merges = [
        pair if isinstance(pair, str) else " ".join(pair) for pair in written["model"]["merges"]
    ]
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(ids[SPECIAL[0]])
    writer.add_eos_token_id(ids[END])
    writer.add_add_bos_token(True)


def _as_the_format_has_it(stock: Stock, config: Architecture, name: str, tensor: Tensor) -> Tensor:
    """A tensor in the layout of GGUF, whose Llama rotates neighbouring channels and not halves of a head."""
    if stock.model_type != "llama" or not ("q_proj" in name or "k_proj" in name):
        return tensor
    heads = config.n_heads if "q_proj" in name else config.n_kv_heads
    halves = tensor.unflatten(0, (heads, 2, config.head_dim // 2))
    neighbours: Tensor = halves.transpose(1, 2).flatten(0, 2)
    return neighbours
