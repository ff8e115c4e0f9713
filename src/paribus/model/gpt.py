"""The GPT: one dial (`model.depth`), every choice a field of config.Model, weights a function of the seed.

Shapes: B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from paribus.config import Model, resolve_model
from paribus.errors import UserError
from paribus.model import attention, kernels, saved
from paribus.model.accounting import parameters
from paribus.model.attention import at
from paribus.model.compiler import require_tools
from paribus.model.initial import initial_std
from paribus.model.layers import (
    Block,
    Cache,
    Context,
    KVCache,
    Linear,
    cross_entropy,
    normalise,
    rotary_table,
)
from paribus.model.shapes import logit_rows, window_of

__all__ = ["GPT", "KVCache", "load_checkpoint", "save_checkpoint"]


class GPT(nn.Module):
    """A decoder-only transformer.

    Parameters are fp32; products run in `compute_dtype`. `activation_checkpointing` recomputes each block's
    activations in the backward pass.
    """

    def __init__(
        self, model: Model, vocab_size: int, compute_dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.config = config = resolve_model(model)
        self.vocab_size = vocab_size
        self.compute_dtype = compute_dtype
        self.activation_checkpointing = False
        self._loss: Callable[..., tuple[Tensor, Tensor]] = cross_entropy
        self._block_mask: Callable[..., Any] = attention.block_mask
        self.embedding = nn.Embedding(vocab_size, config.width)
        if config.position == "learned":
            self.positions = nn.Embedding(config.seq_len, config.width)
        self.blocks = nn.ModuleList(
            Block(config, vocab_size, layer) for layer in range(config.depth)
        )
        if not config.tied_head:
            self.head = Linear(config.width, vocab_size)
        cos, sin = rotary_table(config.seq_len, config.head_dim, config.rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def compiled(self, *, dynamic: bool | None = None) -> Any:
        """What to call in place of the model in training: the blocks as one graph, the loss outside of it.

        Within the graph the loss's loop over chunks would be unrolled, and the whole model compiled anew for every
        number of tokens, of which RL has one a micro-batch; a chunk is compiled by itself instead. dynamic: whether
        the sizes of the inputs are left open; None: after the second one was seen. Raises UserError without a compiler.
        """
        require_tools(self.device.type, "train.compile")
        self._loss = torch.compiler.disable(cross_entropy)
        if dynamic:  # torch 2.13 cannot compile the making of a block mask of open size
            self._block_mask = torch.compiler.disable(attention.block_mask)
        return kernels.compiled(self, dynamic=dynamic)

    @property
    def _rotary(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each (seq_len, head_dim / 2)."""
        return self.get_buffer("cos"), self.get_buffer("sin")

    @property
    def head_weight(self) -> Tensor:
        """(V, D)."""
        return self.embedding.weight if self.config.tied_head else self.head.weight

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw every tensor from a generator named by (seed, tensor name), at the scale that `initial_std` gives it.

        Arms of an ablation start from the same values of a tensor where its shape and scale agree
        (`initial.shared_initial_tensors`). Matrices that write to the residual stream start at zero, so that every
        block starts as the identity; so does the head.
        """
        for name, tensor in self.named_parameters():
            if tensor.dim() < 2:
                continue  # scalars keep their neutral start
            digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            values = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(values * initial_std(self.config, name, tuple(tensor.shape)))

    def hidden(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        """Residual stream after the final norm.

        tokens (B, T) int64; documents (B, T): tokens see only their own document; or cache: tokens continue each
        row (call `cache.advance` afterwards); read (B, R) int64: the only places in `tokens` that are wanted, which
        saves the last block all but keys and values elsewhere. Returns (B, T, D), or (B, R, D).
        Raises UserError past the context length, ValueError for documents with a cache.
        """
        if documents is not None and cache is not None:
            raise ValueError("documents: a cache does not keep them")
        limit = self.config.seq_len if cache is None else min(self.config.seq_len, cache.capacity)
        start = 0 if cache is None else cache.extent
        if start + tokens.shape[1] > limit:
            raise UserError(
                f"{start + tokens.shape[1]} tokens do not fit the context of {limit} (model.seq_len)"
            )
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        if cache is not None:
            positions = positions + cache.lengths[:, None]
        # A right-padded token may lie past the context; it is overwritten before anything reads it.
        positions = positions.clamp(max=self.config.seq_len - 1)
        context = self._context(positions, documents, cache)
        wanted = context if read is None else self._context(positions, documents, cache, read)
        x = self.embedding(tokens)
        if self.config.position == "learned":
            x = x + self.positions(positions)
        x = x0 = normalise(x.to(self.compute_dtype), self.config.norm)
        for layer, block in enumerate(self.blocks, 1):
            if self.activation_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, x0, tokens, context, context, use_reentrant=False)
            else:
                x = block(x, x0, tokens, context, wanted if layer == self.config.depth else context)
        return normalise(x, self.config.norm)

    def _context(
        self,
        positions: Tensor,
        documents: Tensor | None,
        cache: Cache | None,
        read: Tensor | None = None,
    ) -> Context:
        cos = sin = None
        if self.config.position == "rope":
            asking = at(positions, read)
            cos, sin = (table[asking][:, :, None].to(self.compute_dtype) for table in self._rotary)
        letters = {window_of(self.config, layer) for layer in range(self.config.depth)}
        masks = {
            letter: self._mask(letter, positions, documents, cache, read) for letter in letters
        }
        return Context(cos, sin, masks, cache, read)

    def _mask(
        self,
        letter: str,
        positions: Tensor,
        documents: Tensor | None,
        cache: Cache | None,
        read: Tensor | None,
    ) -> Any:
        window = self.config.window if letter == "S" else None
        if window is not None and window >= self.config.seq_len:
            window = None
        if cache is not None:
            return cache.mask(positions, read, window)
        length = positions.shape[1]
        chosen = attention.backend(
            self.device.type, length, window, documents is not None, read is not None
        )
        if chosen == "causal":
            return None
        if chosen == "flex":
            return self._block_mask(length, window, documents, self.device)
        return attention.dense_mask(positions, window, documents, read)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V) fp32, soft-capped (Gemma 2, arXiv:2408.00118)."""
        logits = nn.functional.linear(hidden, self.head_weight.to(hidden.dtype)).float()
        cap = self.config.softcap
        if not cap:
            return logits
        if torch.is_grad_enabled():
            return cap * torch.tanh(logits / cap)
        # the same in place, by the vectorised sigmoid, which takes a quarter of tanh's time on a CPU
        return logits.mul_(2 / cap).sigmoid_().mul_(2 * cap).sub_(cap)

    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each token in nats, without gradient: hidden (N, D), targets (N,) -> (N,) fp32; 0 where -1."""
        with torch.no_grad():
            return self._cross_entropy(hidden, targets, None)[1]

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        documents: Tensor | None = None,
        weights: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
    ) -> Tensor:
        """Sum over tokens of weight x cross-entropy, nats, fp32 ().

        tokens, targets, documents, weights (B, T); targets of -1 are not learned. temperature, top_k: how the targets were
        drawn, if not from the model's own distribution; the cross-entropy is that of the distribution they came from.
        """
        hidden = self.hidden(tokens, documents).flatten(0, 1)
        flat_weights = None if weights is None else weights.flatten()
        return self._cross_entropy(hidden, targets.flatten(), flat_weights, temperature, top_k)[0]

    def _cross_entropy(
        self,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        temperature: float = 1.0,
        top_k: int = 0,
    ) -> tuple[Tensor, Tensor]:
        rows = logit_rows(self.vocab_size, hidden.device.type)
        return self._loss(
            hidden,
            self.head_weight,
            targets,
            weights,
            self.config.softcap,
            rows,
            temperature,
            top_k,
            compiled=torch.compiler.is_compiling(),
        )


# ---------------------------------------------------------------- checkpoints


def save_checkpoint(folder: Path, model: GPT, tokenizer: Path, provenance: dict[str, Any]) -> None:
    """Write model.safetensors, config.json, tokenizer.json and provenance.json: all that using the model needs."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.named_parameters()
    }
    save_file(tensors, folder / "model.safetensors")
    shape = {"model": dataclasses.asdict(model.config), "vocab_size": model.vocab_size}
    (folder / "config.json").write_text(json.dumps(shape, indent=1) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    record = provenance | {saved.DIGESTS: saved.digests_of(folder)}
    (folder / "provenance.json").write_text(
        json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )


def load_checkpoint(
    folder: str | Path,
    device: torch.device | str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    *,
    recorded: bool = True,
) -> GPT:
    """The model of a checkpoint folder.

    recorded: whether provenance.json has to be there and to vouch for the other files; without one, False takes a
    checkpoint whose files agree with each other.

    Raises UserError if it is absent, damaged, out of the bounds of params.yaml, or of another shape or vocabulary than
    it says; no model larger than the file is built then.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    if recorded or saved.has_record(folder):
        saved.check_record(folder)
    architecture, vocab_size = saved.read_shape(folder)
    found = saved.tensor_shapes(folder)
    saved.check_size(folder, found, parameters(architecture, vocab_size)["total"])
    model = GPT(architecture, vocab_size, compute_dtype)
    expected = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    saved.check_shapes(folder, found, expected)
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{folder}: damaged checkpoint ({str(error).splitlines()[0]}); `dvc checkout` restores it"
        ) from None
    return model.to(device)
