"""The memory of a training step as torch makes it, on fake tensors: nothing is allocated and no GPU is needed.

The planner is checked against it (tests/plan/test_memory.py, benchmarks/plan_memory.py). It sees every tensor that the eager
code makes; it does not see a kernel's own scratch space, the allocator's rounding or the CUDA context, which the planner adds
as its reserve.

torch has a tracker of its own, torch.distributed._tools.mem_tracker. They agree, except with activation checkpointing: the
hooks that it sets on modules keep the gradient of every block's input until that of the first one is complete.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from paribus.config import Config, is_foreign
from paribus.model.gpt import GPT
from paribus.recipe import Recipe
from paribus.train.library import try_out
from paribus.train.optim import MuonAdamW


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operators make within it, and of those given, as long as they live.

    Tensors that share memory count once.
    """

    def __init__(self, *given: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0  # since `restart`
        self._known = WeakIdKeyDictionary()  # storage -> True
        for tensor in given:
            self._add(tensor)

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operator, and count what it returns."""
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._add, result)
        self.peak = max(self.peak, self.now)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known[storage] = True
        self.now += storage.nbytes()
        weakref.finalize(storage, self._drop, storage.nbytes()).atexit = False

    def _drop(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True)
class Tracked:
    """Bytes at the peak of a step's parts."""

    gradient: int  # forward and backward
    update: int  # the optimiser

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
        with LiveBytes(*model.parameters(), *model.buffers()) as live:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            updating.step(1.0)
            if not accumulate:
                updating.zero_grad()
            tokens = torch.zeros((rows, model.config.seq_len), dtype=torch.int64)
            documents = torch.zeros(tokens.shape, dtype=torch.int32) if packed else None
            live.restart()
            _gradient(model, tokens, documents, future_loss)
            updating.clip()
            gradient = live.peak
            live.restart()
            updating.step(1.0)
            update = live.peak
    return Tracked(gradient, update)


def _gradient(model: GPT, tokens: Tensor, documents: Tensor | None, future_loss: float) -> None:
    """A forward and a backward pass; nothing of them stays but the gradients, as in `Stepper.gradient`."""
    targets = torch.zeros_like(tokens)
    loss = model(tokens, targets, documents, future_loss=future_loss)
    (loss / 1.0).backward()
