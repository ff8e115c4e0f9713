"""The memory of a training step by torch's own tracker, on fake tensors: nothing is allocated and no GPU is needed.

The planner is checked against it (tests/plan/test_plan.py, benchmarks/plan_memory.py). A tracker on fake tensors sees
every tensor that the eager code makes; it does not see a kernel's own scratch space, the allocator's rounding or the
CUDA context, which the planner adds as its reserve.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from paribus.config import Config, is_foreign
from paribus.model.gpt import GPT
from paribus.recipe import Recipe
from paribus.train.library import try_out
from paribus.train.optim import MuonAdamW


@dataclass(frozen=True)
class Tracked:
    """Bytes at the peak of a step, and when it came: `gradient` (forward and backward) or `update` (the optimiser)."""

    gradient: int
    update: int
    by_kind: dict[
        str, int
    ]  # parameters, gradients, optimiser, activations, temporary ... at the peak

    @property
    def peak(self) -> int:
        """The larger of both."""
        return max(self.gradient, self.update)


def track_step(
    config: Config,
    vocab_size: int,
    *,
    rows: int,
    accumulate: bool = False,
    dtype: str = "float32",
    packed: bool = False,
) -> Tracked:
    """A step of training, the optimiser's state being there, with `rows` rows of a forward pass.

    accumulate: other forward passes of the step have left their gradients. packed: rows hold several conversations,
    which see only themselves. dtype: of matrix products.
    """
    future_loss = config.pretrain.future_loss if config.model.future_tokens else 0.0
    optimizer = config.optimizer
    if is_foreign(optimizer.kind):
        try_out(optimizer.kind, json.dumps(optimizer.arguments))  # which needs real numbers
    with FakeTensorMode():
        model = GPT(Recipe.of(config).architecture, vocab_size, getattr(torch, dtype))
        model.activation_checkpointing = config.train.activation_checkpointing
        if config.train.fp8:
            model.use_float8()
        model.train()
        updating = MuonAdamW(model, optimizer)
        tracker = MemTracker()
        tracker.track_external(model)
        shape = (rows, model.config.seq_len)
        with tracker:
            _zero_gradients(model)
            updating.step(1.0)
            if not accumulate:
                updating.zero_grad()
            tracker._peak_mem.clear()
            tokens = torch.zeros(shape, dtype=torch.int64)
            documents = torch.zeros(shape, dtype=torch.int32) if packed else None
            targets = torch.zeros_like(tokens)
            loss = model(tokens, targets, documents, future_loss=future_loss)
            (loss / 1.0).backward()
            updating.clip()
            gradient, kinds = peak_of(tracker)
            tracker._peak_mem.clear()
            updating.step(1.0)
            update, update_kinds = peak_of(tracker)
    return Tracked(gradient, update, kinds if gradient >= update else update_kinds)


def _zero_gradients(model: GPT) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def peak_of(tracker: MemTracker) -> tuple[int, dict[str, int]]:
    """Bytes at the peak that a tracker has seen, and by kind."""
    snapshot = next(iter(tracker.get_tracker_snapshot("peak").values()))
    kinds = {str(getattr(kind, "value", kind)).lower(): size for kind, size in snapshot.items()}
    return kinds.pop("total"), kinds
