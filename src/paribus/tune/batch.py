"""`paribus tune batch`: the fastest device batch that fits, tokens per step kept; measured in capped processes."""

from __future__ import annotations

import json
import shutil
import statistics
from typing import Any

from paribus.config import Config, load_config
from paribus.errors import UserError
from paribus.plan.memory import max_device_batch
from paribus.plan.probe import here
from paribus.recipe import Recipe
from paribus.tune.launch import folder_of, job_of, need_data, watch
from paribus.tune.space import memory_budget

TURNS = 7  # measured: the same setting differs by up to 20 % from one minute to the next, and by a few within a turn


def batch(memory: str | None, *, json_out: bool = False) -> None:
    """Measure, and print the fastest. Raises UserError where not one row fits."""
    config = load_config()
    recipe = Recipe.of(config)
    device, dtype = here(recipe)
    budget = memory_budget(memory, "--memory") if memory else device.memory
    need_data()
    largest = max_device_batch(recipe, "pretrain", budget, device=device.kind, dtype=dtype)
    if not largest:
        raise UserError(f"--memory: not one row fits {budget / 2**20:,.0f} MiB by `paribus plan`")
    tried = measure(config, candidates(recipe.rows("pretrain"), largest), budget)
    fit = {
        rows: entry["tokens_per_second"]
        for rows, entry in tried.items()
        if "tokens_per_second" in entry
    }
    if not fit:
        raise UserError(f"--memory: one row needs more than {budget / 2**20:,.0f} MiB")
    best = max(fit, key=lambda rows: fit[rows])
    if json_out:
        print(
            json.dumps(
                {"device_batch_size": best, "tokens_per_second": fit[best], "tried": tried},
                indent=1,
            )
        )
        return
    for rows, entry in tried.items():
        speed = (
            f"{entry['tokens_per_second']:>10,.0f} tokens/s"
            if rows in fit
            else "  out of memory      "
        )
        mark = "  <- fastest" if rows == best else ""
        print(f"{rows:>6} rows {speed}  peak {entry['peak_memory_bytes'] / 2**20:>8,.0f} MiB{mark}")
    print(
        f"set pretrain.device_batch_size to {best}; the step's {recipe.batch_tokens('pretrain'):,} tokens stay"
    )


def candidates(step_rows: int, largest: int) -> list[int]:
    """Device batches worth a measurement: the step in as few passes as fit, then in about twice as many, and so on.

    A step of `passes` equal passes costs what each pass costs by itself, times that, and what its rows cost: among the
    batches with as many passes the smallest is the fastest, and doubling finds where caches prefer smaller ones.
    """
    found, passes = [], -(-step_rows // largest)
    while passes <= step_rows:
        found.append(-(-step_rows // passes))
        passes *= 2
    return sorted({*found, 1})


def measure(
    config: Config, rows: list[int], budget: int, turns: int = TURNS
) -> dict[int, dict[str, Any]]:
    """Measure each number of rows: rows -> {tokens_per_second, peak_memory_bytes}.

    The first that does not fit is the last tried and has {out_of_memory, ...}. Memory: a process each, capped at the budget.
    Speed: those that fit take turns in one process, and each is compared with the others of the same turn.
    """
    tried: dict[int, dict[str, Any]] = {}
    for count in sorted(rows):
        tried[count] = _run(config, [count], 1, budget)
        if "step_seconds" not in tried[count]:
            break
    fit = [count for count, entry in tried.items() if "step_seconds" in entry]
    if not fit:
        return tried
    # Together they leave more behind in a CPU's heap than one by one; a GPU's cache is emptied between them.
    recipe = Recipe.of(config)
    device, _ = here(recipe)
    together = _run(config, fit, turns, budget if device.kind == "cuda" else 2 * budget)
    if "step_seconds" not in together:
        raise UserError(
            f"--memory: {together['peak_memory_bytes'] / 2**20:,.0f} MiB were not enough to time {fit} rows "
            "in turns, though each fits alone; is something else taking memory?"
        )
    times = {int(count): seconds for count, seconds in together["step_seconds"].items()}
    for count, seconds in step_seconds(times).items():
        tried[count] = {
            "tokens_per_second": recipe.batch_tokens("pretrain") / seconds,
            "peak_memory_bytes": tried[count]["peak_memory_bytes"],
        }
    return tried


def step_seconds(times: dict[int, list[float]]) -> dict[int, float]:
    """Seconds of a step by rows, from one time a turn: the median share of each turn times the median turn."""
    turn = [statistics.fmean(together) for together in zip(*times.values(), strict=True)]
    return {
        rows: statistics.median(mine / mean for mine, mean in zip(own, turn, strict=True))
        * statistics.median(turn)
        for rows, own in times.items()
    }


def _run(config: Config, rows: list[int], turns: int, budget: int) -> dict[str, Any]:
    folder = folder_of("batch", f"rows-{'-'.join(map(str, rows))}")
    shutil.rmtree(folder, ignore_errors=True)
    return watch(folder, job_of(config, budget, {}, "speed") | {"rows": rows, "turns": turns})
