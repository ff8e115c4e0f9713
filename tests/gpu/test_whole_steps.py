"""Whole steps on the null device: training, RL's gradient and an evaluation's passes as a stage does them.

Nothing is compared: kernels compute nothing, so that sampling, which follows values, cannot run. What raises here raises
on a card: a kernel that does not fit it, an operation that is not deterministic, tensors on two devices, a host that
waits for the card within a step.
"""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkout import ROOT
from support.talker import PROBLEMS, talker

from paribus.config import flatten, load_config
from paribus.config.conditions import width
from paribus.config.profiles import profile_overrides
from paribus.errors import UserError, explained
from paribus.machine.hardware import FP8_CARDS, Hardware, detect_hardware
from paribus.machine.process import set_up_process
from paribus.model import kernels
from paribus.model.gpt import GPT
from paribus.model.window_kernel import settled
from paribus.recipe import Recipe
from paribus.train.checkpoint import StateStore
from paribus.train.objectives import MicroBatch, PolicyGradient, Work
from paribus.train.rollout import Rollout, rollout
from paribus.train.stepper import AheadStepper, PlainStepper, make_stepper, pinned
from paribus.train.trainer import RandomRows, Trainer, next_token

PROFILES = sorted(path.stem for path in (ROOT / "experiments/profiles").glob("*.yaml"))
SMALL = {"model.depth": 2, "train.device": "cuda", "train.compile": False}
VOCAB = 512
# What a step reads besides the keys of the model and of its optimiser.
OTHERS: dict[str, Any] = {
    "train.activation_checkpointing": True,
    "train.deterministic": False,
    "train.dtype": "float32",
    "train.tf32": True,
    "pretrain.z_loss": 1e-4,
    "pretrain.label_smoothing": 0.1,
}
# What else a switch needs on CUDA.
TOGETHER: dict[str, dict[str, Any]] = {
    "model.attention_dropout": {"model.window_pattern": "L"},  # FlexAttention has no dropout
    "train.tf32": {"train.dtype": "float32"},
}


def switches() -> dict[str, Any]:
    """Another value of every key of the model and the optimiser, of those that tests/train/test_effects.py flips."""
    if "NULL_CUDA" not in os.environ:
        return {}
    found = dict(OTHERS)
    defaults = flatten(load_config(ROOT / "params.yaml", SMALL))
    flips = runpy.run_path(str(ROOT / "tests/train/test_effects.py"))["FLIPS"]
    for key, values in flips.items():
        for value in values:
            with suppress(UserError):
                load_config(ROOT / "params.yaml", SMALL | TOGETHER.get(key, {}) | {key: value})
                if value != defaults.get(key):  # a mapping, as of groups, has no value of its own
                    found.setdefault(key, value)
    return found


SWITCHES = switches()


def set_up(overrides: dict[str, Any]) -> tuple[Recipe, Hardware, GPT]:
    """A model on the card, in a process as a stage sets it up."""
    config = load_config(ROOT / "params.yaml", overrides)
    hardware = detect_hardware(config.train)
    set_up_process(hardware, config.seed)
    recipe = Recipe.of(config, VOCAB)
    model = GPT(recipe.architecture, VOCAB, getattr(torch, hardware.dtype))
    model.activation_checkpointing = config.train.activation_checkpointing
    model = model.to("cuda")
    model.initialise(config.seed)
    return recipe, hardware, model.train()


@contextmanager
def without_waiting() -> Iterator[None]:
    """The host may not wait for the card: torch raises where it does."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def take_steps(recipe: Recipe, hardware: Hardware, model: GPT, stage: str, rows: int) -> None:
    """Two steps, of which the second, where all is set up, must not wait."""
    objective = next_token(RandomRows(recipe), recipe, stage)
    trainer = Trainer(recipe, stage, model, objective, hardware)
    stepper = make_stepper(model, trainer.forward, trainer.optimizer, objective, 1)
    assert isinstance(stepper, AheadStepper)
    work = pinned(few_rows(recipe, rows, packed=stage != "pretrain"))
    assert all(micro.tokens.is_pinned() for micro in work.micro_batches)
    stepper.submit(1, work, 1.0)
    stepper.flush()
    with without_waiting():
        stepper.submit(2, work, 1.0)
    stepper.flush()


def few_rows(recipe: Recipe, rows: int, packed: bool) -> Work:
    """Two small micro-batches of a step; with the documents of each token where rows are packed."""
    batch = RandomRows(recipe).batch(0, range(rows), rows)
    documents = torch.zeros_like(batch.inputs, dtype=torch.int32) if packed else None
    micro = MicroBatch(batch.inputs.contiguous(), batch.targets.contiguous(), documents)
    return Work([micro, micro], float(2 * batch.targets.numel()), 2 * batch.targets.numel())


def as_wide(profile: str) -> dict[str, Any]:
    """Two blocks of a profile, each as it has them."""
    whole = profile_overrides(profile)
    model = load_config(ROOT / "params.yaml", whole).model
    return whole | SMALL | {"model.width": width(model)}


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
@pytest.mark.parametrize("profile", PROFILES)
def test_a_step_of_each_profile_does_not_wait_for_the_card(profile: str, stage: str) -> None:
    take_steps(*set_up(as_wide(profile)), stage, rows=2)


@pytest.mark.parametrize("profile", ["d16-rtx3090", "d20-speedrun"])
def test_a_compiled_step_of_a_cards_profile_does_not_wait(profile: str) -> None:
    take_steps(*set_up(as_wide(profile) | {"train.compile": True}), "pretrain", rows=2)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_of_8_bit_products_does_not_wait(compiled: bool) -> None:
    if torch.cuda.get_device_capability() < FP8_CARDS:
        pytest.skip("this card has no 8-bit products")
    eight = {"train.fp8": True, "train.compile": compiled, "model.mlp": "relu2"}
    recipe, hardware, model = set_up(SMALL | eight)
    model.use_float8()
    take_steps(recipe, hardware, model, "pretrain", rows=2)


@pytest.mark.parametrize("key", SWITCHES)
def test_a_step_of_each_switch_does_not_wait_for_the_card(key: str) -> None:
    overrides = SMALL | TOGETHER.get(key, {}) | {key: SWITCHES[key]}
    take_steps(*set_up(overrides), "pretrain", rows=2)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"optimizer.muon_normalisation": "rows"},
        {"optimizer.muon_hyperball": True, "model.initialisation": "gpt2"},
    ],
    ids=str,
)
def test_a_compiled_step_does_not_wait_for_the_card(variant: dict[str, Any]) -> None:
    """Model and optimiser; the loss and windows are in it too."""
    recipe, hardware, model = set_up(SMALL | variant | {"train.compile": True})
    take_steps(recipe, hardware, model, "pretrain", rows=2)


@pytest.mark.parametrize("compiled", [False, True])
def test_windows_by_flash_attention_do_not_wait(compiled: bool) -> None:
    shape = {"model.head_dim": 64, "model.width": 128, "model.window_pattern": "SL"}
    recipe, hardware, model = set_up(SMALL | shape | {"train.compile": compiled})
    model.window_kernel = "flash"
    take_steps(recipe, hardware, model, "pretrain", rows=2)


def test_the_kernel_of_windows_is_measured_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    shape = {"model.head_dim": 64, "model.width": 128, "model.window_pattern": "SL"}
    recipe, hardware, _ = set_up(SMALL | shape)
    chosen = settled(hardware, recipe.architecture).window_kernel
    kept = json.loads((tmp_path / ".paribus/card/window_kernels.json").read_text())
    [choice] = kept.values()
    assert choice["kernel"] == chosen
    assert choice["flash_seconds"] is not None


@pytest.mark.parametrize("pattern", ["L", "SL"])
def test_an_rl_step_goes_through(pattern: str) -> None:
    """The gradient of answers that a CPU has sampled: sampling follows values, of which there are none here."""
    recipe, hardware, model = set_up(SMALL | {"model.window_pattern": pattern})
    cfg = dataclasses.replace(
        recipe.config.rl, questions_per_step=5, samples_per_question=4, max_new_tokens=50
    )

    def sample(step: int) -> Rollout:
        return rollout(talker(), PROBLEMS, cfg=cfg, seed=1, step=step)

    objective = PolicyGradient(sample, device_batch_size=2)
    trainer = Trainer(recipe, "rl", model, objective, hardware)
    stepper = make_stepper(model, trainer.forward, trainer.optimizer, objective, 1)
    assert isinstance(stepper, PlainStepper)
    work = objective.work(1)
    assert work.micro_batches
    stepper.submit(1, work, 1.0)


def test_an_evaluation_s_forward_passes_go_through() -> None:
    """Of several rows and of one, as validation and sampling have them."""
    _, _, model = set_up(SMALL)
    with torch.inference_mode():
        for rows in (2, 1):
            tokens = torch.zeros(rows, 200, dtype=torch.int64, device="cuda")
            model.eval().logits(model.hidden(tokens))


def test_more_memory_than_the_cap_is_a_problem_in_words() -> None:
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        with pytest.raises(torch.OutOfMemoryError) as caught:
            torch.empty(2**32, dtype=torch.uint8, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    refusal = explained(caught.value)
    assert refusal is not None
    assert "out of memory" in refusal.problems[0]


def test_a_state_saved_from_the_card_is_read_back_onto_it(tmp_path: Path) -> None:
    recipe, hardware, model = set_up(SMALL)
    trainer = Trainer(
        recipe, "pretrain", model, next_token(RandomRows(recipe), recipe, "pretrain"), hardware
    )
    model(*(torch.zeros(1, 64, dtype=torch.int64, device="cuda"),) * 2).backward()
    trainer.optimizer.step(1.0)
    store = StateStore(tmp_path, 1)
    store.save(1, trainer.optimizer.full_state(), {})
    store.wait()
    state = store.load()
    assert state is not None
    trainer.optimizer.load_state(state.tensors, trainer.optimizer.updates)
    assert all(tensor.is_cuda for tensor in trainer.optimizer.state.values())


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No variant that an earlier test has compiled counts towards the limit."""
    torch._dynamo.reset()
    kernels.flex_of.cache_clear()
    yield
