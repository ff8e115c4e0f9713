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
from paribus.model import float8, kernels
from paribus.model.attention import Context, Places, Rotary, attend
from paribus.model.shapes import (
    GATE_CHANNELS,
    has_value_embedding,
    is_gated,
    mlp_hidden,
    window_of,
)

LEAK = 0.5  # slope of leaky_relu2 below zero, before the square


class Linear(nn.Linear):
    """A product in the dtype of its input; weight and bias themselves stay in fp32 for the optimiser.

    in_float8: whether training multiplies 8-bit floats instead (`train.fp8`). inference_weight: what decoding multiplies by
    in place of the weight (inference.py).
    """

    in_float8 = False
    inference_weight: Tensor | None = None

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.inference_weight is not None:
            return kernels.product(x, self.inference_weight, bias)
        if self.in_float8 and self.training:
            y = float8.linear(x, self.weight)
            return y if bias is None else y + bias
        return F.linear(x, self.weight.to(x.dtype), bias)


def normalise(x: Tensor, kind: str) -> Tensor:
    """RMS or layer normalisation over the last axis, without gains.

    Args:
        x: any shape, (..., n).
        kind: "rms" or "layer" (`model.norm`). Bytes: `footprint.norm`.
    """
    if kind == "layer":
        return F.layer_norm(x, (x.shape[-1],))
    return kernels.rms_norm(x)


class Norm(nn.Module):
    """Normalisation of the residual stream, with a gain and a bias for each channel if `model.norm_gain` and `norm_bias`.

    Bytes: `footprint.norm`.
    """

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.kind, self.has_gain, self.has_bias = config.norm, config.norm_gain, config.norm_bias
        if self.has_gain:
            self.gain = nn.Parameter(torch.ones(config.width))
        if self.has_bias:
            self.bias = nn.Parameter(torch.zeros(config.width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        x = normalise(x, self.kind)
        if self.has_gain:
            x = x * self.gain.to(x.dtype)
        if self.has_bias:
            x = x + self.bias.to(x.dtype)
        return x


def rotary_table(length: int, channels: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions, each (length, channels / 2), fp32 (RoFormer, arXiv:2104.09864).

    Args:
        length: positions, tokens.
        channels: of a head, those that turn.
        base: `model.rope_base`.
    """
    frequencies = base ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate the first C channels of x (B, T, H, E), in pairs (i, i + C/2), by their position.

    rotary: cosines and sines, each broadcast over (B, T, 1, C / 2).
    """
    cos, sin = rotary
    turning = 2 * cos.shape[-1]
    first, second = x[..., :turning].chunk(2, dim=-1)
    parts = [first * cos - second * sin, second * cos + first * sin]
    if turning < x.shape[-1]:
        parts.append(x[..., turning:])
    return torch.cat(parts, dim=-1)


class Attention(nn.Module):
    """Causal attention with grouped-query heads (arXiv:2305.13245). Bytes: `footprint.attention`."""

    def __init__(self, config: Architecture, vocab_size: int, layer: int) -> None:
        """layer: the block's number, from 0."""
        super().__init__()
        self.config, self.layer = config, layer
        self.window = window_of(config, layer)
        width, kv_width = config.width, config.n_kv_heads * config.head_dim
        gate_channels = min(GATE_CHANNELS, width)
        self.has_qk_gain = config.qk_norm and config.qk_gain
        if self.has_qk_gain:
            self.q_gain = nn.Parameter(torch.ones(config.head_dim))
            self.k_gain = nn.Parameter(torch.ones(config.head_dim))
        if config.head_gain:
            self.head_gain = nn.Parameter(torch.ones(config.n_heads))
        if config.value_residual and layer > 0:
            self.value_scale = nn.Parameter(torch.zeros(()))
        self.q = Linear(width, config.n_heads * config.head_dim, config.qkv_bias)
        self.k = Linear(width, kv_width, config.qkv_bias)
        self.v = Linear(width, kv_width, config.qkv_bias)
        self.out = Linear(config.n_heads * config.head_dim, width, config.out_bias)
        self.has_value_embedding = has_value_embedding(config, layer)
        if self.has_value_embedding:
            self.value_embedding = nn.Embedding(vocab_size, kv_width)
            self.gate = Linear(gate_channels, config.n_kv_heads)
        if config.attention_gate == "head":
            self.output_gate = Linear(gate_channels, config.n_heads)

    def forward(self, x: Tensor, tokens: Tensor, context: Context) -> Tensor:
        """Attend within the sequence: x (B, T, D), tokens (B, T) -> (B, T, D).

        context: what all blocks share of a forward pass: masks, rotations, the cache.
        """
        q = self.queries(x, context.rotary)
        k, v = self.keys_and_values(x, tokens, context)
        return self.answer(x, q, k, v, context.masks, context)

    def at_places(self, x: Tensor, tokens: Tensor, context: Context, places: Places) -> Tensor:
        """`forward` at R places of T alone: x (B, T, D), tokens (B, T) -> (B, R, D).

        context: what all blocks share of a forward pass. places: those that ask.
        """
        asking = places.of(x)
        q = self.queries(asking, places.rotary)
        k, v = self.keys_and_values(x, tokens, context)
        return self.answer(asking, q, k, v, places.masks, context)

    def queries(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        """Project to queries: x (B, T, D) -> (B, H, T, E).

        rotary: cosines and sines of the positions; None: the model has none.
        """
        q = self.q(x).unflatten(-1, (self.config.n_heads, self.config.head_dim))  # (B, T, H, E)
        gain = self.q_gain if self.has_qk_gain else None
        return self.positioned(q, rotary, gain).transpose(1, 2)

    def keys_and_values(self, x: Tensor, tokens: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Project to keys and values: x (B, T, D), tokens (B, T) -> two of (B, K, T, E).

        context: what all blocks share of a forward pass.
        """
        heads = (self.config.n_kv_heads, self.config.head_dim)
        k = self.k(x).unflatten(-1, heads)  # (B, T, K, E)
        v = self.v(x).unflatten(-1, heads)
        if self.config.value_residual:
            v = self.with_first_values(v, context)
        if self.has_value_embedding:
            gate = 2 * torch.sigmoid(self.gate(x[..., : self.gate.in_features]))  # (B, T, K)
            embedded = self.value_embedding(tokens).to(x.dtype).view_as(v)
            v = v + gate[..., None] * embedded
        gain = self.k_gain if self.has_qk_gain else None
        return self.positioned(k, context.rotary, gain).transpose(1, 2), v.transpose(1, 2)

    def with_first_values(self, v: Tensor, context: Context) -> Tensor:
        """Values (B, T, K, E) plus a learned multiple of those of the first block, which leaves its own there.

        Args:
            v: of this block.
            context: holds those of the first one.
        """
        if self.layer > 0:
            return v + self.value_scale.to(v.dtype) * context.first_values[0]
        if not context.first_values:
            context.first_values.append(v)
        return v

    def positioned(self, heads: Tensor, rotary: Rotary | None, gain: Tensor | None) -> Tensor:
        """Queries or keys (B, T, H or K, E), rotated to their positions and normalised.

        Args:
            heads: as projected.
            rotary: cosines and sines of the positions; None: no rotation.
            gain: of the norm, (E,).
        """
        before = self.config.qk_norm_position == "before_rotary"
        if before:
            heads = self.normalised(heads, gain)
        if rotary is not None:
            heads = rotate(heads, rotary)
        return heads if before else self.normalised(heads, gain)

    def normalised(self, heads: Tensor, gain: Tensor | None) -> Tensor:
        """Queries or keys (B, T, H or K, E), each head of norm 1 per channel times its gain, if `model.qk_norm`.

        Args:
            heads: queries or keys.
            gain: of each channel, (E,); None: 1.
        """
        if not self.config.qk_norm:
            return heads
        heads = normalise(heads, self.config.norm)
        return heads if gain is None else heads * gain.to(heads.dtype)

    def answer(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        masks: dict[str, Any],
        context: Context,
    ) -> Tensor:
        """Attend and project back: q (B, H, T or R, E), k, v (B, K, T, E) -> (B, T or R, D).

        x (B, T or R, D): the input at the places that ask. masks: by window, of these places. context: what all
        blocks share of a forward pass.
        """
        mask, cache, softcap = masks[self.window], context.cache, self.config.attention_softcap
        if cache is None:
            dropout = self.config.attention_dropout if self.training else 0.0
            y = attend(q, k, v, mask, softcap, dropout)
        else:
            y = cache.attend(context.first_layer + self.layer, q, k, v, mask)
        y = y.transpose(1, 2)  # (B, T or R, H, E)
        if self.config.head_gain:
            y = y * self.head_gain.to(y.dtype)[:, None]
        if self.config.attention_gate == "head":
            gate = 2 * torch.sigmoid(self.output_gate(x[..., : self.output_gate.in_features]))
            y = y * gate[..., None]
        result: Tensor = self.out(y.flatten(2))
        return result


class MLP(nn.Module):
    """Two matrices with an activation between them, or three with a gate. Bytes: `footprint.mlp`.

    relu2: arXiv:2109.08668. geglu, swiglu: arXiv:2002.05202.
    """

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.kind, self.dropout = config.mlp, config.mlp_dropout
        hidden = mlp_hidden(config)
        self.up = Linear(config.width, hidden, config.mlp_bias)
        self.gated = is_gated(config)
        if self.gated:
            self.gate = Linear(config.width, hidden, config.mlp_bias)
        self.down = Linear(hidden, config.width, config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        fuses = self.down.bias is None and self.down.inference_weight is None and not self.dropout
        if self.kind == "relu2" and fuses:
            rounds = self.down.in_float8 and self.training
            multiply = float8.relu_squared_product if rounds else kernels.relu_squared_product
            return multiply(self.up(x), self.down.weight)
        hidden = self.activated(x)
        if self.dropout:
            hidden = F.dropout(hidden, self.dropout, self.training)
        result: Tensor = self.down(hidden)
        return result

    def activated(self, x: Tensor) -> Tensor:
        """Hidden values: x (B, T, D) -> (B, T, F)."""
        gate: Tensor | None = self.gate(x) if self.gated else None
        up: Tensor = self.up(x)
        if gate is not None:
            opened = F.silu(gate) if self.kind == "swiglu" else F.gelu(gate)
            return opened * up
        if self.kind == "gelu":
            return F.gelu(up)
        if self.kind == "leaky_relu2":
            return F.leaky_relu(up, LEAK).square()
        positive = up.relu()
        return positive.square() if self.kind == "relu2" else positive


class Join(nn.Module):
    """How attention or an MLP reads the residual stream and adds to it: `model.norm_position`. Bytes: `footprint.join`."""

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.position, self.dropout = config.norm_position, config.residual_dropout
        self.norm = Norm(config)
        if self.position == "sandwich":
            self.out_norm = Norm(config)

    def read(self, x: Tensor) -> Tensor:
        """What a sublayer gets of the stream x (B, T, D)."""
        result: Tensor = x if self.position == "post" else self.norm(x)
        return result

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """The stream x (B, T, D) after a sublayer's result y (B, T, D)."""
        if self.position == "sandwich":
            y = self.out_norm(y)
        if self.dropout:
            y = F.dropout(y, self.dropout, self.training)
        result: Tensor = self.norm(x + y) if self.position == "post" else x + y
        return result


class Block(nn.Module):
    """Attention, then the MLP, each joined to the residual stream. Bytes: `footprint.block`."""

    def __init__(self, config: Architecture, vocab_size: int, layer: int) -> None:
        """layer: the block's number, from 0."""
        super().__init__()
        self.config = config
        self.attention = Attention(config, vocab_size, layer)
        self.attention_join = Join(config)
        self.mlp = MLP(config)
        if not config.parallel_blocks:
            self.mlp_join = Join(config)
        if config.residual_scalars:
            self.residual_scale = nn.Parameter(torch.ones(()))
        if config.x0_scalars:
            self.x0_scale = nn.Parameter(torch.zeros(()))

    def use_float8(self) -> None:
        """Let its matrices multiply 8-bit floats in training (`train.fp8`)."""
        attention, mlp = self.attention, self.mlp
        matrices = [attention.q, attention.k, attention.v, attention.out, mlp.up, mlp.down]
        if mlp.gated:
            matrices.append(mlp.gate)
        for matrix in matrices:
            matrix.in_float8 = True

    def forward(self, x: Tensor, x0: Tensor, tokens: Tensor, context: Context) -> Tensor:
        """x, x0 (B, T, D), tokens (B, T) -> (B, T, D). x0: the residual stream before the first block.

        context: what all blocks share of a forward pass.
        """
        x = self.scaled(x, x0)
        read = self.attention_join.read(x)
        return self.joined(x, read, self.attention(read, tokens, context))

    def at_places(
        self, x: Tensor, x0: Tensor, tokens: Tensor, context: Context, places: Places
    ) -> Tensor:
        """`forward` at R places of T alone: x, x0 (B, T, D), tokens (B, T) -> (B, R, D).

        context: what all blocks share of a forward pass.
        """
        x = self.scaled(x, x0)
        read = self.attention_join.read(x)
        heard = self.attention.at_places(read, tokens, context, places)
        return self.joined(places.of(x), places.of(read), heard)

    def joined(self, x: Tensor, read: Tensor, heard: Tensor) -> Tensor:
        """The stream x (B, T or R, D) after the block.

        read, heard (B, T or R, D): what attention got of the stream, and what it made of it.
        """
        if self.config.parallel_blocks:
            return self.attention_join.add(x, heard + self.mlp(read))
        x = self.attention_join.add(x, heard)
        added = self.mlp(self.mlp_join.read(x))
        return self.mlp_join.add(x, added)

    def scaled(self, x: Tensor, x0: Tensor) -> Tensor:
        """The residual stream times a learned factor, plus a learned multiple of the first one."""
        if self.config.residual_scalars:
            x = self.residual_scale.to(x.dtype) * x
        if self.config.x0_scalars:
            x = x + self.x0_scale.to(x.dtype) * x0
        return x
