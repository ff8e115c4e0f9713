"""Waiting for what another process does, on machines of any speed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import psutil

# Seconds after which a test calls something lost. Only a test that fails waits so long: shared machines have been seen
# to take ten times as long as a quiet one. Less than pytest's own limit (pyproject.toml), which says less.
PATIENCE = 300.0


def wait_for(what: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """The first true value of `what()`; a process that ended meanwhile counts as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(psutil.Error):
            value = what()
            if value:
                return value
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain"
        time.sleep(0.02)
