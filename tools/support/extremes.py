"""The extreme values that the configuration accepts, from the schema's own bounds, and what a stage does with one.

`cases` gives every key's lowest and highest accepted number, each word of a choice, an empty and a full list; `Runner` runs the
stage that reads the key, alone, in a copy of a project whose other stages are done, and says how it ended. As a program it runs
those whose names match one of the patterns (all: an hour of one core) and writes a line for each:

    PYTHONPATH=src:tools python -m support.extremes PROJECT LOG [PATTERN …]

PROJECT: a folder of a tiny project; it is made, and its stages are run, if it is not there.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

import psutil
import yaml

from paribus import graph
from paribus.config import describe, merge, parse_config, read_yaml
from paribus.errors import UserError
from support.checkout import ROOT
from support.project import Project

SECONDS = 150.0  # a stage that has said nothing for so long is silent
STOP_SECONDS = 150.0  # from SIGTERM to the end
MACHINE_MEMORY = 4 * 10**9  # bytes that a stage takes the machine to have
MOST_MEMORY = 6 * 10**9  # bytes that it may really take: the plan is not exact
EXPLAINED = (2, 74, 75)
LEAST = 5e-324  # the smallest positive number
UNIT = 64  # of whole numbers that have to fit others: a multiple of every tiny width and context

# Stages that run a key which no stage declares, as it is not meant to change what is learned.
UNDECLARED = {"train": ("pretrain", "rl"), "tracking": ("pretrain",)}
STAGES = (
    "core",
    "rl",
    "midtrain",
    "sft",
    "gsm8k_stage",
    "pretrain",
    "tokens",
    "tokenizer",
    "corpus",
)
# Other keys that have to be set for a key to act, or for its highest value to be accepted.
BESIDE: dict[str, dict[str, Any]] = {
    "corpus.paths": {"corpus.source": "local"},
    "corpus.text_column": {"corpus.source": "local", "corpus.paths": ["data/corpus/documents/*"]},
    "corpus.megabytes": {"corpus.source": "local", "corpus.paths": ["data/corpus/documents/*"]},
    "model.aspect_ratio": {"model.depth": 1},
    "model.seq_len": {f"{stage}.batch_tokens": 2**20 for stage in ("pretrain", "midtrain", "sft")},
    "model.n_kv_heads": {"model.head_dim": 8},
    "optimizer.adamw_matrix_lr": {"optimizer.kind": "adamw"},
    "train.sharding": {"train.processes": 2},
    "pretrain.tokens_per_parameter": {"pretrain.steps": None},
    "pretrain.core_max_per_task": {"pretrain.core_every": 1},
}
PREPARED = ("corpus", "tokenizer", "tokens", "pretrain", "midtrain", "sft", "rl")
COMMANDS = {"core": ("eval", "core"), "gsm8k_stage": ("eval", "gsm8k", "sft")}


@dataclass(frozen=True)
class Case:
    """A stage and the key that it reads with an extreme value."""

    stage: str
    key: str
    value: Any

    @property
    def name(self) -> str:
        text = json.dumps(self.value, ensure_ascii=False)
        return f"{self.stage} {self.key}={text if len(text) < 60 else text[:50] + '…'}"


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    kind: done, explained, paused (was at work and said so, and stopped when asked), traceback, silent, deaf (did not stop when
    asked), memory, or died of a signal.
    """

    kind: str
    status: int | None
    seconds: float
    said: str

    @property
    def proper(self) -> bool:
        return self.kind in ("done", "explained", "paused")


# ---------------------------------------------------------------- which values


def with_value(params: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """params.yaml with the value at the key, and beside it what makes the key act."""
    return merge(params, BESIDE.get(key, {}) | {key: value})


def accepted(params: dict[str, Any], key: str, value: Any) -> bool:
    """Whether params.yaml with the value at the key is accepted."""
    try:
        parse_config(with_value(params, key, value))
    except UserError:
        return False
    return True


def extremes(params: dict[str, Any], key: str, hint: Any, meta: Any) -> list[Any]:
    """The accepted extremes of a key."""
    options = typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)
    found: list[Any] = [None] if type(None) in options else []
    kind = next(option for option in options if option is not type(None))
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        found += typing.get_args(kind)
    elif kind is bool:
        found += [True, False]
    elif kind in (int, float):
        found += _numbers(params, key, kind, meta)
    elif origin is dict:
        found += _mappings(params, key, typing.get_args(kind)[1], meta)
    elif origin is list:
        found += [[], ["nowhere/*.txt"], [f"nowhere/{number}.txt" for number in range(1_000)]]
    else:
        found += [
            "x",
            "x" * 255,
            "x" * 4_096,
            "world",
            "/",
            ".",
            "../" * 40 + "etc",
            "S" * 256,
            "L",
        ]
    distinct: list[Any] = []
    for value in found:
        if value not in distinct and accepted(params, key, value):
            distinct.append(value)
    return distinct


def _numbers(params: dict[str, Any], key: str, kind: type, meta: Any) -> list[Any]:
    """Lowest, a little above it, highest."""
    lowest = meta["ge"] if meta["ge"] is not None else LEAST
    above = [lowest + 1] if kind is int else [LEAST, 1e-30]
    if kind is float and meta["gt"]:
        lowest = math.nextafter(meta["gt"], math.inf)
    return [kind(lowest), *above, _highest(params, key, kind, meta["le"])]


def _highest(params: dict[str, Any], key: str, kind: type, bound: float) -> Any:
    """The highest accepted value: the bound, or what rules about several keys leave of it, found by halving."""
    if accepted(params, key, kind(bound)):
        return kind(bound)
    now = _at(params, key) or UNIT
    unit = UNIT if kind is int else 1
    low, high = now / unit, bound / unit
    if kind is int:
        low, high = int(low), int(high)
    for _ in range(80):
        middle = (low + high) // 2 if kind is int else (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if accepted(params, key, kind(middle * unit)) else (low, middle)
    return kind(low * unit) if accepted(params, key, kind(low * unit)) else now


def _mappings(params: dict[str, Any], key: str, kind: type, meta: Any) -> list[Any]:
    if kind is str:
        return [
            {},
            {"mine": "nowhere.jsonl"},
            {f"m{number}": "nowhere.jsonl" for number in range(500)},
        ]
    highest = meta["le"]
    names = ("documents", "facts", "problems_worked")
    return [
        {},
        *({name: 1.0} for name in names),
        {"facts": LEAST},
        {"facts": highest},
        {"facts": highest, "problems_worked": LEAST},
        {"documents": LEAST, "facts": highest},
        dict.fromkeys(names, 0.0),
        {"documents": highest},
    ]


def _at(params: dict[str, Any], key: str) -> Any:
    node: Any = params
    for name in key.split("."):
        node = node[name]
    return node


def readers(key: str) -> list[str]:
    """The stages that read a key."""
    found = []
    for stage in STAGES:
        declared = _declared(stage)
        if any(key == one or key.startswith(f"{one}.") for one in declared):
            found.append(stage)
    for section, stages in UNDECLARED.items():
        if key.startswith(f"{section}."):
            found += [stage for stage in stages if stage not in found]
    return found


@functools.cache
def _declared(stage: str) -> list[str]:
    return graph.stage_definition(_dvc_name(stage)).params


def _dvc_name(stage: str) -> str:
    return f"{stage}@sft" if stage == "gsm8k_stage" else stage


def cases(params: dict[str, Any]) -> Iterator[Case]:
    """Every key's extremes for every stage that reads it."""
    rows = [
        row
        for row in describe()
        if not isinstance(_at(params, row[0]), dict) or "dict" in str(row[1])
    ]
    values = {key: extremes(params, key, hint, meta) for key, hint, meta in rows}
    read_by = {key: readers(key) for key in values}
    for stage in STAGES:
        for key, found in values.items():
            if stage in read_by[key]:
                yield from (Case(stage, key, value) for value in found)


# ---------------------------------------------------------------- how a stage ends


class Runner:
    """Runs stages in copies of a project, each in a fork of this process, which has the libraries loaded."""

    def __init__(self, project: Path, scratch: Path) -> None:
        """project: with params.yaml and what the stages read; scratch: for the copies."""
        self.project, self.scratch = project, scratch
        self.params = read_yaml(project / "params.yaml")

    def prepare(self) -> None:
        """Run the stages up to the last checkpoint, in the project itself."""
        for stage in PREPARED:
            outcome = Watched(Case(stage, "", None), self.project, self.scratch / stage).outcome(
                600
            )
            assert outcome.kind == "done", (stage, outcome)

    def run(self, case: Case) -> Outcome:
        """The case in a copy of its own, which is removed."""
        place = Path(tempfile.mkdtemp(dir=self.scratch))
        try:
            root = place / "project"
            shutil.copytree(
                self.project, root, symlinks=True,
                ignore=shutil.ignore_patterns(".paribus", "cache", "mlartifacts", "*.db", "__pycache__"),
            )  # fmt: skip
            values = with_value(self.params, case.key, case.value)
            (root / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
            return Watched(case, root, place / "said").outcome(SECONDS)
        finally:
            shutil.rmtree(place, ignore_errors=True)


class Watched:
    """A stage under way in a fork, what it says, and how it ends."""

    def __init__(self, case: Case, root: Path, said: Path) -> None:
        """said: the file of what it says."""
        self._said, self._began = said, time.monotonic()
        self._length, self._spoke = 0, self._began
        self._asked: float | None = None  # when it was asked to stop
        said.touch()
        self._pid = os.fork()
        if self._pid == 0:
            _become(case, root, said)
        self._process = psutil.Process(self._pid)

    def outcome(self, seconds: float) -> Outcome:
        """Wait for the end. What says twice how far it is, is asked to stop; what is silent for so long is ended."""
        while True:
            found, status = os.waitpid(self._pid, os.WNOHANG)
            wrong = "" if found else self._wrong(seconds)
            if wrong:
                _end(self._process)
                _, status = os.waitpid(self._pid, 0)
            if found or wrong:
                break
            time.sleep(0.02)
        code, text = os.waitstatus_to_exitcode(status), self._text()
        kind = wrong or _kind(code, text, self._asked is not None)
        return Outcome(kind, code, round(time.monotonic() - self._began, 1), text)

    def _wrong(self, seconds: float) -> str:
        """What is wrong with it at this moment; empty for nothing."""
        now, size = time.monotonic(), self._said.stat().st_size
        if size != self._length:
            self._length, self._spoke = size, now
        if _memory(self._process) > MOST_MEMORY:
            return "memory"
        if self._asked is not None:
            return "deaf" if now - self._asked > STOP_SECONDS else ""
        if len(PROGRESS.findall(self._text())) >= 2:
            self._asked = now
            os.kill(self._pid, signal.SIGTERM)
        return "silent" if now - self._spoke > seconds else ""

    def _text(self) -> str:
        return self._said.read_text(errors="replace")


def _become(case: Case, root: Path, said: Path) -> typing.NoReturn:
    """Turn this process into the stage, without MLflow. Never returns."""
    from paribus import progress, tracking
    from paribus.cli import commands as cli
    from paribus.stages import room
    from paribus.tracking import sender
    from paribus.train import within

    file = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.setsid()
    os.chdir(root)
    sender.ensure = lambda root: (root / "sender.lock").touch()
    tracking.FINISH_SECONDS = tracking.STOPPED_SECONDS = 0.0
    room.machine_memory = lambda: MACHINE_MEMORY
    progress.LINE_SECONDS = within.PATIENCE_SECONDS = 2.0  # less waiting, and the same answers
    status = 1
    try:
        cli.commands.main(args=list(COMMANDS.get(case.stage, (case.stage,))))
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


# A line that says how far it is: "rl: step 3/10  loss 2.1  0:20 left", "rl: step 0/2  answers 40/655,360 (3:20 left)".
PROGRESS = re.compile(r"^\S+( \S+)?: .*[\d,]+/[\d,]+.* left\)?$", re.MULTILINE)


def _kind(code: int, text: str, asked: bool) -> str:
    if code < 0:
        return "died"
    if "Traceback (most recent" in text or code not in (0, *EXPLAINED):
        return "traceback"
    if code == 0:
        return "done"
    return "paused" if code == 75 and asked else "explained"


def _memory(process: psutil.Process) -> int:
    """Bytes that the process and its children hold."""
    try:
        return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


def _end(process: psutil.Process) -> None:
    for one in (*process.children(recursive=True), process):
        with contextlib.suppress(psutil.Error):
            one.kill()


def load_libraries() -> None:
    """What every stage would import anew."""
    import torch  # noqa: F401

    import paribus.data.tokenizer
    import paribus.evaluate.core
    import paribus.evaluate.gsm8k
    import paribus.stages.evaluation
    import paribus.stages.training
    import paribus.train.loop
    import paribus.train.rollout  # noqa: F401


def main(project: str, log: str, *patterns: str) -> None:
    load_libraries()
    root = Path(project).resolve()
    made = root.exists()
    if not made:
        Project(root, ROOT)
    os.chdir(root)
    with tempfile.TemporaryDirectory() as scratch, open(log, "a") as file:
        runner = Runner(root, Path(scratch))
        if not made:
            runner.prepare()
        for case in cases(runner.params):
            if patterns and not any(re.match(pattern, case.name) for pattern in patterns):
                continue
            outcome = runner.run(case)
            row = {
                "case": case.name,
                "kind": outcome.kind,
                "status": outcome.status,
                "seconds": outcome.seconds,
                "said": outcome.said[-1500:],
            }
            print(json.dumps(row), file=file, flush=True)
            print(outcome.kind, outcome.seconds, case.name, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
