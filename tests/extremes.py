"""The extreme values that the configuration accepts, from the schema's own bounds, and what a stage does with one.

`cases` gives every key's lowest and highest accepted number, each word of a choice, an empty and a full list; `Runner` runs the
stage that reads the key, alone, in a copy of a project whose other stages are done, and says how it ended. As a program it runs
them all and writes a line for each:

    python tests/extremes.py PROJECT LOG [STAGE …]
"""

from __future__ import annotations

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

SECONDS = 45.0  # a stage that has said nothing for so long is silent
STOP_SECONDS = 20.0  # from SIGTERM to the end
MOST_MEMORY = 6 * 2**30  # bytes of a case; what takes more was to be refused before it computed
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
        {name: 0.0 for name in names},
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
        """project: all stages done; scratch: for the copies."""
        self.project, self.scratch = project, scratch
        self.params = read_yaml(project / "params.yaml")

    def run(self, case: Case, seconds: float = SECONDS) -> Outcome:
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
            return self._watch(case, root, place / "said", seconds)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _watch(self, case: Case, root: Path, said: Path, seconds: float) -> Outcome:
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _become(case, root, said)
        process = psutil.Process(pid)
        asked: float | None = None
        length, spoke = 0, began
        over = ""
        while True:
            found, status = os.waitpid(pid, os.WNOHANG)
            now = time.monotonic()
            if found:
                break
            size = said.stat().st_size if said.exists() else 0
            if size != length:
                length, spoke = size, now
            if _memory(process) > MOST_MEMORY:
                over = "memory"
            if asked is None and _goes_on(_text(said)):
                asked = now
                os.kill(pid, signal.SIGTERM)
            if asked is not None and now - asked > STOP_SECONDS:
                over = over or "deaf"
            if asked is None and now - spoke > seconds:
                over = over or "silent"
            if now - began > 4 * seconds:
                over = over or "endless"
            if over:
                _end(process)
                _, status = os.waitpid(pid, 0)
                break
            time.sleep(0.02)
        code = os.waitstatus_to_exitcode(status)
        text = _text(said)
        kind = over or _kind(code, text, asked)
        return Outcome(kind, code, round(now - began, 1), text)


def _become(case: Case, root: Path, said: Path) -> typing.NoReturn:
    """The stage, in this process. Never returns."""
    from paribus import cli
    from paribus.tracking import sender

    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.setsid()
    os.chdir(root)
    status = 1
    try:
        sender.ensure = lambda root: (root / "sender.lock").touch()  # nothing is sent
        from paribus import tracking

        tracking.FINISH_SECONDS = 0.0
        cli.commands.main(args=list(COMMANDS.get(case.stage, (case.stage,))), standalone_mode=True)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


_PROGRESS = re.compile(r"^\S+( \S+)?: .*[\d,]+/[\d,]+.*$", re.MULTILINE)


def _goes_on(text: str) -> bool:
    """Whether it said twice how far it is."""
    return len(_PROGRESS.findall(text)) >= 2 and text.rstrip().endswith("left")


def _kind(code: int, text: str, asked: float | None) -> str:
    if code < 0:
        return "died"
    if "Traceback (most recent" in text or code not in (0, *EXPLAINED):
        return "traceback"
    if code == 0:
        return "done"
    if code == 75:
        return "paused" if asked else "explained"
    return "explained"


def _memory(process: psutil.Process) -> int:
    try:
        return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


def _end(process: psutil.Process) -> None:
    for one in (*process.children(recursive=True), process):
        try:
            one.kill()
        except psutil.Error:
            continue


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def main(project: str, log: str, *stages: str) -> None:
    import torch  # noqa: F401

    import paribus.data.tokenizer
    import paribus.evaluate.gsm8k
    import paribus.stages.evaluation
    import paribus.stages.training
    import paribus.train.loop
    import paribus.train.rollout  # noqa: F401

    os.chdir(project)
    with tempfile.TemporaryDirectory() as scratch, open(log, "a") as file:
        runner = Runner(Path(project), Path(scratch))
        every = list(cases(runner.params))
        order = {pattern: place for place, pattern in enumerate(stages)}
        every.sort(
            key=lambda case: next(
                (place for pattern, place in order.items() if re.match(pattern, case.name)), 99
            )
        )
        for case in every:
            if stages and not any(re.match(pattern, case.name) for pattern in stages):
                continue
            outcome = runner.run(case)
            row = {
                "case": case.name,
                "kind": outcome.kind,
                "status": outcome.status,
                "seconds": outcome.seconds,
            }
            tail = outcome.said[-1500:]
            print(json.dumps(row | {"said": tail}), file=file, flush=True)
            print(outcome.kind, outcome.seconds, case.name, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
