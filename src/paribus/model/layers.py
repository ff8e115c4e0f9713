"""The parts of a GPT block, each choice a plain switch on the config.

Shapes: B rows, T tokens, R places that are read, D width, H query heads, K key/value heads, E head_dim, F hidden width of
the MLP, V vocabulary. What each layer keeps for its backward pass stands in `footprint.py`, in the same order: a test
compares each with what torch keeps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paribus.config import Architecture
from paribus.model import kernels
from paribus.model.attention import Context, Places, Rotary, attend
from paribus.model.shapes import GATE_CHANNELS, has_value_embedding, mlp_hidden, window_of


class Linear(nn.Linear):
    """A product without bias in the dtype of its input; the weight itself stays in fp32 for the optimiser."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return F.linear(x, self.weight.to(x.dtype))


def normalise(x: Tensor, kind: str) -> Tensor:
    """RMS or layer normalisation over the last axis, without gains (a gain before a matrix is redundant).

    x (..., n): any shape. kind: "rms" or "layer" (`model.norm`). Bytes: `footprint.norm`.
    """
    if kind == "layer":
        return F.layer_norm(x, (x.shape[-1],))
    return kernels.rms_norm(x)


def rotary_table(length: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions, each (length, E / 2), fp32 (RoFormer, arXiv:2104.09864).

    length: positions, tokens. head_dim: E. base: `model.rope_base`.
    """
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate pairs (i, i + E/2) of x (B, T, H, E) by their position.

    rotary: cosines and sines, each broadcast over (B, T, 1, E / 2).
    """
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Causal attention with grouped-query heads (arXiv:2305.13245). Bytes: `footprint.attention`."""

    def __init__(self, config: Architecture, vocab_size: int, layer: int) -> None:
        """layer: the block's number, from 0."""
        super().__init__()
        self.config, self.layer = config, layer
        self.window = window_of(config, layer)
        width, kv_width = config.width, config.n_kv_heads * config.head_dim
        self.q = Linear(width, config.n_heads * config.head_dim)
        self.k = Linear(width, kv_width)
        self.v = Linear(width, kv_width)
        self.out = Linear(config.n_heads * config.head_dim, width)
        self.has_value_embedding = has_value_embedding(config, layer)
        if self.has_value_embedding:
            self.value_embedding = nn.Embedding(vocab_size, kv_width)
            self.gate = Linear(min(GATE_CHANNELS, width), config.n_kv_heads)

    def forward(self, x: Tensor, tokens: Tensor, context: Context) -> Tensor:
        """Attend within the sequence: x (B, T, D), tokens (B, T) -> (B, T, D)."""
        q = self.queries(x, context.rotary)
        k, v = self.keys_and_values(x, tokens, context.rotary)
        return self.answer(q, k, v, context.masks, context)

    def at_places(self, x: Tensor, tokens: Tensor, context: Context, places: Places) -> Tensor:
        """`forward` at R places of T alone: x (B, T, D), tokens (B, T) -> (B, R, D)."""
        q = self.queries(places.of(x), places.rotary)
        k, v = self.keys_and_values(x, tokens, context.rotary)
        return self.answer(q, k, v, places.masks, context)

    def queries(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        """Project to queries: x (B, T, D) -> (B, H, T, E)."""
        q = self.q(x).unflatten(-1, (self.config.n_heads, self.config.head_dim))  # (B, T, H, E)
        return self.positioned(q, rotary).transpose(1, 2)

    def keys_and_values(
        self, x: Tensor, tokens: Tensor, rotary: Rotary | None
    ) -> tuple[Tensor, Tensor]:
        """Project to keys and values: x (B, T, D), tokens (B, T) -> two of (B, K, T, E)."""
        heads = (self.config.n_kv_heads, self.config.head_dim)
        k = self.k(x).unflatten(-1, heads)  # (B, T, K, E)
        v = self.v(x).unflatten(-1, heads)
        if self.has_value_embedding:
            gate = 2 * torch.sigmoid(self.gate(x[..., : self.gate.in_features]))  # (B, T, K)
            embedded = self.value_embedding(tokens).to(x.dtype).view_as(v)
            v = v + gate[..., None] * embedded
        return self.positioned(k, rotary).transpose(1, 2), v.transpose(1, 2)

    def positioned(self, heads: Tensor, rotary: Rotary | None) -> Tensor:
        """Queries or keys (B, T, H or K, E), rotated to their positions and then normalised."""
        if rotary is not None:
            heads = rotate(heads, rotary)
        return normalise(heads, self.config.norm) if self.config.qk_norm else heads

    def answer(
        self, q: Tensor, k: Tensor, v: Tensor, masks: dict[str, Any], context: Context
    ) -> Tensor:
        """Attend and project back: q (B, H, T or R, E), k, v (B, K, T, E) -> (B, T or R, D).

        masks: by window, of the places that ask.
        """
        mask, cache = masks[self.window], context.cache
        y = attend(q, k, v, mask) if cache is None else cache.attend(self.layer, q, k, v, mask)
        result: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return result


class MLP(nn.Module):
    """relu² (arXiv:2109.08668), gelu, or SwiGLU (arXiv:2002.05202). Bytes: `footprint.mlp`."""

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.kind = config.mlp
        hidden = mlp_hidden(config)
        self.up = Linear(config.width, hidden)
        if self.kind == "swiglu":
            self.gate = Linear(config.width, hidden)
        self.down = Linear(hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if self.kind == "swiglu":
            gated: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
            return gated
        if self.kind == "gelu":
            result: Tensor = self.down(F.gelu(self.up(x)))
            return result
        return kernels.relu_squared_product(self.up(x), self.down.weight)


class Block(nn.Module):
    """Pre-norm attention, then pre-norm MLP, each added to the residual stream. Bytes: `footprint.block`."""

    def __init__(self, config: Architecture, vocab_size: int, layer: int) -> None:
        """layer: the block's number, from 0."""
        super().__init__()
        self.config = config
        self.attention = Attention(config, vocab_size, layer)
        self.mlp = MLP(config)
        if config.residual_scalars:
            self.residual_scale = nn.Parameter(torch.ones(()))
        if config.x0_scalars:
            self.x0_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, x0: Tensor, tokens: Tensor, context: Context) -> Tensor:
        """x, x0 (B, T, D), tokens (B, T) -> (B, T, D). x0: the residual stream before the first block."""
        x = self.scaled(x, x0)
        x = x + self.attention(normalise(x, self.config.norm), tokens, context)
        added: Tensor = self.mlp(normalise(x, self.config.norm))
        return x + added

    def at_places(
        self, x: Tensor, x0: Tensor, tokens: Tensor, context: Context, places: Places
    ) -> Tensor:
        """`forward` at R places of T alone: x, x0 (B, T, D), tokens (B, T) -> (B, R, D)."""
        x = self.scaled(x, x0)
        heard = self.attention.at_places(normalise(x, self.config.norm), tokens, context, places)
        x = places.of(x) + heard
        added: Tensor = self.mlp(normalise(x, self.config.norm))
        return x + added

    def scaled(self, x: Tensor, x0: Tensor) -> Tensor:
        """The residual stream times a learned factor, plus a learned multiple of the first one."""
        if self.config.residual_scalars:
            x = self.residual_scale.to(x.dtype) * x
        if self.config.x0_scalars:
            x = x + self.x0_scale.to(x.dtype) * x0
        return x
