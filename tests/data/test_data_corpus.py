"""The corpus stage: every format read alike, everything wrong listed at once, nothing half-written."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from support.corpora import with_local

from paribus import config
from paribus.data import load_jsonl
from paribus.data.corpus import build_corpus
from paribus.data.shards import documents
from paribus.errors import UserError

TEXTS = [f"Text number {n}, with a line end\nand a “quote”." for n in range(6)]


def pack_all_formats(folder: Path) -> None:
    """TEXTS, one a file, in every format and packing."""
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text(TEXTS[0], encoding="utf-8")
    (folder / "b.txt.zst").write_bytes(zstandard.compress(TEXTS[1].encode()))
    (folder / "c.jsonl").write_text(json.dumps({"text": TEXTS[2], "id": 1}) + "\n\n")
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in (TEXTS[3], " \n")]
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(lines[0]) + gzip.compress(lines[1]))
    table = pyarrow.table({"text": [TEXTS[4], None]})
    pyarrow.parquet.write_table(table, folder / "e.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": [TEXTS[5]]}), folder / "plain")
    (folder / "f.parquet.gz").write_bytes(gzip.compress((folder / "plain").read_bytes()))
    (folder / "plain").unlink()
    (folder / "notes.md").write_text("not text to train on")


def test_every_format_gives_its_documents_in_order_of_name(
    tiny_config: config.Config, tmp_path: Path
) -> None:
    pack_all_formats(tmp_path / "own")
    manifest = build_corpus(with_local(tiny_config, "own"), tmp_path / "corpus", tmp_path)
    assert list(documents(tmp_path / "corpus/documents")) == TEXTS
    assert manifest["documents"]["documents"] == 6
    assert manifest["documents"]["empty"] == 2
    entry = manifest["documents"]["files"][0]
    assert entry == {
        "path": "own/a.txt",
        "bytes": len(TEXTS[0].encode()),
        "documents": 1,
        "sha256": hashlib.sha256(TEXTS[0].encode()).hexdigest(),
    }
    assert manifest == json.loads((tmp_path / "corpus/manifest.json").read_text(encoding="utf-8"))


def test_globs_and_files_are_read_once_in_the_order_given(
    tiny_config: config.Config, tmp_path: Path
) -> None:
    pack_all_formats(tmp_path / "own")
    cfg = with_local(tiny_config, "own/e.parquet", "own/*.txt*", str(tmp_path / "own"))
    build_corpus(cfg, tmp_path / "corpus", tmp_path)
    assert list(documents(tmp_path / "corpus/documents")) == [TEXTS[n] for n in (4, 0, 1, 2, 3, 5)]


def test_everything_wrong_is_listed_and_the_old_corpus_stays(
    tiny_config: config.Config, tmp_path: Path
) -> None:
    pack_all_formats(tmp_path / "own")
    good = (tmp_path / "own/e.parquet").read_bytes()
    (tmp_path / "own/e.parquet").write_bytes(good[:-9])
    (tmp_path / "own/c.jsonl").write_text('{"text": "fine"}\n{"text": \n[1]\n')
    (tmp_path / "own/d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 99)[:-9])
    whole = zstandard.compress(b"word " * 999)
    (tmp_path / "own/b.txt.zst").write_bytes(whole + whole[:-3])
    (tmp_path / "own/g.jsonl").write_text('{"body": "x"}\n')
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/old").touch()
    cfg = with_local(
        tiny_config, "own", "absent/*.jsonl", "own/notes.md", problems="nowhere", core="nowhere"
    )
    with pytest.raises(UserError) as error:
        build_corpus(cfg, tmp_path / "corpus", tmp_path)
    expected = [
        "absent/*.jsonl names no file",
        "notes.md is not a file that can be read",
        "b.txt.zst: cannot be read: truncated",
        "c.jsonl:2: not JSON",
        "c.jsonl:3: expected an object, not list",
        "d.jsonl.gz: cannot be read",
        "e.parquet: cannot be read",
        "g.jsonl: row 1 has no text in column 'text' (corpus.text_column); it has: body",
        "nowhere/train.jsonl: missing",
        "nowhere/test.jsonl: missing",
        "core.yaml: missing",
        "eval_meta_data.csv: missing",
    ]
    assert len(error.value.problems) == len(expected)
    for problem, part in zip(error.value.problems, expected, strict=True):
        assert part in problem
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "own"]
    assert [path.name for path in (tmp_path / "corpus").iterdir()] == ["old"]


def test_no_text_at_all_is_said(tiny_config: config.Config, tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text("  \n")
    with pytest.raises(UserError, match="corpus.paths: blank.txt hold no text in all"):
        build_corpus(with_local(tiny_config, "blank.txt"), tmp_path / "corpus", tmp_path)


def test_the_world_is_whole_and_the_same_twice(tiny_config: config.Config, tmp_path: Path) -> None:
    for name in ("one", "two"):
        manifest = build_corpus(tiny_config.corpus, tmp_path / name, tmp_path)
    paths = [path for path in (tmp_path / "one").rglob("*") if path.is_file()]
    files = {path.relative_to(tmp_path / "one"): path.read_bytes() for path in paths}
    assert files == {path: (tmp_path / "two" / path).read_bytes() for path in files}
    assert {path.parts[0] for path in files} == {
        "documents",
        "problems",
        "conversations",
        "core",
        "manifest.json",
    }
    world = tiny_config.corpus.world
    assert manifest["problems"]["counts"] == {
        "train": world.problems,
        "test": world.test_problems,
        "validation": tiny_config.corpus.validation_problems,
    }


def test_problems_are_held_out_by_hash_and_none_of_test_is_trained_on(
    tiny_config: config.Config, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    rows = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(40)]
    cfg = with_local(tiny_config, "own/train.jsonl", problems="own", text_column="question")
    chosen = []
    for train in (rows[:30], rows[29::-1]):
        for split, part in (("train", train), ("test", rows[28:])):
            (tmp_path / f"own/{split}.jsonl").write_text(
                "".join(json.dumps(row) + "\n" for row in part)
            )
        manifest = build_corpus(cfg, tmp_path / "corpus", tmp_path)
        splits = {
            split: {
                row["question"] for row in load_jsonl(tmp_path / f"corpus/problems/{split}.jsonl")
            }
            for split in ("train", "validation", "test")
        }
        chosen.append(splits["validation"])
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == cfg.validation_problems
    assert splits["train"] | splits["validation"] == {row["question"] for row in rows[:28]}
    assert not splits["train"] & splits["validation"]
    assert len(splits["test"]) == 12
    assert manifest["problems"]["in_test_too"] == 2


def test_a_real_bundle_is_copied_and_what_it_lacks_is_listed(
    tiny_config: config.Config, shared_data: Path, tmp_path: Path
) -> None:
    cfg = with_local(
        tiny_config,
        str(shared_data / "corpus/inaugural.jsonl"),
        core=str(shared_data / "eval_bundle"),
        problems=str(shared_data / "gsm8k"),
    )
    manifest = build_corpus(cfg, tmp_path / "corpus", tmp_path)
    assert set(manifest["core"]["missing"]) == {"hellaswag_zeroshot", "hellaswag", "squad", "coqa"}
    assert len(list((tmp_path / "corpus/core/eval_data").rglob("*.jsonl"))) == 18
    assert manifest["problems"]["counts"] == {
        "test": 1319,
        "train": 7473 - cfg.validation_problems,
        "validation": cfg.validation_problems,
    }


def test_a_bundle_cannot_reach_outside_its_folder(
    tiny_config: config.Config, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (tmp_path / "secret").write_text("x")
    (bundle / "eval_meta_data.csv").touch()
    (bundle / "core.yaml").write_text("icl_tasks:\n- {label: a, dataset_uri: ../../secret}\n")
    with pytest.raises(UserError, match="leads out of the bundle"):
        build_corpus(
            dataclasses.replace(tiny_config.corpus, core="bundle"), tmp_path / "corpus", tmp_path
        )
