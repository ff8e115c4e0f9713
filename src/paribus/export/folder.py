"""A checkpoint as a folder that transformers loads: weights, configuration, tokenizer with its chat template, model card.

Where one of transformers' own architectures holds the checkpoint (`stock.py`), the folder has no code. Elsewhere it has
`modeling_paribus.py`, and loading it takes `trust_remote_code=True`.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from safetensors.torch import save_file

from paribus.config import Architecture
from paribus.data.tokenizer import Tokenizer
from paribus.errors import UserError
from paribus.export.card import has_conversations, model_card
from paribus.export.stock import Stock, known_keys, stock_for
from paribus.files import replacing, whole_folder, write_atomic
from paribus.model.gpt import GPT, load_checkpoint
from paribus.model.shapes import (
    GATE_CHANNELS,
    applied_blocks,
    has_value_embedding,
    mlp_hidden,
    rotary_channels,
    window_of,
)
from paribus.study.finished import FinishedRun

CODE = Path(__file__).with_name("modeling_paribus.py")
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
END = "<|end|>"  # closes an answer


def export_folder(run: FinishedRun, checkpoint: Path, out: Path) -> Stock | None:
    """Write a checkpoint as a folder for transformers; the folder is there whole or not at all.

    Args:
        run: what is known of the checkpoint.
        checkpoint: its folder.
        out: the folder to write.

    Returns:
        The stock architecture that it is written as; None: the one of `modeling_paribus.py`.

    Raises:
        UserError: the checkpoint is damaged, or has a key that no export accounts for.
    """
    model = load_checkpoint(checkpoint)
    refuse_unknown_keys(checkpoint, model.config)
    stock = stock_for(model.config)
    tensors = {name: tensor.detach() for name, tensor in model.named_parameters()}
    if stock is not None:
        tensors = stock.tensors(model.config, tensors)
    tokenizer = Tokenizer.load(checkpoint / "tokenizer.json")
    settings = common_settings(model, tokenizer)
    settings |= own_settings(model) if stock is None else stock_settings(stock, model.config)
    with whole_folder(out) as folder:
        with replacing(folder / "model.safetensors") as aside:
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, aside, metadata={"format": "pt"})
        _write_json(folder / "config.json", settings)
        _write_json(folder / "generation_config.json", _generation_settings(tokenizer))
        shutil.copyfile(checkpoint / "tokenizer.json", folder / "tokenizer.json")
        shutil.copyfile(checkpoint / "provenance.json", folder / "provenance.json")
        _write_json(folder / "tokenizer_config.json", _tokenizer_settings(model.config))
        if has_conversations(run):
            shutil.copyfile(CHAT_TEMPLATE, folder / CHAT_TEMPLATE.name)
        if stock is None:
            shutil.copyfile(CODE, folder / CODE.name)
        write_atomic(folder / "README.md", model_card(run, model, stock))
    return stock


def refuse_unknown_keys(checkpoint: Path, config: Architecture) -> None:
    """Raises UserError for keys of the architecture that no export accounts for."""
    names = {field.name for field in dataclasses.fields(config)}
    unknown = sorted(names - known_keys())
    if unknown:
        listed = ", ".join(f"model.{name}" for name in unknown)
        raise UserError(f"{checkpoint}: no export holds {listed}")


# ---------------------------------------------------------------- config.json


def common_settings(model: GPT, tokenizer: Tokenizer) -> dict[str, object]:
    """What config.json says of every architecture."""
    return {
        "vocab_size": model.vocab_size,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.special[END],
        "pad_token_id": None,
        "dtype": "float32",
    }


def stock_settings(stock: Stock, config: Architecture) -> dict[str, object]:
    """What config.json says of a stock architecture."""
    named = {"model_type": stock.model_type, "architectures": [stock.architecture]}
    return named | stock.settings(config)


def own_settings(model: GPT) -> dict[str, object]:
    """What config.json says of the architecture in `modeling_paribus.py`: paribus' keys, and the sizes that follow."""
    config = model.config
    layers = range(config.depth)
    windows = []
    for layer in layers:
        sliding = window_of(config, layer) == "S" and config.window < config.seq_len
        windows.append(config.window if sliding else None)
    derived = {
        "mlp_hidden": mlp_hidden(config),
        "gate_channels": min(GATE_CHANNELS, config.width),
        "rotary_channels": rotary_channels(config),
        "has_value_embedding": [has_value_embedding(config, layer) for layer in layers],
        "windows": windows,
    }
    name = CODE.stem
    return {
        "model_type": "paribus",
        "architectures": ["ParibusForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{name}.ParibusConfig",
            "AutoModelForCausalLM": f"{name}.ParibusForCausalLM",
        },
        "architecture": dataclasses.asdict(config) | derived,
        "hidden_size": config.width,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "num_hidden_layers": applied_blocks(config),
        "max_position_embeddings": config.seq_len,
        "tie_word_embeddings": False,  # a tied head is no module of its own
    }


def _generation_settings(tokenizer: Tokenizer) -> dict[str, object]:
    return {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.special[END]}


def _tokenizer_settings(config: Architecture) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": END,
        "model_max_length": config.seq_len,
        "clean_up_tokenization_spaces": False,
    }


def _write_json(path: Path, values: dict[str, object]) -> None:
    write_atomic(path, json.dumps(values, indent=1) + "\n")
