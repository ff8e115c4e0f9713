"""What an evaluation keeps: whole lines with checksums; damage costs its own line, a kill the last one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from paribus.evaluate.kept import Kept

ROWS = [{"index": index, "loss": index / 3, "text": "é" * index} for index in range(6)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that keeps ROWS."""
    with Kept(tmp_path / "folder/kept.jsonl", "key") as kept:
        for row in ROWS:
            kept.add(row)
    return tmp_path / "folder/kept.jsonl"


def rows(path: Path, key: str = "key") -> list[object]:
    with Kept(path, key) as kept:
        return list(kept.rows)


def test_rows_come_back_and_the_file_stays_as_it_is(path: Path) -> None:
    before = path.read_bytes()
    assert rows(path) == ROWS
    assert path.read_bytes() == before, "reading changes nothing: a kill in it can lose nothing"


@pytest.mark.parametrize("length", range(1, 40, 3))
def test_a_line_that_a_kill_cut_off_is_dropped_and_the_next_is_whole(
    path: Path, length: int
) -> None:
    path.write_bytes(path.read_bytes()[:-length])
    with Kept(path, "key") as kept:
        assert kept.rows == ROWS[:-1]
        kept.add(ROWS[-1])
    assert rows(path) == ROWS


def test_a_flip_anywhere_costs_its_line_and_is_said(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = path.read_bytes()
    for place in range(0, len(good), 7):
        flipped = bytearray(good)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        found = rows(path)
        assert all(row in ROWS for row in found)
        assert len(found) >= len(ROWS) - 2
        said = capsys.readouterr().err
        cut_off = place == len(good) - 1  # no line without its end, as a kill leaves it
        if len(found) < len(ROWS) and not cut_off:
            assert f"{path}: damaged in line" in said


@pytest.mark.parametrize(
    "garbage", [b"", b"\0" * 99, b"[" * 5000 + b"\n", b"\xff\xfe\n{}\n5\nnull\n"]
)
def test_garbage_is_no_result(path: Path, garbage: bytes) -> None:
    path.write_bytes(garbage)
    with Kept(path, "key") as kept:
        assert kept.rows == []
        kept.add(ROWS[0])
    assert rows(path) == ROWS[:1]


def test_rows_of_something_else_are_not_taken(path: Path) -> None:
    assert rows(path, "another") == []


def test_a_full_disk_is_told_in_words_and_what_is_kept_stays(path: Path) -> None:
    script = (
        "import resource, signal, sys; from pathlib import Path; from paribus.evaluate.kept import Kept\n"
        "from paribus.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "path = Path(sys.argv[1]); size = path.stat().st_size + 30\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "try:\n    with Kept(path, 'key') as kept: kept.add({'index': 'x' * 99})\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert f"{path}: cannot be written: File too large" in done.stdout
    assert "make room" in done.stdout
    assert rows(path) == ROWS
