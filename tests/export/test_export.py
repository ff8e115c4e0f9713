"""A checkpoint for other tools says what it says here: loaded by the real libraries, under every switch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from support.checkout import ROOT
from support.tiny import TINY

from paribus.cli.commands import commands
from paribus.config import Architecture, merge, parse_config, read_yaml, resolve_model
from paribus.data.tokenizer import Tokenizer, train_tokenizer
from paribus.errors import UserError
from paribus.export.folder import export_folder
from paribus.export.gguf_file import export_gguf
from paribus.export.stock import known_keys, stock_for
from paribus.model.gpt import GPT, save_checkpoint
from paribus.study.finished import FinishedRun, in_checkpoint


def transformers() -> Any:
    """Loaded where a test needs it: every worker imports every file."""
    return pytest.importorskip("transformers", reason="needs transformers (the dev extra)")


SMALL = {
    "model.depth": 3,
    "model.width": 48,
    "model.head_dim": 12,
    "model.seq_len": 32,
    "model.window": 8,
}
LLAMA = {
    "model.qk_norm": False,
    "model.value_embeddings": "none",
    "model.x0_scalars": False,
    "model.residual_scalars": False,
    "model.window_pattern": "L",
    "model.softcap": 0.0,
    "model.mlp": "swiglu",
}
GPT2 = LLAMA | {
    "model.norm": "layer",
    "model.mlp": "gelu",
    "model.position": "learned",
    "model.embedding_norm": False,
}
BIASES = {"model.mlp_bias": True, "model.qkv_bias": True, "model.out_bias": True}
STOCK: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LLAMA),
    "llama, gains and biases": ("llama", LLAMA | BIASES | {"model.norm_gain": True}),
    "llama, one bias": ("llama", LLAMA | {"model.out_bias": True}),
    "llama, tied": ("llama", LLAMA | {"model.tied_head": True, "model.embedding_norm": False}),
    "llama, grouped heads": ("llama", LLAMA | {"model.n_kv_heads": 2}),
    "llama, geglu": ("llama", LLAMA | {"model.mlp": "geglu"}),
    "qwen3": ("qwen3", LLAMA | {"model.qk_norm": True}),
    "qwen3, gains": (
        "qwen3",
        LLAMA
        | {"model.qk_norm": True, "model.qk_gain": True, "model.qk_norm_position": "before_rotary"},
    ),
    "nanochat": (
        "nanochat",
        LLAMA | {"model.qk_norm": True, "model.mlp": "relu2", "model.softcap": 15.0},
    ),
    "gpt2": ("gpt2", GPT2),
    "gpt2, gains and biases": (
        "gpt2",
        GPT2 | BIASES | {"model.norm_gain": True, "model.norm_bias": True},
    ),
    "gpt2, tied": ("gpt2", GPT2 | {"model.tied_head": True}),
}
OWN: dict[str, dict[str, Any]] = {
    "default": {},
    "post": {"model.norm_position": "post", "model.norm_gain": True},
    "sandwich": {"model.norm_position": "sandwich", "model.norm_gain": True},
    "parallel": {"model.parallel_blocks": True},
    "recurrence": {"model.recurrence": 2, "model.value_residual": True},
    "gates": {"model.attention_gate": "head", "model.head_gain": True},
    "soft-capped attention": {"model.attention_softcap": 2.0},
    "part of a head rotated": {"model.rotary_fraction": 0.5},
    "gains of queries and keys": {"model.qk_gain": True},
    "no positions": {"model.position": "none"},
    "tied, scaled": {
        "model.tied_head": True,
        "model.embedding_norm": False,
        "model.embedding_scale": 3.0,
    },
    "layer norm, all biases": {"model.norm": "layer", "model.norm_bias": True, **BIASES},
    "alternate value embeddings": {"model.value_embeddings": "alternate"},
    "leaky": {"model.mlp": "leaky_relu2"},
    "grouped heads": {"model.n_kv_heads": 2},
}


def architecture(changes: dict[str, Any]) -> Architecture:
    params = merge(read_yaml(ROOT / "params.yaml"), TINY | SMALL | changes)
    return resolve_model(parse_config(params).model)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = parse_config(merge(read_yaml(ROOT / "params.yaml"), TINY)).tokenizer
    small = dataclasses.replace(settings, vocab_size=300, max_digits=1)
    place = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer([(ROOT / "README.md").read_text()], small).save(place)
    return place


def saved(folder: Path, changes: dict[str, Any], tokenizer: Path, stage: str = "rl") -> FinishedRun:
    """A checkpoint whose every tensor is random, so that no part of the model is silent."""
    model = GPT(architecture(changes), Tokenizer.load(tokenizer).vocab_size)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3 + 0.1)
    save_checkpoint(folder, model, tokenizer, {"stage": stage, "fingerprint": "0" * 20})
    return in_checkpoint(folder)


def logits_here(checkpoint: Path, tokens: torch.Tensor) -> torch.Tensor:
    from paribus.model.gpt import load_checkpoint

    model = load_checkpoint(checkpoint)
    with torch.no_grad():
        return model.logits(model.hidden(tokens))


def logits_there(folder: Path, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
    model = transformers().AutoModelForCausalLM.from_pretrained(folder, **options)
    with torch.no_grad():
        logits: torch.Tensor = model(tokens).logits
    return logits


TOKENS = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", STOCK)
def test_a_stock_architecture_gives_the_same_logits_without_any_code(
    name: str, tokenizer: Path, tmp_path: Path
) -> None:
    model_type, changes = STOCK[name]
    run = saved(tmp_path / "checkpoint", changes, tokenizer)
    stock = export_folder(run, tmp_path / "checkpoint", tmp_path / "out")
    assert stock is not None
    assert stock.model_type == model_type
    assert not list((tmp_path / "out").glob("*.py"))
    there = logits_there(tmp_path / "out", TOKENS)
    torch.testing.assert_close(
        there, logits_here(tmp_path / "checkpoint", TOKENS), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", OWN)
def test_any_other_architecture_gives_the_same_logits_with_its_model_file(
    name: str, tokenizer: Path, tmp_path: Path
) -> None:
    run = saved(tmp_path / "checkpoint", OWN[name], tokenizer)
    assert export_folder(run, tmp_path / "checkpoint", tmp_path / "out") is None
    there = logits_there(tmp_path / "out", TOKENS, trust_remote_code=True)
    torch.testing.assert_close(
        there, logits_here(tmp_path / "checkpoint", TOKENS), rtol=1e-4, atol=1e-4
    )


def test_generation_with_a_cache_and_with_padding_says_what_it_says_without(
    tokenizer: Path, tmp_path: Path
) -> None:
    run = saved(tmp_path / "checkpoint", {"model.value_residual": True}, tokenizer)
    export_folder(run, tmp_path / "checkpoint", tmp_path / "out")
    model = transformers().AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True
    )
    prompt = TOKENS[:, :9]
    padded = torch.cat([torch.zeros(2, 4, dtype=torch.int64), prompt], dim=1)
    mask = torch.cat([torch.zeros(2, 4, dtype=torch.int64), torch.ones_like(prompt)], dim=1)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = model.generate(prompt, use_cache=False, **options)
    assert torch.equal(model.generate(prompt, **options), plain)
    assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:, 4:], plain)


def test_the_chat_template_makes_the_tokens_of_training(tokenizer: Path, tmp_path: Path) -> None:
    from paribus.data.chat import render, render_prompt

    export_folder(saved(tmp_path / "c", {}, tokenizer), tmp_path / "c", tmp_path / "out")
    there = transformers().AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    worked = [
        {"type": "text", "text": "That is 3*4="},
        {"type": "tool_call", "text": "3*4"},
        {"type": "tool_result", "text": "12"},
        {"type": "text", "text": " coins."},
    ]
    question: dict[str, Any] = {"role": "user", "content": "What do 3 apples cost, at 4 coins?"}
    conversation: list[dict[str, Any]] = [question, {"role": "assistant", "content": worked}]
    here = Tokenizer.load(tokenizer)
    text = there.apply_chat_template(conversation, tokenize=False)
    assert there(text, add_special_tokens=False)["input_ids"] == render(conversation, here)[0]
    asked = there.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
    assert there(asked, add_special_tokens=False)["input_ids"] == render_prompt([question], here)


def test_a_base_model_has_no_chat_template(tokenizer: Path, tmp_path: Path) -> None:
    run = saved(tmp_path / "c", {}, tokenizer, stage="pretrain")
    export_folder(run, tmp_path / "c", tmp_path / "out")
    assert not (tmp_path / "out/chat_template.jinja").exists()


# The reader in transformers takes every head of Qwen 3 for one of 128 channels.
READABLE: dict[str, dict[str, Any]] = {
    "qwen3": {"model.head_dim": 128, "model.width": 128},
    "llama": {},
}


@pytest.mark.parametrize("name", ["llama", "llama, grouped heads", "qwen3", "qwen3, gains"])
def test_a_gguf_file_gives_the_same_logits(name: str, tokenizer: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs gguf (the dev extra)")
    model_type, changes = STOCK[name]
    run = saved(tmp_path / "c", changes | READABLE[model_type], tokenizer)
    export_gguf(run, tmp_path / "c", tmp_path / "model.gguf")
    there = logits_there(tmp_path, TOKENS, gguf_file="model.gguf")
    torch.testing.assert_close(there, logits_here(tmp_path / "c", TOKENS), rtol=1e-4, atol=1e-4)


def test_a_switch_that_gguf_cannot_hold_is_named(tokenizer: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs gguf (the dev extra)")
    run = saved(tmp_path / "c", {}, tokenizer)
    with pytest.raises(UserError) as refused:
        export_gguf(run, tmp_path / "c", tmp_path / "model.gguf")
    said = "\n".join(refused.value.problems)
    assert "model.value_embeddings is all" in said
    assert not (tmp_path / "model.gguf").exists()


def test_every_key_of_the_architecture_is_accounted_for() -> None:
    """A new key has to enter `stock.py` and `modeling_paribus.py`: else an export would leave it out in silence."""
    assert {field.name for field in dataclasses.fields(Architecture)} == known_keys()


def test_a_stock_architecture_is_chosen_only_where_all_of_it_fits() -> None:
    assert stock_for(architecture(LLAMA | {"model.head_gain": True})) is None
    assert stock_for(architecture(LLAMA | {"model.window_pattern": "SL"})) is None


def test_the_card_says_how_the_model_was_made(tokenizer: Path, tmp_path: Path) -> None:
    export_folder(saved(tmp_path / "c", {}, tokenizer), tmp_path / "c", tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "0" * 20 in card
    assert json.loads((tmp_path / "out/provenance.json").read_text())["stage"] == "rl"


def test_what_lies_at_the_place_is_replaced_only_when_told_and_only_if_it_is_an_export(
    tokenizer: Path, tmp_path: Path
) -> None:
    saved(tmp_path / "c", {}, tokenizer)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    command = ["export", str(tmp_path / "c"), "--out"]
    refused = CliRunner().invoke(commands, [*command, str(mine), "--force"])
    assert refused.exit_code == 2
    assert (mine / "thesis.tex").is_file()
    place = str(tmp_path / "out")
    statuses = [
        CliRunner().invoke(commands, [*command, place, *more]).exit_code
        for more in ([], [], ["--force"])
    ]
    assert statuses == [0, 2, 0]
