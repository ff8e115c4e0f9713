"""A study on three machines, one of which dies: `python benchmarks/machines.py --out machines.json`.

The machines are network namespaces of this one, each with files, processes and a name of its own (tools/support/machines.py).
A study of real tiny runs is computed twice, undisturbed on one machine, and on three with Ray, an S3 server, and
an MLflow server on PostgreSQL. When a run on the third machine has a training state in the S3 bucket, all processes of that
machine are killed at one instant. Then:

    same_values        every run's metric, of both studies, is the same number
    same_weights       every run's weights, of both studies, are the same bytes
    same_verdict       the verdicts are the same words
    went_on            the killed machine's run, and the step that another machine went on from
    computed           machine -> the runs that it computed

It needs root, Ray, dvc-s3, moto and PostgreSQL.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tools"))

import yaml  # noqa: E402
from support import postgres  # noqa: E402
from support.machines import Machine, Network, impossible, serving  # noqa: E402
from support.project import Project  # noqa: E402
from support.studied import STUDY  # noqa: E402

from paribus.execute.repository import experiments_of  # noqa: E402
from paribus.study.committed import CommittedFiles  # noqa: E402

NAME = "machines"
ARMS = {
    "adamw": {"optimizer.kind": "adamw"},
    "wide": {"model.mlp_ratio": 6.0},
}
SEEDS = 4
KEYS = {
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
    "AWS_DEFAULT_REGION": "us-east-1",
}
MLFLOW_SECONDS = 300.0  # after the last run, for what is still on its way to MLflow
PORTS = {"s3": 9000, "mlflow": 5000}
SAVE_SECONDS = 0.5
STATE_MINUTES = 0.02
STEPS = 300  # enough for a state of a run to get to the bucket long before its end
LEAST_STEP = 20  # of the state that a killed run goes on from
LARGEST_PART = 0.9  # of its steps that a run has made at most when its machine is killed, so that some are left


@dataclass(frozen=True)
class Size:
    """How large the study is: pretraining's steps, and seeds of each arm."""

    steps: int
    seeds: int


def project_at(root: Path, size: Size) -> Project:
    """A tiny project with the study in it."""
    changes = {"pretrain.steps": size.steps, "train.save_seconds": SAVE_SECONDS}
    project = Project(root, HERE.parent, **changes).start()
    study = STUDY | {"arms": ARMS, "seeds": size.seeds, "workers": 1}
    (root / "experiments").mkdir(exist_ok=True)
    (root / f"experiments/{NAME}.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return project


def commit(project: Project, message: str) -> None:
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", message)


# ---------------------------------------------------------------- servers


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def servers(network: Network, folder: Path) -> Any:
    """S3 with a bucket, and MLflow on PostgreSQL; the gateway of the network has them."""
    there = postgres.found()
    if isinstance(there, str):
        sys.exit(there)
    database = postgres.Server(*there, network.gateway)
    database.start()
    s3 = f"http://{network.gateway}:{PORTS['s3']}"
    mlflow = f"http://{network.gateway}:{PORTS['mlflow']}"
    moto = [sys.executable, "-m", "moto.server", "-H", network.gateway, "-p", str(PORTS["s3"])]
    tracker = [sys.executable, "-m", "mlflow", "server", "--host", network.gateway]
    tracker += ["--port", str(PORTS["mlflow"]), "--backend-store-uri", database.url]
    tracker += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
    tracker += ["--allowed-hosts", "*"]
    try:
        with (
            serving(moto, lambda: answers(f"{s3}/moto-api/"), folder / "s3.log"),
            serving(tracker, lambda: answers(f"{mlflow}/health"), folder / "mlflow.log"),
        ):
            bucket = urllib.request.Request(f"{s3}/bucket", method="PUT")
            urllib.request.urlopen(bucket, timeout=30).close()
            yield s3, mlflow
    finally:
        database.stop()
        shutil.rmtree(database.folder)


def states_in(s3: str) -> dict[str, int]:
    """Run -> the step of its newest state in the bucket."""
    listed = urllib.request.urlopen(f"{s3}/bucket?prefix=paribus/paribus-states", timeout=30)
    found: dict[str, int] = {}
    pattern = r"paribus-states/([^/<]+)/[^/<]+/step-(\d+)\.json<"
    for run, step in re.findall(pattern, listed.read().decode()):
        found[run] = max(found.get(run, 0), int(step))
    return found


# ---------------------------------------------------------------- the study


def journal(root: Path) -> list[dict[str, Any]]:
    path = root / f".paribus/ablations/{NAME}/journal.jsonl"
    if not path.exists():
        return []
    return [
        json.loads(line) for line in path.read_text().splitlines(keepends=True) if line[-1:] == "\n"
    ]


def under_way_on(root: Path, machine: str) -> set[str]:
    """Runs that began last on a machine and have not ended."""
    last: dict[str, dict[str, Any]] = {}
    for row in journal(root):
        last[row["run"]] = row
    found = set()
    for run, row in last.items():
        if row["event"] == "started" and row.get("machine") == machine:
            found.add(run)
    return found


def results(root: Path) -> dict[str, dict[str, Any]]:
    """Run -> its metric, its weights' hash, and the machine that computed it."""
    found = {}
    for one in experiments_of(NAME, root):
        with contextlib.chdir(root):
            files = CommittedFiles(one.commit)
            metrics = files.json("metrics/pretrain.json") or {}
            provenance = files.json("checkpoints/base/provenance.json") or {}
            found[one.run.experiment_name()] = {
                "value": metrics.get("val_bpb"),
                "weights": files.hash("checkpoints/base/model.safetensors"),
                "machine": files.trailer("Ran-On"),
                "fingerprint": provenance.get("fingerprint"),
            }
    return found


def verdicts(root: Path) -> list[str]:
    """The sentences on the arms, as the page has them, without what is of the clock: equal time, and what advice costs."""
    page = (root / f"experiments/results/{NAME}.md").read_text()
    of_arms = [
        line for line in page.splitlines() if line.startswith("- ") and "matched seeds" in line
    ]
    return [line.partition("; by an upper limit")[0] for line in of_arms]


def machine_dies(size: Size, root: Path, s3: str, victim: Machine, driver: Any) -> dict[str, Any]:
    """Kill a machine in the middle of a run whose state is in the bucket; the run, and the step of that state."""
    last = LARGEST_PART * size.steps
    while driver.poll() is None:
        there = states_in(s3)
        for run in under_way_on(root, victim.name) & there.keys():
            if LEAST_STEP <= there[run] <= last:
                before = victim.processes()
                victim.kill()
                return {"run": run, "step_in_bucket": there[run], "processes": before}
        time.sleep(0.5)
    raise SystemExit("the study ended before the machine could be killed")


def went_on(machines: list[Machine], run: str) -> dict[str, Any]:
    """Where a run went on, and from which step, by its log there."""
    name = run.partition(".")[2].replace(".", "-")
    for machine in machines:
        for log in machine.folder.rglob(f".paribus/execute/{NAME}/{name}/log.txt"):
            found = re.search(r"going on from step (\d+)", log.read_text(errors="replace"))
            if found:
                return {"machine": machine.name, "from_step": int(found[1])}
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="of pretraining")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of each arm; 2 for a short try")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--keep", type=Path, help="a folder that is kept, and gone on from")
    args = parser.parse_args()
    reason = impossible()
    if reason:
        sys.exit(reason)
    folder = args.keep or Path(tempfile.mkdtemp(prefix="paribus-machines-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        figures = measured(folder, Size(args.steps, args.seeds))
    finally:
        if args.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(figures, indent=1))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")
    fine = all(figures[key] for key in ("same_values", "same_weights", "same_verdict", "went_on"))
    sys.exit(0 if fine else 1)


def undisturbed(folder: Path, size: Size) -> tuple[dict[str, Any], list[str]]:
    """(run -> its result, verdicts) of the study on one machine."""
    root = folder / "alone"
    if not root.exists():
        commit(project_at(root, size), "study")
    alone = Project.__new__(Project)
    alone.root = root
    alone.run("paribus", "ablate", "run", NAME)  # goes on where it was stopped
    return results(root), verdicts(root)


def measured(folder: Path, size: Size) -> dict[str, Any]:
    kept = folder / "on_machines.json"
    if not kept.exists():
        kept.write_text(json.dumps(on_machines(folder, size), indent=1))
    found, figures = json.loads(kept.read_text())
    print(json.dumps(figures, indent=1), flush=True)
    expected, expected_verdicts = undisturbed(folder, size)
    return figures | {
        "same_values": _of(found, "value") == _of(expected, "value"),
        "same_weights": _of(found, "weights") == _of(expected, "weights"),
        "same_verdict": figures["verdicts"] == expected_verdicts != [],
    }


def on_machines(folder: Path, size: Size) -> tuple[dict[str, Any], dict[str, Any]]:
    """(run -> its result, figures) of the study on three machines, one of which dies."""
    with Network(folder, 77) as network, servers(network, folder) as (s3, mlflow):
        desk, second, third = (network.machine(f"desk{number}") for number in (1, 2, 3))
        root = desk.folder / "paribus"
        own = KEYS | {"MLFLOW_TRACKING_URI": mlflow, "PYTHONPATH": str(HERE.parent / "src")}
        share(project_at(root, size), desk, s3, folder)
        head = desk.start_ray(**own)
        for machine in (second, third):
            machine.start_ray(head, **own)
        print("machines:", [machine.processes() for machine in network.machines], flush=True)

        began = time.monotonic()
        command = ["paribus", "ablate", "run", NAME, "--engine", f"ray:{head}"]
        driver = desk.begin(*command, log=folder / "study.log", cwd=root, **own)
        killed = machine_dies(size, root, s3, third, driver)
        print("killed:", killed, flush=True)
        driver.wait()
        seconds = round(time.monotonic() - began)
        print((folder / "study.log").read_text(), flush=True)
        assert driver.returncode == 0
        found = results(root)
        computed: dict[str, list[str]] = {}
        for run, result in sorted(found.items()):
            computed.setdefault(result["machine"], []).append(run)
        return found, {
            "runs": len(found),
            "seconds": seconds,
            "killed": killed,
            "went_on": went_on([desk, second], killed["run"]),
            "verdicts": verdicts(root),
            "computed": computed,
            "states_left": sorted(states_in(s3)),
            "mlflow_runs": mlflow_runs(mlflow, len(found)),
        }


def share(project: Project, desk: Machine, s3: str, folder: Path) -> None:
    """Let other machines have the project's code by git's own server, and its data by S3."""
    project.run("dvc", "remote", "add", "-d", "lab", "s3://bucket/paribus")
    project.run("dvc", "remote", "modify", "lab", "endpointurl", s3)
    address = f"git://{desk.address}/{project.root.name}"
    settings = f"git: {address}\nstate_minutes: {STATE_MINUTES}\n"
    (project.root / "execute.yaml").write_text(settings)
    commit(project, "study on machines")
    daemon = ["git", "daemon", "--export-all", "--enable=receive-pack"]
    desk.begin(*daemon, f"--base-path={desk.folder}", log=folder / "git.log")


def _of(found: dict[str, dict[str, Any]], what: str) -> dict[str, Any]:
    return {run: result[what] for run, result in found.items()}


def mlflow_runs(server: str, wanted: int) -> dict[str, Any]:
    """What the MLflow server has: pretraining runs that are finished, and keys of them with a step logged twice.

    Args:
        server: its address.
        wanted: as many are waited for: what sends them follows the runs, and outlives them.
    """
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server)
    query = "tags.stage = 'pretrain' and attributes.status = 'FINISHED'"
    ends = time.monotonic() + MLFLOW_SECONDS
    while True:
        experiments = [one.experiment_id for one in client.search_experiments()]
        runs = client.search_runs(experiments, query, max_results=1000)
        if len(runs) >= wanted or time.monotonic() > ends:
            break
        time.sleep(2)
    twice = []
    for run in runs:
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
        if len(set(steps)) < len(steps):
            twice.append(run.info.run_id)
    return {"finished": len(runs), "steps_twice": len(twice)}


if __name__ == "__main__":
    main()
