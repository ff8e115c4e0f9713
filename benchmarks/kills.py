"""Kill -9 a tiny pipeline at random instants, restart it with `dvc repro`, and compare it with an uninterrupted run.

    python benchmarks/kills.py --kills 100 --seed 1 --out kills.json

Real DVC, git and MLflow (sqlite), in a folder of their own. Kills are spread over the stages, training stages thrice as
often as others, and over moments: anywhere in a stage, while it works, while it saves a state, and between its end and
DVC's taking note of it. What is killed is the whole process group of `dvc repro`, the stage alone, or DVC alone, whose
orphan is then left to notice; sometimes the process that feeds MLflow as well. When the pipeline is done, it must be as
if nothing had happened:

    weights of all four checkpoints equal to the byte; every step once in each metrics.jsonl; no step twice or missing
    in MLflow's curves; metrics equal but for times.

With kills left, it begins again from nothing. Exits 1 where any of this fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "src")]

from support.project import Project, senders  # noqa: E402
from support.warm import warm  # noqa: E402

from paribus.graph import stage_definitions  # noqa: E402
from paribus.machine.hardware import cpu_name  # noqa: E402
from paribus.tracking import sender  # noqa: E402
from paribus.tracking.mirror import all_sent  # noqa: E402

TRAINING = ("pretrain", "midtrain", "sft", "rl")
KILLS_PER_PASS = 25  # of one pipeline from nothing to its end
MOMENTS = {
    True: {"any": 7, "working": 7, "saving": 3, "between": 3},
    False: {"any": 7, "between": 3},
}  # by "is training"
VICTIMS = {"group": 4, "group and sender": 2, "stage": 1, "stage and sender": 1, "dvc": 2}
TIMES = ("seconds", "per_second", "peak_memory_bytes")  # metrics that are no part of the result
DVC_FILES = {
    ".dvc/tmp/rwlock": "RWLock-file",
    "dvc.lock": "dvc.lock",
}  # and what its errors call them
UNREADABLE = ("corrupted", "format error", "validation failed", "is invalid", "unable to read")
MAX_STARTS = 30  # in a row without a kill: then something is stuck
LOADING_SECONDS = 3.0  # of a stage whose libraries are not loaded
# Less work than the tests' tiny pipeline: a kill costs a start, and starts are what this takes its time for.
SMALLER = {
    "corpus.world.megabytes": 0.05,
    "corpus.world.problems": 30,
    "corpus.world.conversations": 20,
    "eval.bpb_tokens": 256,
    "pretrain.steps": 12,
    "midtrain.steps": 8,
    "sft.steps": 8,
    "rl.steps": 4,
    "eval.core.max_per_task": 2,
}


@dataclass
class Tally:
    """What was done and found."""

    kills: int = 0
    by_stage: Counter[str] = field(default_factory=Counter)
    by_moment: Counter[str] = field(default_factory=Counter)
    by_victim: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    failed_starts: int = 0  # that nobody killed: mostly the lock of an orphan that still runs
    mended: list[str] = field(
        default_factory=list
    )  # DVC's own files, torn by a kill, that had to be removed by hand
    passes: int = 0
    faults: list[str] = field(default_factory=list)


class Repro:
    """A running `dvc repro`; `stage` is what it runs."""

    def __init__(self, project: Project, target: str | None, *, warmly: bool = False) -> None:
        self.root = project.root
        self.log = project.root.parent / f"{project.root.name}.log"
        self.began = self.log.stat().st_size if self.log.exists() else 0
        environment = project.environment() | {"PYTHONUNBUFFERED": "1"}
        if warmly:
            environment["PATH"] = f"{warm().programs}{os.pathsep}{environment['PATH']}"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["dvc", "repro", *filter(None, [target])],
                cwd=project.root,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def text(self) -> str:
        with self.log.open(encoding="utf-8", errors="replace") as file:
            file.seek(self.began)
            return file.read()

    @property
    def stage(self) -> str:
        """The stage begun last; empty before the first."""
        begun = [line for line in self.text().splitlines() if line.startswith("Running stage '")]
        return begun[-1].split("'")[1] if begun else ""

    def alive(self) -> bool:
        return self.process.poll() is None

    def stage_process(self) -> psutil.Process | None:
        """The stage, and not a shell around it."""
        try:
            below = psutil.Process(self.process.pid).children(recursive=True)
            return next(
                (child for child in reversed(below) if "paribus" in " ".join(child.cmdline()[:4])),
                None,
            )
        except psutil.NoSuchProcess:
            return None

    def kill(self, victim: str) -> str:
        """Kill -9, and wait until DVC has ended; returns who the victim was in the end."""
        stage = self.stage_process() if victim.startswith("stage") else None
        if stage is not None:
            stage.kill()
        elif victim == "dvc":
            self.process.kill()
        else:
            victim = victim.replace("stage", "group")
            os.killpg(self.process.pid, signal.SIGKILL)
        if victim.endswith("sender"):
            for process in senders(self.root):  # it outlives stages and DVC
                process.kill()
        self.process.wait()
        return victim


# ---------------------------------------------------------------- when


def wait_until(run: Repro, stage: str, happened: Callable[[], bool], every: float = 0.01) -> bool:
    """False if the stage or DVC ended first."""
    looks = 0
    while not happened():
        looks += 1
        if not run.alive() or (looks % 20 == 0 and run.stage != stage):
            return False
        time.sleep(every)
    return True


def moment_comes(run: Repro, stage: str, moment: str, seconds: float, luck: random.Random) -> bool:
    """Wait for an instant of a stage that has begun; seconds: how long it takes undisturbed. False if it ended first."""
    if moment == "working":
        logs = list_of(run.root, f"{stage}-*/metrics.jsonl")
        before = sum(path.stat().st_size for path in logs())
        if not wait_until(run, stage, lambda: sum(path.stat().st_size for path in logs()) > before):
            return False
        seconds = 0.3 * seconds
    elif moment == "saving":
        return wait_until(
            run, stage, lambda: bool(list_of(run.root, f"{stage}-*/state/.step-*")()), every=0.0005
        )
    elif moment == "between":
        if not (
            wait_until(run, stage, lambda: run.stage_process() is not None, 0.05)
            and wait_until(run, stage, lambda: run.stage_process() is None, 0.02)
        ):
            return False
        seconds = 0.5
    deadline = time.monotonic() + luck.uniform(0, seconds)
    return wait_until(run, stage, lambda: time.monotonic() >= deadline)


def list_of(root: Path, pattern: str) -> Callable[[], list[Path]]:
    return lambda: list((root / ".paribus/runs").glob(pattern))


def draw(luck: random.Random, weights: dict[str, int]) -> str:
    return luck.choices(list(weights), list(weights.values()))[0]


def quotas(stages: list[str], kills: int) -> Counter[str]:
    """How many kills each stage gets: training stages three times as many as others, to within one."""
    weights = [3 if stage in TRAINING else 1 for stage in stages]
    ends = [round(kills * sum(weights[: index + 1]) / sum(weights)) for index in range(len(stages))]
    return Counter(
        {stage: end - begin for stage, begin, end in zip(stages, [0, *ends], ends, strict=False)}
    )


# ---------------------------------------------------------------- one pipeline


def reproduce(
    project: Project,
    target: str | None,
    durations: dict[str, float],
    quota: Counter[str],
    luck: random.Random,
    tally: Tally,
) -> None:
    """Kill and restart until the pipeline is done."""
    idle = 0
    while idle < MAX_STARTS:
        run = Repro(project, target)
        tally.starts += 1
        if strike(run, durations, quota, luck, tally):
            idle = 0
            continue
        if run.process.wait() == 0:
            return
        idle += 1
        tally.failed_starts += 1
        tally.mended += mend(project.root, run.text())
        time.sleep(0.5)
    tally.faults.append(f"{MAX_STARTS} starts in a row failed: {run.text()[-2000:]}")


def mend(root: Path, said: str) -> list[str]:
    """Remove what DVC writes in place and cannot read again when killed in the middle: what a person would do then.

    Without dvc.lock, DVC takes the results of finished stages from its run cache.
    """
    errors = [line for line in said.splitlines() if any(word in line for word in UNREADABLE)]
    torn = [name for name, called in DVC_FILES.items() if any(called in line for line in errors)]
    for name in torn:
        (root / name).unlink(missing_ok=True)
    return torn


def strike(
    run: Repro, durations: dict[str, float], quota: Counter[str], luck: random.Random, tally: Tally
) -> bool:
    """Kill this start at a random instant of a stage that has kills left; False if it ended by itself."""
    before = ""
    for stage in begun_stages(run):
        quota[stage] += quota.pop(before, 0)  # kills that came too late for a stage go to the next
        before = stage
        if not quota[stage]:
            continue
        moment = draw(luck, MOMENTS[stage in TRAINING])
        if moment_comes(run, stage, moment, durations[stage], luck) and run.alive():
            victim = run.kill(draw(luck, VICTIMS))
            quota[stage] -= 1
            tally.kills += 1
            for counts, name in (
                (tally.by_stage, stage),
                (tally.by_moment, moment),
                (tally.by_victim, victim),
            ):
                counts[name] += 1
            print(f"{tally.kills}: {victim} in {stage}, {moment}", flush=True)
            return True
    return False


def begun_stages(run: Repro) -> Iterator[str]:
    """Stages as they begin, until DVC ends."""
    last = ""
    while run.alive():
        if (stage := run.stage) != last:
            last = stage
            yield stage
        time.sleep(0.02)


def undisturbed(project: Project, target: str | None, warmly: bool) -> dict[str, float]:
    """Run the pipeline through -> seconds of each stage, loading included. Raises where it fails."""
    if warmly:
        project.feed_mlflow()
    run = Repro(project, target, warmly=warmly)
    began, seconds = {}, {}
    for stage in begun_stages(run):
        began[stage] = time.monotonic()
    if run.process.wait():
        raise SystemExit(run.text())
    names = list(began)
    for name, following in zip(names, [*names[1:], None], strict=True):
        ended = began[following] if following else time.monotonic()
        seconds[name] = ended - began[name] + warmly * LOADING_SECONDS
    return seconds


# ---------------------------------------------------------------- what must be equal


def compare(project: Project, reference: Project) -> list[str]:
    """What is not as if nothing had happened."""
    wait_for_mlflow(project.root / ".paribus")
    faults = [
        f"{stage}: weights differ"
        for stage, digest in reference.digests().items()
        if project.digests()[stage] != digest
    ]
    for path in sorted((reference.root / "metrics").glob("*.json")):
        ours, theirs = (
            timeless(json.loads((one.root / "metrics" / path.name).read_text()))
            for one in (project, reference)
        )
        if ours != theirs:
            faults.append(f"metrics/{path.name}: {ours} is not {theirs}")
    for stage in TRAINING:
        faults += check_steps(project, stage)
    return faults


def wait_for_mlflow(root: Path, seconds: float = 60.0) -> None:
    """Until it has every run: the sender may have been the last that was killed."""
    deadline = time.monotonic() + seconds
    while (
        not all(all_sent(path.parent) for path in root.glob("runs/*/run.json"))
        and time.monotonic() < deadline
    ):
        sender.ensure(root)
        time.sleep(0.5)


def timeless(value: Any) -> Any:
    """Metrics without those that are times, speeds and memory."""
    if not isinstance(value, dict):
        return value
    return {key: timeless(one) for key, one in value.items() if not key.endswith(TIMES)}


def check_steps(project: Project, stage: str) -> list[str]:
    """Whether the log of a stage and its curve in MLflow have every step once."""
    from mlflow import MlflowClient

    [path] = list_of(project.root, f"{stage}-*/metrics.jsonl")()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    logged = [row["step"] for row in rows if "train/loss" in row]
    steps = list(range(1, SMALLER[f"{stage}.steps"] + 1))  # type: ignore[operator]
    faults = [] if logged == steps else [f"{path}: steps {logged}"]
    client = MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.stage = '{stage}'")
    if [run.info.status for run in runs] != ["FINISHED"]:
        faults.append(f"MLflow, {stage}: runs {[run.info.status for run in runs]}")
    for run in runs:
        keys = [
            key for key in run.data.metrics if key.startswith(("train/", "val/", "rl/", "watch/"))
        ]
        curves = {
            key: [point.step for point in client.get_metric_history(run.info.run_id, key)]
            for key in keys
        }
        faults += [
            f"MLflow, {stage}: {key} at steps {curve}"
            for key, curve in curves.items()
            if len(set(curve)) != len(curve)
        ]
        if sorted(curves.get("train/loss", [])) != steps:
            faults.append(f"MLflow, {stage}: train/loss at steps {curves.get('train/loss')}")
    return faults


# ---------------------------------------------------------------- the command


def kill_test(
    folder: Path, kills: int, seed: int, target: str | None, warmly: bool, passes: int | None
) -> dict[str, Any]:
    """All of it -> the figures, `faults` among them."""
    luck, tally, began = random.Random(seed), Tally(), time.monotonic()
    reference = Project(make(folder / "reference"), ROOT, **SMALLER).start()
    durations = undisturbed(reference, target, warmly)
    print(
        "undisturbed:",
        ", ".join(f"{name} {seconds:.1f} s" for name, seconds in durations.items()),
        flush=True,
    )
    stages = [name for name in stage_definitions(ROOT / "dvc.yaml") if name in durations]
    while tally.kills < kills and tally.passes != passes and not tally.faults:
        project = Project(make(folder / f"killed-{tally.passes}"), ROOT, **SMALLER).start()
        quota = quotas(stages, min(KILLS_PER_PASS, kills - tally.kills))
        reproduce(project, target, durations, quota, luck, tally)
        tally.passes += 1
        if not tally.faults:
            tally.faults += compare(project, reference)
        print(
            f"pass {tally.passes}: {tally.kills} kills, {tally.faults or 'all equal'}", flush=True
        )
    return vars(tally) | {
        "seed": seed,
        "seconds": time.monotonic() - began,
        "undisturbed_seconds": durations,
        "machine": cpu_name(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "dvc", "mlflow")},
    }


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument(
        "--passes",
        type=int,
        help="at most so many pipelines from nothing, though kills are left that came after a stage's end",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--training-only", action="store_true", help="leave out evaluation and report"
    )
    parser.add_argument(
        "--warm-reference",
        action="store_true",
        help="fork the stages of the undisturbed run from a process that has loaded their libraries",
    )
    parser.add_argument(
        "--folder", type=Path, help="an empty folder to work in, kept; else a temporary one"
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="paribus-kills-"))
    target = "rl" if args.training_only else None
    result = kill_test(folder, args.kills, args.seed, target, args.warm_reference, args.passes)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    if result["faults"]:
        sys.exit(f"not as if nothing had happened; see {folder}")
    if not args.folder:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
