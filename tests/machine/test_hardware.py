"""Hardware: what `auto` resolves to, what decides bits, a GPU that is there or half there."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest
import torch
from support.checkout import ROOT

from paribus.config import Config, load_config
from paribus.errors import UserError
from paribus.machine.hardware import detect_hardware, instruction_set


def run_python(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    process: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, **options
    )
    return process


class Driver(Protocol):
    """Puts an `nvidia-smi` on the PATH."""

    def __call__(self, text: str, status: int = 0) -> None: ...


Card = Callable[[tuple[int, int], list[str]], None]


def test_importing_the_machine_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, paribus.machine.hardware, paribus.machine.provenance; "
        "print({'torch', 'numpy', 'yaml', 'mlflow', 'psutil'} & set(sys.modules))"
    )
    assert run_python(code).communicate()[0].strip() == "set()"


def test_auto_is_resolved_and_what_decides_bits_is_in_the_class(tiny_config: Config) -> None:
    train = dataclasses.replace(tiny_config.train, device="cpu", dtype="auto", threads=None)
    hardware = detect_hardware(train)
    quick = hardware.isa in ("amx_bf16", "avx512_bf16")
    assert hardware.dtype == ("bfloat16" if quick else "float32")
    assert hardware.threads == len(os.sched_getaffinity(0))
    one = hardware.hardware_class()
    changes: dict[str, Any] = {
        "threads": 99,
        "dtype": "x",
        "compile": True,
        "isa": "x",
        "deterministic": False,
        "tf32": True,
        "fp8": True,
        "decode_graphs": True,
        "device_name": "another CPU",
        "cpu_capability": "x",
        "libraries": {},
        "environment": {"MKL_CBWR": "COMPATIBLE"},
    }
    for name, value in changes.items():
        assert dataclasses.replace(hardware, **{name: value}).hardware_class() != one


def test_tf32_is_refused_without_a_card_that_has_it(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = dataclasses.replace(tiny_config.train, device="cpu", dtype="float32", tf32=True)
    with pytest.raises(UserError, match="this machine computes on cpu"):
        detect_hardware(train)


def test_graphs_are_refused_without_a_card(tiny_config: Config) -> None:
    sharded = {"train.sharding": "fsdp", "train.processes": 2}
    for others, said in (({"train.device": "cpu"}, "device is cpu"), (sharded, "sharding: fsdp")):
        with pytest.raises(UserError, match=rf"train\.decode_graphs: true .* train\.{said}"):
            load_config(ROOT / "params.yaml", {"train.decode_graphs": True, **others})
    train = dataclasses.replace(tiny_config.train, device="cpu", decode_graphs=True)
    with pytest.raises(UserError, match=r"train\.decode_graphs: true is for CUDA cards"):
        detect_hardware(train)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ATEN_CPU_CAPABILITY", "default"),
        ("MKL_CBWR", "COMPATIBLE"),
        ("MKL_ENABLE_INSTRUCTIONS", "AVX2"),
        ("ONEDNN_MAX_CPU_ISA", "SSE41"),
        ("DNNL_DEFAULT_FPMATH_MODE", "BF16"),
        ("TORCHINDUCTOR_MAX_AUTOTUNE", "1"),
    ],
)
def test_a_variable_that_chooses_kernels_is_another_hardware_class(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.delenv(variable, raising=False)
    before = detect_hardware(tiny_config.train)
    monkeypatch.setenv(variable, value)
    after = detect_hardware(tiny_config.train)
    assert before.hardware_class() != after.hardware_class()
    assert after.environment[variable] == value


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OMP_NUM_THREADS", "3"),
        ("MKL_NUM_THREADS", "3"),
        ("ONEDNN_VERBOSE", "1"),
        ("TORCHINDUCTOR_CACHE_DIR", "/tmp/x"),
        ("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),
    ],
)
def test_a_variable_that_chooses_nothing_is_not(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    before = detect_hardware(tiny_config.train).hardware_class()
    monkeypatch.setenv(variable, value)
    assert detect_hardware(tiny_config.train).hardware_class() == before


def test_torchs_capability_is_the_one_it_computes_with(tiny_config: Config) -> None:
    code = (
        "import sys; from paribus import config; from paribus.machine.hardware import detect_hardware;"
        "from support.tiny import TINY;"
        "print(detect_hardware(config.load_config(sys.argv[1], overrides=TINY).train).cpu_capability)"
    )
    root = ROOT
    environment = os.environ | {
        "ATEN_CPU_CAPABILITY": "default",
        "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root / "tools")]),
    }
    done = run_python(code, str(root / "params.yaml"), env=environment).communicate()[0]
    assert done.strip() == "DEFAULT"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_asking_for_cuda_without_it_says_what_there_is(tiny_config: Config) -> None:
    with pytest.raises(UserError, match=r"train.device: cuda is not available.*there is: cpu"):
        detect_hardware(dataclasses.replace(tiny_config.train, device="cuda"))


def test_the_instruction_set_is_one_the_cpu_names() -> None:
    flags = Path("/proc/cpuinfo").read_text()
    assert instruction_set().replace("avx512", "avx512f", 1).replace("avx512f_", "avx512_") in flags


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Puts an `nvidia-smi` on the PATH that prints a text, as of a driver that torch cannot use."""

    def install(text: str, status: int = 0) -> None:
        command = tmp_path / "nvidia-smi"
        command.write_text(f"#!/bin/sh\necho '{text}'\nexit {status}\n")
        command.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return install


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_driver_that_is_too_old_is_named_and_the_cpu_not_taken_in_its_place(
    tiny_config: Config,
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
    device: Literal["auto", "cuda"],
) -> None:
    driver("535.104.05")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    train = dataclasses.replace(tiny_config.train, device=device)
    with pytest.raises(
        UserError, match=r"NVIDIA driver \(535\.104\.05\).*CUDA 13\.0.*driver 580 or newer.*cpu"
    ):
        detect_hardware(train)
    assert detect_hardware(dataclasses.replace(train, device="cpu")).device == "cpu"


def test_auto_names_a_torch_without_cuda_beside_a_driver(
    tiny_config: Config, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver("NVIDIA-SMI has failed: Driver/library version mismatch", status=18)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match="version mismatch.*this build of torch has no CUDA"):
        detect_hardware(dataclasses.replace(tiny_config.train, device="auto"))


def test_a_driver_without_a_card_and_hidden_cards_leave_the_cpu(
    tiny_config: Config, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = dataclasses.replace(tiny_config.train, device="auto")
    driver("No devices were found", status=6)
    assert detect_hardware(auto).device == "cpu"
    driver("580.65.06")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect_hardware(auto).device == "cpu"


BUILT = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120a"]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """Puts one card on this machine: its compute capability, and what torch's build has kernels for."""

    def install(capability: tuple[int, int], built: list[str]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a card")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)

    return install


@pytest.mark.parametrize("capability", [(6, 1), (7, 0), (11, 0)])
def test_a_card_that_torchs_build_has_no_kernels_for_is_refused(
    tiny_config: Config,
    card: Card,
    capability: tuple[int, int],
) -> None:
    card(capability, BUILT)
    for device in ("auto", "cuda"):
        with pytest.raises(UserError, match=rf"{device}: a card has .*{capability[0]}\..*sm_75, "):
            detect_hardware(dataclasses.replace(tiny_config.train, device=device))
    assert detect_hardware(dataclasses.replace(tiny_config.train, device="cpu")).device == "cpu"


@pytest.mark.parametrize(
    ("capability", "built"),
    [((8, 9), BUILT), ((9, 0), BUILT), ((12, 0), BUILT), ((12, 1), ["sm_90", "compute_120"])],
)
def test_a_card_of_a_generation_that_torch_is_built_for_is_taken(
    tiny_config: Config,
    card: Card,
    capability: tuple[int, int],
    built: list[str],
) -> None:
    card(capability, built)
    assert detect_hardware(dataclasses.replace(tiny_config.train, device="auto")).device == "cuda"


@pytest.mark.parametrize(
    ("key", "too_old", "first"), [("tf32", (7, 5), (8, 0)), ("fp8", (8, 6), (8, 9))]
)
def test_a_card_without_a_kind_of_product_is_refused(
    tiny_config: Config,
    card: Card,
    key: str,
    too_old: tuple[int, int],
    first: tuple[int, int],
) -> None:
    kinds: dict[str, Any] = {key: True}
    train = dataclasses.replace(tiny_config.train, device="cuda", **kinds)
    card(too_old, BUILT)
    needed = f"{first[0]}.{first[1]}"
    with pytest.raises(UserError, match=rf"train\.{key}: true needs .*{needed}, and a card has"):
        detect_hardware(train)
    card(first, BUILT)
    assert getattr(detect_hardware(train), key)


def test_each_process_asks_for_the_name_of_its_own_card(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To ask for the current one would take memory on the first card for every process."""
    asked: list[int] = []

    def name(index: int) -> str:
        asked.append(index)
        return "card"

    def capability(index: int) -> tuple[int, int]:
        asked.append(index)
        return 8, 6

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    train = dataclasses.replace(tiny_config.train, device="auto", dtype="auto")
    assert detect_hardware(train).dtype == "bfloat16"
    assert asked == [1, 1]
