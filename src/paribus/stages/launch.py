"""Starting a training stage's processes: `train.processes` of them, through torch.distributed's own launcher.

What started the stage (DVC, a shell) sees one process and one exit status. `torchrun --nproc_per_node=N -m paribus
pretrain` does the same from outside, on several machines too, and ignores `train.processes`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
import types
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

import psutil

from paribus import config
from paribus.errors import UserError
from paribus.launched import is_launched
from paribus.machine.hardware import available_cores, detect_hardware
from paribus.machine.interrupt import EXIT_PAUSED, LAUNCHER, STOPPING, LauncherWatch

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig


LAUNCHER_WATCH = LauncherWatch()  # of a process that was launched; started by the stage it runs


def on_processes(stage: Callable[[], None]) -> Callable[[], None]:
    """Decorate a stage to run in `train.processes` processes."""

    @functools.wraps(stage)
    def start() -> None:
        if is_launched():  # one of several already
            LAUNCHER_WATCH.start()
            return stage()
        train = config.load_config().train
        return stage() if train.processes == 1 else launch(stage.__name__, train)

    return start


def launch(stage: str, train: config.Train) -> None:
    """Run `paribus <stage>` in several processes; exits as rank 0 does, or as the first that fails.

    SIGINT and SIGTERM are passed on, and the processes take their time to save; they notice by themselves when this
    one, or the DVC above it, is killed. When one process dies the others are stopped.

    Args:
        stage: a training stage.
        train: section of params.yaml.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    check(train)
    logging.getLogger("torch.distributed.elastic").setLevel(
        logging.CRITICAL
    )  # it calls a pause an error
    passed_on: set[int] = set()

    def stop(number: int, _: types.FrameType | None) -> None:
        passed_on.add(number)
        pass_on(number)

    for number in STOPPING:
        signal.signal(number, stop)
    command = [sys.executable, "-m", "paribus", stage]
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        elastic_launch(launch_config(train.processes), command[0])(*command[1:])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        # One that had not come to its handlers yet dies of the signal that was passed on to it.
        if failure.exitcode == EXIT_PAUSED or -failure.exitcode in passed_on:
            sys.exit(EXIT_PAUSED)
        print(
            f"paribus {stage}: process {rank} of {train.processes} {ending(failure.exitcode)}; the others were stopped. "
            "Start again, and training goes on from the last saved state",
            file=sys.stderr,
        )
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)


def launch_config(processes: int) -> LaunchConfig:
    """The launcher's settings: this machine only, no restarts, and the launcher handles only a signal that is never sent."""
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle="SIGQUIT",
    )


def check(train: config.Train) -> None:
    """Raises UserError before any process starts, for what every process would refuse or this machine cannot do."""
    import torch

    hardware = detect_hardware(train)
    asked = f"train.processes: {train.processes}"
    if hardware.device == "mps":
        raise UserError(f"{asked} is for cpu and cuda; on mps set 1")
    if hardware.device == "cuda":
        most, what = torch.cuda.device_count(), "CUDA devices"
    else:
        most, what = available_cores(), "CPU cores that this process may use"
    if train.processes > most:
        raise UserError(f"{asked}, but there are {most} {what}; set it to 1 to {most}")


def pass_on(number: int) -> None:
    """Send a signal on to the processes of this stage; before there are any, nothing has begun."""
    children = psutil.Process().children()
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended this instant
            child.send_signal(number)
    if not children:
        os._exit(
            EXIT_PAUSED
        )  # an exception may be raised where Python ignores it, as in a finalizer


def ending(status: int) -> str:
    """How a process ended, in words."""
    return (
        f"was killed ({signal.Signals(-status).name})"
        if status < 0
        else f"ended with exit status {status}"
    )
