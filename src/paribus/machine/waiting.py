"""How OpenMP's threads wait for each other on a CPU: spinning while the cores are theirs, asleep while they are not.

At the end of every parallel operation a thread waits for the others. GNU's library lets it spin first, which is quickest
on a free machine. Beside another busy process of equal rights it is ruinous: the thread that spins holds the core on which
the thread that it waits for would run, and training the default on two cores keeps 4 % of its speed.

The library's threads spin a hundred times at most, then sleep, "when there are more OpenMP threads than available CPUs"
(https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html). Additional threads that do nothing bring that about, and
end it when they end. No result depends on how threads wait. Measured: benchmarks/neighbours.json.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import threading
import time
from pathlib import Path

from paribus import SPINS

PERIOD = 1.0  # seconds between looks
# Seconds a second that threads of this process stand ready without a core, summed: above CROWDED they are not alone, below ALONE
# they are. Measured on two cores: 0.02 to 0.06 alone, up to 0.09 beside a process at nice 19, 0.5 to 0.9 beside an equal one.
CROWDED, ALONE = 0.25, 0.15
QUIET_LOOKS = 5  # in a row, before threads spin again


@functools.cache
def watch() -> None:
    """Have a thread look every second, from now to the end of the process, whether OpenMP's threads should spin or sleep.

    Does nothing where OpenMP is not GNU's, the kernel does not count how long threads stand ready, or the environment
    says how they wait.
    """
    library = _library()
    counted = Path("/proc/self/schedstat").exists()
    if library is None or not counted or os.environ.get("GOMP_SPINCOUNT") != SPINS:
        return
    waiting = Waiting(library)

    def look_for_ever() -> None:
        while True:
            time.sleep(PERIOD)
            waiting.look()

    threading.Thread(target=look_for_ever, name="waiting", daemon=True).start()


class Waiting:
    """Whether OpenMP's threads of this process spin or sleep while they wait."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """library: libgomp."""
        self._library = library
        self._end: threading.Event | None = None  # of the additional threads; None: there are none
        self._quiet_looks = 0
        self._last = ready(), time.monotonic()

    @property
    def asleep(self) -> bool:
        """Whether threads sleep at once."""
        return self._end is not None

    def look(self) -> None:
        """See how long threads stood ready since the last look, and change how they wait where that calls for it."""
        now = ready(), time.monotonic()
        share = (now[0] - self._last[0]) / (now[1] - self._last[1])
        self._last = now
        self._quiet_looks = self._quiet_looks + 1 if share < ALONE else 0
        if not self.asleep and share > CROWDED:
            self.sleep()
        elif self.asleep and self._quiet_looks >= QUIET_LOOKS:
            self.spin()

    def sleep(self) -> None:
        """Make OpenMP's threads more than the cores."""
        self._end = threading.Event()
        threading.Thread(target=self._hold, args=(self._end,), daemon=True).start()

    def spin(self) -> None:
        """End the additional threads."""
        if self._end is not None:
            self._end.set()
            self._end = None

    def _hold(self, end: threading.Event) -> None:
        """Run a parallel region that does nothing: its threads belong to this one, and live as long."""
        nothing = ctypes.CDLL(None).free  # of no memory
        cores = len(os.sched_getaffinity(0))
        self._library.GOMP_parallel(nothing, None, cores + 1, 0)
        end.wait()


def ready() -> float:
    """Seconds that the threads of this process have stood ready to compute and had no core, all together."""
    nanoseconds = 0
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            nanoseconds += int((thread / "schedstat").read_text(encoding="ascii").split()[1])
    return nanoseconds / 1e9


def _library() -> ctypes.CDLL | None:
    """GNU's OpenMP, as torch has loaded it; None: torch has another, or the system does not list what is loaded."""
    loaded = Path("/proc/self/maps")
    if not loaded.exists():
        return None
    found = re.search(r"/\S*libgomp\S*", loaded.read_text(encoding="utf-8", errors="replace"))
    return ctypes.CDLL(found[0]) if found else None
