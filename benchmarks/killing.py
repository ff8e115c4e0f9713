"""What the benchmarks that kill the watching side share: whom they kill, what they look for, how they report."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from support.studied import LightProject  # noqa: E402

TARGETS = ("driver", "worker", "guardian", "stages", "all", "all but guardians")
PATIENCE = 20.0  # seconds that processes have to end by themselves


def arguments(description: str, kills: int) -> argparse.Namespace:
    """The command line: `kills`, `seed`, `out`.

    Args:
        description: for `--help`.
        kills: as many as there are without `--kills`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=kills)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    return parser.parse_args()


def chosen(project: LightProject, driver: int, target: str) -> list[psutil.Process]:
    """The processes to kill.

    Args:
        project: in which they run.
        driver: process id of the command that was called.
        target: one of TARGETS.
    """
    drivers = [psutil.Process(driver)]
    if target == "driver":
        return drivers
    if target == "worker":
        return project.workers()[:1]
    if target == "guardian":
        return project.guardians()
    if target == "stages":
        return project.stages()
    everything = [*drivers, *project.workers(), *project.stages()]
    return everything if target == "all but guardians" else [*everything, *project.guardians()]


def traces(project: LightProject, checkout: str) -> dict[str, Any]:
    """What kills have left behind, or had made twice; empty where there is nothing.

    Args:
        project: in which the command was killed and ended in the end.
        checkout: `project.checkout()` before.
    """
    wrong: dict[str, Any] = {}
    steps = project.trained()
    twice = {mark: made for mark, made in steps.items() if made != list(range(8))}
    if twice:
        wrong["twice"] = twice
    clones = [str(path) for path in project.clones()]
    if clones:
        wrong["clones"] = clones
    deadline = time.monotonic() + PATIENCE
    while project.left_behind() and time.monotonic() < deadline:
        time.sleep(0.2)
    processes = project.left_behind()
    if processes:
        wrong["processes"] = processes
    if project.checkout() != checkout:
        wrong["checkout"] = "changed"
    return wrong


def report(spent: Counter[str], counts: dict[str, int], wrong: list[Any], out: Path | None) -> None:
    """Print what was found, and exit with 1 where something is wrong.

    Args:
        spent: target -> kills.
        counts: of what was run, and the seconds that it took.
        wrong: what was found after each.
        out: the file that keeps it too.
    """
    result = {"kills": dict(spent), **counts, "wrong": wrong}
    print(json.dumps(result))
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(1 if wrong else 0)
