"""places.py and machine/: folders, hardware, seeds, fingerprints, provenance, locks, being asked to stop."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy
import pytest
import torch

from paribus import config, graph
from paribus.config import Config
from paribus.errors import MachineError, UserError
from paribus.files import remove_leftovers
from paribus.machine.hardware import Hardware, detect_hardware, instruction_set
from paribus.machine.interrupt import EXIT_PAUSED, Interrupt
from paribus.machine.lock import StateLock, lock_holder
from paribus.machine.process import MachineUse, restore_rng, rng_state, set_up_process
from paribus.machine.provenance import collect_provenance, git_state, stage_fingerprint
from paribus.places import main_checkout, state_root


class Driver(Protocol):
    """Puts an `nvidia-smi` on the PATH."""

    def __call__(self, text: str, status: int = 0) -> None: ...


Card = Callable[[tuple[int, int], list[str]], None]
DVC_YAML = """
stages:
  tokens:
    cmd: paribus tokens
    params: [tokens]
    outs: [data/tokens]
  pretrain:
    cmd: paribus pretrain
    params: [seed, model, train, eval.core.batch_size]
    deps: [data/tokens, code]
    outs: [checkpoints/base]
    metrics:
      - metrics/pretrain.json: {cache: false}
  gsm8k:
    foreach: [base, mid]
    do:
      cmd: paribus eval gsm8k ${item}
      params: [{params.yaml: [eval.gsm8k]}]
      deps: ["checkpoints/${item}"]
  grid:
    matrix: {size: [s, l], arm: [{name: a}, {name: b}]}
    cmd: true
    deps: ["data/${item.size}"]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_root: Path) -> Path:
    """A project of one dvc.yaml, with what its stages depend on; the working folder."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    (tmp_path / "params.yaml").write_text((project_root / "params.yaml").read_text())
    for folder, name, text in (("data/tokens", "a.bin", "tokens"), ("code", "loop.py", "pass")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).write_text(text)
    return tmp_path


def run_python(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    process: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, **options
    )
    return process


# ---------------------------------------------------------------- folders


def test_state_is_kept_in_the_main_checkout_of_an_experiments_clone(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = project / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    assert main_checkout() == project  # the closest dvc.yaml
    main = project / "elsewhere"
    monkeypatch.setenv("DVC_ROOT", str(main))
    assert state_root() == main / ".paribus" and (main / ".paribus").is_dir()


def test_importing_the_machine_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, paribus.machine.hardware, paribus.machine.provenance; "
        "print({'torch', 'numpy', 'yaml', 'mlflow', 'psutil'} & set(sys.modules))"
    )
    assert run_python(code).communicate()[0].strip() == "set()"


# ---------------------------------------------------------------- hardware and seeds


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
        "device_name": "another CPU",
        "cpu_capability": "x",
        "libraries": {},
        "environment": {"MKL_CBWR": "COMPATIBLE"},
    }
    for name, value in changes.items():
        assert dataclasses.replace(hardware, **{name: value}).hardware_class() != one


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
        "from paribus import config; from paribus.machine.hardware import detect_hardware; from conftest import TINY; import sys;"
        "print(detect_hardware(config.load_config(sys.argv[1], overrides=TINY).train).cpu_capability)"
    )
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {
        "ATEN_CPU_CAPABILITY": "default",
        "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root / "tests")]),
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
    assert torch.get_num_threads() == 1 and torch.are_deterministic_algorithms_enabled()


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


# ---------------------------------------------------------------- digests, stages, fingerprints


def test_tree_digest_sees_names_and_contents_and_not_caches(project: Path) -> None:
    first = graph.tree_digest(["code"])
    (project / "code/__pycache__").mkdir()
    (project / "code/__pycache__/loop.pyc").write_text("cache")
    assert graph.tree_digest(["code"]) == first
    (project / "code/loop.py").write_text("pass ")
    changed = graph.tree_digest(["code"])
    (project / "code/loop.py").write_text("pass")
    (project / "code/loop.py").rename(project / "code/loop2.py")
    assert len({first, changed, graph.tree_digest(["code"])}) == 3
    with pytest.raises(UserError, match="nowhere: does not exist"):
        graph.tree_digest(["nowhere"])


def test_stage_definitions_have_dvcs_names(project: Path) -> None:
    stages = graph.stage_definitions()
    assert list(stages) == [
        "tokens",
        "pretrain",
        "gsm8k@base",
        "gsm8k@mid",
        "grid@s-arm0",
        "grid@s-arm1",
        "grid@l-arm0",
        "grid@l-arm1",
    ]
    assert stages["gsm8k@mid"].deps == ["checkpoints/mid"] and stages["gsm8k@mid"].params == [
        "eval.gsm8k"
    ]
    assert stages["pretrain"].outs == ["checkpoints/base", "metrics/pretrain.json"]
    with pytest.raises(
        UserError, match="no stage 'gsm8k'; there are: tokens, pretrain, gsm8k@base"
    ):
        graph.stage_definition("gsm8k")


def test_the_projects_own_stages_are_named_as_dvc_names_them(project_root: Path) -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--name-only"],
        cwd=project_root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert sorted(graph.stage_definitions(project_root / "dvc.yaml")) == sorted(listed)


def test_the_fingerprint_follows_params_deps_and_hardware_and_nothing_else(
    project: Path, tiny_config: Config
) -> None:
    hardware = detect_hardware(tiny_config.train)

    def named(overrides: dict[str, Any] | None = None, hardware: Hardware = hardware) -> str:
        return stage_fingerprint("pretrain", config.load_config(overrides=overrides), hardware)

    first = named()
    same = {
        "train.session_minutes": 5,
        "tracking.experiment": "x",
        "rl.steps": 7,
        "eval.core.max_per_task": 3,
    }
    assert named(same) == first
    assert named({"model.depth": 5}) != first  # of a section
    assert named({"eval.core.batch_size": 5}) != first  # a leaf
    assert named(hardware=dataclasses.replace(hardware, threads=3)) != first
    (project / "data/tokens/a.bin").write_text("others")
    assert named() != first


def test_a_param_that_does_not_exist_is_named(project: Path, tiny_config: Config) -> None:
    definition = graph.StageDefinition(params=["model.dept"], deps=[], outs=[])
    with pytest.raises(UserError, match="model.dept is no key"):
        graph.declared_params(definition, tiny_config)


# ---------------------------------------------------------------- provenance


def test_provenance_outside_a_repository(project: Path) -> None:
    found = collect_provenance()
    assert found["git"] == {"commit": None, "branch": None, "dirty": None, "diff": None}
    assert found["versions"]["torch"] == torch.__version__ and found["requirements_lock"] is None


def test_dirty_means_sources_not_outputs(project: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q", "-b", "trunk")
    (project / "metrics").mkdir()
    (project / "metrics/pretrain.json").write_text("{}")
    assert git_state() | {"diff": None} == {
        "commit": None,
        "branch": "trunk",
        "dirty": True,
        "diff": None,
    }
    git("add", ".")
    git("commit", "-qm", "first")
    clean = {"commit": git("rev-parse", "HEAD"), "branch": "trunk", "dirty": False, "diff": None}
    assert git_state() == clean
    (project / "metrics/pretrain.json").write_text('{"val_bpb": 1}')
    (project / "dvc.lock").write_text("x")
    assert git_state() == clean
    digests = set()
    for text in ("a", "b"):
        (project / "code/loop.py").write_text(text)
        state = git_state()
        assert state["dirty"]
        digests.add(state["diff"])
    assert len(digests) == 2


# ---------------------------------------------------------------- the lock


def test_a_second_holder_is_refused_and_told_who_the_first_is_until_it_is_killed(
    tmp_path: Path,
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from paribus.machine.lock import StateLock\n"
        "with StateLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = run_python(code, str(tmp_path))
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    assert (lock_holder(tmp_path) or {})["pid"] == holder.pid
    with (
        pytest.raises(UserError, match=f"in use by process {holder.pid} on "),
        StateLock(tmp_path, 0.1),
    ):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    with StateLock(tmp_path):
        assert (lock_holder(tmp_path) or {})["pid"] == os.getpid()
    assert lock_holder(tmp_path) is None
    holder.wait()


def test_a_disk_without_file_locks_is_the_machines_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(MachineError, match="has no file locks"), StateLock(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": 3}'])
def test_a_lock_that_does_not_say_who_holds_it_refuses_all_the_same(
    tmp_path: Path, text: str
) -> None:
    with StateLock(tmp_path):
        (tmp_path / "lock").write_text(text)
        assert lock_holder(tmp_path) == {}
        with (
            pytest.raises(UserError, match="in use by another process"),
            StateLock(tmp_path, 0.0),
        ):
            pass


def test_a_file_in_the_place_of_the_state_folder_is_told(project: Path) -> None:
    (project / ".paribus").write_text("mine")
    with pytest.raises(UserError, match=r"\.paribus: is a file"):
        state_root()


# ---------------------------------------------------------------- what killed processes leave


def test_what_dead_processes_were_writing_goes_and_what_living_ones_write_stays(
    tmp_path: Path,
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    inner = tmp_path / "state"
    inner.mkdir()
    for folder in (tmp_path, inner):
        for name in (f".run.json.{dead.pid}", f".run.json.{os.getpid()}", ".gitignore", "a.1"):
            (folder / name).write_text("x")
    remove_leftovers(tmp_path)
    assert not (tmp_path / f".run.json.{dead.pid}").exists()
    assert len(list(tmp_path.iterdir())) == 4 and len(list(inner.iterdir())) == 4
    remove_leftovers(tmp_path, recursive=True)
    assert len(list(inner.iterdir())) == 3
    remove_leftovers(tmp_path / "absent")


# ---------------------------------------------------------------- being asked to stop

STAGE = """
import os, sys, time
from pathlib import Path
from paribus.machine.interrupt import EXIT_PAUSED, Interrupt
folder = Path(sys.argv[1])
with Interrupt(folder) as interrupt:
    (folder / "pid").write_text(str(os.getpid()))
    deadline = time.monotonic() + 20
    while not interrupt.requested() and time.monotonic() < deadline:
        time.sleep(0.01)
(folder / "reason").write_text(str(interrupt.reason))
raise SystemExit(EXIT_PAUSED)
"""


def wait_for(path: Path, seconds: float = 20) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.02)
    raise AssertionError(f"{path} did not come")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_ask_for_a_stop_even_where_the_shell_had_them_ignored(
    tmp_path: Path, number: signal.Signals
) -> None:
    stage = run_python(
        STAGE, str(tmp_path), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    )
    wait_for(tmp_path / "pid")
    stage.send_signal(number)
    assert stage.wait(10) == EXIT_PAUSED
    assert (tmp_path / "reason").read_text() == number.name


def test_a_pause_is_honoured_once(tmp_path: Path) -> None:
    with Interrupt(tmp_path) as interrupt:
        assert not interrupt.requested()
        (tmp_path / "pause").touch()
        time.sleep(0.25)  # it looks five times a second
        assert (
            interrupt.requested() and interrupt.requested() and interrupt.reason == "paribus pause"
        )
    with Interrupt(tmp_path) as interrupt:
        assert not interrupt.requested()


def test_a_session_ends_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt(session_minutes=0.05 / 60) as interrupt:
        assert not interrupt.requested() and signal.getsignal(signal.SIGTERM) != before
        time.sleep(0.06)
        assert interrupt.requested() and "session" in str(interrupt.reason)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_stage_started_by_dvc_notices_that_dvc_was_killed(tmp_path: Path) -> None:
    """The real DVC, with a shell between it and the stage that lives on."""
    script = tmp_path / "stage.py"
    script.write_text(STAGE)
    (tmp_path / "dvc.yaml").write_text(
        f"stages:\n  train:\n    cmd: {sys.executable} {script} {tmp_path}; true\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("DVC_ROOT", "DVC_STAGE")
    }
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "-q"], cwd=tmp_path, env=environment, check=True)
    repro = subprocess.Popen([*dvc, "repro", "-q"], cwd=tmp_path, env=environment)
    stage = int(wait_for(tmp_path / "pid"))
    assert Path(f"/proc/{stage}/stat").read_text().split()[3] != str(
        repro.pid
    )  # the shell is its parent
    time.sleep(0.5)
    assert not (tmp_path / "reason").exists()
    repro.kill()
    repro.wait()
    assert "DVC" in wait_for(tmp_path / "reason", 3)


def test_a_direct_child_notices_too(tmp_path: Path) -> None:
    start = (
        "import os, subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', *sys.argv[1:]], env=os.environ | {'DVC_STAGE': 'train'})"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    launcher = run_python(start, STAGE, str(tmp_path), env=environment)
    wait_for(tmp_path / "pid")
    launcher.kill()
    assert "DVC" in wait_for(
        tmp_path / "reason", 3
    )  # also while the dead launcher is still a zombie
    launcher.wait()


def test_without_dvc_the_death_of_the_parent_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    with Interrupt() as interrupt:
        assert not interrupt.requested()


# ---------------------------------------------------------------- a GPU that is there, or half there


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
    """Stands in for torch.cuda: two cards, this process on the second; NVML answers as it is told to."""

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


def test_new_tensors_are_not_filled_first(tiny_config: Config) -> None:
    set_up_process(detect_hardware(tiny_config.train), 0)
    deterministic: Any = torch.utils.deterministic
    assert not deterministic.fill_uninitialized_memory
