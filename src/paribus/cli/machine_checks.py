"""Checks of `paribus doctor`: the machine and what is installed on it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil

from paribus import config
from paribus.cli.finding import Finding, some
from paribus.machine.hardware import (
    available_cores,
    driver_cure,
    instruction_set,
    own_card,
    unsupported_card,
    unused_driver,
)
from paribus.machine.provenance import git_time
from paribus.places import main_checkout, state_root

# Bytes: the default needs about 0.3 GB, and a full disk ends a run at its next save.
LEAST_DISK = 2e9
LITTLE_DISK = 20e9

AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")
LOOK_SECONDS = 0.5  # at what processes compute
BUSY = 0.5  # of a core


def versions() -> Finding:
    """Python and the packages of the lock."""
    version = sys.version.split()[0]
    if not (3, 11) <= sys.version_info < (3, 14):
        return Finding(
            "broken",
            f"Python {version}; 3.11 to 3.13 are needed: make clean, make venv PYTHON=python3.12",
        )
    lock = Path("requirements.lock")
    if not lock.is_file():
        return Finding(
            "broken",
            "requirements.lock is not here: run this in the checkout, or `git checkout requirements.lock`",
        )
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE))
    wrong = []
    for name, pinned in pins.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} {pinned} is missing")
            continue
        if (
            found.partition("+")[0] != pinned
        ):  # a suffix such as +cu128 names a build of the same version
            wrong.append(f"{name} is {found}, not {pinned}")
    if wrong:
        return Finding("broken", f"{some(wrong)}; to fix it: rm -rf .venv && make venv")
    return Finding("ok", f"Python {version} and {len(pins)} packages as in requirements.lock")


def gpu() -> Finding:
    """Whether torch can use the card that is here."""
    import torch

    wanted = config.load_config().train.device
    if torch.cuda.is_available():
        cards = [
            f"{torch.cuda.get_device_name(i)} ({torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB)"
            for i in range(torch.cuda.device_count())
        ]
        problem = unsupported_card(own_card())
        if problem:
            return Finding("note" if wanted == "cpu" else "broken", problem)
        return Finding("ok", f"{some(cards)}, CUDA {torch.version.cuda}")
    driver = unused_driver()
    if driver is not None:
        return Finding(
            "note" if wanted == "cpu" else "broken",
            f"there is an NVIDIA driver ({driver}), but torch {torch.__version__} cannot use it: "
            f"{driver_cure(torch.version.cuda)}",
        )
    if wanted == "cuda":
        return Finding(
            "broken",
            "train.device is cuda and there is no GPU: set it to auto, or run where there is one",
        )
    return Finding("ok", f"none; {available_cores()} CPU cores ({instruction_set()})")


def compiler() -> Finding:
    """Whether kernels can be compiled where they have to be."""
    import torch

    from paribus.model.compiler import missing_tools

    train = config.load_config().train
    compiles = train.compile
    cuda = train.device in ("auto", "cuda") and torch.cuda.is_available()
    if not cuda and not compiles:
        return Finding("ok", "not needed: nothing is computed on a GPU, and train.compile is off")
    problems = missing_tools("cuda" if cuda else "cpu")
    if problems:
        needed = "train.compile" if compiles else "attention on CUDA"
        return Finding("broken", f"{needed} compiles kernels here: {'; '.join(problems)}")
    return Finding("ok", "a compiler and Python.h are here")


def disk() -> Finding:
    """Room for what runs write."""
    here = main_checkout()
    free = shutil.disk_usage(here).free
    text = f"{free / 1e9:,.1f} GB free at {here}"
    if free < LEAST_DISK:
        return Finding(
            "broken",
            f"{text}; make room: `paribus clean` removes training states of finished runs, "
            "`dvc gc --workspace --all-commits` drops data no commit names",
        )
    state: Literal["ok", "note"] = "note" if free < LITTLE_DISK else "ok"
    return Finding(
        state, text + ("; enough for the default, little for real data" if state == "note" else "")
    )


def clock() -> Finding:
    """A clock that is behind makes new files look old: git, DVC and make take changes for none."""
    committed = git_time()
    ahead = committed - time.time() if committed else 0.0
    if ahead > 60:
        return Finding(
            "broken",
            f"{ahead / 60:,.0f} minutes behind the last commit: set it (sudo timedatectl set-ntp true)",
        )
    probe = state_root() / ".clock"
    probe.touch()
    skew = probe.stat().st_mtime - time.time()
    probe.unlink()
    if abs(skew) > 60:
        return Finding(
            "broken",
            f"the disk's clock differs by {skew:,.0f} s (a network disk?): synchronise both machines",
        )
    return Finding("ok", time.strftime("%Y-%m-%d %H:%M:%S %Z"))


def neighbours() -> Finding:
    """What computes in other sessions. All threads of a product wait for the one that shares its core."""
    busy = busy_elsewhere()
    if not busy:
        return Finding("ok", "nothing else computes here")
    text = f"{some(busy)}: training beside it is slower, and its speed tells little"
    with contextlib.suppress(OSError):  # not Linux
        if AUTOGROUP.read_text(encoding="ascii").strip() == "1":
            text += (
                ". Sessions have equal shares here, however nice their processes are: make a session "
                "nice by `echo 19 > /proc/PID/autogroup`, or let niceness count between sessions by "
                "`sudo sysctl kernel.sched_autogroup_enabled=0`"
            )
    return Finding("note", text)


def busy_elsewhere() -> list[str]:
    """Name and number of each process of another session that takes much of a core."""
    own = os.getsid(0)
    before = {process: _seconds(process) for process in psutil.process_iter(["name"])}
    time.sleep(LOOK_SECONDS)
    busy = []
    for process, seconds in before.items():
        used = _seconds(process) - seconds
        with contextlib.suppress(OSError):  # it has ended
            if used > BUSY * LOOK_SECONDS and os.getsid(process.pid) != own:
                busy.append(f"{process.info['name']} ({process.pid}) computes")
    return busy


def _seconds(process: psutil.Process) -> float:
    """Of the processor, which a process has had so far; 0 once it has ended."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def chromium() -> Finding:
    """The browser in which tests open the report."""
    found = next(
        (
            path
            for name in ("chromium", "chromium-browser", "google-chrome")
            if (path := shutil.which(name))
        ),
        None,
    )
    if found is None:
        return Finding(
            "note",
            "not found: the tests that open the report are skipped (Debian: apt-get install chromium)",
        )
    return Finding("ok", found)
