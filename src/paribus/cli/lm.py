"""`paribus eval lm`: tasks of lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from paribus import tracking
from paribus.config import (
    fingerprint,
    flatten,
    load_config,
)
from paribus.errors import UserError
from paribus.graph import package_digest, tree_digest
from paribus.machine.hardware import detect_hardware
from paribus.machine.interrupt import Interrupt
from paribus.machine.lock import StateLock
from paribus.machine.process import set_up_process
from paribus.optional import require
from paribus.places import find_checkpoint, state_root
from paribus.progress import Progress
from paribus.summary import write_json


def evaluate_lm(
    checkpoint: str,
    tasks: list[str],
    *,
    include_path: Path | None,
    limit: int | None,
    num_fewshot: int | None,
    batch_size: int,
) -> None:
    """Run tasks of lm-evaluation-harness: a table to read, JSON under evals/lm, a run in MLflow."""
    require("lm_eval", "eval lm")
    from paribus.data.disk import writing
    from paribus.data.paths import inside
    from paribus.evaluate.harness import evaluate_tasks, rows_of
    from paribus.evaluate.kept import Kept, signals_stop
    from paribus.stages.evaluation import stoppable

    if not tasks:
        raise UserError("--tasks: names none; give at least one, with commas between")
    config, folder = load_config(), find_checkpoint(checkpoint)
    hardware = detect_hardware(config.train)
    set_up_process(hardware, config.seed)
    settings = {
        "checkpoint": str(folder),
        "tasks": tasks,
        "include_path": str(include_path or ""),
        "limit": limit,
        "num_fewshot": num_fewshot,
    }
    digest = tree_digest([folder])
    name = fingerprint(
        stage="lm", weights=digest, seed=config.seed, hardware=hardware.hardware_class(), **settings
    )
    state = state_root() / "runs" / f"lm-{name}"
    with (
        StateLock(state),
        Interrupt(state, config.train.session_minutes) as interrupt,
        stoppable("eval lm", interrupt),
        Progress("lm") as bar,
        Kept(state / "answers.jsonl", f"{name} {package_digest()}") as kept,
        writing(Path("evals/lm")),
    ):
        with signals_stop(interrupt):
            found = evaluate_tasks(
                folder,
                tasks,
                device=hardware.device,
                dtype=hardware.dtype,
                graphs=hardware.decode_graphs,
                include_path=include_path,
                limit=limit,
                num_fewshot=num_fewshot,
                batch_size=batch_size,
                seed=config.seed,
                on_progress=bar.count,
                kept=kept,
                stop=interrupt.requested,
            )
        rows = rows_of(found)
        more = f"-and-{len(tasks) - 1}-more" if tasks[1:] else ""
        first = tasks[0].replace("/", "-")
        path = inside(Path("evals/lm"), f"{folder.name}/{first}{more}-{name[:8]}.json", "--tasks")
        write_json(path, settings | {"weights": digest, "rows": rows} | found)
        with tracking.RunLog.open(
            "lm",
            folder=state,
            config=config,
            fingerprint=name,
            params=flatten(config) | {f"lm.{key}": value for key, value in settings.items()},
            tags={
                "checkpoint": folder.name,
                "hardware": hardware.device_name,
                "dtype": hardware.dtype,
            },
            datasets={str(folder): (str(folder), digest)},
        ) as log:
            log.table("lm", rows)
            log.artifact(path)
            log.summary(_metrics(rows))
    (state / "answers.jsonl").unlink(missing_ok=True)  # a second request computes it again
    click.echo(_page(rows))
    click.echo(f"kept in {path}")


def _metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """`<task>.<metric>` and its `_stderr`; the filter's name with it where there is one."""
    metrics: dict[str, float] = {}
    for row in rows:
        key = f"{row['task']}.{row['metric']}" + (
            "" if row["filter"] == "none" else f".{row['filter']}"
        )
        metrics[key] = row["value"]
        if row["stderr"] is not None:
            metrics[f"{key}_stderr"] = row["stderr"]
    return metrics


def _page(rows: list[dict[str, Any]]) -> str:
    width = max(len(row["task"]) for row in rows)
    lines = [f"{'task':{width}}  {'metric':24}  {'value':>9}    {'stderr':>7}  {'n':>7}  shots"]
    for row in rows:
        metric = row["metric"] + ("" if row["filter"] == "none" else f" ({row['filter']})")
        stderr = f"± {row['stderr']:>7.4f}" if row["stderr"] is not None else f"  {'-':>7}"
        count, shots = ("-" if row[key] is None else row[key] for key in ("n", "shots"))
        lines.append(
            f"{row['task']:{width}}  {metric:24}  {row['value']:>9.4f}  {stderr}  {count:>7}  {shots:>5}"
        )
    return "\n".join(lines)
