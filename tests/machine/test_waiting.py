"""machine/waiting.py: OpenMP's threads spin while the cores are theirs, and sleep while they are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from paribus import SPINS

# Two threads on one core stand for one thread beside a busy process of equal rights: whoever spins holds up the other.
CROWDED = """
import json, os, sys, time
import paribus, torch
from paribus.machine import waiting
torch.set_num_threads(2)
x = torch.ones(1 << 16)

def operations(seconds):
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        x.mul_(1.0)
        done += 1
    return done / (time.perf_counter() - began)

operations(0.1)
core = sorted(os.sched_getaffinity(0))[0]
for thread in os.listdir("/proc/self/task"):
    os.sched_setaffinity(int(thread), {core})
switch = waiting.Waiting(waiting._library())
spinning = operations(0.3)
switch.look()
asleep = switch.asleep
time.sleep(0.2)
sleeping = operations(0.3)
switch.look()
for _ in range(100):  # other tests may hold the cores for a while
    time.sleep(0.1)
    switch.look()
    if not switch.asleep:
        break
time.sleep(0.2)
print(json.dumps({
    "spinning": spinning, "asleep": asleep, "sleeping": sleeping, "at_last": switch.asleep, "again": operations(0.3),
}))
"""
WATCHED = """
import json, os, threading
import paribus, torch
from paribus.machine import waiting
waiting.watch()
waiting.watch()
names = [thread.name for thread in threading.enumerate()]
print(json.dumps([names, os.environ.get("GOMP_SPINCOUNT")]))
"""

needs_two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")


def answer(program: str, **environment: str) -> object:
    """What a program prints, of JSON, in an environment without settings of OpenMP but these."""
    plain = {name: value for name, value in os.environ.items() if "OMP" not in name}
    output = subprocess.run(
        [sys.executable, "-c", program],
        env=plain | environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return json.loads(output)


@needs_two_cores
def test_threads_sleep_where_they_hold_each_other_up_and_spin_again_where_they_do_not() -> None:
    found = answer(CROWDED)
    assert isinstance(found, dict)
    assert found["asleep"]
    assert found["sleeping"] > 3 * found["spinning"]
    assert not found["at_last"]
    assert found["sleeping"] > 3 * found["again"]


def test_one_thread_of_a_process_watches() -> None:
    assert answer(WATCHED) == [["MainThread", "waiting"], SPINS]


@pytest.mark.parametrize(
    ("name", "value", "spins"), [("GOMP_SPINCOUNT", "7", "7"), ("OMP_WAIT_POLICY", "passive", None)]
)
def test_what_the_environment_says_stays(name: str, value: str, spins: str | None) -> None:
    assert answer(WATCHED, **{name: value}) == [["MainThread"], spins]
