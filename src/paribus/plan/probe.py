"""The machine at hand: a card of the table by its name, a CPU by a few products, and a minute's measurement of real steps.

A probe is kept in `.paribus/probes.json`, by device, type and model shape, and serves every later plan on the machine.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from paribus import runtime
from paribus.config import Config, fingerprint, flatten, resolve_model, resolve_pretrain
from paribus.errors import UserError
from paribus.journal import read_json, write_json
from paribus.model.accounting import parameters
from paribus.plan.estimate import stage_plan, training_step_work
from paribus.plan.memory import stage_memory
from paribus.plan.throughput import CPU_SPREAD, PROBED_SPREAD, Device, device_named

PROBE_SECONDS = 60.0


@dataclass(frozen=True)
class Probe:
    """What real steps took."""

    device: str
    dtype: str
    rows: int
    seconds_per_step: float  # of one optimiser step of pretraining
    correction: float  # measured / estimated
    peak_memory_bytes: int
    predicted_memory_bytes: int


def here(config: Config) -> tuple[Device, str]:
    """(this machine, type of its products); a GPU that the table lacks raises UserError."""
    hardware = runtime.detect(config.train)
    if hardware.device == "cuda":
        import torch

        found = device_named(hardware.device_name, hardware.dtype)
        return dataclasses.replace(found, memory=torch.cuda.get_device_properties(0).total_memory), hardware.dtype
    if hardware.device == "mps":
        return device_named(runtime.cpu_name(), hardware.dtype), hardware.dtype
    return _cpu(config, hardware), hardware.dtype


def _cpu(config: Config, hardware: runtime.Hardware) -> Device:
    """FLOP/s of products of the model's own size and bytes/s of a large copy: a third of a second."""
    import psutil
    import torch

    model = resolve_model(config.model)
    threads, torch_dtype = torch.get_num_threads(), getattr(torch, hardware.dtype)
    torch.set_num_threads(hardware.threads)
    try:
        rows = min(config.pretrain.device_batch_size * model.seq_len, 2048)
        a = torch.ones(rows, model.width, dtype=torch_dtype)  # drawing numbers would move the run's own generator
        b = torch.ones(model.width, 4 * model.width, dtype=torch_dtype)
        product = _best(lambda: a @ b)
        block = torch.empty(16 * 2**20)
        other = torch.empty_like(block)
        copy = _best(lambda: other.copy_(block))
    finally:
        torch.set_num_threads(threads)
    return Device(name=hardware.device_name, flops=2 * rows * model.width * 4 * model.width / product,
                  bandwidth=2 * 4 * block.numel() / copy, memory=psutil.virtual_memory().total, attainable=1.0,
                  watts=10.0 * hardware.threads, link=1e9, kind="cpu", source="measured here", spread=CPU_SPREAD)


def _best(work: Any, seconds: float = 0.15) -> float:
    """The quickest of as many tries as fit."""
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until or best == float("inf"):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def _key(config: Config, device: Device, dtype: str) -> str:
    """A correction holds for a shape of model, and how it is run."""
    shape = flatten(resolve_model(config.model)) | {"vocab": config.tokenizer.vocab_size, "compile": config.train.compile,
                                                    "threads": config.train.threads, "kind": config.optimizer.kind}
    return f"{device.name} {dtype} {fingerprint(**{name.replace('.', '_'): value for name, value in shape.items()})}"


def calibrated(config: Config, device: Device, dtype: str) -> Device:
    """The device with the correction of a probe, if one was made here for this model."""
    probes = read_json(runtime.state_root() / "probes.json") or {}
    probe = probes.get(_key(config, device, dtype))
    return dataclasses.replace(device, correction=probe["correction"], spread=PROBED_SPREAD) if probe else device


def run_probe(config: Config, device: Device, dtype: str, seconds: float = PROBE_SECONDS) -> Probe:
    """Train the configured model on random tokens for about `seconds`, and keep what it took.

    Raises UserError where one row does not fit.
    """
    import torch

    from paribus.model.gpt import GPT
    from paribus.train.loop import peak_memory_bytes
    from paribus.train.optim import MuonAdamW

    hardware = runtime.detect(config.train)
    runtime.apply(hardware, config.seed)
    resolved, vocab = resolve_model(config.model), config.tokenizer.vocab_size
    schedule = resolve_pretrain(config.pretrain, parameters(resolved, vocab)["total"], resolved.seq_len)
    assert schedule.batch_tokens
    try:
        model = GPT(config.model, vocab, getattr(torch, hardware.dtype)).to(hardware.device)
        model.activation_checkpointing = config.train.activation_checkpointing
        model.initialise(config.seed)
        model.train()
        optimizer = MuonAdamW(model, config.optimizer)
        rows = min(schedule.device_batch_size, schedule.batch_tokens // resolved.seq_len)
        passes, updates = _measure(model, optimizer, torch.compile(model) if hardware.compile else model, rows, seconds)
    except torch.OutOfMemoryError:
        raise UserError(f"pretrain.device_batch_size: {schedule.device_batch_size} rows do not fit this machine; "
                        "`paribus plan` says how many do") from None
    step = passes * schedule.batch_tokens / (rows * resolved.seq_len) + updates
    estimate = training_step_work(config, schedule, resolved, device, 4 if dtype == "float32" else 2).total
    probe = Probe(device.name, dtype, rows, step, step / estimate, peak_memory_bytes(model.device),
                  stage_memory(config, "pretrain", device=device.kind, dtype=dtype).total)
    path = runtime.state_root() / "probes.json"
    write_json(path, (read_json(path) or {}) | {_key(config, device, dtype): dataclasses.asdict(probe)})
    return probe


def _measure(model: Any, optimizer: Any, forward: Any, rows: int, seconds: float) -> tuple[float, float]:
    """Median seconds of a forward and backward pass, and of an optimiser step; the first of each is thrown away."""
    import torch

    device, shape = model.device, (rows, model.config.seq_len)
    tokens = torch.randint(0, model.vocab_size, shape, device=device)
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    passes: list[float] = []
    updates: list[float] = []
    until = time.perf_counter() + seconds
    while len(passes) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        (forward(tokens, tokens, None, None) / tokens.numel()).backward()
        sync()
        middle = time.perf_counter()
        passes.append(middle - began)
        if len(passes) % 4 == 2 or len(passes) <= 2:
            optimizer.clip()
            optimizer.step(1e-6)
            optimizer.zero_grad()
            sync()
            updates.append(time.perf_counter() - middle)
    return sorted(passes[1:])[len(passes[1:]) // 2], sorted(updates[1:])[len(updates[1:]) // 2]




def prediction(config: Config, stage: str) -> dict[str, float]:
    """What a training stage logs when it starts (law 6), to stand beside what it measures. Raises UserError where the
    machine's card is not in the table."""
    device, dtype = here(config)
    device = calibrated(config, device, dtype)
    found = stage_plan(config, stage, device, dtype)
    assert found.tokens_per_second
    return {"predicted/memory_bytes": float(found.memory.total), "predicted/tokens_per_second": found.tokens_per_second,
            "predicted/seconds": found.seconds}
