"""What accumulates in a project: damaged files, leftovers of killed writes, training states of finished runs."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from paribus.files import Shape, parse, read_lines
from paribus.journal import ROW
from paribus.plan.probe import TIMINGS
from paribus.tracking.records import EXECUTION, KNOWN, RUN

WRITTEN = ("metrics", "plots", "report", "evals", "checkpoints")  # folders that stages write to
NOT_OURS = ("downloads", "huggingface", "artifacts", "inductor")  # below .paribus
LARGEST_LOG = 50_000_000  # bytes of a JSONL file that is read here
_ASIDE = re.compile(r"\.damaged(\.\d+)?$")
_LEFTOVER = re.compile(r"^\..+\.(\d+)$")  # .NAME.PID of write_atomic


@dataclass(frozen=True)
class Found:
    """Some files, and their size in bytes."""

    paths: list[Path]
    size: int


def damaged_files(root: Path) -> list[tuple[Path, str]]:
    """(file, its problem) below `.paribus`: files that were put aside, and damaged ones that nothing has read so far."""
    found = []
    for path in _own_files(root):
        problem = "put aside" if _ASIDE.search(path.name) else _problem_of(path)
        if problem is not None:
            found.append((path, problem))
    return sorted(found)


def _own_files(root: Path) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in NOT_OURS]
        found += [Path(folder) / name for name in names]
    return found


def _problem_of(path: Path) -> str | None:
    """The problem of one of our files, found without changing it."""
    if path.name.startswith("."):
        return None
    try:
        if path.suffix == ".json":
            return parse(path.read_bytes(), _shape_of(path))[1]
        if path.suffix == ".jsonl" and path.stat().st_size <= LARGEST_LOG:
            problems = read_lines(path, _shape_of(path))[1]
            return problems[0] if problems else None
    except FileNotFoundError:  # replaced or gone this instant
        return None
    except OSError as error:
        return str(error.strerror)
    return None


def _shape_of(path: Path) -> Shape:
    if path.parts[-4:-3] == ("execute",):  # what a worker was asked has its own run.json
        return object
    if path.name in _SHAPES:
        return _SHAPES[path.name]
    return EXECUTION if path.parent.name == "executions" else object


_SHAPES: dict[str, Shape] = {
    "run.json": RUN,
    "mlflow.json": KNOWN,
    "timings.json": TIMINGS,
    "metrics.jsonl": ROW,
    "system.jsonl": ROW,
}


def leftovers(project: Path, state: Path) -> Found:
    """Temporary files of writes that were killed: their process is gone."""
    paths = []
    for folder in [*(project / name for name in WRITTEN), state]:
        for path in folder.rglob(".*"):
            match = _LEFTOVER.match(path.name)
            if match and path.is_file() and not _is_alive(int(match[1])):
                paths.append(path)
    return _measured(paths)


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() if Path("/proc/self").exists() else False


def finished_states(state: Path) -> Found:
    """Training states of runs that FINISHED, which no run goes on from."""
    paths: list[Path] = []
    for run in (state / "runs").glob("*/run.json"):
        try:
            value, problem = parse(run.read_bytes(), RUN)
        except OSError:
            continue
        if problem is None and value["status"] == "FINISHED":
            paths += sorted((run.parent / "state").glob("step-*"))
    return _measured(paths)


def _measured(paths: list[Path]) -> Found:
    size = 0
    for path in paths:
        try:
            size += path.stat().st_size
        except FileNotFoundError:
            continue
    return Found(sorted(paths), size)
