"""The host side of CUDA without a card, on a null device: `make gpu-dry-run` builds it and runs these.

Real here: torch's dispatcher and its choice of kernels, determinism checks, the allocator, Inductor, Triton, and ptxas
with the card's limits (an RTX 3090's unless NULL_MAJOR, NULL_MINOR and NULL_SHARED say otherwise). Kernels compute
nothing, so no value is checked, and no time.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from torch.nn.attention import SDPBackend

from paribus.config import Config, resolve_model
from paribus.machine.hardware import detect_hardware
from paribus.machine.process import MachineUse, set_up_process
from paribus.model import attention, kernels
from paribus.model.gpt import GPT
from paribus.train.optim import MuonAdamW

FUSED = {
    SDPBackend.FLASH_ATTENTION.value,
    SDPBackend.EFFICIENT_ATTENTION.value,
    SDPBackend.CUDNN_ATTENTION.value,
}


@pytest.fixture(autouse=True)
def deterministic(tiny_config: Config) -> Iterator[None]:
    """As a stage sets a process up for CUDA."""
    train = dataclasses.replace(tiny_config.train, device="cuda", dtype="bfloat16")
    set_up_process(detect_hardware(train), 0)
    torch._dynamo.reset()
    kernels.flex_of.cache_clear()
    yield


def heads(count: int, head_dim: int, dtype: torch.dtype, rows: int = 2) -> torch.Tensor:
    made = torch.zeros(rows, 256, count, head_dim, device="cuda", dtype=dtype)
    return made.transpose(1, 2).requires_grad_()


# ---------------------------------------------------------------- kernels


@pytest.mark.parametrize("head_dim", [160, 192, 256])
@pytest.mark.parametrize("packed", [False, True])
def test_wide_heads_fit_the_card(head_dim: int, packed: bool) -> None:
    q, k, v = (heads(2, head_dim, torch.bfloat16) for _ in range(3))
    documents = torch.zeros(2, 256, dtype=torch.int32, device="cuda") if packed else None
    mask = attention.block_mask(256, 100, documents, q.device)
    attention.attend(q, k, v, mask).sum().backward()


def test_attention_of_open_sizes_is_compiled_once() -> None:
    """Validation and sampling bring sequences of any length."""
    from torch._dynamo.utils import counters

    compiled = []
    with torch.inference_mode():
        for rows, length in ((4, 200), (3, 256), (5, 140)):
            q = torch.zeros(rows, 2, length, 64, device="cuda", dtype=torch.bfloat16)
            mask = attention.block_mask(length, 100, None, q.device)
            attention.attend(q, q, q, mask)
            compiled.append(counters["stats"]["unique_graphs"])
    assert compiled[0] == compiled[-1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("masked", [False, True])
def test_grouped_queries_get_a_fused_kernel(dtype: torch.dtype, masked: bool) -> None:
    q, k = heads(8, 64, dtype), heads(2, 64, dtype)
    mask = torch.ones(2, 1, 256, 256, dtype=torch.bool, device="cuda") if masked else None
    seen = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        causal, grouped = options["is_causal"], options["enable_gqa"]
        seen.append(
            torch._fused_sdp_choice(
                q, k, v, options.get("attn_mask"), 0.0, causal, enable_gqa=grouped
            )
        )
        return plain(q, k, v, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
        attention.attend(q, k, k, mask)
    assert set(seen) <= FUSED
    assert seen


def test_shared_keys_with_a_mask_would_get_plain_products() -> None:
    """The reason for the repetition: where torch learns to share keys under a mask, it can go."""
    q, k = heads(8, 64, torch.bfloat16), heads(2, 64, torch.bfloat16)
    mask = torch.ones(2, 1, 256, 256, dtype=torch.bool, device="cuda")
    chosen = torch._fused_sdp_choice(q, k, k, mask, 0.0, False, enable_gqa=True)
    assert chosen == SDPBackend.MATH.value


# ---------------------------------------------------------------- training


def model(config: Config, **changes: Any) -> GPT:
    shape = {"depth": 2, "head_dim": 64, "aspect_ratio": 64, "seq_len": 256, "window": 128}
    made = GPT(
        resolve_model(dataclasses.replace(config.model, **shape | changes)), 512, torch.bfloat16
    )
    return made.to("cuda").train()


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_training_step_has_no_operation_that_is_not_deterministic(
    tiny_config: Config, kind: Literal["muon", "adamw"]
) -> None:
    made = model(tiny_config, value_embeddings="all", x0_scalars=True, residual_scalars=True)
    optimizer = MuonAdamW(made, dataclasses.replace(tiny_config.optimizer, kind=kind))
    tokens = torch.zeros(4, 256, dtype=torch.int64, device="cuda")
    documents = torch.zeros(4, 256, dtype=torch.int32, device="cuda")
    for rows in (None, documents):
        made(tokens, tokens, rows).backward()
        norm = optimizer.clip()
        optimizer.step(1.0, torch.isfinite(norm))
        optimizer.zero_grad()


@pytest.mark.parametrize("pattern", ["L", "SL"])
def test_rl_does_not_compile_for_each_length(tiny_config: Config, pattern: str) -> None:
    """Of lengths that `length_step` leaves, Inductor compiles one variant."""
    from torch._dynamo.utils import counters

    forward = model(tiny_config, window_pattern=pattern).compiled(dynamic=True)
    step = kernels.length_step(compiled=True)
    compiled = []
    for rows, longest in ((4, 200), (4, 231), (3, 150), (2, 255)):
        length = -(-longest // step) * step
        tokens = torch.zeros(rows, length, dtype=torch.int64, device="cuda")
        weights = torch.ones(rows, length, device="cuda")
        forward(tokens, tokens, None, weights).backward()
        compiled.append(counters["stats"]["unique_graphs"])
    assert compiled[-1] == compiled[0]


# ---------------------------------------------------------------- cards


def test_watching_and_detecting_take_memory_on_no_other_card(tiny_config: Config) -> None:
    torch.zeros(1, device="cuda")
    MachineUse().sample()
    detect_hardware(dataclasses.replace(tiny_config.train, device="cuda"))
    touched = ctypes.CDLL(None).null_contexts
    touched.restype = ctypes.c_uint64
    assert torch.cuda.device_count() == 2
    assert touched() == 1  # the first card alone
