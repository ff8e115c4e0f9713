"""How sliding windows are computed on a card: by FlexAttention or by flash attention, whichever it does faster.

Which one is faster depends on the card, on torch's build and on the shapes, so that it is measured where a model first
trains, and kept. Flash attention is taken only where it gives what FlexAttention gives, twice the same, and is clearly
faster. The two round differently: the choice is part of a run's hardware class (`Hardware.window_kernel`).
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paribus.config import Architecture
from paribus.files import read_json
from paribus.journal import locked, write_json
from paribus.launched import launched
from paribus.machine.hardware import Hardware
from paribus.model import attention, kernels
from paribus.places import state_root

TOKENS = 16_384  # of the measured pass
FASTER = 0.95  # of FlexAttention's time: a smaller gain would change with the machine's mood
CLOSE = (
    0.03  # largest difference of outputs and gradients of size 1 in bf16, whose numbers have 8 bits
)
WARM_UP, TIMED = 3, 9  # passes


@dataclass(frozen=True)
class Choice:
    """What was found for one shape on one card. Seconds: of a forward and a backward pass; reason: why not flash."""

    kernel: str  # flex or flash
    flex_seconds: float
    flash_seconds: float | None
    reason: str


def settled(hardware: Hardware, model: Architecture) -> Hardware:
    """The hardware with the kernel that windows of this model have on it; measured where that is not known yet."""
    if not has_choice(hardware, model):
        return hardware
    folder = state_root() / "card"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "window_kernels.json"
    with locked(path.with_suffix(".lock")):  # of several processes the first one measures
        choice = remembered(path, name_of(hardware, model), model)
    return dataclasses.replace(hardware, window_kernel=choice.kernel)


def has_choice(hardware: Hardware, model: Architecture) -> bool:
    """Whether flash attention may compute this model's windows.

    It takes 16 bits and heads of a multiple of 8, and caps no logits. Processes of several machines could choose differently.

    Args:
        hardware: of this process.
        model: whose windows they are.
    """
    narrow = hardware.dtype == "bfloat16" and model.head_dim % 8 == 0
    plain = not model.attention_softcap and not model.attention_dropout
    place = launched()
    on_one_machine = hardware.device == "cuda" and place.processes == place.local_processes
    return on_one_machine and narrow and plain and kernels.has_windows(model)


def name_of(hardware: Hardware, model: Architecture) -> str:
    """What a measurement holds for.

    Args:
        hardware: of this process.
        model: whose windows they are.
    """
    heads = f"{model.n_heads}/{model.n_kv_heads} heads of {model.head_dim}"
    mode = "deterministic" if hardware.deterministic else "free"
    return (
        f"{hardware.device_name}, torch {hardware.torch_version}, {mode}, {heads}, "
        f"windows of {model.window} in {model.seq_len}"
    )


def remembered(path: Path, name: str, model: Architecture) -> Choice:
    """The choice that `path` has under a name; measured and written there where it has none.

    Args:
        path: of a JSON file: name -> choice.
        name: as `name_of` gives it.
        model: whose windows they are.
    """
    found: dict[str, Any] = read_json(path) or {}
    if name not in found:
        found[name] = dataclasses.asdict(measure(model))
        write_json(path, found)
    return Choice(**found[name])


def measure(model: Architecture) -> Choice:
    """Compute one block's windows both ways, on random numbers, and compare values and times."""
    assert model.window is not None
    q, k, v, weight = tensors(model)
    mask = attention.block_mask(model.seq_len, model.window, None, q.device)
    window = attention.FlashWindow(model.window)
    flex = passes_of(q, k, v, weight, mask)
    flash = passes_of(q, k, v, weight, window)
    expected, flex_seconds = flex(), seconds_of(flex)
    try:
        found, again, flash_seconds = flash(), flash(), seconds_of(flash)
    except RuntimeError as error:  # a card or a width of heads that it has no kernel for
        return Choice("flex", flex_seconds, None, str(error).partition("\n")[0])
    reason = refusal(expected, found, again, flash_seconds / flex_seconds)
    return Choice("flex" if reason else "flash", flex_seconds, flash_seconds, reason)


def refusal(expected: list[Tensor], found: list[Tensor], again: list[Tensor], ratio: float) -> str:
    """Why flash attention is not taken; "" where it is.

    Args:
        expected: output and gradients by FlexAttention, and by flash attention twice.
        found: output and gradients by FlexAttention, and by flash attention twice.
        again: output and gradients by FlexAttention, and by flash attention twice.
        ratio: of its time.
    """
    pairs = zip(expected, found, strict=True)
    difference = max(float((a.float() - b.float()).abs().max()) for a, b in pairs)
    if not difference <= CLOSE:
        return f"its results are off by {difference:.3g}"
    if not all(torch.equal(a, b) for a, b in zip(found, again, strict=True)):
        return "its results differ from call to call"
    if not ratio <= FASTER:
        return f"it takes {ratio:.2f} of FlexAttention's time"
    return ""


def tensors(model: Architecture) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values and the gradient of the output, as a block has them: (B, H or K, T, E)."""
    generator = torch.Generator().manual_seed(0)
    rows = max(TOKENS // model.seq_len, 1)

    def heads(count: int) -> Tensor:
        drawn = torch.randn(rows, model.seq_len, count, model.head_dim, generator=generator)
        return drawn.to("cuda", torch.bfloat16).transpose(1, 2)

    queries, keys = model.n_heads, model.n_kv_heads
    return heads(queries), heads(keys), heads(keys), heads(queries)


def passes_of(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor, mask: object
) -> Callable[[], list[Tensor]]:
    """A call that gives the output of attention and the gradients of q, k and v.

    Args:
        q: queries (B, H, T, E).
        k: keys (B, K, T, E).
        v: values (B, K, T, E).
        weight: gradient of the output, (B, H, T, E).
        mask: as `attention.attend` takes it.
    """

    def both_passes() -> list[Tensor]:
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        out = attention.attend(inputs[0], inputs[1], inputs[2], mask)
        return [out.detach(), *torch.autograd.grad(out, inputs, weight)]

    return both_passes


def seconds_of(work: Callable[[], object]) -> float:
    """The median time of a call on the card."""
    for _ in range(WARM_UP):
        work()
    times: list[float] = []
    for _ in range(TIMED):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        work()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) / 1000)
    return statistics.median(times)
