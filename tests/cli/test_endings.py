"""What a stage says when it is done: its result, and what comes next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paribus.cli.endings import RESULTS, print_ending
from paribus.graph import ENTRY_POINTS, stage_definitions


def test_a_stage_ends_with_its_result_and_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("metrics").mkdir()
    Path("metrics/pretrain.json").write_text('{"val_bpb": 0.52345}')
    print_ending("pretrain", (), 72.0)
    said = capsys.readouterr().err
    assert said == "pretrain: done in 1:12, 0.523 bits per byte of held-out text; next: midtrain\n"


def test_the_last_stage_ends_with_the_result_of_all_and_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("metrics").mkdir()
    solved = {"rl": {"accuracy": 0.51, "ci_low": 0.47, "ci_high": 0.55, "n": 600}}
    Path("metrics/gsm8k.json").write_text(json.dumps(solved))
    print_ending("report", (), 3.0)
    said = capsys.readouterr().err
    assert "51.0\u202f% of 600 word problems (47.0\u202f% to 55.0\u202f%)" in said
    for command in ("report/report.html", "paribus ui", "paribus chat --web", "paribus ablate new"):
        assert command in said


def test_a_damaged_file_takes_the_result_and_not_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("metrics").mkdir()
    Path("metrics/rl.json").write_text("[]")
    print_ending("rl", (), 1.0)
    assert "rl: done in 0:01; next: gsm8k" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ENTRY_POINTS)
@pytest.mark.usefixtures("in_checkout")
def test_every_stage_names_one_that_there_is(stage: str) -> None:
    path, _, following = RESULTS[stage]
    known = {name.partition("@")[0] for name in stage_definitions()}
    assert following in {*known, ""}
    assert path is None or path.parts[0] in ("metrics", "evals")
