"""One trial, in a process of its own: `python -m paribus.tune.trial FOLDER`.

FOLDER/trial.json says what to train; curve.jsonl gets a line at every eighth of its budget, result.json comes last. The training
state is in FOLDER/state, so that a trial that was killed goes on. The process is capped at the study's memory: one that
needs more ends with `{"out_of_memory": true}` and what it had reached, and takes nothing with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import shutil
import signal
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus.errors import MachineError, UserError
from paribus.journal import keep_rows, read_json, write_json
from paribus.machine.interrupt import EXIT_PAUSED
from paribus.machine.process import set_up_process
from paribus.recipe import Recipe
from paribus.train.callback import Callback

if TYPE_CHECKING:
    from paribus.evaluate.bpb import HeldOut
    from paribus.machine.hardware import Hardware
    from paribus.model.gpt import GPT
    from paribus.train.stepper import Forward
    from paribus.train.trainer import Trainer

LOOKS = 8  # shares of its budget after which a trial is evaluated: those of trials with more or fewer steps compare
TIMING_STEPS = 4  # of a time budget: the first is thrown away
TIMED_STEPS = (
    2  # of a device batch, at each turn; the faster one counts, as other work only ever adds time
)


def main(folder: Path) -> None:
    """Train, or report why not."""
    ctypes.CDLL(None).prctl(
        1, signal.SIGKILL
    )  # PR_SET_PDEATHSIG: no orphan trains on beside the trial's next start
    job = read_json(folder / "trial.json")
    assert job is not None, folder
    if os.getppid() != job["parent"]:
        raise SystemExit("the study's process is gone")
    import torch

    from paribus.train.loop import Paused

    try:
        result = _speed(job) if job["kind"] == "speed" else _train(folder, job)
    except Paused as paused:
        print(paused)
        raise SystemExit(EXIT_PAUSED) from None
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        _uncap()  # to report takes memory too
        result = {"out_of_memory": True, "peak_memory_bytes": _peak(job["memory"])}
    write_json(folder / "result.json", result)
    shutil.rmtree(
        folder / "state", ignore_errors=True
    )  # only now: killed in between, it would begin again


def _is_memory(error: BaseException) -> bool:
    """A thread's stack counts towards the cap like everything else."""
    words = "out of memory|not enough memory|can't allocate|can't start new thread"
    return isinstance(error, MemoryError) or re.search(words, str(error)) is not None


def _peak(budget: int) -> int:
    """What was reached, a GPU's context included; on a CPU an allocation that was refused had wanted more."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        from paribus.plan.memory import CUDA_CONTEXT

        return CUDA_CONTEXT + torch.cuda.max_memory_reserved()
    from paribus.train.loop import peak_memory_bytes

    return peak_memory_bytes(torch.device("cpu"))


def cap(device: str, budget: int) -> None:
    """Refuse allocations past `budget` bytes: of the GPU, or of this process.

    On CUDA torch's allocator is limited. What the process takes beside it (its context, the kernels' code) is of the
    same memory and outside that limit, so the planner's figure for it is taken off the budget.

    On a CPU the kernel limits private data; files mapped into memory (torch's libraries) count towards the peak too,
    so what they take is taken off.
    """
    import torch

    from paribus.plan.memory import CUDA_CONTEXT

    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        tensors = max(budget - CUDA_CONTEXT, 2**20)
        torch.cuda.set_per_process_memory_fraction(min(tensors / total, 1.0))
    else:
        status = Path("/proc/self/status").read_text()
        found = re.search(r"RssFile:\s*(\d+) kB", status)
        mapped = int(found[1]) * 1024 if found else 0
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (max(budget - mapped, 2**20), hard))


def _uncap() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _build(job: dict[str, Any]) -> tuple[Recipe, Hardware, GPT]:
    """What is trained, on what, and the model at its first values; the process is capped."""
    import torch

    from paribus.config import parse_config
    from paribus.machine.hardware import detect_hardware
    from paribus.model.window_kernel import settled
    from paribus.train.trainer import new_model

    config = parse_config(job["config"])
    hardware = detect_hardware(config.train)
    set_up_process(hardware, config.seed)
    # the products' threads and libraries, before the cap is measured
    torch.zeros(256, 256) @ torch.zeros(256, 256)
    cap(hardware.device, job["memory"])
    recipe = Recipe.of(config, job["vocab_size"])
    hardware = settled(hardware, recipe.architecture)
    return recipe, hardware, new_model(recipe, hardware)


def _train(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Train from where an earlier start stopped to the end of the budget, and measure bits per byte."""
    from paribus.data.mixture import document_rows
    from paribus.data.shards import check_tokenizer
    from paribus.data.tokenizer import Tokenizer
    from paribus.evaluate.bpb import HeldOut
    from paribus.machine.interrupt import Interrupt
    from paribus.train.checkpoint import StateStore
    from paribus.train.loop import peak_memory_bytes
    from paribus.train.trainer import Trainer, next_token

    recipe, hardware, model = _build(job)
    tokenizer = Tokenizer.load_trained(Path(job["tokenizer"]).parent)
    check_tokenizer(Path(job["tokens"]), tokenizer, Path(job["tokenizer"]))

    def trainer_of(recipe: Recipe, forward: Forward | None = None) -> Trainer:
        objective = next_token(document_rows(job["tokens"], recipe), recipe, "pretrain")
        return Trainer(recipe, "pretrain", model, objective, hardware, forward=forward)

    trainer = trainer_of(recipe)
    steps = _steps(folder, job, trainer, hardware)
    if steps != recipe.steps("pretrain"):  # shares of the steps are those of the trial's own
        recipe = replace(recipe, pretrain=replace(recipe.pretrain, steps=steps))
        trainer = trainer_of(recipe, trainer.forward)
    held_out = HeldOut(model, job["tokens"], tokenizer.token_bytes, recipe)

    store = StateStore(folder / "state", 2)
    state = store.load()
    reached = state.step if state else 0
    write_json(folder / "start.json", {"went_on_from_step": reached})
    keep_rows(folder / "curve.jsonl", lambda row: state is not None and row["step"] <= reached)
    with Interrupt(folder) as interrupt, Curve(folder, held_out, recipe, steps) as curve:
        loop = trainer.loop(store, interrupt, [curve])
        if state:
            loop.restore(state)
        try:
            loop.run()
        except MachineError:
            raise  # the disk, not the values under trial
        except UserError as error:
            if not loop.position.nonfinite:
                raise
            return {"diverged": str(error), "peak_memory_bytes": peak_memory_bytes(model.device)}
    loop.optimizer.settle()
    model.eval()
    position = loop.position
    return {
        "val_bpb": held_out.bits_per_byte(recipe.config.eval.bpb_tokens),
        "steps": position.step,
        "tokens": position.tokens,
        "seconds": position.seconds,
        "peak_memory_bytes": peak_memory_bytes(model.device),
        "tokens_per_second": position.tokens / position.train_seconds,
        "nonfinite": position.nonfinite,
    }


class Curve(Callback):
    """Bits per byte at every eighth of the budget, a line each in FOLDER/curve.jsonl."""

    def __init__(self, folder: Path, held_out: HeldOut, recipe: Recipe, steps: int) -> None:
        """steps: that the budget buys."""
        self.held_out, self.schedule = held_out, recipe.pretrain
        self.batches, self.seq_len = recipe.batches("pretrain"), recipe.architecture.seq_len
        self.fractions: dict[int, float] = {}  # step -> share of the budget
        for look in range(1, LOOKS):
            step = round(steps * look / LOOKS)
            if 0 < step < steps:
                self.fractions[step] = look / LOOKS
        # keep_rows replaces the file: it has finished by now
        self.file = (folder / "curve.jsonl").open("a", encoding="utf-8")

    def __enter__(self) -> Curve:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def is_due(self, step: int) -> bool:
        """After each eighth of the budget but the last, which the trial's end evaluates."""
        return step in self.fractions

    def evaluate(self, step: int) -> dict[str, float]:
        """Measure bits per byte after `step` steps and append a line to the curve's file.

        The line also holds the share of the budget, the tokens so far and the peak of memory in bytes.
        """
        from paribus.train.loop import peak_memory_bytes

        value = self.held_out.bits_per_byte(self.schedule.eval_tokens)
        row = {
            "step": step,
            "fraction": self.fractions[step],
            "val_bpb": value,
            "tokens": self.batches.before(step) * self.seq_len,
            "peak_memory_bytes": peak_memory_bytes(self.held_out.model.device),
        }
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        return {"val/bpb": value}


def _steps(folder: Path, job: dict[str, Any], trainer: Trainer, hardware: Hardware) -> int:
    """How many steps the budget buys. Of a time budget it is measured once, before the first step, and kept."""
    if job["steps"]:
        return int(job["steps"])
    known = read_json(folder / "steps.json")
    if known is None:
        times = [trainer.time_step(step) for step in range(TIMING_STEPS)]
        seconds = statistics.median(times[1:])
        trainer.start_over()
        set_up_process(hardware, trainer.recipe.config.seed)
        known = {"steps": max(int(job["seconds"] / seconds), 2), "step_seconds": seconds}
        write_json(folder / "steps.json", known)
    return int(known["steps"])


def _speed(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a step at each device batch of job["rows"], which take turns; and the most memory that was taken.

    Turns meet alike what changes meanwhile: other work, heat, clocks. Each begins with a step that is not counted, in which
    memory and caches come to suit the new size.
    """
    import torch

    from paribus.train.loop import peak_memory_bytes
    from paribus.train.objectives import NextToken
    from paribus.train.trainer import RandomRows, Trainer

    recipe, hardware, model = _build(job)
    step_rows = recipe.rows("pretrain")
    noise = RandomRows(recipe)
    objectives = {rows: NextToken(noise, step_rows, rows) for rows in job["rows"]}
    forward: Any = model
    if hardware.compile:
        # a size and its remainder each
        torch._dynamo.config.recompile_limit = 2 * len(objectives) + 8
        forward = model.compiled(dynamic=False)
    any_objective = objectives[job["rows"][0]]
    trainer = Trainer(recipe, "pretrain", model, any_objective, hardware, forward=forward)

    times: dict[int, list[float]] = {rows: [] for rows in objectives}
    for turn in range(job["turns"]):
        for rows in sorted(times, reverse=turn % 2 == 1):
            if hardware.device == "cuda":
                torch.cuda.empty_cache()  # else what another size left would count towards the cap
            timed = range(1 + TIMED_STEPS)
            seconds = [trainer.time_step(step, objectives[rows]) for step in timed]
            times[rows].append(min(seconds[1:]))
    return {"step_seconds": times, "peak_memory_bytes": peak_memory_bytes(model.device)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
