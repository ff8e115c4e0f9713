"""A checkpoint is used only if its files are those of its record, and only if they describe one model that can be."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.talker import codec, random_model

from paribus import config
from paribus.data.tokenizer import train_tokenizer
from paribus.errors import UserError
from paribus.model import gpt, saved
from paribus.model.gpt import load_checkpoint, save_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    codec().save(tmp_path / "tokenizer.json")
    folder = tmp_path / "base"
    save_checkpoint(folder, random_model(), tmp_path / "tokenizer.json", {"stage": "pretrain"})
    return folder


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit a JSON file of a checkpoint, and its checksum in the record with it."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    reseal(path.parent)


def reseal(folder: Path) -> None:
    record = json.loads((folder / "provenance.json").read_text())
    record["sha256"] = saved.digests_of(folder)
    (folder / "provenance.json").write_text(json.dumps(record))


class Deadly(dict[str, Any]):
    """A record at whose use the process is killed: the files before it are written."""

    def __or__(self, other: object) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_kill_while_a_checkpoint_is_saved_leaves_the_one_before_or_none(
    checkpoint: Path, is_first: bool
) -> None:
    folder = checkpoint.with_name("mid") if is_first else checkpoint
    child = os.fork()
    if child == 0:
        other = random_model(seed=9)
        save_checkpoint(folder, other, checkpoint / "tokenizer.json", Deadly())
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    if is_first:
        assert not folder.exists()
    else:
        saved.check_record(folder)
    save_checkpoint(folder, random_model(), checkpoint.with_name("tokenizer.json"), {})
    saved.check_record(folder)
    assert {path.name for path in checkpoint.parent.iterdir()} <= {"base", "mid", "tokenizer.json"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("depth", 0),
        ("depth", -2),
        ("depth", 1_000_000_000),
        ("depth", 1e9),
        ("depth", "2"),
        ("depth", None),
        ("depth", True),
        ("width", 0),
        ("width", 10**9),
        ("width", 72),
        ("head_dim", 7),
        ("n_heads", 10**9),
        ("n_kv_heads", 3),
        ("window", 10**6),
        ("seq_len", -1),
        ("seq_len", 2**40),
        ("mlp_ratio", 1e300),
        ("mlp", "relu3"),
        ("window_pattern", "LX"),
        ("rope_base", float("nan")),
    ],
)
def test_a_shape_that_params_yaml_would_refuse_is_refused_before_a_model_is_built(
    checkpoint: Path, key: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(checkpoint / "config.json", lambda shape: shape["model"].update({key: value}))
    monkeypatch.setattr(gpt, "GPT", lambda *_: pytest.fail("a model was built"))
    with pytest.raises(UserError) as refused:
        load_checkpoint(checkpoint)
    said = str(refused.value)
    assert str(checkpoint / "config.json") in said
    assert "dvc checkout" in said
    assert key in said


@pytest.mark.parametrize("value", [0, -300, 299, 10**9, 300.5, "300", None])
def test_a_vocabulary_out_of_bounds_is_refused(checkpoint: Path, value: object) -> None:
    rewrite(checkpoint / "config.json", lambda shape: shape.update(vocab_size=value))
    with pytest.raises(UserError, match=r"config\.json: .*vocab_size"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda shape: shape.pop("vocab_size"), "vocab_size: missing"),
        (lambda shape: shape.pop("model"), "model: missing"),
        (lambda shape: shape["model"].pop("depth"), "model.depth: missing"),
        (lambda shape: shape["model"].update(dept=2), "model.dept: unknown key"),
        (lambda shape: shape.update(models={}), "models: unknown key"),
        (lambda shape: shape.update(model=[]), "model: expected a section"),
    ],
)
def test_keys_of_a_shape_are_those_of_a_model(
    checkpoint: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    rewrite(checkpoint / "config.json", change)
    with pytest.raises(UserError) as refused:
        load_checkpoint(checkpoint)
    assert words in str(refused.value)


def test_a_checkpoint_from_before_a_key_existed_means_what_it_meant(checkpoint: Path) -> None:
    whole = load_checkpoint(checkpoint).config
    later = {"recurrence", "norm_position", "mlp_bias", "attention_dropout", "embedding_std"}

    def forget(shape: dict[str, Any]) -> None:
        for key in later:
            del shape["model"][key]

    rewrite(checkpoint / "config.json", forget)
    assert load_checkpoint(checkpoint).config == whole


@pytest.mark.parametrize("change", [{"depth": 200}, {"seq_len": 48, "position": "learned"}])
def test_a_model_of_another_size_than_the_weights_is_not_built(
    checkpoint: Path, change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(checkpoint / "config.json", lambda shape: shape["model"].update(change))
    monkeypatch.setattr(gpt, "GPT", lambda *_: pytest.fail("a model was built"))
    with pytest.raises(UserError, match=r"model\.safetensors: .* holds [\d,]+ numbers, and"):
        load_checkpoint(checkpoint)


def test_a_tensor_of_another_shape_is_named_with_both(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    tensors["embedding.weight"] = tensors["embedding.weight"].T.contiguous()
    save_file(tensors, path)
    reseal(checkpoint)
    with pytest.raises(
        UserError, match="embedding.weight is 64x300, and config.json makes it 300x64"
    ):
        load_checkpoint(checkpoint)


def test_a_tokenizer_of_another_vocabulary_is_refused(checkpoint: Path) -> None:
    cfg = config.Tokenizer(
        vocab_size=301, max_digits=1, train_megabytes=1, kind="bpe", pre_split="gpt4"
    )
    texts = [hashlib.sha256(bytes([number])).hexdigest() for number in range(256)]
    train_tokenizer(texts, cfg).save(checkpoint / "tokenizer.json")
    with pytest.raises(UserError, match=r"tokenizer\.json: its sha256"):
        load_checkpoint(checkpoint)
    reseal(checkpoint)
    with pytest.raises(UserError, match=r"vocab_size is 300, and .*tokenizer\.json has 301 tokens"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["provenance.json", *saved.CHECKED])
def test_a_checkpoint_that_lacks_a_file_is_refused_by_its_name(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(UserError, match=name):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("digests", [None, {}, [], {"config.json": "0"}])
def test_a_record_without_checksums_vouches_for_nothing(checkpoint: Path, digests: object) -> None:
    record = json.loads((checkpoint / "provenance.json").read_text())
    (checkpoint / "provenance.json").write_text(json.dumps(record | {"sha256": digests}))
    for recorded in (True, False):
        with pytest.raises(UserError, match=r"provenance\.json: key sha256"):
            load_checkpoint(checkpoint, recorded=recorded)


def test_a_users_own_checkpoint_is_read_only_if_its_files_agree(checkpoint: Path) -> None:
    (checkpoint / "provenance.json").unlink()
    with pytest.raises(UserError, match=r"provenance\.json: missing"):
        load_checkpoint(checkpoint)
    loaded = load_checkpoint(checkpoint, recorded=False)
    assert torch.equal(loaded.embedding.weight, random_model().embedding.weight)
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["embedding.weight"]
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        load_checkpoint(checkpoint, recorded=False)
