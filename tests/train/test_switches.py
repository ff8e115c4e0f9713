"""Switches of optimiser, schedule and data in a whole training: neither a pause in its middle nor two processes change it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.checkout import ROOT
from support.ranks import in_ranks, join
from support.toy_loop import Journal

from paribus.config import Config, load_config
from paribus.data.loader import Batch
from paribus.machine.hardware import detect_hardware
from paribus.machine.interrupt import Interrupt
from paribus.recipe import Recipe
from paribus.train.checkpoint import StateStore
from paribus.train.loop import Loop, Paused
from paribus.train.trainer import Trainer, new_model, next_token

STEPS, VOCABULARY = 8, 50
TINY: dict[str, Any] = {
    "model.depth": 2,
    "model.width": 32,
    "model.head_dim": 16,
    "model.seq_len": 16,
    "model.window": 4,
    "rl.max_new_tokens": 8,
    "eval.gsm8k.max_new_tokens": 8,
    "train.device": "cpu",
    "train.dtype": "float32",
    "train.threads": 1,
    "train.save_seconds": 0.0,
    "optimizer.eps": 1e-5,  # with less AdamW makes a full step of a gradient that is all rounding
    "pretrain.steps": STEPS,
    "pretrain.batch_tokens": 64,
    "pretrain.device_batch_size": 2,
}
SWITCHES: dict[str, dict[str, Any]] = {
    "average": {"optimizer.ema_decay": 0.9, "optimizer.evaluate": "ema"},
    "NorMuon": {"optimizer.muon_normalisation": "rows"},
    "hyperball": {"optimizer.muon_hyperball": True, "model.initialisation": "orthogonal"},
    "a library's optimiser": {
        "optimizer.kind": "torch.optim.Adafactor",
        "optimizer.matrix_lr": 0.003,
    },
    "decay": {
        "optimizer.weight_decay": 0.5,
        "optimizer.weight_decay_of": "all",
        "optimizer.weight_decay_schedule": "rate_linear",
        "optimizer.cautious_weight_decay": True,
    },
    "groups": {
        "pretrain.power": 0.5,
        "pretrain.warmdown_fraction": 0.25,
        "pretrain.group_warmdown_fraction": {"embedding": 0.9},
        "pretrain.group_power": {"scalar": 0.0},
    },
    "a growing batch": {"pretrain.first_batch_tokens": 16, "pretrain.growth_fraction": 0.7},
    "a growing context": {"pretrain.short_context": 8, "pretrain.short_fraction": 0.4},
}


class CountedRows:
    """Tokens that are a function of the row's number in the run."""

    def batch(self, step: int, rows: range, batch_rows: int) -> Batch:
        drawn = []
        for row in rows:
            generator = torch.Generator().manual_seed(step * batch_rows + row)
            drawn.append(torch.randint(0, VOCABULARY, (17,), generator=generator))
        tokens = torch.stack(drawn)
        return Batch(tokens[:, :-1], tokens[:, 1:], None)


def config_of(name: str) -> Config:
    return load_config(ROOT / "params.yaml", TINY | SWITCHES[name])


def loop_of(config: Config, folder: Path, stop_after: int | None = None) -> Loop:
    recipe, hardware = Recipe.of(config, VOCABULARY), detect_hardware(config.train)
    model = new_model(recipe, hardware)
    objective = next_token(CountedRows(), recipe, "pretrain")
    trainer = Trainer(recipe, "pretrain", model, objective, hardware)
    interrupt, journal = Interrupt(folder), Journal()

    def stop(step: int) -> None:
        if step == stop_after:
            interrupt.reason = "the test"

    journal.look = stop
    return trainer.loop(StateStore(folder / "state", 2), interrupt, [journal])


def weights_of(loop: Loop) -> torch.Tensor:
    """The weights that go on as the checkpoint, and those kept beside them."""
    beside = loop.optimizer.settle()
    tensors = [parameter.detach() for parameter in loop.model.parameters()]
    tensors += [beside[name] for name in sorted(beside)]
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.parametrize("name", SWITCHES)
def test_a_paused_run_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    straight = loop_of(config, tmp_path / "straight")
    straight.run()
    stopped = loop_of(config, tmp_path / "stopped", stop_after=3)
    with pytest.raises(Paused):
        stopped.run()
    resumed = loop_of(config, tmp_path / "stopped")
    state = resumed.store.load()
    assert state is not None
    assert state.step == 3
    resumed.restore(state)
    assert resumed.run().tokens == straight.position.tokens
    assert torch.equal(weights_of(straight), weights_of(resumed))


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_changes_the_weights(name: str, tmp_path: Path) -> None:
    plain = loop_of(load_config(ROOT / "params.yaml", TINY), tmp_path / "plain")
    changed = loop_of(config_of(name), tmp_path / "changed")
    plain.run()
    changed.run()
    found = [weights_of(loop) for loop in (plain, changed)]
    assert found[0].shape != found[1].shape or not torch.equal(*found)


def test_rows_of_a_forward_pass_do_not_matter_to_a_growing_batch(tmp_path: Path) -> None:
    config = config_of("a growing batch")
    wider = dataclasses.replace(
        config, pretrain=dataclasses.replace(config.pretrain, device_batch_size=4)
    )
    loops = [loop_of(one, tmp_path / str(place)) for place, one in enumerate((config, wider))]
    tokens = [loop.run().tokens for loop in loops]
    assert tokens[0] == tokens[1] == Recipe.of(config, VOCABULARY).tokens("pretrain")
    assert torch.allclose(weights_of(loops[0]), weights_of(loops[1]), atol=1e-4)


# ---------------------------------------------------------------- two processes


def run_rank(rank: int, ranks: int, names: list[str], folder: Path, port: int) -> None:
    """Train with each switch; rank 0 leaves the weights, their averages and the tokens that were seen."""
    join(rank, ranks, port)
    found = {}
    for name in names:
        loop = loop_of(config_of(name), folder / f"{name}-{ranks}")
        position = loop.run()
        found[name] = (weights_of(loop), position.tokens)
        if ranks > 1:
            dist.barrier()
    if rank == 0:
        torch.save(found, folder / f"{ranks}.pt")
    if ranks > 1:
        dist.destroy_process_group()


@pytest.mark.long
@pytest.mark.soak
def test_two_processes_train_the_same_model_with_each_switch(tmp_path: Path) -> None:
    names = list(SWITCHES)
    run_rank(0, 1, names, tmp_path, 0)
    in_ranks(run_rank, (2, names, tmp_path, 29531), 2)
    alone, together = (torch.load(tmp_path / f"{ranks}.pt", weights_only=True) for ranks in (1, 2))
    for name in names:
        (one, its_tokens), (two, their_tokens) = alone[name], together[name]
        assert its_tokens == their_tokens, name
        assert (one - two).norm() < 1e-4 * one.norm(), name
