"""A paribus checkpoint as a transformers model: every architecture switch, for inference and fine-tuning.

This file is copied beside the weights by `paribus export`; it needs transformers and torch alone. `config.json` names it
in `auto_map`, so `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` finds it. Modules and tensors
bear the names that they have in the checkpoint. Sizes that follow from other keys stand in `config.json` as well.

Shapes: B rows, T tokens, S keys seen, D width, H query heads, K key/value heads, E head_dim, V vocabulary.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

LEAK = 0.5  # slope of leaky_relu2 below zero, before the square
IGNORED = -100  # a label that is not learned
# What the library calls a cache: `cache` from version 5.20 on.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


class ParibusConfig(PreTrainedConfig):
    """The configuration: `architecture` has paribus' own keys (docs/configuration.md there) and the sizes that follow."""

    model_type = "paribus"
    architecture: dict[str, Any] | None = None
    vocab_size: int = 0
    hidden_size: int = 0
    num_attention_heads: int = 0
    num_key_value_heads: int = 0
    head_dim: int = 0
    num_hidden_layers: int = 0  # blocks that a token passes: each pass over shared blocks counts
    max_position_embeddings: int = 0


def normalise(x: Tensor, kind: str) -> Tensor:
    """RMS or layer normalisation of x (..., n) over its last axis, without gains.

    kind: rms or layer.
    """
    if kind == "layer":
        return F.layer_norm(x, (x.shape[-1],))
    return F.rms_norm(x, (x.shape[-1],))


class Norm(nn.Module):
    """Normalisation of the residual stream, with a gain and a bias for each channel if `norm_gain` and `norm_bias`."""

    def __init__(self, shape: SimpleNamespace) -> None:
        super().__init__()
        self.kind = shape.norm
        self.gain = nn.Parameter(torch.ones(shape.width)) if shape.norm_gain else None
        self.bias = nn.Parameter(torch.zeros(shape.width)) if shape.norm_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = normalise(x, self.kind)
        if self.gain is not None:
            x = x * self.gain
        return x if self.bias is None else x + self.bias


Rotary = tuple[Tensor, Tensor]  # cosines and sines


def rotary(positions: Tensor, channels: int, base: float, dtype: torch.dtype) -> Rotary:
    """Cosines and sines of positions (B, T), each (B, T, 1, channels / 2).

    base: of the angles. dtype: of the result.
    """
    pairs = torch.arange(0, channels, 2, dtype=torch.float64, device=positions.device)
    angles = positions[..., None, None].double() * base ** (-pairs / channels)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, turn: Rotary) -> Tensor:
    """Rotate the first channels of x (B, T, H or K, E), in pairs (i, i + half), by their position.

    turn: cosines and sines of their positions.
    """
    cos, sin = turn
    turning = 2 * cos.shape[-1]
    first, second = x[..., :turning].chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat((*turned, x[..., turning:]), dim=-1)


class Attention(nn.Module):
    """Causal attention with grouped-query heads."""

    def __init__(self, shape: SimpleNamespace, vocab_size: int, layer: int) -> None:
        super().__init__()
        self.shape, self.layer = shape, layer
        kv_width = shape.n_kv_heads * shape.head_dim
        if shape.qk_norm and shape.qk_gain:
            self.q_gain = nn.Parameter(torch.ones(shape.head_dim))
            self.k_gain = nn.Parameter(torch.ones(shape.head_dim))
        if shape.head_gain:
            self.head_gain = nn.Parameter(torch.ones(shape.n_heads))
        if shape.value_residual and layer > 0:
            self.value_scale = nn.Parameter(torch.zeros(()))
        self.q = nn.Linear(shape.width, shape.n_heads * shape.head_dim, bias=shape.qkv_bias)
        self.k = nn.Linear(shape.width, kv_width, bias=shape.qkv_bias)
        self.v = nn.Linear(shape.width, kv_width, bias=shape.qkv_bias)
        self.out = nn.Linear(shape.n_heads * shape.head_dim, shape.width, bias=shape.out_bias)
        if shape.has_value_embedding[layer]:
            self.value_embedding = nn.Embedding(vocab_size, kv_width)
            self.gate = nn.Linear(shape.gate_channels, shape.n_kv_heads, bias=False)
        if shape.attention_gate == "head":
            self.output_gate = nn.Linear(shape.gate_channels, shape.n_heads, bias=False)

    def forward(self, x: Tensor, tokens: Tensor, state: State, applied: int) -> Tensor:
        """X (B, T, D), tokens (B, T) -> (B, T, D). applied: blocks that the tokens passed before.

        x: the normalised stream. state: what all blocks share of a forward pass.
        """
        shape = self.shape
        q = self.q(x).unflatten(-1, (shape.n_heads, shape.head_dim))  # (B, T, H, E)
        k = self.k(x).unflatten(-1, (shape.n_kv_heads, shape.head_dim))
        v = self.values(x, tokens, state)
        has_gain = shape.qk_norm and shape.qk_gain
        q = self.positioned(q, state.turn, self.q_gain if has_gain else None)
        k = self.positioned(k, state.turn, self.k_gain if has_gain else None)
        q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
        if state.cache is not None:
            k, v = state.cache.update(k, v, applied)
        y = self.attend(q, k, v, state.masks[shape.windows[self.layer]])
        y = y.transpose(1, 2)  # (B, T, H, E)
        if shape.head_gain:
            y = y * self.head_gain[:, None]
        if shape.attention_gate == "head":
            opened = 2 * torch.sigmoid(self.output_gate(x[..., : shape.gate_channels]))
            y = y * opened[..., None]
        result: Tensor = self.out(y.flatten(2))
        return result

    def values(self, x: Tensor, tokens: Tensor, state: State) -> Tensor:
        """X (B, T, D), tokens (B, T) -> (B, T, K, E).

        x: the normalised stream. state: what all blocks share of a forward pass.
        """
        shape = self.shape
        v: Tensor = self.v(x).unflatten(-1, (shape.n_kv_heads, shape.head_dim))
        if shape.value_residual:
            if self.layer > 0 and state.first_values is not None:
                v = v + self.value_scale * state.first_values
            elif state.first_values is None:
                state.first_values = v
        if shape.has_value_embedding[self.layer]:
            opened = 2 * torch.sigmoid(self.gate(x[..., : shape.gate_channels]))
            v = v + opened[..., None] * self.value_embedding(tokens).view_as(v)
        return v

    def positioned(self, heads: Tensor, turn: Rotary | None, gain: Tensor | None) -> Tensor:
        """Queries or keys (B, T, H or K, E), rotated to their positions and normalised.

        Args:
            heads: as projected.
            turn: cosines and sines of the positions; None: no rotation.
            gain: of the norm, (E,).
        """
        before = self.shape.qk_norm_position == "before_rotary"
        if before:
            heads = self.normalised(heads, gain)
        if turn is not None:
            heads = rotate(heads, turn)
        return heads if before else self.normalised(heads, gain)

    def normalised(self, heads: Tensor, gain: Tensor | None) -> Tensor:
        """Queries or keys with norm 1 per channel times a gain, if `qk_norm`.

        heads: as projected (B, T, H or K, E).
        """
        if not self.shape.qk_norm:
            return heads
        heads = normalise(heads, self.shape.norm)
        return heads if gain is None else heads * gain

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Q (B, H, T, E), k, v (B, K, S, E), mask (B, 1, T, S) -> (B, H, T, E)."""
        shape = self.shape
        copies = shape.n_heads // shape.n_kv_heads
        k, v = k.repeat_interleave(copies, dim=1), v.repeat_interleave(copies, dim=1)
        dropout = shape.attention_dropout if self.training else 0.0
        if not shape.attention_softcap:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        logits = (q @ k.mT) * shape.head_dim**-0.5
        logits = shape.attention_softcap * torch.tanh(logits / shape.attention_softcap)
        weights = logits.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(dim=-1)
        return F.dropout(weights, dropout, self.training) @ v


class MLP(nn.Module):
    """Two matrices with an activation between them, or three with a gate."""

    def __init__(self, shape: SimpleNamespace) -> None:
        super().__init__()
        self.kind, self.dropout = shape.mlp, shape.mlp_dropout
        self.up = nn.Linear(shape.width, shape.mlp_hidden, bias=shape.mlp_bias)
        if self.kind in ("swiglu", "geglu"):
            self.gate = nn.Linear(shape.width, shape.mlp_hidden, bias=shape.mlp_bias)
        self.down = nn.Linear(shape.mlp_hidden, shape.width, bias=shape.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        hidden = F.dropout(self.activated(x), self.dropout, self.training)
        result: Tensor = self.down(hidden)
        return result

    def activated(self, x: Tensor) -> Tensor:
        """X (B, T, D) -> hidden values (B, T, mlp_hidden)."""
        up: Tensor = self.up(x)
        if self.kind == "swiglu":
            return F.silu(self.gate(x)) * up
        if self.kind == "geglu":
            return F.gelu(self.gate(x)) * up
        if self.kind == "gelu":
            return F.gelu(up)
        if self.kind == "leaky_relu2":
            return F.leaky_relu(up, LEAK).square()
        positive = up.relu()
        return positive.square() if self.kind == "relu2" else positive


class Join(nn.Module):
    """How attention or an MLP reads the residual stream and adds to it: `norm_position`."""

    def __init__(self, shape: SimpleNamespace) -> None:
        super().__init__()
        self.position, self.dropout = shape.norm_position, shape.residual_dropout
        self.norm = Norm(shape)
        self.out_norm = Norm(shape) if self.position == "sandwich" else nn.Identity()

    def read(self, x: Tensor) -> Tensor:
        """What a sublayer gets of the stream x (B, T, D)."""
        result: Tensor = x if self.position == "post" else self.norm(x)
        return result

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """The stream x (B, T, D) after a sublayer's result y (B, T, D)."""
        total: Tensor = x + F.dropout(self.out_norm(y), self.dropout, self.training)
        return self.norm(total) if self.position == "post" else total


class Block(nn.Module):
    """Attention, then the MLP, each joined to the residual stream."""

    def __init__(self, shape: SimpleNamespace, vocab_size: int, layer: int) -> None:
        super().__init__()
        self.parallel = shape.parallel_blocks
        self.attention = Attention(shape, vocab_size, layer)
        self.attention_join = Join(shape)
        self.mlp = MLP(shape)
        if not self.parallel:
            self.mlp_join = Join(shape)
        self.residual_scale = nn.Parameter(torch.ones(())) if shape.residual_scalars else None
        self.x0_scale = nn.Parameter(torch.zeros(())) if shape.x0_scalars else None

    def forward(self, x: Tensor, x0: Tensor, tokens: Tensor, state: State, applied: int) -> Tensor:
        """x, x0 (B, T, D), tokens (B, T) -> (B, T, D). x0: the residual stream before the first block.

        state: what all blocks share of a forward pass. applied: blocks that the tokens passed before.
        """
        if self.residual_scale is not None:
            x = self.residual_scale * x
        if self.x0_scale is not None:
            x = x + self.x0_scale * x0
        read = self.attention_join.read(x)
        heard = self.attention(read, tokens, state, applied)
        if self.parallel:
            return self.attention_join.add(x, heard + self.mlp(read))
        x = self.attention_join.add(x, heard)
        return self.mlp_join.add(x, self.mlp(self.mlp_join.read(x)))


class State:
    """What the blocks of one forward pass share."""

    def __init__(
        self, turn: Rotary | None, masks: dict[int | None, Tensor], cache: Cache | None
    ) -> None:
        self.turn = turn
        self.masks = masks  # tokens that a window sees; None: all -> (B, 1, T, S), True where seen
        self.cache = cache
        self.first_values: Tensor | None = None  # of the first block, (B, T, K, E)


class ParibusForCausalLM(PreTrainedModel, GenerationMixin):
    """The GPT with its head."""

    config_class = ParibusConfig
    _supports_sdpa = True

    def __init__(self, config: ParibusConfig) -> None:
        super().__init__(config)
        shape = self.shape = SimpleNamespace(**(config.architecture or {}))
        self.embedding = nn.Embedding(config.vocab_size, shape.width)
        if shape.position == "learned":
            self.positions = nn.Embedding(shape.seq_len, shape.width)
        if shape.embedding_norm:
            self.embedding_norm = Norm(shape)
        self.blocks = nn.ModuleList(
            Block(shape, config.vocab_size, layer) for layer in range(shape.depth)
        )
        self.final_norm = Norm(shape)
        if not shape.tied_head:
            self.head = nn.Linear(shape.width, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.embedding

    def get_output_embeddings(self) -> nn.Module | None:
        """The head; None where it is the embedding."""
        return None if self.shape.tied_head else self.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits (B, T, V) of input_ids (B, T), and the mean loss where `labels` (B, T) are given.

        attention_mask (B, S): 0 at padding. cache, or past_key_values as older versions call it: what the tokens continue.
        logits_to_keep: only of the last so many tokens; 0: of all.
        """
        cache = cache if cache is not None else past_key_values
        if use_cache and cache is None:
            cache = DynamicCache()
        seen = cache.get_seq_length() if cache is not None else 0
        keys = seen + input_ids.shape[1]
        if attention_mask is None:
            attention_mask = torch.ones(
                (len(input_ids), keys), dtype=torch.bool, device=input_ids.device
            )
        of_keys = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)  # (B, S)
        positions = of_keys[:, seen:] if position_ids is None else position_ids
        hidden = self.hidden(input_ids, positions, of_keys, attention_mask.bool(), cache)
        logits = self.logits(hidden[:, -logits_to_keep:])
        loss = None if labels is None else next_token_loss(logits, labels)
        outputs: dict[str, Any] = {"loss": loss, "logits": logits, CACHE: cache}
        return CausalLMOutputWithPast(**outputs)

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        key_positions: Tensor,
        real: Tensor,
        cache: Cache | None,
    ) -> Tensor:
        """The residual stream after the final norm, (B, T, D).

        tokens, positions (B, T). key_positions, real (B, S): of what is cached and of the tokens; whether it is no padding.

        cache: of the tokens before; None: there are none.
        """
        shape = self.shape
        x = self.embed(tokens, positions)
        turn = None
        if shape.position == "rope":
            turn = rotary(positions, shape.rotary_channels, shape.rope_base, x.dtype)
        distance = positions[:, :, None] - key_positions[:, None]  # (B, T, S)
        masks = {}
        for window in set(shape.windows):
            near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            masks[window] = (near & real[:, None])[:, None]
        state, x0 = State(turn, masks, cache), x
        for applied in range(shape.depth * shape.recurrence):
            x = self.blocks[applied % shape.depth](x, x0, tokens, state, applied)
        result: Tensor = self.final_norm(x)
        return result

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The residual stream before the first block: tokens, positions (B, T) -> (B, T, D)."""
        shape = self.shape
        x: Tensor = self.embedding(tokens)
        if shape.position == "learned":
            x = x + self.positions(positions)
        x = self.embedding_norm(x) if shape.embedding_norm else x * shape.embedding_scale
        return F.dropout(x, shape.embedding_dropout, self.training)

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V) fp32, soft-capped."""
        weight = self.embedding.weight if self.shape.tied_head else self.head.weight
        logits = F.linear(hidden, weight).float()
        cap = self.shape.softcap
        return cap * torch.tanh(logits / cap) if cap else logits


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy in nats of each token after the first, given those before: (B, T, V), (B, T) -> ().

    Args:
        logits: of every token.
        labels: the tokens themselves; -100 where nothing is asked.
    """
    predicted, targets = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(predicted, targets, ignore_index=IGNORED)
