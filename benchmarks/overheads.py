"""What training pays besides its steps: start-up, tracking, saving, a `dvc repro` that finds nothing to do.

    python benchmarks/overheads.py --out overheads.json

All on the default's model and batch, in a project of its own with two megabytes of documents:

    start_up     seconds, and processor seconds, from `paribus pretrain` to the beginning of its first step: of the first start
                 that these sources have seen, which works out the stage's code, and of a later one; medians of five
    tracking     what a logged step costs the loop, and the process that feeds MLflow behind it, as shares of a step
    saving       what a save costs the loop: the copy, and by how much steps are slower while it is written, in steps
    nothing      seconds, and processor seconds, of `dvc repro` where everything is up to date; the median of nine
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from small import Project, make_project, senders
from steps import machine

from paribus.config import Config, flatten, load_config
from paribus.machine.hardware import detect_hardware
from paribus.machine.process import set_up_process
from paribus.train.callback import Callback

LOGGED = 500  # steps, to see what logging one costs
SAVES = (8, 16)  # after these steps
STEPS = 24
STARTS = 5
LOOKS = 9  # of DVC, when there is nothing to do


def start_ups(project: Project) -> dict[str, dict[str, float]]:
    """The first start of a stage, and a later one, in turn."""
    kinds: dict[str, list[dict[str, float]]] = {"first": [], "later": []}
    for _ in range(STARTS):
        (project.root / ".paribus/code.json").unlink()
        for starts in kinds.values():
            for folder in ("checkpoints", ".paribus/runs"):
                shutil.rmtree(project.root / folder, ignore_errors=True)
            starts.append(start_up(project))
    medians = {}
    for kind, starts in kinds.items():
        medians[kind] = {name: statistics.median(one[name] for one in starts) for name in starts[0]}
    return medians


def start_up(project: Project) -> dict[str, float]:
    """Seconds to the first step, as a user waits for it, and the processor's, which a busy machine stretches less."""
    environment = {"PYTHONPATH": str(project.root / "src"), "DVC_ROOT": str(project.root)}
    began = time.time()
    process = psutil.Popen(
        ["paribus", "pretrain"],
        cwd=project.root,
        env=project.environment() | environment,
        stderr=subprocess.DEVNULL,
    )
    used: list[tuple[float, float]] = []  # the time, and processor seconds until then
    first: dict[str, float] = {}
    while not first and process.poll() is None:
        used.append((time.time(), sum(process.cpu_times()[:2])))
        first = first_step(project.root)
        time.sleep(0.02)
    process.wait()
    begins = first["time"] - first["train/seconds"]
    return {
        "seconds": begins - began,
        "processor_seconds": max(seconds for at, seconds in used if at < begins),
        "first_step_seconds": first["train/seconds"],
    }


def first_step(root: Path) -> dict[str, float]:
    """The row of a run's first step; nothing until it is there."""
    for path in (root / ".paribus/runs").glob("pretrain-*/metrics.jsonl"):
        for line in path.read_text().splitlines():
            row: dict[str, float] = json.loads(line)
            if "train/seconds" in row:  # before it comes what the planner expects
                return row
    return {}


def tracking(config: Config, folder: Path, step_seconds: float) -> dict[str, float]:
    """Processor seconds of logging one step, here and in the sender; what is paid once (importing mlflow) left out."""
    from paribus.journal import read_json
    from paribus.tracking import RunLog
    from paribus.tracking.mirror import all_sent

    metrics = {f"train/{number}": 1.0 + number for number in range(10)}
    with RunLog.open(
        "overheads",
        folder=folder / ".paribus/runs/overheads",
        config=config,
        params=flatten(config),
        fingerprint="overheads",
    ) as log:
        log.log(1, metrics)
        while (
            "RUNNING" not in (read_json(log.folder / "mlflow.json") or {}).values()
        ):  # until mlflow is loaded
            time.sleep(0.2)
        sender_before, all_before, own_before = (
            sender_seconds(folder),
            time.process_time(),
            time.thread_time(),
        )
        for step in range(2, LOGGED + 2):
            log.log(step, metrics)
        own = (time.thread_time() - own_before) / LOGGED
    while not all_sent(log.folder):
        time.sleep(0.2)
    here = time.process_time() - all_before
    behind = (sender_seconds(folder) - sender_before + here) / LOGGED - own
    return {
        "loop_seconds_per_step": own,
        "behind_cpu_seconds_per_step": behind,
        "loop_share": own / step_seconds,
        "share": (own + behind) / step_seconds,
    }


def sender_seconds(root: Path) -> float:
    """Processor time so far of the process that feeds MLflow, which the first log has started."""
    return sum(sum(one.cpu_times()[:2]) for one in senders(root))


class Clock(Callback):
    """Times the steps of a loop, and saves after some of them."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.writing: list[bool] = []  # whether a state was being written while the step ran
        self.blocked: list[float] = []
        self.loop: Any = None

    def on_progress(self, step: int, metrics: dict[str, float]) -> None:
        self.ends.append(time.perf_counter())
        self.writing.append(self.loop.store.writing)
        if step in SAVES:
            self.loop.save()
            self.blocked.append(time.perf_counter() - self.ends[-1])

    def steps(self) -> list[float]:
        """Seconds of each step but the first, saving left out."""
        saved = dict(zip(SAVES, self.blocked, strict=True))
        return [
            end - begin - saved.get(number, 0.0)
            for number, (begin, end) in enumerate(zip(self.ends, self.ends[1:], strict=False), 1)
        ]


def saving(project: Project, config: Config) -> dict[str, float]:
    """What a save costs, in steps."""

    from paribus.data.loader import DocumentLoader
    from paribus.machine.interrupt import Interrupt
    from paribus.recipe import Recipe
    from paribus.train.checkpoint import StateStore
    from paribus.train.loop import Plan
    from paribus.train.trainer import Trainer, new_model, next_token

    hardware = detect_hardware(config.train)
    set_up_process(hardware, config.seed)
    recipe = Recipe.of(config)
    rows = DocumentLoader(
        project.root / "data/tokens", "train", recipe.architecture.seq_len, config.seed
    )
    objective = next_token(rows, recipe, "pretrain")
    trainer = Trainer(recipe, "pretrain", new_model(recipe, hardware), objective, hardware)
    clock, store = Clock(), StateStore(project.root / "state", 2)
    plan = Plan(STEPS, lambda step: 1.0, 1.0, 1.0, math.inf)
    clock.loop = trainer.loop(store, Interrupt(), [clock], plan)
    clock.loop.run()
    steps = list(enumerate(clock.steps(), 1))
    disturbed = {number for number, _ in steps if clock.writing[number] or number in SAVES}
    step = statistics.median(seconds for number, seconds in steps if number not in disturbed)
    slower = sum(seconds - step for number, seconds in steps if number in disturbed)
    blocked = statistics.mean(clock.blocked)
    return {
        "step_seconds": step,
        "state_bytes": max(path.stat().st_size for path in (project.root / "state").iterdir()),
        "blocked_seconds": blocked,
        "blocked_steps": blocked / step,
        "slower_steps": slower / len(SAVES) / step,
        "stall_steps": (blocked + max(slower, 0.0) / len(SAVES)) / step,
    }


def used_by_children() -> float:
    """Processor seconds of the processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def nothing_to_do(project: Project) -> dict[str, float]:
    """A user's `dvc repro` after one that has run every stage."""
    project.start()
    project.run("dvc", "repro")
    seconds, processor_seconds = [], []
    for _ in range(LOOKS):
        used, began = used_by_children(), time.perf_counter()
        said = subprocess.check_output(
            ["dvc", "repro"], cwd=project.root, env=project.environment(), text=True
        )
        seconds.append(time.perf_counter() - began)
        processor_seconds.append(used_by_children() - used)
        assert "up to date" in said, said
    return {
        "seconds": statistics.median(seconds),
        "processor_seconds": statistics.median(processor_seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="paribus-overheads-") as name:
        os.environ |= {"DVC_ROOT": name, "MLFLOW_DISABLE_TELEMETRY": "true"}
        project = make_project(Path(name))
        config = load_config(project.root / "params.yaml")
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "saving": lambda: saving(project, config),
            "tracking": lambda: tracking(config, project.root, result["saving"]["step_seconds"]),
            "start_up": lambda: start_ups(project),
            "nothing": lambda: nothing_to_do(project),
        }
        result: dict[str, Any] = {"machine": machine(), "mlflow": version("mlflow")}
        for key, measure in measures.items():
            result[key] = measure()
            print(f"{key}: {json.dumps(result[key])}", flush=True)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
