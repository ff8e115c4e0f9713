"""What a run of a study pays besides its stages: `python benchmarks/run_overhead.py --runs 12 --out run_overhead.json`.

One warm worker computes runs of a trainer that takes a fraction of a second; the first run, which loads DVC, is left out.

    cpu_seconds      processor seconds a run, of the worker and of git, without those of the stages
    wall_seconds     seconds a run, without the stages'
    disk_bytes       what a run leaves in .paribus/execute; its outputs are in DVC's cache in any case
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
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tools"))

from support.studied import LightProject  # noqa: E402

from paribus.execute.local import Pool  # noqa: E402
from paribus.execute.repository import git  # noqa: E402
from paribus.execute.run import RunId, RunSpec  # noqa: E402

STAGES = ["tokens", "pretrain"]


def seconds_of_stage(project: LightProject) -> tuple[float, float]:
    """(processor seconds, seconds) of the training stage alone, from nothing; its state goes again."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    here = {"DVC_ROOT": str(project.root / "tmp")}
    subprocess.run(
        [sys.executable, "work.py", "pretrain"],
        cwd=project.root,
        env=project.environment() | here,
        check=True,
    )
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, wall


def cpu_seconds(worker: psutil.Process) -> float:
    """Processor seconds so far of a worker and of every process it has waited for."""
    times = worker.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="paribus-runs-") as folder:
        project = LightProject(Path(folder) / "project", HERE.parent).start()
        os.environ |= project.environment()
        state = project.root / ".paribus"
        pool = Pool(project.root, state, slots=1)
        commit = git("rev-parse", "HEAD", at=project.root)
        for number in range(args.runs + 1):
            run = RunId("overhead", "arm", number)
            pool.submit(RunSpec(run, commit, {"seed": number}, STAGES, "key"))
        ended = 0
        cpu = wall = 0.0
        while ended <= args.runs:
            for event in pool.poll(60):
                if event.kind != "ended":
                    continue
                assert event.outcome and event.outcome.state == "done", event
                ended += 1
                [worker] = project.workers()
                if ended == 1:
                    cpu, wall = cpu_seconds(worker), time.monotonic()
        total_cpu = (cpu_seconds(worker) - cpu) / args.runs
        total_wall = (time.monotonic() - wall) / args.runs
        pool.close()
        stage_cpu, stage_wall = seconds_of_stage(project)
        left = [path for path in (state / "execute").rglob("*") if path.is_file()]
        result = {
            "runs": args.runs,
            "cpu_seconds": round(total_cpu - stage_cpu, 2),
            "wall_seconds": round(total_wall - stage_wall, 2),
            "stage_cpu_seconds": round(stage_cpu, 2),
            "disk_bytes": sum(path.stat().st_size for path in left) // (args.runs + 1),
        }
    print(json.dumps(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
