"""`--engine`: what computes the runs of a study, this machine or the machines of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paribus.config import Train
from paribus.errors import UserError
from paribus.execute.engine import Engine
from paribus.execute.local import Pool
from paribus.execute.settings import read_settings
from paribus.git import GitError, git
from paribus.places import main_checkout, state_root
from paribus.study import gpus as cards
from paribus.study.experiment import Experiment
from paribus.study.ideas import REFERENCES

LOCAL = "local"


@dataclass(frozen=True)
class Prepared:
    """An engine that is checked and not yet started.

    Attributes:
        side_by_side: runs that share a machine.
        open: starts it, for runs with these settings of `train`, and the commits of their code.
    """

    side_by_side: int
    open: Callable[[Train, Sequence[str]], Engine]


def prepare(engine: str, experiment: Experiment, workers: int | None, gpus: str | None) -> Prepared:
    """Check what `--engine`, `--workers` and `--gpus` ask for.

    Args:
        engine: `local`, `ray` or `ray:HOST:PORT`.
        experiment: whose runs they are.
        workers: runs side by side; None: as the file says, as many as GPUs or as fit the cluster.
        gpus: of this machine, separated by commas; None: all.

    Raises:
        UserError: before any compute, where something is missing.
    """
    if engine == LOCAL:
        return _local(experiment, workers, gpus)
    if gpus is not None:
        raise UserError(f"--gpus {gpus}: Ray deals out the GPUs of its machines; leave it out")
    return _ray(address_of(engine), workers)


def prepare_tries(engine: str, workers: int | None) -> Prepared:
    """As `prepare`, for tries; their commits, which no branch has, are pushed to where other machines get code from.

    Args:
        engine: `local`, `ray` or `ray:HOST:PORT`.
        workers: runs side by side; None: 1 here, on a cluster as many as fit.

    Raises:
        UserError: before any compute, where something is missing.
    """
    if engine == LOCAL:
        slots = workers or 1
        return Prepared(slots, lambda train, commits: Pool(main_checkout(), state_root(), slots))
    from paribus.execute.cluster import computing, connect

    ray = connect(address_of(engine))
    prepared = _ray(address_of(engine), workers)

    def start(train: Train, commits: Sequence[str]) -> Engine:
        if len(computing(ray)) > 1:
            _push(commits)
        return prepared.open(train, commits)

    return Prepared(prepared.side_by_side, start)


def _push(commits: Sequence[str]) -> None:
    """Push commits under references of their own. Raises UserError."""
    origin = read_settings(main_checkout()).git
    if not origin:  # the cluster says so
        return
    for commit in commits:
        try:
            git("push", "--quiet", "--", origin, f"{commit}:{REFERENCES}/pushed-{commit[:12]}")
        except GitError as error:
            raise UserError(
                f"the commit {commit[:10]} could not be pushed to {origin}, where other machines get code from: {error}"
            ) from None


def address_of(engine: str) -> str:
    """HOST:PORT of `ray:HOST:PORT`; "" of `ray`."""
    return engine.partition(":")[2]


def _local(experiment: Experiment, workers: int | None, gpus: str | None) -> Prepared:
    side_by_side, chosen = cards.deal(experiment, gpus, workers)

    def start(train: Train, commits: Sequence[str]) -> Engine:
        return Pool(main_checkout(), state_root(), side_by_side, chosen)

    return Prepared(side_by_side, start)


def _ray(address: str, workers: int | None) -> Prepared:
    from paribus.execute.cluster import Cluster, computing, connect
    from paribus.execute.ray_engine import RayEngine

    settings = read_settings(main_checkout())
    ray = connect(address)
    machines = max(len(computing(ray)), 1)
    side_by_side = 1 if workers is None else -(-workers // machines)

    def start(train: Train, commits: Sequence[str]) -> Engine:
        cluster = Cluster(ray, main_checkout(), settings, train, commits)
        return RayEngine(cluster, main_checkout(), state_root(), settings, workers)

    return Prepared(side_by_side, start)
