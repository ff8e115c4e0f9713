"""The kernel of sliding windows: what a measurement decides, where it is kept, and what a model does with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paribus.config import Config, resolve_model
from paribus.machine.hardware import Hardware, detect_hardware
from paribus.model import attention, layers, window_kernel
from paribus.model.gpt import GPT
from paribus.model.window_kernel import Choice, has_choice, refusal, settled


def card(config: Config, dtype: Any = "bfloat16") -> Hardware:
    """A card's hardware, on this machine."""
    train = dataclasses.replace(config.train, device="cpu", dtype=dtype)
    return dataclasses.replace(detect_hardware(train), device="cuda", device_name="a card")


def windowed(config: Config, **changes: Any) -> Config:
    """The configuration with heads that flash attention takes."""
    shape: dict[str, Any] = {"head_dim": 16, "window": 8, "window_pattern": "SL"} | changes
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **shape))


@pytest.mark.parametrize(
    ("found", "again", "ratio", "said"),
    [
        (1.0, 1.0, 0.5, ""),
        (1.1, 1.1, 0.5, "off by 0.1"),
        (float("nan"), float("nan"), 0.5, "off by nan"),
        (1.0, 1.001, 0.5, "differ from call to call"),
        (1.0, 1.0, 0.99, "0.99 of FlexAttention's time"),
    ],
)
def test_flash_attention_is_taken_only_where_it_is_right_repeats_and_is_faster(
    found: float, again: float, ratio: float, said: str
) -> None:
    expected, first, second = ([torch.tensor([x])] for x in (1.0, found, again))
    assert said in refusal(expected, first, second, ratio)
    assert bool(refusal(expected, first, second, ratio)) == bool(said)


def test_a_choice_is_measured_once_and_names_the_hardware_class(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    config, hardware = windowed(tiny_config), card(tiny_config)
    measured = [Choice("flash", 2.0, 1.0, "")]
    monkeypatch.setattr(window_kernel, "measure", lambda model: measured.pop())
    model = resolve_model(config.model)
    first, second = settled(hardware, model), settled(hardware, model)
    assert first == second
    assert first.hardware_class() == hardware.hardware_class() | {"window_kernel": "flash"}


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        ("float32", {}),
        ("bfloat16", {"head_dim": 12}),
        ("bfloat16", {"attention_softcap": 2.0}),
        ("bfloat16", {"window_pattern": "L"}),
    ],
)
def test_what_flash_attention_cannot_do_is_never_measured(
    dtype: str, changes: dict[str, Any], tiny_config: Config
) -> None:
    config = windowed(tiny_config, **changes)
    assert not has_choice(card(tiny_config, dtype), resolve_model(config.model))


def test_a_flash_window_sees_what_a_window_s_mask_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments that flash attention gets, by its own description of them: (keys to the left, keys to the right)."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 12, 8) for heads in (4, 2, 2))

    def described(
        q: Tensor, k: Tensor, v: Tensor, starts: Tensor, *_: object, **options: Any
    ) -> Tensor:
        left, right = options["window_size"]
        queries, keys, values = (
            x.unflatten(0, (len(starts) - 1, -1)).transpose(1, 2) for x in (q, k, v)
        )
        places = torch.arange(queries.shape[2])
        distance = places[:, None] - places
        seen = (distance <= left) & (distance >= -right)
        attended = torch.nn.functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=seen, enable_gqa=options["enable_gqa"]
        )
        return attended.transpose(1, 2).flatten(0, 1)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", described)
    mask = attention.dense_mask(torch.arange(12)[None], 5, None, None)
    expected = attention.attend(q, k, v, mask)
    assert torch.allclose(attention.attend(q, k, v, attention.FlashWindow(5)), expected, atol=1e-6)


def test_packed_rows_keep_their_block_masks(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = GPT(resolve_model(windowed(tiny_config).model), 64)
    model.window_kernel = "flash"
    seen: list[str] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: object, *_: float) -> Tensor:
        seen.append(type(mask).__name__)
        return q

    monkeypatch.setattr(
        attention, "backend", lambda device, length, window, *_: "flex" if window else "causal"
    )
    monkeypatch.setattr(layers, "attend", attend)
    tokens = torch.zeros(1, 16, dtype=torch.int64)
    model.hidden(tokens)
    plain = set(seen)
    seen.clear()
    model.hidden(tokens, torch.zeros(1, 16, dtype=torch.int32))
    assert "FlashWindow" in plain
    assert "BlockMask" in seen
    assert "FlashWindow" not in seen
