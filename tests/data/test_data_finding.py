"""Which files of a folder are the corpus: nothing is passed over in silence, nothing strange is taken for text."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from support.corpora import with_local

from paribus import config
from paribus.data.corpus import build_corpus
from paribus.data.shards import documents
from paribus.errors import UserError


def row(text: str) -> bytes:
    return json.dumps({"text": text}).encode() + b"\n"


def test_packed_json_shards_are_read_and_a_licence_is_not(
    tiny_config: config.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for number in range(3):
        (own / f"c4-train.{number:05d}-of-00003.json.gz").write_bytes(
            gzip.compress(row(f"d {number}"))
        )
    (own / "more.json").write_bytes(row("d 3") + row("d 4"))
    (own / "dataset_info.json").write_text(json.dumps({"features": {"text": "string"}}))
    (own / "state.json").write_text(json.dumps({"_data_files": []}, indent=1))
    strays = (
        "LICENSE.txt",
        "README.txt",
        "Apache-LICENSE.txt",
        "requirements.txt",
        "sha256sums.txt",
    )
    for name in (*strays, "notes.md", "shard.csv", "SHARD.JSONL"):
        (own / name).write_text("not the corpus")
    manifest = build_corpus(with_local(tiny_config, "own"), tmp_path / "corpus", tmp_path)
    assert list(documents(tmp_path / "corpus/documents")) == [f"d {number}" for number in range(5)]
    left_out = manifest["documents"]["left_out"]
    assert left_out.keys() == {
        f"own/{name}"
        for name in (
            *strays,
            "notes.md",
            "shard.csv",
            "SHARD.JSONL",
            "dataset_info.json",
            "state.json",
        )
    }
    assert left_out["own/LICENSE.txt"] == "about the data"
    assert "10 files are not read" in capsys.readouterr().err


def test_what_systems_leave_behind_is_no_data(tiny_config: config.Config, tmp_path: Path) -> None:
    own = tmp_path / "own"
    for folder in ("__MACOSX", ".ipynb_checkpoints", "@eaDir", "part"):
        (own / folder).mkdir(parents=True)
    table = pyarrow.table({"text": ["one", "two"]})
    pyarrow.parquet.write_table(table, own / "part/x.parquet")
    for name in ("__MACOSX/._x.parquet", "._x.parquet", ".x.parquet", "@eaDir/x.jsonl", "~$x.txt"):
        (own / name).write_bytes(b"\x00\x05\x16\x07")
    (own / ".ipynb_checkpoints/x-checkpoint.jsonl").write_bytes(row("an old copy"))
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "_SUCCESS"):
        (own / name).write_bytes(b"\x00")
    for paths in (["own"], ["own/**"], ["own/*/x.*"]):
        manifest = build_corpus(with_local(tiny_config, *paths), tmp_path / "corpus", tmp_path)
        assert list(documents(tmp_path / "corpus/documents")) == ["one", "two"]
    assert manifest["documents"]["documents"] == 2


def test_a_folder_of_texts_about_the_data_alone_is_refused_with_their_names(
    tiny_config: config.Config, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/LICENSE.txt").write_text("Use it as you like.")
    with pytest.raises(UserError, match=r"holds no file.*own/LICENSE.txt is about the data"):
        build_corpus(with_local(tiny_config, "own"), tmp_path / "corpus", tmp_path)


def test_a_file_that_is_named_by_itself_is_read_whatever_its_name(
    tiny_config: config.Config, tmp_path: Path
) -> None:
    for name in ("LICENSE.txt", "README.txt"):
        (tmp_path / name).write_text(name)
    cfg = with_local(tiny_config, "LICENSE.txt", "README.txt")
    build_corpus(cfg, tmp_path / "corpus", tmp_path)
    assert list(documents(tmp_path / "corpus/documents")) == ["LICENSE.txt", "README.txt"]


def test_a_link_to_a_folder_is_said(tiny_config: config.Config, tmp_path: Path) -> None:
    for name in ("own", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jsonl").write_bytes(row(f"{name} 1") + row(f"{name} 2"))
    (tmp_path / "own/link").symlink_to(tmp_path / "elsewhere")
    manifest = build_corpus(with_local(tiny_config, "own"), tmp_path / "corpus", tmp_path)
    assert list(documents(tmp_path / "corpus/documents")) == ["own 1", "own 2"]
    assert "own/link" in manifest["documents"]["left_out"]


def test_a_folder_of_conversations_may_hold_texts_beside_them(
    tiny_config: config.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "chat").mkdir()
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "chat/x.json.gz").write_bytes(
        gzip.compress(json.dumps({"messages": turns}).encode())
    )
    for name in ("LICENSE.txt", "notes.txt", "dataset_infos.json"):
        (tmp_path / "chat" / name).write_text('{"default": {}}')
    cfg = dataclasses.replace(tiny_config.corpus, conversations={"own": "chat"})
    manifest = build_corpus(cfg, tmp_path / "corpus", tmp_path)
    assert manifest["conversations"]["counts"]["own"] == 1
    assert "corpus.conversations.own: 3 files are not read" in capsys.readouterr().err


def test_texts_beside_rows_are_said(
    tiny_config: config.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/x.jsonl").write_bytes(row("d 1") + row("d 2"))
    for name in ("EULA.txt", "terms_of_use.txt", "about these files.txt"):
        (tmp_path / "own" / name).write_text("Use it as you like.")
    build_corpus(with_local(tiny_config, "own"), tmp_path / "corpus", tmp_path)
    assert len(list(documents(tmp_path / "corpus/documents"))) == 3
    said = capsys.readouterr().err
    assert "1 .txt beside files of rows are read, each as one document: own/about these" in said


def test_names_that_are_no_text_are_kept_in_the_manifest_escaped(
    tiny_config: config.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own").mkdir()
    try:
        (tmp_path / "own" / os.fsdecode(b"caf\xe9.jsonl")).write_bytes(row("d 1") + row("d 2"))
    except OSError:
        pytest.skip("this file system holds names in UTF-8 alone")
    (tmp_path / "own/\x1b[31m.csv").write_bytes(b"")
    manifest = build_corpus(with_local(tiny_config, "own"), tmp_path / "corpus", tmp_path)
    assert manifest["documents"]["files"][0]["path"] == "own/caf\\udce9.jsonl"
    assert "own/\\x1b[31m.csv" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["~nobody_at_all/own", "x" * 5000, "x/" * 4000 + "x"])
@pytest.mark.parametrize("key", ["paths", "problems", "core", "conversations"])
def test_a_path_that_no_file_can_have_is_refused(
    key: str, name: str, tiny_config: config.Config, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"paths": [name], "conversations": {"own": name}}
    cfg = dataclasses.replace(tiny_config.corpus, **{key: values.get(key, name)})
    if key == "paths":
        cfg = with_local(tiny_config, name)
    with pytest.raises(UserError, match=f"corpus.{key}.*(no such home|too long)"):
        build_corpus(cfg, tmp_path / "corpus", tmp_path)
