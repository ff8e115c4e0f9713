"""Data-parallel ranks (gloo) train the model that one process trains, and a run may go on with another number of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_loop import ROWS, Rows
from torch.nn.parallel import DistributedDataParallel

from paribus.config import Config
from paribus.model.gpt import GPT
from paribus.session import Interrupt
from paribus.train.checkpoint import StateStore
from paribus.train.loop import Hooks, Loop, Plan
from paribus.train.objectives import NextToken
from paribus.train.optim import MuonAdamW


def run_rank(rank: int, ranks: int, config: Config, folder: Path, steps: int, port: int) -> None:
    """Train to `steps`, going on from the state in `folder` if there is one; rank 0 leaves weights and losses."""
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        dist.init_process_group("gloo", rank=rank, world_size=ranks)
    model = GPT(config.model, 50)
    model.initialise(1)
    losses: list[float] = []
    hooks = Hooks(lambda step, metrics: losses.append(metrics["train/loss"]), lambda *_: None, lambda: None,
                  lambda step: None, lambda step: {}, lambda *_: None)
    loop = Loop(model, DistributedDataParallel(model) if ranks > 1 else model, MuonAdamW(model, config.optimizer),
                NextToken(Rows(), ROWS, 1, rank, ranks), Plan(steps, lambda step: 1.0, 1.0, 1.0, 0.0),
                StateStore(folder / "state", 2), Interrupt(), hooks)
    if state := loop.store.load():
        loop.restore(state)
    loop.run()
    if ranks > 1:
        dist.barrier()
    if rank == 0:
        torch.save({"losses": losses, "weights": [p.detach() for p in model.parameters()]}, folder / "result.pt")
    if ranks > 1:
        dist.destroy_process_group()


def train(config: Config, folder: Path, ranks: int, steps: int, port: int) -> dict[str, list]:
    folder.mkdir(exist_ok=True)
    mp.spawn(run_rank, (ranks, config, folder, steps, port), nprocs=ranks)
    return torch.load(folder / "result.pt", weights_only=True)


@pytest.fixture(scope="module")
def alone(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    return train(tiny_config, tmp_path_factory.mktemp("alone"), 1, 4, 0)


def test_two_ranks_train_the_same_model(tiny_config: Config, tmp_path: Path, alone: dict[str, list]) -> None:
    together = train(tiny_config, tmp_path / "two", 2, 4, 29517)
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    for a, b in zip(alone["weights"], together["weights"], strict=True):
        assert torch.allclose(a, b, atol=2e-3)


def test_a_run_of_two_ranks_goes_on_with_one(tiny_config: Config, tmp_path: Path, alone: dict[str, list]) -> None:
    train(tiny_config, tmp_path / "moved", 2, 2, 29518)
    rest = train(tiny_config, tmp_path / "moved", 1, 4, 0)
    assert rest["losses"] == pytest.approx(alone["losses"][2:], rel=1e-4)
