"""Data-parallel ranks (gloo) train the model that one process trains, and a run may go on with another number of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.ranks import in_ranks, join
from support.talker import PROBLEMS, codec, model_config, talker
from support.toy_loop import ROWS, Rows
from torch.nn.parallel import DistributedDataParallel

from paribus.config import Config, resolve_model
from paribus.generate import Engine
from paribus.machine.interrupt import Interrupt
from paribus.model.gpt import GPT
from paribus.train.callback import Callback
from paribus.train.checkpoint import StateStore
from paribus.train.loop import Loop, Plan
from paribus.train.objectives import NextToken, PolicyGradient
from paribus.train.optim import MuonAdamW
from paribus.train.rollout import rollout
from paribus.train.stepper import PlainStepper

pytestmark = pytest.mark.long


class Losses(Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        self.values.append(metrics["train/loss"])


def run_rank(
    rank: int, ranks: int, config: Config, folder: Path, steps: int, port: int, rows: int
) -> None:
    """Train to `steps`, going on from the state in `folder` if there is one; rank 0 leaves weights and losses."""
    join(rank, ranks, port)
    model = GPT(resolve_model(config.model), 50)
    model.initialise(1)
    losses = Losses()
    forward = DistributedDataParallel(model) if ranks > 1 else model
    loop = Loop(
        PlainStepper(model, forward, MuonAdamW(model, config.optimizer)),
        NextToken(Rows(), rows, 1, rank, ranks),
        Plan(steps, lambda step: 1.0, 1.0, 1.0, 0.0),
        StateStore(folder / "state", 2),
        Interrupt(),
        losses,
    )
    if state := loop.store.load():
        loop.restore(state)
    loop.run()
    if ranks > 1:
        dist.barrier()
    if rank == 0:
        torch.save(
            {"losses": losses.values, "weights": [p.detach() for p in model.parameters()]},
            folder / "result.pt",
        )
    if ranks > 1:
        dist.destroy_process_group()


def train(
    config: Config, folder: Path, ranks: int, steps: int, port: int, rows: int = ROWS
) -> dict[str, list[Any]]:
    folder.mkdir(exist_ok=True)
    arguments = (ranks, config, folder, steps, port, rows)
    if ranks > 1:
        in_ranks(run_rank, arguments, ranks)
    else:
        run_rank(0, *arguments)
    result: dict[str, list[Any]] = torch.load(folder / "result.pt", weights_only=True)
    return result


@pytest.fixture(scope="module")
def alone(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    return train(tiny_config, tmp_path_factory.mktemp("alone"), 1, 4, 0)


def test_two_ranks_train_the_same_model(
    tiny_config: Config, tmp_path: Path, alone: dict[str, list[Any]]
) -> None:
    together = train(tiny_config, tmp_path / "two", 2, 4, 29517)
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    one, two = (
        torch.cat([tensor.flatten() for tensor in run["weights"]]) for run in (alone, together)
    )
    # AdamW makes a full step of a gradient that is all rounding, so single weights may part; their sum must not.
    assert (one - two).norm() < 1e-3 * one.norm()


def test_a_run_of_two_ranks_goes_on_with_one(
    tiny_config: Config, tmp_path: Path, alone: dict[str, list[Any]]
) -> None:
    train(tiny_config, tmp_path / "moved", 2, 2, 29518)
    rest = train(tiny_config, tmp_path / "moved", 1, 4, 0)
    assert rest["losses"] == pytest.approx(alone["losses"][2:], rel=1e-4)


def test_a_rank_without_rows_takes_part(tiny_config: Config, tmp_path: Path) -> None:
    """As in RL, where a step may leave less to learn than there are ranks."""
    alone = train(tiny_config, tmp_path / "one", 1, 3, 0, rows=1)
    together = train(tiny_config, tmp_path / "two", 2, 3, 29519, rows=1)
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-4)


def roll_out(rank: int, ranks: int, config: Config, folder: Path, port: int) -> None:
    """One RL step's rollout, and this rank's share of its rows."""
    join(rank, ranks, port)
    cfg = dataclasses.replace(
        config.rl,
        questions_per_step=3,
        samples_per_question=4,
        max_new_tokens=50,
        dynamic_sampling=1,
    )
    model = GPT(resolve_model(model_config()), codec().vocab_size)
    model.load_state_dict(torch.load(folder / "talker.pt", weights_only=True))
    step = rollout(Engine(model, codec()), PROBLEMS, cfg=cfg, seed=1, step=0)
    work = PolicyGradient(lambda _: step, 100, rank, ranks).work(0)
    mine = [row.tolist() for micro in work.micro_batches for row in micro.targets]
    torch.save(
        {
            "step": [step.tokens.tolist(), step.weights.tolist(), step.texts],
            "normaliser": work.normaliser,
            "statistics": str(step.statistics),
            "learned": sorted([t for t in row if t >= 0] for row in mine),
        },
        folder / f"{ranks}-{rank}.pt",
    )
    if ranks > 1:
        dist.destroy_process_group()


def test_ranks_share_the_questions_of_a_rollout_and_all_have_the_whole_step(
    tiny_config: Config, tmp_path: Path
) -> None:
    torch.save(talker().model.state_dict(), tmp_path / "talker.pt")
    roll_out(0, 1, tiny_config, tmp_path, 0)
    in_ranks(roll_out, (2, tiny_config, tmp_path, 29520), 2)
    alone, first, second = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")
    )
    for key in ("step", "statistics"):
        assert first[key] == second[key] == alone[key]
    assert first["normaliser"] + second["normaliser"] == alone["normaliser"]
    assert sorted(first["learned"] + second["learned"]) == alone["learned"]
    assert first["learned"]
    assert second["learned"]
