"""The study's side of a trial: what its process gets, starting it, following its curve. Knows nothing of Optuna."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from paribus import tracking
from paribus.config import Config, fingerprint, flatten
from paribus.errors import UserError
from paribus.graph import dvc_hash, tree_digest
from paribus.journal import Row, read_json, write_json
from paribus.machine.lock import StateLock
from paribus.machine.process import most_resident
from paribus.places import state_root
from paribus.recipe import Recipe
from paribus.tune.space import Study

TOKENS, TOKENIZER = Path("data/tokens"), Path("data/tokenizer/tokenizer.json")
POLL_SECONDS = 0.1
SAVE_SECONDS = 20.0  # that a trial may take to save its state after a request to stop
LOCK_SECONDS = 60.0  # a worker that was wrongly taken for dead releases its trial within this time


class TrialCrashed(UserError):
    """A trial's process ended without a result."""


def folder_of(study: str, name: str) -> Path:
    """The folder of a trial, or of another run for a study.

    Args:
        study: its name.
        name: of the trial or run.
    """
    return state_root() / "tune" / study / name


def need_data() -> None:
    """Raises UserError without data to train on."""
    missing = [str(path) for path in (TOKENS, TOKENIZER) if not path.exists()]
    if missing:
        raise UserError(
            f"{', '.join(missing)}: does not exist; `dvc repro tokens` makes what trials train on"
        )


def job_of(
    config: Config, memory: int, budget: dict[str, float], kind: str = "train"
) -> dict[str, Any]:
    """The input of a trial's process.

    Args:
        config: of the trial.
        memory: bytes it may use.
        budget: one of tokens, flops, seconds; none to measure the speed.
        kind: train; speed measures it instead.
    """
    from paribus.data.tokenizer import Tokenizer

    recipe = Recipe.of(config, Tokenizer.load_trained(TOKENIZER.parent).vocab_size)
    return {
        "kind": kind,
        "config": asdict(replace(config, pretrain=recipe.pretrain)),
        "vocab_size": recipe.vocab_size,
        "tokens": str(TOKENS.resolve()),
        "tokenizer": str(TOKENIZER.resolve()),
        "memory": memory,
        "steps": None if "seconds" in budget else _steps_within(recipe, budget),
        "seconds": budget.get("seconds"),
        "data": data_digest(),
        "parent": os.getpid(),
    }


def _steps_within(recipe: Recipe, budget: dict[str, float]) -> int:
    """Optimiser steps of pretraining that a budget of tokens or FLOPs buys; one at least."""
    batch_tokens = recipe.batch_tokens("pretrain")
    if "flops" in budget:
        return max(int(budget["flops"] / recipe.step_flops(batch_tokens)), 1)
    return max(int(budget.get("tokens", 0) / batch_tokens), 1)


def planned_seconds(study: Study, config: Config, tokens_per_second: float) -> float:
    """What a trial would have taken.

    Args:
        study: whose budget is meant.
        config: of the trial.
        tokens_per_second: at which it trained.
    """
    if study.budget == "seconds":
        return study.amount
    tokens = study.amount
    if study.budget == "flops":
        recipe = Recipe.of(config)
        batch_tokens = recipe.batch_tokens("pretrain")
        tokens = batch_tokens * study.amount / recipe.step_flops(batch_tokens)
    return tokens / tokens_per_second


def data_digest() -> str:
    """Of what trials train on."""
    return _digest_of(TOKENS.resolve(), TOKENIZER.resolve())


@functools.cache
def _digest_of(tokens: Path, tokenizer: Path) -> str:
    return tree_digest([tokens, tokenizer])


def watch(
    folder: Path, job: Mapping[str, object], each: Callable[[list[Row]], None] = lambda rows: None
) -> dict[str, Any]:
    """Run a job in FOLDER to its end, from where an earlier start of it stopped; its result. What another job left goes.

    Args:
        folder: of the trial.
        job: as `job_of` makes it.
        each: called every tenth of a second with the new rows of its curve, those of earlier starts first; what it
          raises ends the process. Raises TrialCrashed with its last words.
    """
    with StateLock(folder, LOCK_SECONDS):
        if (
            result := finished(folder, job)
        ) is not None:  # its study was killed before it recorded this
            each(curve_of(folder))
            return result
        make_ready(folder, job)
        process = _start(folder)
        last = -1
        peak = 0
        try:
            while True:
                # Before the process is waited for: one that has ended no longer says what it held.
                peak = max(peak, most_resident(process.pid))
                ended = process.poll() is not None
                rows = [row for row in curve_of(folder) if row["step"] > last]
                last = rows[-1]["step"] if rows else last
                each(rows)
                if ended:
                    break
                time.sleep(POLL_SECONDS)
        except BaseException as why:
            _end(process, may_save=not isinstance(why, Discarded))
            raise
        return _result(folder, process.returncode, peak)


def _is_for(folder: Path, job: Mapping[str, object]) -> bool:
    """Whether the folder's content belongs to this job, and not to an earlier study of the same name."""
    before = read_json(folder / "trial.json")
    return before is not None and before | {"parent": None} == json.loads(json.dumps(job)) | {
        "parent": None
    }


def finished(folder: Path, job: Mapping[str, object]) -> dict[str, Any] | None:
    """The result of a job that was run to its end.

    Args:
        folder: of the trial.
        job: as `job_of` makes it.
    """
    return read_json(folder / "result.json") if _is_for(folder, job) else None


def make_ready(folder: Path, job: Mapping[str, object]) -> None:
    """Put the job into its folder; what another job left there goes, but for its log."""
    (folder / "start.json").unlink(missing_ok=True)  # of the start before this one
    if not _is_for(folder, job):
        shutil.rmtree(folder / "state", ignore_errors=True)
        for name in ("curve.jsonl", "result.json", "steps.json"):
            (folder / name).unlink(missing_ok=True)
    write_json(folder / "trial.json", job)


class Discarded(Exception):
    """Raised by `watch`'s `each` to end a process whose state is of no more use."""


def curve_of(folder: Path) -> list[Row]:
    """The whole lines of a trial's curve: {step, fraction, val_bpb, tokens, peak_memory_bytes}."""
    path = folder / "curve.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _start(folder: Path) -> subprocess.Popen[bytes]:
    """The trial's process; its output goes to FOLDER/output.txt."""
    environment = os.environ | {
        "MALLOC_ARENA_MAX": "2"
    }  # else each thread reserves memory that the cap would count
    with (folder / "output.txt").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "paribus.tune.trial", str(folder)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def _end(process: subprocess.Popen[bytes], may_save: bool) -> None:
    """Let it save its state first where that is of use."""
    if may_save and process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SAVE_SECONDS)
    if process.poll() is None:
        process.kill()
    process.wait()


def _result(folder: Path, status: int, peak: int) -> dict[str, Any]:
    """peak: bytes that the process was seen to hold."""
    result = read_json(folder / "result.json")
    # The kernel kills for lack of memory, and libraries abort: such a process writes no result itself.
    if result is None and status in (-signal.SIGKILL, -signal.SIGABRT):
        peaks = [row["peak_memory_bytes"] for row in curve_of(folder)]
        return {"out_of_memory": True, "peak_memory_bytes": max([peak, *peaks])}
    if result is None:
        words = (folder / "output.txt").read_text(errors="replace").strip().splitlines()
        raise TrialCrashed(
            [
                f"{folder}: the trial's process ended with status {status}; its last words:",
                *words[-5:],
            ]
        )
    return result


def open_log(
    study: Study, config: Config, folder: Path, name: str, tags: dict[str, str]
) -> tracking.RunLog:
    """An MLflow run for a trial, child of the study's; a trial that goes on keeps its run.

    Args:
        study: the search.
        config: of the trial.
        folder: of the trial.
        name: of the run.
        tags: what it is to the study.
    """
    rows = curve_of(folder)
    data = {str(path): (str(path), dvc_hash(path)) for path in (TOKENS,)}
    root = state_root()
    place = "-".join(folder.relative_to(root).parts)
    return tracking.RunLog.open(
        "tune",
        folder=root / "runs" / place,
        config=study.config(),
        params=flatten(config),
        fingerprint=fingerprint(config=flatten(config)),
        tags={"study": study.name, **tags},
        datasets=data,
        resume_step=rows[-1]["step"] if rows else None,
        group=f"tune {study.name}",
        name=name,
    )
