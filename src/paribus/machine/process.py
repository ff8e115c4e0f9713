"""Setting up the process of a stage: threads, determinism, memory, and the state of random generators."""

from __future__ import annotations

import contextlib
import math
import os
import re
import resource
import sys
from typing import TYPE_CHECKING

from paribus.machine import waiting
from paribus.machine.hardware import CUBLAS_WORKSPACE, Hardware

if TYPE_CHECKING:
    from torch import Tensor


def set_up_process(hardware: Hardware, seed: int) -> None:
    """Set this process up for `hardware`: threads, kernels, and every global seed."""
    for name, value in CUBLAS_WORKSPACE.items():
        os.environ.setdefault(name, value)
    import random

    import numpy
    import torch

    keep_freed_memory()
    torch.set_num_threads(hardware.process_threads)
    if hardware.process_threads > 1:
        waiting.watch()
    if hardware.compile or hardware.device == "cuda":  # whose windows are compiled in any case
        torch.use_deterministic_algorithms(hardware.deterministic)
    else:  # the same without loading the compiler, which takes seconds
        torch.set_deterministic_debug_mode("error" if hardware.deterministic else "default")
    torch.backends.cudnn.benchmark = False
    # New tensors need no filling: what the trainer makes empty it writes in full, and results are the same to the byte.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if hardware.device == "cuda":
        # fp32 means fp32: answers that do not depend on the batch size (generate.py) need all of its 24 bits, of which
        # TF32 ("high") keeps 11: `train.tf32` asks for that. Beside bf16 no product in fp32 decides a token.
        exact = hardware.dtype == "float32" and not hardware.tf32
        precision = "highest" if exact else "high"
        torch.set_float32_matmul_precision(precision)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks, in one heap.

    By default it returns them to the kernel, which zeroes them anew at every step. Measured on two cores: 5 to 15 % more
    training steps per second; a tenth less memory than with a heap for each thread. Without glibc there is nothing to do.
    """
    import ctypes

    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # names of mallopt(3)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(arena_max, 1)


def most_resident(process: int | None = None) -> int:
    """The most bytes of memory that a process has held so far; 0 where it has ended or the system does not say.

    Linux keeps getrusage's figure over an exec, so that a process started by a larger one would show its parent's. Where
    /proc lacks the mark (gVisor), what the process holds now stands for it.

    Args:
        process: its id; None: this process.
    """
    try:
        with open(f"/proc/{process or 'self'}/status", encoding="ascii", errors="replace") as file:
            status = file.read()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return 0 if process else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    for name in ("VmHWM", "VmRSS"):
        found = re.search(rf"{name}:\s*(\d+) kB", status)
        if found:
            return int(found[1]) * 1024
    return 0


class MachineUse:
    """How busy the machine is, under the names of MLflow's own system metrics."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self._process.cpu_percent()  # the first calls have nothing to compare with
        psutil.cpu_percent()

    def sample(self) -> dict[str, float]:
        """Since the last sample: percentages (100 is one core for a process) and megabytes."""
        import psutil

        use = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_percentage": psutil.virtual_memory().percent,
            "process_cpu_percentage": self._process.cpu_percent(),
            "process_memory_megabytes": self._process.memory_info().rss / 1e6,
        }
        torch = sys.modules.get("torch")  # a process without torch uses no GPU
        if torch is not None and torch.cuda.is_initialized():
            index = (
                torch.cuda.current_device()
            )  # asking for another takes its memory: 300 to 500 MB
            free, total = torch.cuda.mem_get_info(index)
            use[f"gpu_{index}_memory_usage_megabytes"] = (total - free) / 1e6
            # Asks nvidia-ml-py, which a bare machine may lack; a part of a card (MIG) or a container without NVML
            # raises errors of its own. Whatever it is, the figure is left out and the caller's thread goes on.
            with contextlib.suppress(Exception):
                use[f"gpu_{index}_utilization_percentage"] = float(torch.cuda.utilization(index))
        return use


def rng_state() -> dict[str, Tensor]:
    """The state of Python's, numpy's and torch's global generators as plain tensors, fit for safetensors.

    Keys: python (625,) int64, numpy (626,) int64 (key, position, has_gauss), *_gauss (1,) float64 (nan: none),
    torch (bytes,) uint8, cuda.<i> (bytes,) uint8, of the device in use.
    """
    import random

    import numpy
    import torch

    _, python, gauss = random.getstate()
    numbers = numpy.random.get_state(legacy=False)
    state = {
        "python": torch.tensor(python, dtype=torch.int64),
        "python_gauss": torch.tensor([math.nan if gauss is None else gauss], dtype=torch.float64),
        "numpy": torch.tensor(
            [*numbers["state"]["key"].tolist(), numbers["state"]["pos"], numbers["has_gauss"]]
        ),
        "numpy_gauss": torch.tensor([numbers["gauss"]], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        index = torch.cuda.current_device()  # asking the other GPUs would take memory on each
        state[f"cuda.{index}"] = torch.cuda.get_rng_state(index)
    return state


def restore_rng(state: dict[str, Tensor]) -> None:
    """Put every generator back to a `rng_state`; CUDA devices that are not here are left out."""
    import random

    import numpy
    import torch

    gauss = float(state["python_gauss"])
    random.setstate((3, tuple(state["python"].tolist()), None if math.isnan(gauss) else gauss))
    *key, position, has_gauss = state["numpy"].tolist()
    cached = float(state["numpy_gauss"])
    numpy.random.set_state(
        ("MT19937", numpy.array(key, dtype=numpy.uint32), position, has_gauss, cached)
    )
    torch.set_rng_state(state["torch"])
    for index in range(torch.cuda.device_count()):
        if f"cuda.{index}" in state:
            torch.cuda.set_rng_state(state[f"cuda.{index}"], index)
