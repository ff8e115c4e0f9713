"""Graphics cards: each run of a study gets as many as it trains on, or is refused before it starts."""

from __future__ import annotations

from typing import Any

import pytest
from support.studied import LightProject

from paribus.errors import UserError


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, with_tokens: LightProject) -> LightProject:
    """One project for tests of studies of their own; its `tokens` are made."""
    return with_tokens.copy(tmp_path_factory.mktemp("studies") / "project")


def cards(monkeypatch: pytest.MonkeyPatch, count: int, visible: str = "") -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a card")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def experiment_on(project: LightProject, processes: int, device: str = "cuda") -> Any:
    from support.studied import STUDY

    from paribus.study.reading import parse_experiment

    settings = {"train.processes": processes, "train.device": device}
    return parse_experiment("gpus", STUDY | {"baseline": {"set": settings}})


def test_runs_get_as_many_gpus_as_they_train_on(
    shared: LightProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paribus.study.gpus import deal

    monkeypatch.chdir(shared.root)
    cards(monkeypatch, 8)
    every = [str(number) for number in range(8)]
    assert deal(experiment_on(shared, 8), None, None) == (1, every)
    assert deal(experiment_on(shared, 4), "0,1,2,3,4,5,6,7", None) == (2, every)
    assert deal(experiment_on(shared, 1), "3,5", None) == (2, ["3", "5"])
    assert deal(experiment_on(shared, 1), "3", 2) == (2, ["3", "3"]), "two runs share a GPU"
    assert deal(experiment_on(shared, 1, "cpu"), None, 3) == (3, [])
    cards(monkeypatch, 2, visible="6,GPU-7f")
    assert deal(experiment_on(shared, 2), None, None) == (1, ["6", "GPU-7f"])


@pytest.mark.parametrize(
    "processes, device, asked, said",
    [
        (1, "cuda", "a,b", "no such GPU"),
        (1, "cuda", "9", "no such GPU"),
        (1, "cuda", ",", "no such GPU"),
        (1, "cuda", "0,0", "named twice"),
        (4, "cuda", "0,1", "train.processes: 4, and there are 2 GPUs"),
        (9, "cuda", None, "train.processes: 9, and there are 8 GPUs"),
        (1, "cpu", "0", "train on the CPU"),
    ],
)
def test_gpus_that_are_not_there_are_refused_at_once(
    shared: LightProject,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    device: str,
    asked: str | None,
    said: str,
) -> None:
    from paribus.study.gpus import deal

    monkeypatch.chdir(shared.root)
    cards(monkeypatch, 8)
    with pytest.raises(UserError, match=said):
        deal(experiment_on(shared, processes, device), asked, None)
