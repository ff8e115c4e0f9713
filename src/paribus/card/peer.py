"""nanochat's optimiser step, as its pretraining script does it, beside which ours is timed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Batches = Callable[[], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class PeerShape:
    """What both sides agree on. `rows` of `length` tokens are one forward pass."""

    depth: int
    width: int
    head_dim: int
    vocab: int
    length: int
    rows: int
    window_pattern: str = "L"  # S: a quarter of the length, up to a multiple of 128


def random_batches(shape: PeerShape, device: str) -> Batches:
    """Rows of random tokens and the tokens that follow them.

    Args:
        shape: of a micro batch and its vocabulary.
        device: that they are made on.
    """
    generator = torch.Generator(device).manual_seed(0)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randint(
            0, shape.vocab, (shape.rows, shape.length + 1), generator=generator, device=device
        )
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    return batch


def peer_step(
    folder: Path, shape: PeerShape, device: str, compiled: bool, micro_batches: int = 1
) -> tuple[Callable[[], torch.Tensor], Any]:
    """(one optimiser step of nanochat, its model); its dtype comes from NANOCHAT_DTYPE.

    Its tokens are made on the device: what its loader would add is not in the time.

    Args:
        folder: a checkout of nanochat.
        shape: of the model and its micro batches.
        device: as torch names it.
        compiled: whether the model goes through torch.compile.
        micro_batches: of a step.
    """
    sys.path.insert(0, str(folder))
    from nanochat import gpt

    heads = shape.width // shape.head_dim
    config = gpt.GPTConfig(
        sequence_len=shape.length,
        vocab_size=shape.vocab,
        n_layer=shape.depth,
        n_head=heads,
        n_kv_head=heads,
        n_embd=shape.width,
        window_pattern=shape.window_pattern,
    )
    with torch.device("meta"):
        model = gpt.GPT(config)
    model.to_empty(device=device)
    model.init_weights()
    optimizer = model.setup_optimizer()
    forward = torch.compile(model, dynamic=False) if compiled else model
    batch = random_batches(shape, device)

    def step() -> torch.Tensor:
        for _ in range(micro_batches):
            loss: torch.Tensor = forward(*batch())
            (loss / micro_batches).backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        return loss.detach()

    return step, model
