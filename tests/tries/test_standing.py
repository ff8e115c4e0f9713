"""The running best adds up what was kept, and the page shows it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from support.tried import BEGUN, ended

from paribus.cli.ledger import ledger_data, table
from paribus.pages.ledger import write_page
from paribus.study.committed import CommittedFiles
from paribus.study.finished import FinishedRun
from paribus.tries.ledger import Begun, Entry, Ledger
from paribus.tries.runs import training_seconds
from paribus.tries.stack import fresh_from, kept_chain
from paribus.tries.standing import running_best


def begun(key: str, on: str) -> Begun:
    return dataclasses.replace(
        BEGUN, key=key, message=f"<b>{key}</b>", change_side=key, baseline_side=on
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Kept, discarded, kept on top of the first, crashed, under way."""
    ledger = Ledger(tmp_path)
    for key, on, verdict, mean in (
        ("a", "start", "keep", -0.2),
        ("b", "a", "discard", 0.1),
        ("c", "a", "keep", -0.3),
    ):
        entry = ledger.begin(begun(key, on))
        spread = dataclasses.replace(ended(verdict), mean=mean, low=mean - 0.03, high=mean + 0.03)
        ledger.end(entry.number, spread)
    crashed = ledger.begin(begun("d", "c"))
    ledger.end(
        crashed.number,
        dataclasses.replace(ended(), seeds=[], mean=None, low=None, high=None, p=None),
    )
    ledger.begin(begun("e", "c"))
    return ledger


def test_a_change_stands_where_its_baseline_stood(ledger: Ledger) -> None:
    points = running_best(ledger.entries())
    assert [point.at for point in points] == pytest.approx([-0.2, -0.1, -0.5, None, None])
    assert [point.best for point in points] == pytest.approx([-0.2, -0.2, -0.5, -0.5, -0.5])


def test_errors_of_what_was_kept_add_up(ledger: Ledger) -> None:
    halves = [point.best_high - point.best for point in running_best(ledger.entries())]
    assert halves[0] == pytest.approx(0.03)
    assert halves[-1] == pytest.approx(0.03 * 2**0.5)


def test_the_stack_is_what_the_newest_kept_change_builds_on(ledger: Ledger) -> None:
    chain = kept_chain(ledger.entries(), "val_bpb")
    assert [entry.begun.key for entry in chain] == ["a", "c"]
    assert fresh_from(ledger.entries()) == 24, "no try has used the seeds from there on"


def test_the_page_names_every_try_and_obeys_no_markup_of_a_message(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    entries: list[Entry] = ledger.entries()
    page = write_page(entries, [], ledger_data(ledger, entries, []), {1: "+ one\n- <two>"})
    text = page.read_text()
    assert text.count("&lt;b&gt;") >= len(entries)
    assert "<b>a</b>" not in text
    assert "- &lt;two&gt;" in text
    assert "<svg" in text
    data = json.loads(page.with_suffix(".json").read_text())
    assert [one["verdict"] for one in data["tries"]] == ["keep", "discard", "keep", "discard", None]
    assert page.with_suffix(".png").exists()


def test_the_table_keeps_to_80_columns(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    entries = ledger.entries()
    lines = table(entries, ledger_data(ledger, entries, [])).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) == 1 + len(entries) + 2


def test_stages_that_a_run_did_not_run_cost_it_nothing() -> None:
    """Its commit has the metrics of the other stages, as the baseline's commit had them."""
    metrics = {"pretrain": {"seconds": 3.0, "val_bpb": 1.0}, "rl": {"seconds": 500.0}}
    files = CommittedFiles("HEAD")
    run = FinishedRun("a", "experiment", "pipeline", None, {}, metrics, {}, files)
    assert training_seconds(run, ["tokens", "pretrain"]) == 3.0
    assert training_seconds(run, ["tokens"]) is None
