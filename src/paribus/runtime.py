"""Where and on what a stage runs: folders, hardware, seeds, random state, digests, fingerprints, provenance.

Needs only the standard library to import; torch and numpy are imported by the functions that use them,
so that `paribus --help` stays quick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import math
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paribus
from paribus import config
from paribus.errors import UserError, naming
from paribus.git import refusal, try_git
from paribus.graph import (
    DigestMemo,
    StageDefinition,
    declared_params,
    file_digest,
    is_code,
    stage_code,
    stage_definition,
    stage_definitions,
    tree_digest,
    working_sources,
)

if TYPE_CHECKING:
    from torch import Tensor


# ---------------------------------------------------------------- folders


def main_checkout() -> Path:
    """The folder that keeps what outlives a stage.

    DVC runs queued and temporary experiments in a clone that it deletes, and names the main checkout in
    DVC_ROOT. Without DVC: the closest parent with `.dvc`, else with `dvc.yaml` or `.git`, else the working folder.
    """
    if root := os.environ.get("DVC_ROOT"):
        return Path(root).resolve()
    here = Path.cwd().resolve()
    for markers in ((".dvc",), ("dvc.yaml", ".git")):
        for folder in (here, *here.parents):
            if any((folder / marker).exists() for marker in markers):
                return folder
    return here


def state_root() -> Path:
    """`.paribus` in the main checkout, created if need be: resumable state, runs, executions."""
    root = main_checkout() / ".paribus"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            f"{root}: is a file, and paribus keeps its state in a folder of this name; move it away"
        ) from None
    return root


def find_checkpoint(name: str | Path) -> Path:
    """A checkpoint by its folder, or by its name below `checkpoints`. Raises UserError with the names there are."""
    for folder in (Path(name), Path("checkpoints") / name):
        with contextlib.suppress(OSError):  # a name that no file can have
            if (folder / "config.json").is_file():
                return folder
    names = sorted(path.parent.name for path in Path("checkpoints").glob("*/config.json"))
    near = difflib.get_close_matches(str(name), names, n=1)
    there = f"there are: {', '.join(names)}" if names else "`dvc repro` makes them"
    raise UserError(
        f"no checkpoint {str(name)!r:.200}; "
        + (f"did you mean {near[0]}? {there}" if near else there)
    )


def write_atomic(path: Path, text: str) -> None:
    """Replace a small file so that a reader, or the next start after a crash, sees the old or the new one whole.

    Raises MachineError, and leaves the old file, where the disk is full or refuses otherwise.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path), aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


# ---------------------------------------------------------------- hardware


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


def detect(train: config.Train) -> Hardware:
    """The hardware that `train.*` asks for. Raises UserError where this machine does not have it."""
    import torch

    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    device = train.device
    if device == "auto":
        device = "cuda" if available["cuda"] else "cpu"
        if not available["cuda"] and (driver := unused_driver()):
            raise UserError(
                f"train.device: auto finds an NVIDIA driver ({driver}), but torch {torch.__version__} cannot use it: "
                f"{_driver_cure(torch.version.cuda)}; in a container, start it with the GPUs (--gpus all); or set "
                "train.device: cpu to compute on the CPU"
            )
    if not available[device]:
        present = ", ".join(name for name, there in available.items() if there)
        raise UserError(
            f"train.device: {device} is not available to torch {torch.__version__} here; "
            f"there is: {present} (or auto)"
        )
    isa = instruction_set()
    threads, here = train.threads or available_cores(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Hardware(
        device=device,
        device_name=torch.cuda.get_device_name(own_card()) if device == "cuda" else cpu_name(),
        dtype=_quick_dtype(device, isa) if train.dtype == "auto" else train.dtype,
        threads=threads,
        processes=int(os.environ.get("WORLD_SIZE", "1")),
        process_threads=train.threads or max(threads // here, 1),
        isa=isa,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        compile=train.compile,
        deterministic=train.deterministic,
        activation_checkpointing=train.activation_checkpointing,
        torch_version=str(torch.__version__),
        libraries=kernel_libraries(device),
        environment=kernel_environment(),
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


def _driver_cure(cuda: str | None) -> str:
    if cuda is None:
        return "this build of torch has no CUDA; install the one that has (https://pytorch.org/get-started/locally)"
    least = LEAST_DRIVERS.get(cuda.partition(".")[0])
    newer = f"{least} or newer" if least else "a newer one"
    return (
        f"it is built for CUDA {cuda}, which needs driver {newer}; update the driver, or install the torch build for "
        "the CUDA of this driver (https://pytorch.org/get-started/locally)"
    )


def own_card() -> int:
    """Number of the card that this process trains on: that of its place among the processes of this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _quick_dtype(device: str, isa: str) -> str:
    """bfloat16 where matrix products are quicker in it (measured: 3 to 7 times with AMX, slower without)."""
    import torch

    if device == "cuda":
        # of the own card: to make another one the current device would take memory on it
        return "bfloat16" if torch.cuda.get_device_capability(own_card())[0] >= 8 else "float32"
    return "bfloat16" if device == "cpu" and isa in ("amx_bf16", "avx512_bf16") else "float32"


def rank() -> int:
    """This process's number among those that train together, as torchrun gave it; 0 on its own."""
    return int(os.environ.get("RANK", "0"))


def available_cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def instruction_set() -> str:
    """amx_bf16, avx512_bf16, avx512, avx2, or the machine's name where none of them is."""
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
    """The first value of a field of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    match = re.search(rf"^{re.escape(field)}\s*:(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else ""


def apply(hardware: Hardware, seed: int) -> None:
    """Set this process up for `hardware`: threads, kernels, and every global seed."""
    for name, value in CUBLAS_WORKSPACE.items():
        os.environ.setdefault(name, value)
    import random

    import numpy
    import torch

    keep_freed_memory()
    torch.set_num_threads(hardware.process_threads)
    if hardware.compile or hardware.device == "cuda":  # whose windows are compiled in any case
        torch.use_deterministic_algorithms(hardware.deterministic)
    else:  # the same without loading the compiler, which takes seconds
        torch.set_deterministic_debug_mode("error" if hardware.deterministic else "default")
    torch.backends.cudnn.benchmark = False
    # New tensors need no filling: what the trainer makes empty it writes in full, and results are the same to the byte.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if hardware.device == "cuda":
        # fp32 means fp32: answers that do not depend on the batch size (generate.py) need all of its 24 bits, of which
        # TF32 ("high") keeps 11. Beside bf16 no product in fp32 decides a token.
        precision = "highest" if hardware.dtype == "float32" else "high"
        torch.set_float32_matmul_precision(precision)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def keep_freed_memory() -> None:
    """glibc hands large freed blocks back to the kernel, which zeroes them anew at every step; let it keep them, in one heap.

    Measured on two cores: 5 to 15 % more training steps per second; a tenth less memory than with a heap for each thread.
    Elsewhere than on glibc there is nothing to do.
    """
    import ctypes

    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # names of mallopt(3)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(arena_max, 1)


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
        torch = sys.modules.get("torch")  # without it in this process the GPU is no concern
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


# ---------------------------------------------------------------- random state


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
        index = torch.cuda.current_device()  # asking the others would take memory on each of them
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


# ---------------------------------------------------------------- provenance


def stage_fingerprint(name: str, settings: config.Config, hardware: Hardware | None = None) -> str:
    """Names a run of a stage: equal parts, equal outputs. Raises UserError as `fingerprint_parts` does."""
    return config.fingerprint(**fingerprint_parts(name, settings, hardware))


def fingerprint_parts(
    name: str, settings: config.Config, hardware: Hardware | None = None
) -> dict[str, Any]:
    """Everything that a run of a stage is a function of, as JSON.

    name: of the stage in dvc.yaml, with `@item` where it has one.
    Returns stage; params: dotted key -> value, as declared; deps: data dep -> digest of its contents; code: source
    file -> digest of what the stage reaches of it; hardware: `Hardware.hardware_class()` or None.
    Raises UserError for a param that params.yaml does not have, or a dep that does not exist.
    """
    definition = stage_definition(name)
    return {
        "stage": name,
        "params": declared_params(definition, settings),
        "deps": dep_digests(definition),
        "code": stage_code(name, working_sources()),
        "hardware": hardware.hardware_class() if hardware else None,
    }


def dep_digests(definition: StageDefinition) -> dict[str, str]:
    """Data dep -> digest of its contents; a large file that did not change is read once. Raises UserError for an absent one."""
    memo = DigestMemo(state_root() / "digests.json")
    return {path: tree_digest([path], memo) for path in definition.deps if not is_code(path)}


def provenance(hardware: Hardware | None = None) -> dict[str, Any]:
    """Code, environment and machine of this process, as JSON; git's values are None outside a repository.

    `git.dirty` speaks of sources: what stages write (outs, metrics, plots, dvc.lock) always differs while they run.
    """
    lock = next(
        (
            folder / "requirements.lock"
            for folder in (Path.cwd(), main_checkout())
            if (folder / "requirements.lock").is_file()
        ),
        None,
    )
    return {
        "git": git_state(),
        "dvc_experiment": os.environ.get("DVC_EXP_NAME"),
        "requirements_lock": file_digest(lock) if lock else None,
        "versions": _versions(),
        "hardware": dataclasses.asdict(hardware) if hardware else None,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "command": shlex.join(sys.argv),
        "paribus": paribus.__version__,
    }


def git_state() -> dict[str, Any]:
    """{commit, branch, dirty, diff: sha256 of the uncommitted changes or None} of the working folder.

    Where git refuses a repository that is there, `problem` has its reason.
    """
    if try_git("rev-parse", "--git-dir") is None:
        problem = refusal()
        nothing = {"commit": None, "branch": None, "dirty": None, "diff": None}
        return nothing | ({"problem": problem} if problem else {})
    outs = {"dvc.lock"}
    if Path("dvc.yaml").is_file():
        outs |= {out for stage in stage_definitions().values() for out in stage.outs}
    sources = ["--", ".", *(f":(exclude){out}" for out in sorted(outs))]
    status = try_git("status", "--porcelain", *sources) or ""
    changes = status + (try_git("diff", "HEAD", *sources) or "")
    return {
        "commit": try_git("rev-parse", "--verify", "--quiet", "HEAD"),
        "branch": try_git("symbolic-ref", "--quiet", "--short", "HEAD"),
        "dirty": bool(status),
        "diff": hashlib.sha256(changes.encode(errors="surrogateescape")).hexdigest()
        if status
        else None,
    }


def git_time() -> float | None:
    """When the last commit was made, seconds since 1970; None outside a repository."""
    committed = try_git("log", "-1", "--format=%ct")
    return float(committed) if committed else None


def _versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide results, without importing them."""
    from importlib import metadata

    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in (
        "torch",
        "numpy",
        "tokenizers",
        "safetensors",
        "dvc",
        "mlflow",
        "optuna",
        "lm_eval",
        "datasets",
    ):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions
