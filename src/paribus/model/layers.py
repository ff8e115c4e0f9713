"""The parts of a GPT block, each choice a plain switch on the config.

Shapes: B rows, T tokens, D width, H query heads, K key/value heads, E head_dim, V vocabulary, S keys seen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paribus.config import Architecture
from paribus.model import kernels
from paribus.model.attention import at, attend, visible
from paribus.model.shapes import GATE_CHANNELS, has_value_embedding, mlp_hidden, window_of


class Linear(nn.Linear):
    """A product without bias in the dtype of its input; the weight itself stays in fp32 for the optimiser."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RootMeanSquare(torch.autograd.Function):
    """x / rms(x) over the last axis, keeping its result for the backward pass: on a CPU a third of the time of
    F.rms_norm, which is five operations there (measured: forward and backward of 4,096 x 192, 1.4 against 4.2 ms)."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        norm = torch.linalg.vector_norm(
            x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)
        )
        scale = norm.square_().div_(x.shape[-1]).add_(torch.finfo(x.dtype).eps).rsqrt_().to(x.dtype)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        y, scale = ctx.saved_tensors
        along = torch.linalg.vecdot(grad, y)[..., None].div_(y.shape[-1])
        return torch.addcmul(grad, y, along, value=-1).mul_(scale)


def normalise(x: Tensor, kind: str) -> Tensor:
    """RMS or layer normalisation over the last axis, without gains (a gain before a matrix is redundant)."""
    if kind == "layer":
        return F.layer_norm(x, (x.shape[-1],))
    return RootMeanSquare.apply(x) if x.device.type == "cpu" else F.rms_norm(x, (x.shape[-1],))


def rotary_table(length: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions, each (length, E / 2), fp32 (RoFormer, arXiv:2104.09864)."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + E/2) of x (B, T, H, E) by their position; cos, sin broadcast over (B, T, 1, E / 2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class KVCache:
    """Keys and values of `rows` sequences, each with its own length.

    A forward writes at each row's length and reads up to there; `advance` says how many of the written tokens
    were real, so that right padding is harmless: the next write goes over it.
    """

    def __init__(
        self,
        config: Architecture,
        rows: int,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (config.depth, rows, config.n_kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.extent = 0  # longest row, on the host: no device sync to know how far to read

    @property
    def rows(self) -> int:
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, K, T, E) behind each row; return all keys and values up to the longest row."""
        positions = self.lengths[:, None] + torch.arange(k.shape[2], device=k.device)
        row = torch.arange(self.rows, device=k.device)[:, None]
        self.keys[layer][row, :, positions] = k.transpose(1, 2).to(self.keys.dtype)
        self.values[layer][row, :, positions] = v.transpose(1, 2).to(self.values.dtype)
        end = self.extent + k.shape[2]
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def mask(self, positions: Tensor, read: Tensor | None, window: int | None) -> Tensor | None:
        """What `attend` lets the tokens about to be written at `positions` (B, T) see, or those of them at the places
        `read` (B, R): (B, 1, T or R, S); None: plain causal."""
        if self.extent == 0 and read is None and window is None:
            return None
        keys = torch.arange(self.extent + positions.shape[1], device=positions.device)
        return visible(at(positions, read), keys, window)[:, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Write k, v (B, K, T, E), then let q (B, H, T or R, E) attend to all it may see -> (B, H, T or R, E)."""
        keys, values = self.write(layer, k, v)
        return attend(q, keys.to(q.dtype), values.to(q.dtype), mask)

    def advance(self, counts: Tensor) -> None:
        """Keep the first `counts` (B,) of the tokens just written in each row."""
        self.lengths += counts
        self.extent = int(self.lengths.max())

    def select(self, index: Tensor) -> KVCache:
        """A copy holding the rows `index`, in that order, repeated where repeated."""
        chosen = object.__new__(KVCache)
        chosen.keys, chosen.values = self.keys[:, index], self.values[:, index]
        chosen.lengths = self.lengths[index]
        chosen.extent = int(chosen.lengths.max()) if len(index) else 0
        return chosen

    def copy_rows(self, destination: Tensor, source: KVCache, index: Tensor) -> None:
        """Put rows `index` of `source` into rows `destination` of this cache."""
        end = source.extent
        self.keys[:, destination, :, :end] = source.keys[:, index, :, :end]
        self.values[:, destination, :, :end] = source.values[:, index, :, :end]
        self.lengths[destination] = source.lengths[index]
        self.extent = int(self.lengths.max())


class Cache(Protocol):
    """What the model needs of a cache; KVCache says what each is. A mask is whatever its own `attend` takes."""

    @property
    def lengths(self) -> Tensor: ...

    @property
    def capacity(self) -> int: ...

    @property
    def extent(self) -> int: ...

    def mask(self, positions: Tensor, read: Tensor | None, window: int | None) -> Any: ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor: ...


@dataclass(frozen=True)
class Context:
    """What every block of one forward pass shares: positions, and who may see whom."""

    cos: Tensor | None  # (B or 1, T, 1, E / 2)
    sin: Tensor | None
    masks: dict[str, Any]  # window letter -> what `attention.attend` takes, or the cache's own
    cache: Cache | None
    read: Tensor | None = None  # (B, R) the places that ask, for a block that need not answer all T


class Attention(nn.Module):
    """Causal attention with grouped-query heads (arXiv:2305.13245)."""

    def __init__(self, config: Architecture, vocab_size: int, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        width, kv_width = config.width, config.n_kv_heads * config.head_dim
        self.q = Linear(width, config.n_heads * config.head_dim)
        self.k = Linear(width, kv_width)
        self.v = Linear(width, kv_width)
        self.out = Linear(config.n_heads * config.head_dim, width)
        self.has_value_embedding = has_value_embedding(config, layer)
        if self.has_value_embedding:
            self.value_embedding = nn.Embedding(vocab_size, kv_width)
            self.gate = Linear(min(GATE_CHANNELS, width), config.n_kv_heads)

    def forward(
        self, x: Tensor, tokens: Tensor, context: Context, asking: Context, window: str
    ) -> Tensor:
        """x (B, T, D), tokens (B, T) -> (B, R, D) at the R places `asking` reads; all T: `asking` is `context`."""
        config, (rows, length, _) = self.config, x.shape
        q = self.q(at(x, asking.read)).unflatten(-1, (config.n_heads, config.head_dim))
        k = self.k(x).view(rows, length, config.n_kv_heads, config.head_dim)
        v = self.v(x).view(rows, length, config.n_kv_heads, config.head_dim)
        if self.has_value_embedding:
            gate = 2 * torch.sigmoid(self.gate(x[..., : self.gate.in_features]))[..., None]
            v = v + gate * self.value_embedding(tokens).to(x.dtype).view_as(v)
        if (
            asking.cos is not None
            and asking.sin is not None
            and context.cos is not None
            and context.sin is not None
        ):
            q, k = rotate(q, asking.cos, asking.sin), rotate(k, context.cos, context.sin)
        if config.qk_norm:
            q, k = normalise(q, config.norm), normalise(k, config.norm)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H or K, T, E)
        mask, cache = asking.masks[window], context.cache
        y = attend(q, k, v, mask) if cache is None else cache.attend(self.layer, q, k, v, mask)
        return self.out(y.transpose(1, 2).flatten(2))


class ReluSquaredProduct(torch.autograd.Function):
    """relu(up)^2 W' that keeps relu(up) alone for its backward pass: as separate operations `up`, its square and the
    weight's cast copy are kept too (4 + 4 of a block's 18 residual-stream sizes), and writing them takes a tenth of a
    CPU training step (measured: depth 4, width 192). The same products in the same order, so the same bits."""

    @staticmethod
    def forward(ctx, up: Tensor, weight: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        """up (..., F), weight (D, F) -> (..., D)."""
        positive = up.relu()
        ctx.save_for_backward(positive, weight)
        return F.linear(positive.square(), weight.to(up.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        positive, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        grad_weight = (rows.T @ positive.square().flatten(0, -2)).to(weight.dtype)
        grad_up = (rows @ weight.to(grad.dtype)).view_as(positive)
        return grad_up.mul_(positive).mul_(2), grad_weight


class MLP(nn.Module):
    """relu² (arXiv:2109.08668), gelu, or SwiGLU."""

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
            return self.down(F.silu(self.gate(x)) * self.up(x))
        if self.kind == "gelu":
            return self.down(F.gelu(self.up(x)))
        up = self.up(x)
        if torch.is_grad_enabled():
            return ReluSquaredProduct.apply(up, self.down.weight)
        return self.down(up.relu_().square_())  # in place: nothing is kept for a backward pass


class Block(nn.Module):
    """Pre-norm attention, then pre-norm MLP, each added to the residual stream."""

    def __init__(self, config: Architecture, vocab_size: int, layer: int) -> None:
        super().__init__()
        self.norm = config.norm
        self.window = window_of(config, layer)
        self.attention = Attention(config, vocab_size, layer)
        self.mlp = MLP(config)
        if config.residual_scalars:
            self.residual_scale = nn.Parameter(torch.ones(()))
        if config.x0_scalars:
            self.x0_scale = nn.Parameter(torch.zeros(()))

    def forward(
        self, x: Tensor, x0: Tensor, tokens: Tensor, context: Context, asking: Context
    ) -> Tensor:
        """x, x0 (B, T, D) -> (B, R, D) at the R places `asking` reads; all T: `asking` is `context`."""
        if hasattr(self, "residual_scale"):
            x = self.residual_scale.to(x.dtype) * x
        if hasattr(self, "x0_scale"):
            x = x + self.x0_scale.to(x.dtype) * x0
        x = at(x, asking.read) + self.attention(
            normalise(x, self.norm), tokens, context, asking, self.window
        )
        return x + self.mlp(normalise(x, self.norm))


def as_drawn(logits: Tensor, drawn: Tensor, temperature: float, top_k: int) -> Tensor:
    """The logits (n, V) of the distribution that `drawn` (n, 1) were sampled from: among the top_k largest (0: all), over
    the temperature.

    A drawn token stays among the candidates even where rounding has put another in its place since.
    """
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        kept = logits.gather(1, drawn)
        logits = logits.masked_fill(logits < least, -torch.inf).scatter(1, drawn, kept)
    return logits if temperature == 1 else logits / temperature


class ChunkedCrossEntropy(torch.autograd.Function):
    """sum_i w_i x cross-entropy(as_drawn(softcap(hidden_i W')), target_i), never holding more logits than a chunk.

    Gradients are formed chunk by chunk in the forward pass, while the chunk's logits exist: the fp32 logits of
    2,048 tokens x 65,536 words x 16 rows would take 8.6 GB, and their temporaries as much again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        token_weights: Tensor,
        softcap: float,
        chunk: int,
        temperature: float,
        top_k: int,
        part_of: Callable[..., tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """hidden (N, D), weight (V, D), targets (N,) with -1 ignored, token_weights (N,) -> sum (), losses (N,).

        part_of: `_chunk`, or the same compiled.
        """
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        want = any(ctx.needs_input_grad[:2])
        product = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if want else None
        grad_weight = torch.zeros_like(weight) if want else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            loss, grad_logits = part_of(
                hidden[part],
                product,
                targets[part],
                token_weights[part],
                softcap,
                want,
                temperature,
                top_k,
            )
            losses[part] = loss
            if grad_hidden is not None and grad_weight is not None:
                grad_hidden[part] = grad_logits @ product
                grad_weight += grad_logits.T @ hidden[part]  # adds in fp32
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(losses)
        return (losses * token_weights).sum(), losses

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        grad_hidden, grad_weight = ctx.saved_tensors
        plain = (None,) * 7  # targets, weights and settings have no gradient
        return grad_hidden * grad.to(grad_hidden.dtype), grad_weight * grad, *plain


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    token_weights: Tensor | None,
    softcap: float,
    chunk: int,
    temperature: float = 1.0,
    top_k: int = 0,
    *,
    compiled: bool,
) -> tuple[Tensor, Tensor]:
    """ChunkedCrossEntropy: sum (), losses (N,).

    compiled: whether a chunk is compiled by itself; one graph then serves all whole chunks, a second one, of open size,
    the last of each batch.
    """
    if token_weights is None:
        token_weights = torch.ones(len(targets), device=hidden.device)
    part_of = _compiled_chunk() if compiled else _chunk
    result: tuple[Tensor, Tensor] = ChunkedCrossEntropy.apply(
        hidden,
        weight,
        targets,
        token_weights,
        softcap,
        chunk,
        temperature,
        top_k,
        part_of,
    )
    return result


@functools.cache
def _compiled_chunk() -> Callable[..., tuple[Tensor, Tensor]]:
    function: Callable[..., tuple[Tensor, Tensor]] = kernels.compiled(_chunk)
    return function


def _chunk(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    token_weights: Tensor,
    softcap: float,
    want_grad: bool,
    temperature: float,
    top_k: int,
) -> tuple[Tensor, Tensor]:
    """Losses (n,) fp32 and, if wanted, the gradient by the raw logits (n, V) in hidden's dtype, for one chunk."""
    logits = (hidden @ weight.T).float()
    if softcap:
        capped = logits.div_(softcap).tanh_()
        logits = capped * softcap
    learned = targets >= 0
    index = targets.clamp(min=0)[:, None]
    logits = as_drawn(logits, index, temperature, top_k)
    log_normaliser = logits.logsumexp(dim=-1)
    losses = torch.where(learned, log_normaliser - logits.gather(1, index)[:, 0], 0.0)
    if not want_grad:
        return losses, logits
    grad = logits.sub_(log_normaliser[:, None]).exp_()
    grad.scatter_add_(1, index, torch.full_like(index, -1, dtype=grad.dtype))
    if temperature != 1:
        grad.div_(temperature)
    if softcap:
        grad.mul_(capped.square_().neg_().add_(1))
    grad.mul_((token_weights * learned)[:, None])
    return losses, grad.to(hidden.dtype)
