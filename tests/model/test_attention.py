"""Attention: FlexAttention, which CUDA takes for windows and packed conversations, is the masked product that a CPU takes."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch.nn.attention import flex_attention

from paribus.config import Config, resolve_model
from paribus.errors import UserError
from paribus.model import attention, banded, kernels
from paribus.model.gpt import GPT

LENGTH = 150  # more than a block of 128, and not a multiple of it


@pytest.fixture
def flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention as plain operations: on a CPU it would load the compiler to run the same ones."""
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.fixture
def documents() -> torch.Tensor:
    """Two rows of conversations of other lengths."""
    ends = torch.tensor([[40, 100, 149], [1, 130, 140]])
    return torch.searchsorted(ends, torch.arange(LENGTH).expand(2, -1).contiguous()).int()


@pytest.mark.parametrize("window", [None, 1, 20, 140, LENGTH])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("packed", [False, True])
def test_blocks_see_what_the_mask_does(
    flex: None, documents: torch.Tensor, window: int | None, kv_heads: int, packed: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, heads, LENGTH, 16, generator=generator) for heads in (4, kv_heads, kv_heads)
    )
    apart = documents if packed else None
    blocks = attention.block_mask(LENGTH, window, apart, torch.device("cpu"))
    mask = attention.dense_mask(torch.arange(LENGTH)[None], window, apart, None)
    torch.testing.assert_close(
        attention.attend(q, k, v, blocks), attention.attend(q, k, v, mask), atol=2e-6, rtol=1e-5
    )


@pytest.mark.parametrize("window", [None, 1, 20, 140])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_bands_give_what_the_mask_does_and_its_gradients(
    documents: torch.Tensor, window: int | None, kv_heads: int, packed: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(2, LENGTH, heads, 16, generator=generator).requires_grad_()
        for heads in (4, kv_heads, kv_heads)
    ]
    towards = torch.randn(2, 4, LENGTH, 16, generator=generator)
    apart = documents if packed else None
    mask = attention.dense_mask(torch.arange(LENGTH)[None], window, apart, None)
    again = banded.band(mask, window, torch.float32)
    kept = banded.band(mask, window, torch.float32, keeps=True)
    found = []
    for seen in (mask, again, kept):
        q, k, v = (leaf.transpose(1, 2) for leaf in leaves)
        answer = attention.attend(q, k, v, seen)
        found.append([answer, *torch.autograd.grad(answer, leaves, towards)])
    torch.testing.assert_close(found[1], found[0], atol=5e-6, rtol=1e-4)
    assert all(map(torch.equal, found[1], found[2]))  # kept or computed again: the same bits


@pytest.mark.parametrize("keeps", [True, False])
def test_a_compiled_band_answers_as_one_that_is_not(keeps: bool) -> None:
    leaves = [
        torch.randn(2, LENGTH, 4, 16, generator=torch.Generator().manual_seed(number))
        .bfloat16()
        .requires_grad_()
        for number in range(4)
    ]
    mask = attention.dense_mask(torch.arange(LENGTH)[None], None, None, None)
    seen = banded.band(mask, None, torch.bfloat16, keeps=keeps)

    def answer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        whole = attention.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), seen)
        return whole.transpose(1, 2)

    found = []
    for function in (answer, torch.compile(answer, backend="aot_eager")):
        result = function(*leaves[:3])
        found.append([result, *torch.autograd.grad(result, leaves[:3], leaves[3])])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("packed", [False, True])
def test_a_model_with_cudas_choice_of_kernels_computes_the_same(
    flex: None,
    tiny_config: Config,
    documents: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    packed: bool,
) -> None:
    model = GPT(
        resolve_model(
            dataclasses.replace(
                tiny_config.model, depth=3, seq_len=LENGTH, window=20, window_pattern="SL"
            )
        ),
        50,
    )
    model.initialise(1)
    with torch.no_grad():
        for block in model.blocks:
            block.get_parameter("attention.out.weight").normal_(
                std=0.1, generator=torch.Generator().manual_seed(0)
            )
        tokens = torch.randint(0, 50, (2, LENGTH), generator=torch.Generator().manual_seed(0))
        expected = model.hidden(tokens, documents if packed else None)
        monkeypatch.setattr(attention, "backend", lambda _, *rest: choose("cuda", *rest))
        found = model.hidden(tokens, documents if packed else None)
    assert not torch.equal(found, expected)  # other kernels were at work
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


choose = attention.backend
cuda, cpu = functools.partial(choose, "cuda"), functools.partial(choose, "cpu")


def test_the_backend_follows_from_what_is_seen() -> None:
    for on in (cuda, cpu):
        assert on(64, None, documents=False, read=False) == "causal"
        assert on(64, 16, documents=False, read=True) == "masked"
    assert (
        cuda(64, 16, documents=False, read=False)
        == cuda(64, None, documents=True, read=False)
        == "flex"
    )
    assert (
        cpu(64, 16, documents=False, read=False)
        == cpu(64, None, documents=True, read=False)
        == "masked"
    )
    assert cuda(64, 64, documents=False, read=False) == "causal"  # the window covers the sequence


def test_a_cpu_in_bf16_takes_bands_where_nothing_forbids_it() -> None:
    in_bf16 = functools.partial(cpu, 64, 16, documents=True, dtype=torch.bfloat16)
    assert in_bf16(read=False) == "banded"
    assert in_bf16(read=True) == "masked"
    assert in_bf16(read=False, softcap=True) == "masked"
    assert in_bf16(read=False, dropout=True) == "masked"


@pytest.mark.parametrize("head_dim", [8, 264])
def test_heads_without_a_kernel_are_refused(head_dim: int) -> None:
    kernels.check_head_dim(head_dim, "cpu")
    with pytest.raises(
        UserError,
        match=f"model.head_dim: {head_dim} has no attention kernels on CUDA; 16 to 256 have",
    ):
        kernels.check_head_dim(head_dim, "cuda")
