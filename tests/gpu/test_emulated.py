"""What follows values, on an emulated card: sampling, word problems, CORE, RL's step, a state. All as on the CPU."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.core_bundle import make_bundle
from support.emulated_card import emulated_card, host_view
from support.talker import PROBLEMS, random_model, talker

from paribus.config import load_config
from paribus.evaluate.core import evaluate_core
from paribus.evaluate.gsm8k import chat_prompt, evaluate_gsm8k
from paribus.generate import Engine
from paribus.model.gpt import GPT
from paribus.train.checkpoint import StateStore
from paribus.train.objectives import PolicyGradient, Work
from paribus.train.optim import MuonAdamW
from paribus.train.rollout import Rollout, rollout
from paribus.train.stepper import PlainStepper, pinned


def on_card(engine: Engine) -> Engine:
    """The same model on the emulated card."""
    return Engine(copy.deepcopy(engine.model).to("cuda"), engine.tokenizer)


def test_an_operation_on_two_devices_is_refused() -> None:
    with emulated_card():
        there = torch.ones(3, device="cuda")
        assert (there + torch.tensor(1.0)).tolist() == [2.0, 2.0, 2.0]
        with pytest.raises(RuntimeError, match="add: tensors on cuda, and on the CPU"):
            there + torch.ones(3)


@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, 0), (1.0, 0), (0.7, 5)])
def test_answers_are_the_cpus(temperature: float, top_k: int) -> None:
    engine = talker()
    prompts = [chat_prompt(engine.tokenizer, one["question"]) for one in PROBLEMS[:3]]
    options: dict[str, Any] = {
        "samples": 2,
        "max_new_tokens": 40,
        "temperature": temperature,
        "top_k": top_k,
    }
    expected = engine.generate(prompts, seed=3, rows=4, **options)
    with emulated_card():
        found = on_card(engine).generate(prompts, seed=3, rows=4, **options)
    assert found == expected


def test_word_problems_are_scored_as_on_the_cpu() -> None:
    whole = load_config(Path("params.yaml")).eval.gsm8k
    cfg = dataclasses.replace(
        whole, questions=4, sampled_questions=1, samples=2, max_new_tokens=40, rows=4
    )
    expected = evaluate_gsm8k(talker(), PROBLEMS, cfg, stage="sft", seed=1)
    with emulated_card():
        found = evaluate_gsm8k(on_card(talker()), PROBLEMS, cfg, stage="sft", seed=1)
    assert found == expected


def test_core_is_the_cpus(tmp_path: Path) -> None:
    """Of a model without windows, whose kernel test_dry_run.py compiles."""
    bundle = make_bundle(tmp_path / "bundle")
    model, tokenizer = random_model(seq_len=512), talker().tokenizer
    expected = evaluate_core(model, tokenizer, bundle, max_per_task=2, batch_size=8)
    with emulated_card():
        there = copy.deepcopy(model).to("cuda")
        found = evaluate_core(there, tokenizer, bundle, max_per_task=2, batch_size=8)
    assert found.summary() == expected.summary()


# ---------------------------------------------------------------- RL


def rl_step(engine: Engine) -> tuple[GPT, list[float]]:
    """The model after one step of RL on answers that it samples itself, and the step's loss and norm."""
    config = load_config(Path("params.yaml"))
    rl = dataclasses.replace(
        config.rl, questions_per_step=4, samples_per_question=4, max_new_tokens=40
    )

    def sample(step: int) -> Rollout:
        return rollout(engine, PROBLEMS, cfg=rl, seed=1, step=step)

    model = engine.model.train(False)
    settings = dataclasses.replace(config.optimizer, kind="adamw", eps=1e-4)
    optimizer = MuonAdamW(model, settings)
    stepper = PlainStepper(model, model, optimizer)
    work: Work = PolicyGradient(sample, device_batch_size=4).work(1)
    assert any(micro.weights is not None and micro.weights.any() for micro in work.micro_batches)
    finished = stepper.submit(1, pinned(work) if model.device.type == "cuda" else work, 1.0)
    return model, [finished.loss, finished.grad_norm]


def test_an_rl_step_from_its_own_answers_is_the_cpus() -> None:
    plain, numbers = rl_step(Engine(copy.deepcopy(talker().model), talker().tokenizer))
    with emulated_card():
        there, found = rl_step(on_card(talker()))
    assert found == pytest.approx(numbers, rel=1e-4)
    for (name, expected), parameter in zip(
        plain.named_parameters(), there.parameters(), strict=True
    ):
        here = host_view(parameter.detach())
        torch.testing.assert_close(here, expected.detach(), atol=2e-5, rtol=1e-3, msg=name)


# ---------------------------------------------------------------- a state


def test_a_state_goes_to_the_disk_and_back_with_its_values(tmp_path: Path) -> None:
    model = random_model()
    expected = {f"model.{name}": p.detach().clone() for name, p in model.named_parameters()}
    with emulated_card():
        there = copy.deepcopy(model).to("cuda")
        store = StateStore(tmp_path, 1)
        store.save(1, {f"model.{name}": p.detach() for name, p in there.named_parameters()}, {})
        store.wait()
    [written] = tmp_path.glob("*.safetensors")
    saved = load_file(written)
    assert all(torch.equal(saved[name], tensor) for name, tensor in expected.items())
