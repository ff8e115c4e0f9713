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
import time
from pathlib import Path
from typing import Any

from paribus.errors import MachineError, UserError
from paribus.journal import keep_rows, read_json, write_json
from paribus.machine.interrupt import EXIT_PAUSED

LOOKS = 8  # shares of its budget after which a trial is evaluated: those of trials with more or fewer steps compare
TIMING_STEPS = 4  # of a time budget: the first is thrown away
TIMED_STEPS = (
    2  # of a device batch, at each turn; the faster one counts, as other work only ever adds time
)


def main(folder: Path) -> None:
    """Train, or say why not."""
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


def _build(job: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """(config, hardware, model, optimiser), the process capped."""
    import torch

    from paribus.config import parse_config
    from paribus.machine.hardware import detect_hardware
    from paribus.machine.process import set_up_process
    from paribus.model.gpt import GPT
    from paribus.train.optim import MuonAdamW

    config = parse_config(job["config"])
    hardware = detect_hardware(config.train)
    set_up_process(hardware, config.seed)
    torch.zeros(256, 256) @ torch.zeros(
        256, 256
    )  # the products' threads and libraries, before the cap is measured
    cap(hardware.device, job["memory"])
    model = GPT(config.model, job["vocab_size"], getattr(torch, hardware.dtype))
    model.activation_checkpointing = config.train.activation_checkpointing
    model.initialise(config.seed)
    model = model.to(hardware.device)
    return config, hardware, model, MuonAdamW(model, config.optimizer)


def _train(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    from paribus.data.loader import DocumentLoader
    from paribus.data.packing import PackedLoader
    from paribus.data.tokenizer import Tokenizer
    from paribus.evaluate.bpb import bits_per_byte
    from paribus.machine.interrupt import Interrupt
    from paribus.train.checkpoint import StateStore
    from paribus.train.loop import Hooks, Loop, Plan, peak_memory_bytes
    from paribus.train.objectives import NextToken
    from paribus.train.optim import lr_factor

    config, hardware, model, optimizer = _build(job)
    schedule, length = config.pretrain, config.model.seq_len
    words = Tokenizer.load_trained(Path(job["tokenizer"]).parent)
    packed = schedule.packing == "best_fit"
    rows = (PackedLoader if packed else DocumentLoader)(
        Path(job["tokens"]), "train", length, config.seed
    )
    objective = NextToken(
        rows,
        schedule.batch_tokens // length,
        schedule.device_batch_size,
    )
    forward = model.compiled() if hardware.compile else model
    steps = _steps(folder, job, model, optimizer, forward, objective)
    validation = DocumentLoader(job["tokens"], "val", length, config.seed)

    def bpb(max_tokens: int | None) -> float:
        return bits_per_byte(
            model,
            validation.validation_rows(schedule.device_batch_size, max_tokens),
            words.token_bytes,
        ).bpb

    store = StateStore(folder / "state", 2)
    state = store.load()
    write_json(folder / "start.json", {"went_on_from_step": state.step if state else 0})
    keep_rows(folder / "curve.jsonl", lambda row: state is not None and row["step"] <= state.step)
    curve = (folder / "curve.jsonl").open(
        "a", encoding="utf-8"
    )  # after keep_rows, which puts a new file in its place

    looks = {round(steps * share / LOOKS): share / LOOKS for share in range(1, LOOKS)}

    def evaluate(step: int) -> dict[str, float]:
        if step not in looks or not 0 < step < steps:
            return {}
        value = bpb(schedule.eval_tokens)
        row = {
            "step": step,
            "fraction": looks[step],
            "val_bpb": value,
            "tokens": step * schedule.batch_tokens,
            "peak_memory_bytes": peak_memory_bytes(model.device),
        }
        curve.write(json.dumps(row) + "\n")
        curve.flush()
        return {"val/bpb": value}

    def factor(step: int) -> float:
        scale: float = schedule.lr_scale
        return scale * lr_factor(
            step,
            steps,
            schedule.warmup_fraction,
            schedule.warmdown_fraction,
            schedule.final_lr_fraction,
        )

    hooks = Hooks(
        lambda step, metrics: None,
        lambda step, name, detail: None,
        lambda: None,
        lambda step: None,
        evaluate,
        lambda step, metrics: None,
    )
    with Interrupt(folder) as interrupt:
        loop = Loop(
            model,
            forward,
            optimizer,
            objective,
            Plan(steps, factor, 1.0, 1.0, config.train.save_seconds),
            store,
            interrupt,
            hooks,
        )
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
    model.eval()
    position = loop.position
    result = {
        "val_bpb": bpb(config.eval.bpb_tokens),
        "steps": position.step,
        "tokens": position.tokens,
        "seconds": position.seconds,
        "peak_memory_bytes": peak_memory_bytes(model.device),
        "tokens_per_second": position.tokens / position.train_seconds,
        "nonfinite": position.nonfinite,
    }
    return result


def _steps(
    folder: Path, job: dict[str, Any], model: Any, optimizer: Any, forward: Any, objective: Any
) -> int:
    """How many steps the budget buys. Of a time budget it is measured once, before the first step, and kept."""
    if job["steps"]:
        return int(job["steps"])
    known = read_json(folder / "steps.json")
    if known is None:
        from paribus.machine.hardware import detect_hardware
        from paribus.machine.process import set_up_process

        times = [
            _step_seconds(forward, optimizer, objective, model.device, step)
            for step in range(TIMING_STEPS)
        ]
        seconds = statistics.median(times[1:])
        model.initialise(job["config"]["seed"])
        optimizer.load_state({}, 0)
        set_up_process(detect_hardware(_train_section(job)), job["config"]["seed"])
        known = {"steps": max(int(job["seconds"] / seconds), 2), "step_seconds": seconds}
        write_json(folder / "steps.json", known)
    return int(known["steps"])


def _train_section(job: dict[str, Any]) -> Any:
    from paribus.config import parse_config

    return parse_config(job["config"]).train


def _step_seconds(forward: Any, optimizer: Any, objective: Any, device: Any, step: int) -> float:
    """Of one optimiser step; the weights hardly move."""
    import torch

    from paribus.train.loop import _to

    work = objective.work(step)
    began = time.perf_counter()
    for micro in work.micro_batches:
        (forward(*_to(device, micro)) / work.normaliser).backward()
    float(optimizer.clip())
    optimizer.step(1e-6)
    optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _speed(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a step at each device batch of job["rows"], which take turns; and the most memory that was taken.

    Turns meet alike what changes meanwhile: other work, heat, clocks. Each begins with a step that is not counted, in which
    memory and caches come to suit the new size.
    """
    import torch

    from paribus.data.loader import Batch
    from paribus.train.loop import peak_memory_bytes
    from paribus.train.objectives import NextToken

    config, hardware, model, optimizer = _build(job)
    length, vocab = config.model.seq_len, job["vocab_size"]

    class Noise:
        def batch(self, step: int, rows: range, batch_rows: int) -> Batch:
            tokens = torch.randint(0, vocab, (len(rows), length + 1))
            return Batch(tokens[:, :-1], tokens[:, 1:], None)

    forward = model
    if hardware.compile:
        torch._dynamo.config.recompile_limit = (
            2 * len(job["rows"]) + 8
        )  # a size and its remainder each
        forward = model.compiled(dynamic=False)
    times: dict[int, list[float]] = {rows: [] for rows in job["rows"]}
    for turn in range(job["turns"]):
        for rows in sorted(times, reverse=turn % 2 == 1):
            if hardware.device == "cuda":
                torch.cuda.empty_cache()  # else what another size left would count towards the cap
            objective = NextToken(Noise(), config.pretrain.batch_tokens // length, rows)
            times[rows].append(
                min(
                    [
                        _step_seconds(forward, optimizer, objective, model.device, step)
                        for step in range(1 + TIMED_STEPS)
                    ][1:]
                )
            )
    return {"step_seconds": times, "peak_memory_bytes": peak_memory_bytes(model.device)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
