"""What a training stage needs more memory for than the machine has is refused before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny import TINY

from paribus.config import load_config
from paribus.errors import UserError
from paribus.machine.hardware import available_cores
from paribus.recipe import Recipe
from paribus.stages import room
from paribus.stages.context import say_crowded

CONTEXT = 2**20
LARGE = {
    "model.depth: 256": ("pretrain", {"model.depth": 256}),
    "of width 65,536": ("midtrain", {"model.width": 65_536}),
    "model.seq_len: 1,048,576": (
        "sft",
        {
            "model.seq_len": CONTEXT,
            "pretrain.batch_tokens": CONTEXT,
            "midtrain.batch_tokens": CONTEXT,
            "sft.batch_tokens": CONTEXT,
        },
    ),
    "pretrain.batch_tokens: 134,217,728": ("pretrain", {"pretrain.batch_tokens": 2**27}),
    "655,360,000 answers": (
        "rl",
        {"rl.questions_per_step": 65_536, "rl.samples_per_question": 10_000},
    ),
}


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "machine_memory", lambda: 4 * 10**9)


@pytest.mark.parametrize("named", LARGE)
def test_what_no_machine_of_this_size_holds_is_refused_by_its_key(
    project_root: Path, small_machine: None, named: str
) -> None:
    stage, changes = LARGE[named]
    config = load_config(project_root / "params.yaml", TINY | changes)
    with pytest.raises(
        UserError, match=f"^{stage}: needs about .* GB of memory and this machine has 4.0 GB: "
    ) as found:
        room.check(Recipe.of(config), stage, "float32")
    assert named in str(found.value).partition(";")[0], "the largest part comes first"


def test_processes_that_copy_the_model_add_up(project_root: Path, small_machine: None) -> None:
    config = load_config(project_root / "params.yaml", TINY | {"model.width": 2_048})
    room.check(Recipe.of(config), "pretrain", "float32", processes=1)
    with pytest.raises(UserError, match="model.depth"):
        room.check(Recipe.of(config), "pretrain", "float32", processes=4)


@pytest.mark.parametrize("stage", ["pretrain", "midtrain", "sft", "rl"])
def test_the_defaults_fit_a_small_machine(
    project_root: Path, small_machine: None, stage: str
) -> None:
    room.check(Recipe.of(load_config(project_root / "params.yaml")), stage, "float32")


def test_a_container_s_limit_is_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = room.machine_memory()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(room, "CGROUP_LIMIT", limit)
    limit.write_text("2000000000\n")
    assert room.machine_memory() == 2_000_000_000
    limit.write_text("max\n")
    assert room.machine_memory() >= whole


def test_more_threads_than_cores_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    cores = available_cores()
    say_crowded("pretrain", 1_024)
    assert f"train.threads: 1,024 on {cores} cores" in capsys.readouterr().err
    for few in (cores, None):
        say_crowded("pretrain", few)
    assert not capsys.readouterr().err
