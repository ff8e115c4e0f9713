"""Small JSON files: absent, damaged and fine are told apart, and damage stops nobody."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paribus import files
from paribus.errors import UserError, explained
from paribus.files import (
    NUMBER,
    Optional,
    Values,
    read_json,
    read_rows,
    replacing,
    whole_folder,
    write_atomic,
)
from paribus.journal import Journal, as_floats, keep_rows, write_json
from paribus.summary import write_csv

SHAPE: files.Shape = {"name": str, "sizes": Values(NUMBER), "note": Optional(str)}
DAMAGED = {
    "empty": b"",
    "zeros of a power cut": b"\0" * 512,
    "cut": b'{"name": "a", "sizes": {"x": 1',
    "not UTF-8": b'{"name": "\xff"}',
    "a list": b"[]",
    "text": b'"name"',
    "null": b"null",
    "a missing key": b'{"name": "a"}',
    "a list where a mapping belongs": b'{"name": "a", "sizes": []}',
    "text where a number belongs": b'{"name": "a", "sizes": {"x": "1"}}',
    "a wrong optional": b'{"name": "a", "sizes": {}, "note": 1}',
    "no number": b'{"name": "a", "sizes": {"x": NaN}}',
    "too large a number": b'{"name": "a", "sizes": {"x": 1e999}}',
    "true where a number belongs": b'{"name": "a", "sizes": {"x": true}}',
    "nested too deep": b'{"name": "a", "sizes": ' + b"[" * 100_000,
    "a number of 5,000 digits": b'{"name": "a", "sizes": {"x": ' + b"9" * 5000 + b"}}",
    "two values": b'{"name": "a", "sizes": {}}{}',
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=list(DAMAGED))
def test_a_damaged_file_is_named_once_put_aside_and_read_as_absent(
    text: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.json"
    path.write_bytes(text)
    assert read_json(path, SHAPE) is None
    assert read_json(path, SHAPE) is None
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert str(path) in said
    assert "damaged" in said
    assert (tmp_path / "small.json.damaged").read_bytes() == text
    assert not path.exists()


def test_absent_and_fine_files_say_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.json"
    assert read_json(path, SHAPE) is None
    assert read_json(tmp_path / "no/such.json") is None
    value = {"name": "a", "sizes": {"x": 1.5}, "more": None}
    write_json(path, value)
    assert read_json(path, SHAPE) == value
    assert capsys.readouterr().err == ""


def test_an_earlier_damaged_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    for text in ("{", "["):
        path.write_text(text)
        read_json(path)
    assert (tmp_path / "small.json.damaged").read_text() == "{"
    assert (tmp_path / "small.json.damaged.2").read_text() == "["


def test_an_output_of_dvc_stays_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "provenance.json"
    path.write_text("{")
    assert read_json(path, move=False) is None
    assert read_json(path, move=False) is None
    assert path.read_text() == "{"
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_folder_in_a_files_place_is_damage(tmp_path: Path) -> None:
    (tmp_path / "small.json").mkdir()
    assert read_json(tmp_path / "small.json") is None
    assert (tmp_path / "small.json.damaged").is_dir()


def test_a_file_that_this_user_may_not_read_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    path.write_text("{}")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root reads everything")
    with pytest.raises(UserError, match="right to read it"):
        read_json(path)
    assert path.exists()


def test_a_torn_last_line_is_no_damage_and_a_damaged_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [row["step"] for row in read_rows(path)] == [1, 2]
    assert capsys.readouterr().err == ""
    path.write_text('{"step": 1}\n{"st\n[]\n{"step": "x"}\n{"step": 4}\n')
    assert [row["step"] for row in read_rows(path, {"step": int})] == [1, 4]
    said = capsys.readouterr().err
    assert "line 2" in said
    assert "2 more" in said
    assert len(said.splitlines()) == 1


def test_rewriting_a_journal_keeps_a_copy_of_damaged_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    text = '{"step": 1}\nrubbish\n{"step": 3}\n{"torn'
    path.write_text(text)
    keep_rows(path, lambda row: row["step"] <= 3, {"step": int})
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'
    assert (tmp_path / "metrics.jsonl.damaged").read_text() == text
    assert "line 2" in capsys.readouterr().err


def test_what_is_no_number_is_not_taken_for_one() -> None:
    row = {"step": 1, "loss": "nan", "odd": "abc", "list": [1], "low": "-inf", "none": None}
    assert set(as_floats(row)) == {"step", "loss", "low"}


# ---------------------------------------------------------------- a disk that refuses


@pytest.fixture
def full() -> Path:
    """A file on a full disk."""
    path = Path("/dev/full")
    if not path.exists():
        pytest.skip("no /dev/full here")
    return path


def test_a_full_disk_loses_no_line_of_a_journal_in_silence(full: Path) -> None:
    warnings: list[str] = []
    journal = Journal(full, warnings.append)
    journal.append({"step": 1})
    assert len(warnings) == 1
    with pytest.raises(UserError, match="last 1 lines") as error:
        journal.close()
    assert error.value.exit_status == 74


def test_a_refused_write_names_its_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "run.json"
    write_json(path, {"old": True})
    monkeypatch.setattr(os, "fsync", refuse)  # as the kernel does, without a file's name
    with pytest.raises((OSError, UserError)) as error:
        write_json(path, {"new": True})
    known = isinstance(error.value, UserError)
    refusal = error.value if known else explained(error.value)
    assert isinstance(refusal, UserError)
    assert refusal.exit_status == 74
    assert str(path) in str(refusal)
    assert json.loads(path.read_text()) == {"old": True}
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- files that are replaced whole


def test_a_replacement_that_fails_half_way_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as aside:
        aside.write_text("half of the n")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_who_may_read_a_file_is_decided_by_the_umask_whatever_writes_it(
    tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "weights") as aside:
            save_file({"x": torch.zeros(2)}, aside)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "weights").stat().st_mode) == mode


def test_a_folder_is_replaced_whole_and_a_link_in_its_place_stays(tmp_path: Path) -> None:
    out, disk = tmp_path / "corpus", tmp_path / "disk/corpus"
    disk.mkdir(parents=True)
    out.symlink_to(disk)
    (disk / "old").touch()
    with pytest.raises(ZeroDivisionError), whole_folder(out) as partial:
        (partial / "half").touch()
        raise ZeroDivisionError
    assert [path.name for path in disk.parent.rglob("*")] == ["corpus", "old"]
    with whole_folder(out) as partial:
        (partial / "new").touch()
    assert [path.name for path in disk.parent.rglob("*")] == ["corpus", "new"]
    assert out.is_symlink()


def test_a_new_name_is_brought_to_the_disk_with_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    real = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_atomic(tmp_path / "small.json", "{}")
    assert len(synced) == 2
    assert synced[0].parent == synced[1] == tmp_path


def test_a_curve_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    write_csv(path, ("step", "loss"), [(1, 5.5), (2, 5.25)])

    def rows() -> Iterator[tuple[int, float]]:
        yield 1, 5.5
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_csv(path, ("step", "loss"), rows())
    assert path.read_text() == "step,loss\n1,5.5\n2,5.25\n"


def test_files_are_replaced_in_one_place_of_the_code() -> None:
    source = Path(files.__file__).parent
    replacing_files = [
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if "os.replace(" in path.read_text() or '{os.getpid()}")' in path.read_text()
    ]
    assert replacing_files == ["files.py"]
