"""The matrices as decoding multiplies by them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.talker import random_model, talker

from paribus.model.gpt import GPT
from paribus.model.inference import for_inference


def logits(model: GPT) -> torch.Tensor:
    tokens = torch.arange(8, 38).view(3, 10)
    with torch.no_grad():
        return model.logits(model.hidden(tokens))


@pytest.mark.parametrize("mlp", ["relu2", "swiglu"])
def test_in_bf16_products_keep_their_bits(mlp: str) -> None:
    model = random_model(mlp=mlp, qkv_bias=True, value_embeddings="all")
    model.compute_dtype = torch.bfloat16
    expected = logits(model)
    assert torch.equal(logits(for_inference(model)), expected)


def test_in_fp32_logits_differ_by_rounding_alone() -> None:
    model = random_model(mlp="relu2", mlp_bias=True)
    expected = logits(model)
    difference = (logits(for_inference(model)) - expected).abs().max()
    assert difference < 1e-4


def test_a_model_itself_stays_as_it_is() -> None:
    """What trains it next, and whoever else decodes with it in another thread, sees its own matrices."""
    model = random_model()
    before = logits(for_inference(model))
    with torch.no_grad():
        model.head.weight.zero_()
    assert before.any()
    assert not logits(model).any()


def test_two_answers_may_be_decoded_by_turns() -> None:
    """As a server does, in threads: each with its own copies, close calls by the model's matrices."""
    engine = talker()
    prompts = [1, 2, 3], [9, 8]
    alone = [list(engine.stream(prompt, max_new_tokens=12)) for prompt in prompts]
    streams = [engine.stream(prompt, max_new_tokens=12) for prompt in prompts]
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(list[int], stream) for stream in streams]
    assert [answer.result() for answer in answers] == alone
