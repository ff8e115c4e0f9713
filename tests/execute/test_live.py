"""Runs on other machines, as this one's `status` sees them."""

from __future__ import annotations

from pathlib import Path

from paribus.execute.leftovers import under_way
from paribus.execute.live import Elsewhere, Live, live
from paribus.execute.run import RunSpec, folder_of_run
from paribus.run_id import RunId

RUN = RunId("study", "arm", 7)


def test_a_run_elsewhere_is_under_way_until_its_engine_ends_it(tmp_path: Path) -> None:
    folder = folder_of_run(tmp_path, RUN)
    folder.mkdir(parents=True)
    RunSpec(RUN, "0" * 40, {}, ["pretrain"], "key").write(folder / "run.json")
    (folder / "stage.txt").write_text("pretrain")
    assert under_way(tmp_path, "study") == {}
    elsewhere = Elsewhere(folder)
    said = Live("pretrain", 30, 100, 7.5, "desk2")
    elsewhere.note(said)
    assert under_way(tmp_path, "study") == {RUN: "pretrain"}
    assert live(RUN, tmp_path) == said
    elsewhere.end()
    assert under_way(tmp_path, "study") == {}
    assert live(RUN, tmp_path) is None


def test_what_a_killed_engine_left_does_not_count(tmp_path: Path) -> None:
    """The note is there; nobody holds its lock."""
    folder = folder_of_run(tmp_path, RUN)
    elsewhere = Elsewhere(folder)
    elsewhere.note(Live("pretrain", 30, 100, 7.5, "desk2"))
    note = (folder / "elsewhere.json").read_text()
    elsewhere.end()
    (folder / "elsewhere.json").write_text(note)
    assert live(RUN, tmp_path) is None
