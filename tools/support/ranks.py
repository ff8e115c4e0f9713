"""Processes that train together in a test: gloo, a thread each."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

# Ranks are forked from a server that loads torch once, and what DistributedDataParallel loads when it is made.
multiprocessing.set_forkserver_preload(["torch._dynamo", "paribus.train.rollout"])


def in_ranks(function: Callable[..., None], arguments: tuple[Any, ...], ranks: int) -> None:
    """Call function(rank, *arguments) in a process for each rank."""
    start_processes(function, arguments, nprocs=ranks, start_method="forkserver")


def join(rank: int, ranks: int, port: int) -> None:
    """Become one of `ranks` processes; with one there is nothing to join."""
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        dist.init_process_group("gloo", rank=rank, world_size=ranks)
