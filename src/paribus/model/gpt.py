"""The GPT: one dial (`model.depth`), every choice a field of config.Architecture, weights a function of the seed.

Read `GPT.hidden` from top to bottom, then `layers.Block`: token embedding, blocks (norm, attention, residual; norm, MLP,
residual), final norm, head. Masks are in attention.py, caches in cache.py, the loss in cross_entropy.py, fused operations
and the choice of a card's kernels in kernels.py.

Shapes, here and in all of model/:

    B  rows               T  tokens of a row        R  places of a row that are read
    D  width              H  query heads            K  key/value heads
    E  head_dim           F  hidden width of MLP    V  vocabulary
    N  tokens of all rows together
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

from paribus.config import Architecture
from paribus.errors import UserError
from paribus.model import attention, kernels, saved
from paribus.model.accounting import parameters
from paribus.model.attention import Context, Places, Rotary, at
from paribus.model.cache import Cache
from paribus.model.compiler import require_tools
from paribus.model.cross_entropy import cross_entropy
from paribus.model.initial import initial_std
from paribus.model.layers import Block, Linear, normalise, rotary_table
from paribus.model.shapes import logit_rows, window_of

__all__ = ["GPT", "load_checkpoint", "save_checkpoint"]


class GPT(nn.Module):
    """A decoder-only transformer.

    Parameters are fp32; products run in `compute_dtype`. `activation_checkpointing` recomputes each block's
    activations in the backward pass.
    """

    def __init__(
        self, config: Architecture, vocab_size: int, compute_dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.compute_dtype = compute_dtype
        self.activation_checkpointing = False
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
        self._loss: Callable[..., tuple[Tensor, Tensor]] = cross_entropy
        self._block_mask: Callable[..., Any] = attention.block_mask

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

    # ------------------------------------------------------------ training

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

        tokens, targets (B, T) int64: inputs, and what to predict at each; targets of -1 are not learned. documents (B, T):
        as in `hidden`. weights (B, T): factors in the sum; None: 1 each. temperature, top_k: how the targets were drawn,
        if not from the model's own distribution; the cross-entropy is that of the distribution they came from.
        """
        hidden = self.hidden(tokens, documents).flatten(0, 1)  # (N, D)
        flat_weights = None if weights is None else weights.flatten()
        return self._cross_entropy(hidden, targets.flatten(), flat_weights, temperature, top_k)[0]

    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each token in nats, without gradient: hidden (N, D), targets (N,) -> (N,) fp32; 0 where -1."""
        with torch.no_grad():
            return self._cross_entropy(hidden, targets, None)[1]

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

    # ------------------------------------------------------------ embedding, blocks, head

    def hidden(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        """Residual stream after the final norm, (B, T, D), or (B, R, D) at the places `read`.

        tokens (B, T) int64. documents (B, T): tokens see only their own document. cache: tokens continue each row
        (call `cache.advance` afterwards). read (B, R) int64: the only places in `tokens` to compute, which
        saves the last block all but keys and values elsewhere.
        Raises UserError past the context length, ValueError for documents with a cache.
        """
        positions = self._positions(tokens, documents, cache)  # (B or 1, T)
        context = self._context(positions, documents, cache)
        places = None if read is None else self._places(read, positions, documents, cache)
        x = self.embedding(tokens)  # (B, T, D)
        if self.config.position == "learned":
            x = x + self.positions(positions)
        x = x0 = normalise(x.to(self.compute_dtype), self.config.norm)
        block: Any  # a Block, which the type of a ModuleList does not say
        for layer, block in enumerate(self.blocks, 1):
            if places is not None and layer == self.config.depth:
                x = block.at_places(x, x0, tokens, context, places)  # (B, R, D)
            elif self.activation_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, x0, tokens, context, use_reentrant=False)
            else:
                x = block(x, x0, tokens, context)
        return normalise(x, self.config.norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V) fp32, soft-capped."""
        logits = nn.functional.linear(hidden, self.head_weight.to(hidden.dtype)).float()
        return kernels.softcap(logits, self.config.softcap) if self.config.softcap else logits

    @property
    def head_weight(self) -> Tensor:
        """(V, D)."""
        return self.embedding.weight if self.config.tied_head else self.head.weight

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.embedding.weight.device

    # ------------------------------------------------------------ where tokens stand, and whom they see

    def _positions(self, tokens: Tensor, documents: Tensor | None, cache: Cache | None) -> Tensor:
        """(B or 1, T): the position of each token in its row. Raises what `hidden` raises."""
        if documents is not None and cache is not None:
            raise ValueError("documents: a cache does not keep them")
        length = tokens.shape[1]
        limit = self.config.seq_len if cache is None else min(self.config.seq_len, cache.capacity)
        end = length if cache is None else cache.extent + length
        if end > limit:
            raise UserError(f"{end} tokens do not fit the context of {limit} (model.seq_len)")
        positions = torch.arange(length, device=tokens.device)[None]
        if cache is not None:
            positions = positions + cache.lengths[:, None]
        # A right-padded token may lie past the context; it is overwritten before anything reads it.
        return positions.clamp(max=self.config.seq_len - 1)

    def _context(self, positions: Tensor, documents: Tensor | None, cache: Cache | None) -> Context:
        return Context(
            rotary=self._rotary(positions),
            masks=self._masks(positions, documents, cache, None),
            cache=cache,
        )

    def _places(
        self, read: Tensor, positions: Tensor, documents: Tensor | None, cache: Cache | None
    ) -> Places:
        return Places(
            index=read,
            rotary=self._rotary(at(positions, read)),
            masks=self._masks(positions, documents, cache, read),
        )

    def _rotary(self, positions: Tensor) -> Rotary | None:
        """Cosines and sines of positions (B or 1, T), each (B or 1, T, 1, E / 2); None without rotary positions."""
        if self.config.position != "rope":
            return None
        cos = self.get_buffer("cos")[positions][:, :, None]
        sin = self.get_buffer("sin")[positions][:, :, None]
        return cos.to(self.compute_dtype), sin.to(self.compute_dtype)

    def _masks(
        self,
        positions: Tensor,
        documents: Tensor | None,
        cache: Cache | None,
        read: Tensor | None,
    ) -> dict[str, Any]:
        """Letter of each kind of window in the model -> what its blocks' attention takes."""
        masks = {}
        for letter in {window_of(self.config, layer) for layer in range(self.config.depth)}:
            window = self.config.window if letter == "S" else None
            if window is not None and window >= self.config.seq_len:
                window = None
            masks[letter] = self._mask(window, positions, documents, cache, read)
        return masks

    def _mask(
        self,
        window: int | None,
        positions: Tensor,
        documents: Tensor | None,
        cache: Cache | None,
        read: Tensor | None,
    ) -> Any:
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

    # ------------------------------------------------------------ compiling

    def compiled(self, *, dynamic: bool | None = None) -> Any:
        """What to call in place of the model in training: the blocks as one graph, the loss outside of it.

        Within the graph the loss's loop over chunks would be unrolled, and the whole model recompiled for every
        number of tokens, of which RL has one a micro-batch; a chunk is compiled by itself instead. dynamic: whether
        the sizes of the inputs are left open; None: after the second one was seen. Raises UserError without a compiler.
        """
        require_tools(self.device.type, "train.compile")
        self._loss = torch.compiler.disable(cross_entropy)
        if dynamic:  # torch 2.13 cannot compile the making of a block mask of open size
            self._block_mask = torch.compiler.disable(attention.block_mask)
        return kernels.compiled(self, dynamic=dynamic)


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
