"""What the runs of a study take of a machine: which GPUs, those of `--gpus` or all; as many a run as it trains on; memory."""

from __future__ import annotations

import os
from collections.abc import Sequence

from paribus.config import Config, Train
from paribus.curriculum import TRAINING_STAGES
from paribus.errors import UserError
from paribus.machine.hardware import detect_hardware
from paribus.recipe import Recipe
from paribus.stages import room
from paribus.study.experiment import Experiment


def cards_of(train: Train, device: str = "") -> int:
    """GPUs that a run takes: one for each of its processes; none on a CPU.

    Args:
        train: settings of the run.
        device: that its machine trains on; "": what this one does.
    """
    if train.device in ("cpu", "mps"):
        return 0
    found = device or detect_hardware(train).device
    return train.processes if found == "cuda" else 0


def memory_of(config: Config, stages: Sequence[str]) -> int:
    """Bytes that a run holds on a CPU at its peak, by the plan of its largest stage; 0 where it trains nothing.

    Args:
        config: of the run.
        stages: that it consists of.
    """
    recipe = Recipe.of(config)
    largest = 0
    for stage in stages:
        if stage in TRAINING_STAGES:
            parts = room.needed(recipe, stage, "float32", config.train.processes)
            largest = max(largest, sum(parts.values()))
    return largest


def deal(experiment: Experiment, asked: str | None, workers: int | None) -> tuple[int, list[str]]:
    """(runs side by side, GPUs to deal out to them; a GPU that runs share is listed once for each of them).

    Args:
        experiment: whose runs they are.
        asked: of `--gpus`, separated by commas; None: all of this machine.
        workers: of `--workers`; None: as many as the GPUs of `--gpus` serve, or the file's.

    Raises:
        UserError: GPUs that are not there, or fewer than a run trains on.
    """
    needs = {arm: cards_of(experiment.config(arm).train) for arm in experiment.names}
    most = max(needs.values())
    if most == 0:
        if asked is not None:
            raise UserError(f"--gpus {asked}: the runs of {experiment.name} train on the CPU here")
        return workers or experiment.workers, []
    there = visible_cards()
    cards = there if asked is None else _chosen(asked, there)
    too_hungry = [
        f"{arm}: train.processes: {need}, and there are {len(cards)} GPUs: {', '.join(cards)}"
        for arm, need in needs.items()
        if need > len(cards)
    ]
    if too_hungry:
        raise UserError(too_hungry)
    usual = experiment.workers if asked is None else len(cards) // most
    side_by_side = workers or usual
    rounds = -(-side_by_side * most // len(cards))
    return side_by_side, cards * rounds


def visible_cards() -> list[str]:
    """The GPUs that torch sees, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = [name.strip() for name in named if name.strip()]
    return names[:count] if len(names) >= count > 0 else [str(number) for number in range(count)]


def _chosen(asked: str, there: Sequence[str]) -> list[str]:
    cards = [card.strip() for card in asked.split(",") if card.strip()]
    unknown = [card for card in cards if card not in there]
    if unknown or not cards:
        what = ", ".join(unknown) or "names none"
        known = ", ".join(there) or "none"
        raise UserError(f"--gpus {asked}: {what}: no such GPU on this machine; there are: {known}")
    if len(set(cards)) < len(cards):
        raise UserError(f"--gpus {asked}: a GPU is named twice; `--workers` lets runs share one")
    return cards
