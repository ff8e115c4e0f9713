"""A process is set up so that it repeats, and its use of the machine is watched."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from paribus.config import Config
from paribus.machine.hardware import detect_hardware
from paribus.machine.process import MachineUse, restore_rng, rng_state, set_up_process


def draw() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(numpy.random.randn()),
        *torch.randn(3).tolist(),
    ]


def test_apply_seeds_everything(tiny_config: Config) -> None:
    hardware = detect_hardware(tiny_config.train)
    drawn = []
    for seed in (7, 7, 8):
        set_up_process(hardware, seed)
        drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[0], drawn[2], strict=True))
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()


def test_random_state_survives_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for odd in (False, True):  # an odd number of Gaussian draws leaves one cached in each generator
        draw()
        if odd:
            random.gauss(0, 1)
            numpy.random.randn()
        save_file(rng_state(), tmp_path / "rng.safetensors")
        expected = [draw(), draw()]
        random.seed(0)
        numpy.random.seed(0)
        torch.manual_seed(0)
        restore_rng(load_file(tmp_path / "rng.safetensors"))
        assert [draw(), draw()] == expected


def test_fp32_on_cuda_is_not_tf32(tiny_config: Config) -> None:
    """What keeps answers apart from the batch size is measured in fp32; TF32 rounds a thousand times coarser."""
    hardware = detect_hardware(tiny_config.train)
    before = torch.get_float32_matmul_precision()
    try:
        for dtype, precision in (("float32", "highest"), ("bfloat16", "high")):
            set_up_process(dataclasses.replace(hardware, device="cuda", dtype=dtype), 0)
            assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
        set_up_process(hardware, 0)


class Cards:
    """Stands in for torch.cuda: two cards, this process on the second; NVML answers what it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nvml: Exception | None) -> None:
        self.touched: set[int] = set()
        self.nvml = nvml
        for name in ("mem_get_info", "utilization"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)

    def mem_get_info(self, index: int) -> tuple[int, int]:
        self.touched.add(index)
        return 10 * 10**9, 24 * 10**9

    def utilization(self, index: int) -> int:
        if self.nvml is not None:
            raise self.nvml
        return 87


def test_watching_the_machine_takes_no_memory_on_other_cards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cards = Cards(monkeypatch, None)
    use = MachineUse().sample()
    assert cards.touched == {1}
    assert use["gpu_1_memory_usage_megabytes"] == 14_000
    assert use["gpu_1_utilization_percentage"] == 87


@pytest.mark.parametrize("error", [RuntimeError("NVML"), OSError("MIG"), ImportError("pynvml")])
def test_a_card_that_does_not_tell_its_load_leaves_that_figure_out(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Cards(monkeypatch, error)
    use = MachineUse().sample()
    assert "gpu_1_memory_usage_megabytes" in use
    assert "gpu_1_utilization_percentage" not in use


def test_new_tensors_are_not_filled_first(tiny_config: Config) -> None:
    set_up_process(detect_hardware(tiny_config.train), 0)
    deterministic: Any = torch.utils.deterministic
    assert not deterministic.fill_uninitialized_memory
