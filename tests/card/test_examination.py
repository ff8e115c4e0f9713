"""`paribus doctor --gpu`, at the smallest sizes on a CPU: every check runs, finds what is wrong, and the page says what to do."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from paribus.card import checks, examination
from paribus.card.bench import SIZES, Bench, planned_speed, speed, timed_steps
from paribus.cli.commands import commands
from paribus.config import describe
from paribus.errors import UserError
from paribus.model import attention
from paribus.train.optim import MuonAdamW

BENCH = Bench("cpu", SIZES["cpu"])
SAID: list[str] = []


@pytest.fixture(autouse=True)
def in_the_checkout(project_root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As a user calls it; what a check sets for its process is undone."""
    monkeypatch.chdir(project_root)
    mode, threads = torch.get_deterministic_debug_mode(), torch.get_num_threads()
    yield
    torch.set_deterministic_debug_mode(mode)
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "check", [check for check in checks.CHECKS if check.name != "peer"], ids=lambda one: one.name
)
def test_a_check_passes_where_all_is_right_and_has_figures(check: checks.Check) -> None:
    outcome = check.run(BENCH)
    assert outcome.wrong == ""
    assert outcome.figures


def test_a_slow_machine_takes_the_steps_whose_results_are_compared() -> None:
    impatient = Bench("cpu", dataclasses.replace(SIZES["cpu"], seconds=0.0))
    trainer, _ = impatient.trainer(1, 1)
    assert len(timed_steps(impatient, trainer, warmup=0, steps=2)) == 2


def test_a_wrong_mask_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention.block_mask

    def one_key_more(length: int, window: int | None, *rest: Any) -> Any:
        return right(length, window and window + 1, *rest)

    monkeypatch.setattr(attention, "block_mask", one_key_more)
    assert "window by" in checks.masks(BENCH).wrong


def test_a_run_that_forgets_its_momenta_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = MuonAdamW.load_state
    monkeypatch.setattr(MuonAdamW, "load_state", lambda self, _, updates: real(self, {}, updates))
    assert "different weights" in checks.resume(BENCH).wrong


def record(**changes: Any) -> dict[str, Any]:
    """A record of one check."""
    check = {
        "name": "masks",
        "title": "Block masks",
        "state": "passed",
        "seconds": 1.0,
        "wrong": "",
        "cure": "",
        "figures": {"window": 0.01},
        "last_words": "",
    }
    return {"card": "A card", "checks": [check | changes]}


def test_an_optimizer_that_steps_otherwise_where_it_is_compiled_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[MuonAdamW] = []

    def make(*arguments: Any, **options: Any) -> MuonAdamW:
        optimizer = MuonAdamW(*arguments, **options)
        if made:
            optimizer.groups = [
                dataclasses.replace(group, lr=1.2 * group.lr) for group in optimizer.groups
            ]
        made.append(optimizer)
        return optimizer

    monkeypatch.setattr(checks, "MuonAdamW", make)
    assert "ends 20.0% of a step off" in checks.update(BENCH).wrong


def test_the_page_names_the_key_to_change_and_the_last_words() -> None:
    bad = record(
        state="broken", wrong="exit status 1", cure="model.window_pattern: L", last_words="Boom|"
    )
    page = examination.page(bad)
    assert "**broken**: exit status 1; change model.window_pattern: L" in page
    assert "```\nBoom|\n```" in page


def test_the_page_says_first_how_many_checks_passed_and_shows_units() -> None:
    figures = {"peak_memory_bytes": 3 * 2**30, "stall_seconds": 0.0123, "mfu": 0.4, "rows": 8}
    page = examination.page(record(figures=figures))
    assert "Checks: 1 passed." in page.splitlines()[2]
    assert "peak memory 3.0 GiB, stall 12.3 ms, mfu 40.00%, rows 8" in page
    tried = examination.page(record() | {"device": "cpu"})
    assert "which says nothing about a card" in tried


def test_the_speed_of_a_known_card_stands_beside_the_planned_one() -> None:
    trainer, hardware = BENCH.trainer(1, 2)
    assert speed(trainer.recipe, hardware, [1.0])["planned_tokens_per_second"] is None
    known = dataclasses.replace(hardware, device_name="NVIDIA GeForce RTX 3090")
    planned = planned_speed(trainer.recipe, known)
    assert planned is not None
    assert planned > 0


def said(*lines: str, status: int | None = 0) -> examination.Result:
    """How a check ends that has said some lines."""
    return examination.result_of(checks.CHECKS[0], status, 60.0, list(lines), ["Boom"])


def test_what_was_measured_before_the_time_was_over_is_kept() -> None:
    result = said('{"figures": {"a": 1}}', "nanochat: hello", '{"figures": {"b', status=None)
    assert result.state == "broken"
    assert result.figures == {"a": 1}
    assert "--minutes: larger" in result.cure


def test_a_refusal_keeps_the_figures_said_before_it() -> None:
    result = said('{"figures": {"a": NaN}}', '{"wrong": "out of memory", "figures": {}}')
    assert (result.state, result.wrong, result.figures) == ("failed", "out of memory", {"a": None})


def test_what_a_check_has_started_ends_with_it() -> None:
    shell = "sleep 60 & echo $!; wait"
    process = subprocess.Popen(["sh", "-c", shell], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    child = Path(f"/proc/{int(process.stdout.readline())}/stat")
    examination.end(process)
    while child.exists() and " Z " not in child.read_text():  # a zombie until it is reaped
        time.sleep(0.01)


def test_the_ratio_to_nanochat_is_by_depth() -> None:
    figures: dict[str, dict[str, Any]] = {
        "speed_small": {"depth": 12, "tokens_per_second": 30.0},
        "speed_large": {"depth": 16},
        "peer": {"d12_tokens_per_second": 20.0, "d16_tokens_per_second": 5.0},
    }
    assert examination.beside_peer(figures) == {"d12": 1.5}


def test_every_cure_names_a_key(project_root: Path) -> None:
    keys = {path for path, *_ in describe()}
    for check in checks.CHECKS:
        if check.name != "peer":  # nothing of ours
            assert any(key in check.cure for key in keys), check.name


def test_the_limits_of_a_usual_examination_allow_the_first_checks(project_root: Path) -> None:
    """Those of results and speed end within ten minutes, whatever the others do."""
    names = [check.name for check in checks.CHECKS]
    first = checks.CHECKS[: names.index("speed_small") + 1]
    assert sum(check.seconds for check in first) <= 600


def test_a_check_that_breaks_down_keeps_its_last_words_and_the_others_run() -> None:
    broken = checks.Check("no-such-check", "Nothing", checks.loss, "a key")
    result = examination.run_check(broken, "cpu", None, 600)
    assert result.state == "broken"
    assert "ValueError" in result.last_words


def test_a_folder_that_is_no_nanochat_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no nanochat/gpt.py"):
        examination.examine("cpu", 1.0, tmp_path, SAID.append)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_card_the_command_says_what_tries_it() -> None:
    ended = CliRunner().invoke(commands, ["doctor", "--gpu"])
    assert ended.exit_code == 2
    assert "--device cpu tries every check" in ended.stderr
