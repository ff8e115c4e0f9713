"""This machine: a card of the table by its name, a CPU by a few products; then corrected by real steps and stages.

A minute's probe, and every stage that ran to its end, leave in `.paribus/timings.json` by how much the estimate was off, by
device, type and model shape; that serves every later plan on the machine.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paribus.config import fingerprint, flatten
from paribus.errors import UserError
from paribus.files import NUMBER, Shape, Values, read_json
from paribus.journal import write_json
from paribus.launched import launched
from paribus.machine.hardware import Hardware, cpu_name, detect_hardware
from paribus.machine.process import set_up_process
from paribus.places import state_root
from paribus.plan.devices import Device, device_named
from paribus.plan.estimate import stage_plan, training_step_work
from paribus.plan.memory import stage_memory
from paribus.plan.throughput import (
    CPU_PROBED_SPREAD,
    CPU_SPREAD,
    PROBED_SPREAD,
)
from paribus.recipe import Recipe

if TYPE_CHECKING:
    from paribus.train.trainer import Trainer

PROBE_SECONDS = 60.0
PROBED_WIDTH = 4_096  # of a CPU's products, whose rate no longer grows from there on; a width of 65,536 took 68 GB
# model and machine -> what it was known to do, and measured / estimated seconds of each stage
TIMINGS: Shape = Values({"flops": NUMBER, "bandwidth": NUMBER, "corrections": Values(list)})
KEPT = 5  # of a stage's last measurements: their median corrects, so that one on a busy machine does not


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


def here(recipe: Recipe) -> tuple[Device, str]:
    """(this machine, type of its products); a GPU that the table lacks raises UserError."""
    hardware = detect_hardware(recipe.config.train)
    if hardware.device == "cuda":
        import torch

        found = device_named(hardware.device_name, hardware.dtype, option="this machine's card")
        return dataclasses.replace(
            found, memory=torch.cuda.get_device_properties(0).total_memory
        ), hardware.dtype
    if hardware.device == "mps":
        chip = device_named(cpu_name(), hardware.dtype, option="this machine's chip")
        return chip, hardware.dtype
    return _cpu(recipe, hardware), hardware.dtype


def _cpu(recipe: Recipe, hardware: Hardware) -> Device:
    """The processor, as fast as it is for products of the model's own size."""
    import psutil

    model = recipe.architecture
    rows = min(recipe.pretrain.device_batch_size * model.seq_len, 2048)
    width = min(model.width, PROBED_WIDTH)
    flops, bandwidth = _rates(rows, width, hardware.dtype, hardware.threads)
    return Device(
        name=hardware.device_name,
        flops=flops,
        bandwidth=bandwidth,
        memory=psutil.virtual_memory().total,
        attainable=1.0,
        watts=10.0 * hardware.threads,
        link=1e9,
        kind="cpu",
        source="measured here",
        spread=CPU_SPREAD,
        unmeasured_spread=CPU_SPREAD,
    )


@functools.cache
def _rates(rows: int, width: int, dtype: str, threads: int) -> tuple[float, float]:
    """(FLOP/s of products, bytes/s of a large copy): a tenth of a second."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a = torch.ones(
            rows, width, dtype=getattr(torch, dtype)
        )  # drawing numbers would move the run's own generator
        b = torch.ones(width, 4 * width, dtype=a.dtype)
        product = _best(lambda: a @ b)
        block = torch.empty(16 * 2**20)
        other = torch.empty_like(block)
        copy = _best(lambda: other.copy_(block))
    finally:
        torch.set_num_threads(before)
    return 2 * rows * width * 4 * width / product, 2 * 4 * block.numel() / copy


def _best(work: Any, seconds: float = 0.05, fewest: int = 5) -> float:
    """The quickest of as many tries as fit, on all threads: every training stage takes this time at its start."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < fewest:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def _key(recipe: Recipe, device: Device, dtype: str) -> str:
    """A correction holds for a shape of model, and how it is run."""
    config = recipe.config
    shape = flatten(recipe.architecture) | {
        "vocab": recipe.vocab_size,
        "compile": config.train.compile,
        "threads": config.train.threads,
        "processes": config.train.processes,
        "kind": config.optimizer.kind,
    }
    shape |= {kind: True for kind in ("fp8", "tf32") if getattr(config.train, kind)}
    parts = {name.replace(".", "_"): value for name, value in shape.items()}
    return f"{device.name} {dtype} {fingerprint(**parts)}"


def calibrated(recipe: Recipe, device: Device, dtype: str) -> Device:
    """The device as it was known, and how far off, when this model's stages or a probe of it were last measured here.

    recipe: whose measurements count. dtype: of forward passes.
    """
    known = _timings().get(_key(recipe, device, dtype))
    if not known:
        return device
    corrections = {
        stage: statistics.median(ratios) for stage, ratios in known["corrections"].items() if ratios
    }
    return dataclasses.replace(
        device,
        flops=known["flops"],
        bandwidth=known["bandwidth"],
        corrections=corrections,
        spread=CPU_PROBED_SPREAD if device.kind == "cpu" else PROBED_SPREAD,
    )


def remember(recipe: Recipe, stage: str, seconds: float) -> None:
    """That the stage took so long, for later plans of it. A card that the table lacks is not planned for, nor remembered.

    recipe: of the run. seconds: that its training took.
    """
    try:
        device, dtype = here(recipe)
    except UserError:
        return

    def ratio(bare: Device) -> float:
        return seconds / stage_plan(recipe, stage, bare, dtype, gpus=_cards(bare)).seconds

    _keep(recipe, device, dtype, stage, ratio)


def _keep(
    recipe: Recipe, device: Device, dtype: str, stage: str, ratio: Callable[[Device], float]
) -> float:
    """Add a measured / estimated ratio; the estimate is of the device as first known, so that ratios compare."""
    timings, key = _timings(), _key(recipe, device, dtype)
    known = timings.setdefault(
        key, {"flops": device.flops, "bandwidth": device.bandwidth, "corrections": {}}
    )
    found = ratio(
        dataclasses.replace(
            device, flops=known["flops"], bandwidth=known["bandwidth"], corrections={}
        )
    )
    known["corrections"][stage] = [*known["corrections"].get(stage, []), found][-KEPT:]
    write_json(state_root() / "timings.json", timings)
    return found


def _timings() -> dict[str, Any]:
    """timings.json, without what no measurement can have given."""
    timings = read_json(state_root() / "timings.json", TIMINGS) or {}
    sound = {}
    for key, known in timings.items():
        if not (_is_positive(known["flops"]) and _is_positive(known["bandwidth"])):
            continue
        for stage, ratios in known["corrections"].items():
            known["corrections"][stage] = [ratio for ratio in ratios if _is_positive(ratio)]
        sound[key] = known
    return sound


def _is_positive(value: object) -> bool:
    """Whether a value is a number that a time or a rate can be."""
    return isinstance(value, int | float) and 0 < value < math.inf


def _cards(device: Device) -> int:
    """Cards that this run trains on; processes of a CPU share one."""
    return 1 if device.kind == "cpu" else launched().processes


def run_probe(recipe: Recipe, device: Device, dtype: str, seconds: float = PROBE_SECONDS) -> Probe:
    """Train the configured model on random tokens for about `seconds`, and keep what it took.

    Raises UserError where one row does not fit.

    recipe: of the run. device: that is probed. dtype: of forward passes.
    """
    import torch

    from paribus.train.loop import peak_memory_bytes
    from paribus.train.trainer import RandomRows, Trainer, new_model, next_token

    config, schedule = recipe.config, recipe.pretrain
    hardware = detect_hardware(config.train)
    set_up_process(hardware, config.seed)
    rows = min(schedule.device_batch_size, recipe.rows("pretrain"))
    try:
        model = new_model(recipe, hardware).train()
        objective = next_token(RandomRows(recipe), recipe, "pretrain")
        trainer = Trainer(recipe, "pretrain", model, objective, hardware)
        passes, updates = _measure(trainer, rows, seconds)
    except torch.OutOfMemoryError:
        raise UserError(
            f"pretrain.device_batch_size: {schedule.device_batch_size} rows do not fit this machine; "
            "`paribus plan` says how many do"
        ) from None
    passes_a_step = recipe.batch_tokens("pretrain") / (rows * recipe.architecture.seq_len)
    step = passes * passes_a_step + updates
    item = 4 if dtype == "float32" else 2

    def ratio(bare: Device) -> float:
        return step / training_step_work(recipe, "pretrain", bare, item).total

    found = _keep(recipe, device, dtype, "pretrain", ratio)
    return Probe(
        device.name,
        dtype,
        rows,
        step,
        found,
        peak_memory_bytes(model.device),
        stage_memory(recipe, "pretrain", device=device.kind, dtype=dtype).total,
    )


def _measure(trainer: Trainer, rows: int, seconds: float) -> tuple[float, float]:
    """Median seconds of a forward and backward pass, and of an optimiser step; the first of each is thrown away."""
    import torch

    model, optimizer = trainer.model, trainer.optimizer
    device, shape = model.device, (rows, model.config.seq_len)
    tokens = torch.randint(0, model.vocab_size, shape, device=device)
    sync: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    passes: list[float] = []
    updates: list[float] = []
    until = time.perf_counter() + seconds
    while len(passes) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        (trainer.forward(tokens, tokens, None, None) / tokens.numel()).backward()
        sync()
        middle = time.perf_counter()
        passes.append(middle - began)
        if len(passes) % 4 == 2 or len(passes) <= 2:
            optimizer.clip()
            optimizer.step(1e-6)
            optimizer.zero_grad()
            sync()
            updates.append(time.perf_counter() - middle)
    return _median(passes[1:]), _median(updates[1:])


def _median(times: list[float]) -> float:
    """The middle one, or the slower of the two in the middle."""
    return sorted(times)[len(times) // 2]


def prediction(recipe: Recipe, stage: str) -> dict[str, float]:
    """The numbers that a training stage logs at its start, to stand beside what it measures.

    Raises UserError where the machine's card is not in the table.

    Args:
        recipe: the run's.
        stage: a training stage.
    """
    device, dtype = here(recipe)
    device = calibrated(recipe, device, dtype)
    found = stage_plan(recipe, stage, device, dtype, gpus=_cards(device))
    assert found.tokens_per_second
    return {
        "predicted/memory_bytes": float(found.memory.total),
        "predicted/tokens_per_second": found.tokens_per_second,
        "predicted/seconds": found.seconds,
    }
