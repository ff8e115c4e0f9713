"""What a run of a study pays besides its stages: `python benchmarks/run_overhead.py --runs 30 --out run_overhead.json`.

Two workers compute runs whose trainer waits for two seconds; the first run of each worker, which loads DVC, counts too.
With `--runs 200 --seconds 0` it is about the disk.

    cpu_seconds          processor seconds a run, of the workers and of git, without those of the stages
    warm_cpu_seconds     the same without what loading DVC takes, once a worker
    wall_seconds         for all runs, on this machine as busy as it was (`load`)
    quiet_seconds        for all runs, where each worker has a core of its own: the trainer's two seconds, the stages'
                         processor time and `cpu_seconds`, run after run
    disk                 bytes and files a run: below .paribus, below .git, in DVC's cache, and the run's own outputs

Disk is the slope between half of the runs and all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tools"))

from support.studied import LightProject  # noqa: E402

from paribus.execute.local import Pool  # noqa: E402
from paribus.execute.run import RunSpec  # noqa: E402
from paribus.git import git  # noqa: E402
from paribus.run_id import RunId  # noqa: E402

STAGES = ["tokens", "pretrain"]
WORKERS = 2
STEPS = 8  # of the trainer


def seconds_of_stage(project: LightProject) -> float:
    """Processor seconds of the training stage alone, from nothing; its state goes again."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    here = {"DVC_ROOT": str(project.root / "tmp")}
    subprocess.run(
        [sys.executable, "work.py", "pretrain"],
        cwd=project.root,
        env=project.environment() | here,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def cpu_seconds(workers: list[psutil.Process]) -> float:
    """Processor seconds so far of workers and of every process they have waited for."""
    total = 0.0
    for worker in workers:
        times = worker.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total


def held(folder: Path) -> dict[str, int]:
    """Bytes and files below a folder, without the clones of runs under way; a file with several names counts once."""
    files: dict[int, int] = {}
    for path in folder.rglob("*"):
        passing = {"clone", "site"} & set(path.relative_to(folder).parts)
        if path.is_file() and not path.is_symlink() and not passing:
            about = path.stat()
            files[about.st_ino] = about.st_size
    return {"bytes": sum(files.values()), "files": len(files)}


def disk(project: LightProject) -> dict[str, dict[str, int]]:
    """Bytes and files that the project holds, by place."""
    places = {"paribus": ".paribus", "git": ".git", "dvc_cache": ".dvc/cache/files"}
    found = {name: held(project.root / place) for name, place in places.items()}
    found["dvc_run_cache"] = held(project.root / ".dvc/cache/runs")
    found["dvc_tmp"] = held(project.root / ".dvc/tmp")
    return found


def run_all(
    project: LightProject, runs: range, at: dict[int, Callable[[], None]]
) -> tuple[float, float]:
    """(processor seconds of the workers, seconds) of computing runs; `at`: calls after so many of them."""
    pool = Pool(project.root, project.root / ".paribus", slots=WORKERS)
    commit = git("rev-parse", "HEAD", at=project.root)
    for seed in runs:
        run = RunId("overhead", "arm", seed)
        pool.submit(RunSpec(run, commit, {"seed": seed}, STAGES, "key"))
    began, ended = time.monotonic(), 0
    while ended < len(runs):
        for event in pool.poll(60):
            if event.kind == "ended":
                assert event.outcome, event
                assert event.outcome.state == "done", event
                ended += 1
                if ended in at:
                    at[ended]()
    workers = project.workers()
    cpu, wall = cpu_seconds(workers), time.monotonic() - began
    pool.close()
    return cpu, wall


def measure(project: LightProject, runs: int, seconds: float) -> dict[str, Any]:
    """The figures of a study of so many runs, whose trainer waits for so many seconds."""
    project.behave({"when": {"stage": "tokens"}, "do": {"steps": 0}})
    project.run("dvc", "repro", "-q", "tokens")
    project.commit("tokens")
    load_cpu, _ = run_all(project, range(1000, 1000 + WORKERS), {})
    slow = {"seconds": seconds / STEPS, "steps": STEPS}
    project.behave({"when": {"stage": "pretrain"}, "do": slow})
    sizes: list[dict[str, dict[str, int]]] = []
    half = {runs // 2: lambda: sizes.append(disk(project))}
    cpu, wall = run_all(project, range(runs), half)
    sizes.append(disk(project))
    stage = seconds_of_stage(project)
    outputs = held(project.root / "checkpoints")["bytes"] + held(project.root / "metrics")["bytes"]
    a_run = cpu / runs - stage
    loading = load_cpu / WORKERS - stage - a_run  # of a first run, beyond what every run takes
    warm = a_run - max(loading, 0.0) * WORKERS / runs
    busy = seconds + stage + a_run
    return {
        "runs": runs,
        "seconds_of_a_run": seconds,
        "workers": WORKERS,
        "load": os.getloadavg()[0],
        "cpu_seconds": round(a_run, 2),
        "warm_cpu_seconds": round(warm, 2),
        "stage_cpu_seconds": round(stage, 2),
        "wall_seconds": round(wall),
        "quiet_seconds": round(busy * runs / WORKERS),
        "disk": _slope(*sizes, runs - runs // 2) | {"outputs": {"bytes": outputs}},
    }


def _slope(
    before: dict[str, dict[str, int]], after: dict[str, dict[str, int]], runs: int
) -> dict[str, dict[str, int]]:
    """What each of so many runs added, by place."""
    slope = {}
    for place, now in after.items():
        added = {kind: now[kind] - before[place][kind] for kind in now}
        slope[place] = {kind: round(number / runs) for kind, number in added.items()}
    return slope


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=2.0, help="that the trainer waits")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="paribus-runs-") as folder:
        project = LightProject(Path(folder) / "project", HERE.parent).start()
        os.environ |= project.environment()
        result = measure(project, args.runs, args.seconds)
    print(json.dumps(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
