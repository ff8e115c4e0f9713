"""Digests of large data: read once while unchanged, never trusted when changed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from paribus import config
from paribus.errors import UserError
from paribus.graph import DigestMemo, digests, tree_digest

SIZE = DigestMemo.LARGE + 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two large files of an hour ago."""
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        path = tmp_path / "data" / name
        path.write_bytes(name.encode() * SIZE)
        os.utime(path, (time.time() - 3600,) * 2)
    return tmp_path / "data"


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files that are read from now on."""
    read: list[str] = []
    real = digests.file_digest

    def watched(path: Path) -> str:
        read.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(digests, "file_digest", watched)
    return read


def test_an_unchanged_file_is_read_once_and_the_digest_is_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tree_digest([folder])
    memo = folder.parent / "memo.json"
    read = hashed(monkeypatch)
    assert tree_digest([folder], DigestMemo(memo)) == plain
    assert sorted(read) == ["a", "b"]
    os.link(folder / "a", folder.parent / "link")  # as DVC's cache may do
    assert tree_digest([folder], DigestMemo(memo)) == plain
    assert len(read) == 2


@pytest.mark.parametrize("same_size", [True, False])
def test_a_changed_file_is_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, same_size: bool
) -> None:
    memo = folder.parent / "memo.json"
    before = tree_digest([folder], DigestMemo(memo))
    data = bytearray((folder / "a").read_bytes())
    data[7] ^= 1
    (folder / "a").write_bytes(data if same_size else data + b"x")
    read = hashed(monkeypatch)
    changed = tree_digest([folder], DigestMemo(memo))
    assert changed != before
    assert read == ["a"]
    assert changed == tree_digest([folder])


def test_a_file_written_just_now_is_not_trusted_yet(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a").write_bytes(b"x" * SIZE)
    memo = folder.parent / "memo.json"
    tree_digest([folder], DigestMemo(memo))
    assert len(json.loads(memo.read_text())) == 1
    read = hashed(monkeypatch)
    tree_digest([folder], DigestMemo(memo))
    assert read == ["a"]


def test_a_broken_memo_only_costs_time(folder: Path) -> None:
    memo = folder.parent / "memo.json"
    expected = tree_digest([folder], DigestMemo(memo))
    memo.write_text(memo.read_text()[:-9])
    assert tree_digest([folder], DigestMemo(memo)) == expected


# ---------------------------------------------------------------- dvc.lock


def test_outputs_of_a_lock_are_named_as_dvc_wrote_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that other readers of YAML take for numbers stay text."""
    monkeypatch.chdir(tmp_path)
    names = {
        "a": "0" * 32,
        "b": "1e" + "0" * 30,
        "c": "12345678901234567890123456789012",
        "d": "0ab.dir",
    }
    outs = [{"path": path, "hash": "md5", "md5": md5, "size": 1} for path, md5 in names.items()]
    lock = {"schema": "2.0", "stages": {"one": {"cmd": "true", "outs": outs}}}
    Path("dvc.lock").write_text(config.dump_yaml(lock))
    assert digests.outs_here() == names


def test_a_torn_lock_is_a_problem_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dvc.lock").write_text("schema: '2.0'\nstages:\n  one:\n    outs:\n    - path: 'a")
    with pytest.raises(UserError, match=r"dvc\.lock"):
        digests.outs_here()
