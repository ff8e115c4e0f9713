"""What a stage runs on: the device, its class for comparisons, cores and kernels.

Needs only the standard library to import; torch is imported by the functions that use it, so that `paribus --help` stays quick.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus import config
from paribus.errors import UserError
from paribus.launched import launched

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Hardware:
    """What a training stage computes on, every `auto` resolved."""

    device: str  # cpu, cuda or mps
    device_name: str
    dtype: str  # of matrix products: float32 or bfloat16
    threads: int  # of the CPU, as one process would have them
    processes: int  # that train together
    process_threads: int  # of the CPU, of each process
    isa: str  # the CPU's best instruction set for matrix products
    cpu_capability: str  # the instruction set of torch's own CPU kernels
    compile: bool
    deterministic: bool
    activation_checkpointing: bool
    torch_version: str
    libraries: dict[str, str]  # name -> version of what else computes
    environment: dict[str, str]  # variables that choose kernels, where they are set
    tf32: bool  # whether products of float32 numbers round their factors to 11 bits
    fp8: bool = False  # whether block matrices multiply 8-bit floats in supervised training
    decode_graphs: bool = False  # whether steps of decoding are CUDA graphs, of rounded sizes
    window_kernel: str = "flex"  # of windows on CUDA: flex, or flash where it was measured faster

    def hardware_class(self) -> dict[str, Any]:
        """What of the hardware and the software under it decides the bits of a result; part of the fingerprint.

        Measured: eager and compiled differ, and so do numbers of threads, instruction sets and the variables in
        `environment` on a CPU. MKL and oneDNN choose kernels by the CPU's model as well. So do numbers of processes, but a
        run may go on with another number of them: they are in the provenance instead.
        """
        names = [
            "device",
            "device_name",
            "dtype",
            "isa",
            "cpu_capability",
            "compile",
            "deterministic",
            "activation_checkpointing",
            "torch_version",
            "libraries",
            "environment",
        ]
        if self.device == "cpu":
            names.append("threads")
        if self.tf32:
            names.append("tf32")
        if self.fp8:
            names.append("fp8")
        if self.decode_graphs:
            names.append("decode_graphs")
        if self.window_kernel != "flex":
            names.append("window_kernel")
        return {name: getattr(self, name) for name in names}


# Packages besides torch whose code decides bits. Those of CUDA go by many names (nvidia-cublas, nvidia-cublas-cu12).
LIBRARIES = ("numpy", "tokenizers", "safetensors")
CUDA_LIBRARIES = (
    "nvidia-cublas",
    "nvidia-cudnn",
    "nvidia-cuda-nvrtc",
    "nvidia-cusparselt",
    "nvidia-nccl",
    "triton",
    "pytorch-triton",
)
# Beginnings of the names of variables that choose kernels or their precision: of torch, MKL, oneDNN, OpenBLAS, numpy,
# glibc, and on CUDA of cuBLAS, cuDNN, NCCL, Inductor and Triton.
KERNEL_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "MKL_",
    "ONEDNN_",
    "DNNL_",
    "OPENBLAS_CORETYPE",
    "NPY_DISABLE_CPU_FEATURES",
    "NPY_ENABLE_CPU_FEATURES",
    "GLIBC_TUNABLES",
    "CUBLAS",
    "CUDNN_",
    "NVIDIA_TF32_OVERRIDE",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_BLAS_PREFER_",
    "TORCH_CUDNN_",
    "TORCH_LINALG_PREFER_",
    "DISABLE_ADDMM_CUDA_LT",
    "PYTORCH_TUNABLEOP_",
    "TORCHINDUCTOR_",
    "TRITON_F32_DEFAULT",
)
# Those among them that choose nothing: numbers of threads are torch's own to set, the rest is output and caches.
IDLE_VARIABLES = re.compile(r"_NUM_THREADS$|VERBOSE|CACHE|LOG|DEBUG$|_DIR$|TRACE|PROFILE")
# cuBLAS reads it when its first handle is made; without it deterministic mode raises on CUDA.
CUBLAS_WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


# The first compute capability that has them: Ampere; Ada, whose 8-bit products torch takes as it takes Hopper's.
TF32_CARDS, FP8_CARDS = (8, 0), (8, 9)


def kernel_environment() -> dict[str, str]:
    """The variables that choose kernels, where they are set to anything but what this program sets itself."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(KERNEL_VARIABLES)
        and not IDLE_VARIABLES.search(name)
        and CUBLAS_WORKSPACE.get(name) != value
    }


def kernel_libraries(device: str) -> dict[str, str]:
    """Versions of the packages, besides torch, whose code decides the bits of what `device` computes."""
    from importlib import metadata

    versions = {name: metadata.version(name) for name in LIBRARIES}
    if device != "cuda":
        return versions
    import torch

    versions["cuda"] = str(torch.version.cuda)
    versions["cudnn"] = str(torch.backends.cudnn.version())
    for package in metadata.distributions():
        name = package.metadata["Name"].lower()
        if name.startswith(CUDA_LIBRARIES):
            versions[name] = package.version
    return versions


def detect_hardware(train: config.Train) -> Hardware:
    """The hardware that `train.*` requests. Raises UserError where this machine does not have it."""
    import torch

    device = _device(train)
    isa = instruction_set()
    place = launched()
    threads = train.threads or available_cores()
    if train.tf32:
        _require_card("tf32", device, TF32_CARDS)
    if train.fp8:
        _require_card("fp8", device, FP8_CARDS)
    if train.decode_graphs:
        _require_card("decode_graphs", device)
    return Hardware(
        device=device,
        device_name=torch.cuda.get_device_name(own_card()) if device == "cuda" else cpu_name(),
        dtype=_quick_dtype(device, isa) if train.dtype == "auto" else train.dtype,
        threads=threads,
        processes=place.processes,
        process_threads=train.threads or max(threads // place.local_processes, 1),
        isa=isa,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        compile=train.compile,
        deterministic=train.deterministic,
        activation_checkpointing=train.activation_checkpointing,
        torch_version=str(torch.__version__),
        libraries=kernel_libraries(device),
        environment=kernel_environment(),
        tf32=train.tf32,
        fp8=train.fp8,
        decode_graphs=train.decode_graphs,
    )


def _device(train: config.Train) -> str:
    """The device that `train.device` names. Raises UserError where torch cannot compute on it here."""
    import torch

    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if train.device in ("auto", "cuda") and not available["cuda"]:
        _refuse_unused_driver(train.device)
    device = train.device
    if device == "auto":
        device = "cuda" if available["cuda"] else "cpu"
    if not available[device]:
        present = ", ".join(name for name, there in available.items() if there)
        raise UserError(
            f"train.device: {device} is not available to torch {torch.__version__} here; "
            f"there is: {present} (or auto)"
        )
    problem = unsupported_card(own_card()) if device == "cuda" else None
    if problem:
        raise UserError(f"train.device: {train.device}: {problem}; or set train.device: cpu")
    return device


def _require_card(key: str, device: str, capability: tuple[int, int] = (0, 0)) -> None:
    """Raises UserError where there is no card, or none of at least that compute capability."""
    import torch

    if device != "cuda":
        raise UserError(
            f"train.{key}: true is for CUDA cards, and this machine computes on {device}"
        )
    found = torch.cuda.get_device_capability(own_card())
    if found < capability:
        needed, there = (f"{major}.{minor}" for major, minor in (capability, found))
        raise UserError(
            f"train.{key}: true needs a card of compute capability {needed}, and "
            f"{torch.cuda.get_device_name(own_card())} has {there}; set it to false"
        )


def _refuse_unused_driver(device: str) -> None:
    """Raises UserError where there is a driver of a card that torch does not use."""
    import torch

    driver = unused_driver()
    if driver is not None:
        raise UserError(
            f"train.device: {device} finds an NVIDIA driver ({driver}), but torch {torch.__version__} cannot "
            f"use it: {driver_cure(torch.version.cuda)}; in a container, start it with the GPUs (--gpus all); or "
            "set train.device: cpu to compute on the CPU"
        )


# Of the driver, for each CUDA that torch's builds come with (NVIDIA's CUDA Toolkit release notes, table 3).
LEAST_DRIVERS = {"13": "580", "12": "525", "11": "450"}


def unused_driver() -> str | None:
    """The version of the NVIDIA driver here, or what it says of itself, where there is one for torch to use.

    None without a driver, where it finds no card, and where CUDA_VISIBLE_DEVICES hides all cards.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    loaded = Path("/proc/driver/nvidia/version")
    if loaded.is_file():
        cards = loaded.parent / "gpus"
        if cards.is_dir() and not any(cards.iterdir()):
            return None
        return _driver_version(loaded.read_text(encoding="utf-8"))
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {error}"
    said = f"{asked.stdout}\n{asked.stderr}"
    return None if "No devices were found" in said else _driver_version(said)


def _driver_version(text: str) -> str:
    """535.104.05 of a text that has it; else the text's first line."""
    version = re.search(r"\b\d{3,4}\.\d+(\.\d+)?\b", text)
    if version:
        return version[0]
    return text.strip().partition("\n")[0] or "which names no version"


def driver_cure(cuda: str | None) -> str:
    """What to do about a driver that torch cannot use. cuda: the CUDA of torch's build; None: a build without."""
    if cuda is None:
        return "this build of torch has no CUDA; install the one that has (https://pytorch.org/get-started/locally)"
    least = LEAST_DRIVERS.get(cuda.partition(".")[0])
    newer = f"{least} or newer" if least else "a newer one"
    return (
        f"it is built for CUDA {cuda}, which needs driver {newer}; update the driver, or install the torch build for "
        "the CUDA of this driver (https://pytorch.org/get-started/locally)"
    )


def unsupported_card(index: int) -> str | None:
    """Why a card cannot run the kernels of this build of torch, with the cure; None where it can.

    A kernel built for one compute capability (sm_86) runs on cards of the same generation that are as new, and its
    portable form (compute_86) on all newer ones. Without such a kernel the first operation on the card fails.
    """
    import torch

    built = torch.cuda.get_arch_list()
    kernels = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name) for name in built]
    known = [(found[1], int(found[2]), int(found[3])) for found in kernels if found]
    if not known:  # a build that does not say what it is built for
        return None
    major, minor = torch.cuda.get_device_capability(index)
    for form, of_major, of_minor in known:
        if form == "sm" and of_major == major and of_minor <= minor:
            return None
        if form == "compute" and (of_major, of_minor) <= (major, minor):
            return None
    return (
        f"{torch.cuda.get_device_name(index)} has compute capability {major}.{minor}, and torch {torch.__version__} is "
        f"built for {', '.join(built)}; install a build of torch for this card "
        "(https://pytorch.org/get-started/previous-versions)"
    )


def own_card() -> int:
    """Number of the card that this process trains on: that of its place among the processes of this machine."""
    return launched().local_rank


def _quick_dtype(device: str, isa: str) -> str:
    """bfloat16 where matrix products are quicker in it (measured: 3 to 7 times with AMX, slower without)."""
    import torch

    if device == "cuda":
        # of the own card: to make another one the current device would take memory on it
        return "bfloat16" if torch.cuda.get_device_capability(own_card())[0] >= 8 else "float32"
    return "bfloat16" if device == "cpu" and isa in ("amx_bf16", "avx512_bf16") else "float32"


def available_cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def instruction_set() -> str:
    """amx_bf16, avx512_bf16, avx512, avx2, or the machine's name where the CPU has none of these."""
    flags = set(_cpuinfo("flags").split())
    best_first = {
        "amx_bf16": "amx_bf16",
        "avx512_bf16": "avx512_bf16",
        "avx512f": "avx512",
        "avx2": "avx2",
    }
    for flag, name in best_first.items():
        if flag in flags:
            return name
    return platform.machine()


def cpu_name() -> str:
    """The CPU's model name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str:
    """The first value of a field of /proc/cpuinfo; empty without such a field."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    match = re.search(rf"^{re.escape(field)}\s*:(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else ""
