"""The workers of a tuning study on the machines of a Ray cluster: a Ray task each, that stays until the study has its trials.

A worker is the command `paribus tune run NAME --worker --storage URL` in a clone of the committed code; the data come from
the DVC remote. What a study knows is in Optuna's storage, so a worker that is lost with its machine is started again by
Ray, and its trial is asked again, there from its training state where that machine has one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import paribus
from paribus.config import Config
from paribus.errors import UserError
from paribus.execute.cluster import Cluster, connect, heed_cancel, is_here
from paribus.execute.elsewhere import Home, bring_commit, checkout_of
from paribus.execute.processes import SAVE_SECONDS
from paribus.execute.ray_engine import RETRIES
from paribus.execute.repository import clone
from paribus.execute.settings import read_settings
from paribus.execute.worker import dvc_settings
from paribus.git import git
from paribus.graph import chain, stage_definitions
from paribus.places import main_checkout
from paribus.tune.storage import shown

DATA = ("tokenizer", "tokens")  # the stages whose outputs trials train on


@dataclasses.dataclass(frozen=True)
class Work:
    """What a worker needs to know: the study, its storage, the number of trials (0: as the file says), its code."""

    study: str
    url: str
    trials: int
    commit: str


def work_on_machines(
    address: str,
    study: str,
    url: str | None,
    trials: int | None,
    workers: int | None,
    config: Config,
) -> None:
    """Run the workers of a study until it has its trials.

    Args:
        address: HOST:PORT of the cluster's head; "" for that of this machine.
        study: its name.
        url: of the storage, which all machines reach.
        trials: how many; None: as its file says.
        workers: how many; None: one for each machine, or each GPU.
        config: of the study.

    Raises:
        UserError: before any trial, where something is missing; or the words of a worker that failed.
    """
    if url is None or url.startswith("sqlite"):
        raise UserError(
            f"--engine ray: --storage {shown(url)}: a sqlite file is for one machine; name a database that all reach, as "
            "postgresql://HOST/DATABASE"
        )
    root = main_checkout()
    work = Work(study, url, trials or 0, git("rev-parse", "HEAD", at=root))
    ray = connect(address)
    cluster = Cluster(ray, root, read_settings(root), config.train, [work.commit])
    if cluster.shared:
        _share_data(root)
    tasks = [_started(cluster, work) for _ in range(workers or _usual(cluster))]
    try:
        problems = _problems(ray, tasks)
    except KeyboardInterrupt:
        for task in tasks:
            ray.cancel(task, force=False)
        ray.wait(tasks, num_returns=len(tasks), timeout=SAVE_SECONDS)
        raise
    finally:
        ray.shutdown()
    if problems:
        raise UserError(problems)


def _usual(cluster: Cluster) -> int:
    """A worker for each machine; where trials train on GPUs, for each of those."""
    machines = cluster.able()
    if not cluster.cards():
        return len(machines)
    return sum(int(machine.resources.get("GPU", 0)) for machine in machines)


def _started(cluster: Cluster, work: Work) -> Any:
    task = cluster.ray.remote(_work).options(
        num_cpus=cluster.train.threads or 1,
        num_gpus=1 if cluster.cards() else 0,
        max_retries=RETRIES,
        scheduling_strategy="SPREAD",
    )
    return task.remote(cluster.home, cluster.home_node, work)


def _problems(ray: Any, tasks: list[Any]) -> list[str]:
    """What the workers that failed said, each once."""
    problems: list[str] = []
    for task in tasks:
        try:
            problems += ray.get(task)
        except ray.exceptions.RayError as error:
            problems.append(f"a worker was lost: {' '.join(str(error).split())[-300:]}")
    return list(dict.fromkeys(problems))


def _share_data(root: Path) -> None:
    """Push what trials train on, which this machine has, to the DVC remote."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        repo.push(targets=list(DATA), with_deps=True, run_cache=True)


# ---------------------------------------------------------------- on a machine


def _work(home: Home, home_node: str, work: Work) -> list[str]:
    """A Ray task: be a worker of the study on this machine; what it said where it failed."""
    heed_cancel()
    at_home = is_here(home_node)
    root = checkout_of(home, at_home)
    try:
        project = root if at_home else _prepared(root, home, work)
    except UserError as error:
        return [f"{os.uname().nodename}: {problem}" for problem in error.problems]
    command = ["tune", "run", work.study, "--worker", "--storage", work.url]
    if work.trials:
        command += ["--trials", str(work.trials)]
    own_code = str(Path(paribus.__file__).resolve().parent.parent)
    paths = filter(None, [own_code, os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"DVC_ROOT": str(root), "PYTHONPATH": os.pathsep.join(paths)}
    if home.mlflow:
        environment.setdefault("MLFLOW_TRACKING_URI", home.mlflow)
    process = subprocess.Popen(
        [sys.executable, "-m", "paribus", *command],
        cwd=project,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, said = process.communicate()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=SAVE_SECONDS)
        return []
    if process.returncode == 0:
        return []
    return [f"{os.uname().nodename}: {line}" for line in said.strip().splitlines()[-5:]]


def _prepared(root: Path, home: Home, work: Work) -> Path:
    """A clone of the study's commit on this machine, with the data that trials train on; this machine's workers share it."""
    from dvc.repo import Repo

    from paribus.journal import locked

    bring_commit(root, home.origin, work.commit)
    top = root / ".paribus" / "tune-clones" / work.commit
    with locked(top.with_name(f"{work.commit}.lock")):
        if (top / "ready").exists():
            return top / "clone" / home.project
        made = clone(root, work.commit, top / "clone")
        with contextlib.chdir(made.project):
            definitions = stage_definitions(made.project / "dvc.yaml")
            settings = dvc_settings(root, top / "site")
            with Repo(str(made.project), config=settings) as repo:
                for stage in chain(DATA, definitions):
                    repo.reproduce(stage, single_item=True, pull=True)
        (top / "ready").touch()
        return made.project
