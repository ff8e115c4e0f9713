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
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from paribus.config import Architecture
from paribus.errors import UserError
from paribus.files import replacing, whole_folder, write_atomic
from paribus.model import attention, banded, kernels, saved
from paribus.model.accounting import parameters
from paribus.model.attention import Context, Places, Rotary, at
from paribus.model.cache import Cache
from paribus.model.compiler import require_tools
from paribus.model.cross_entropy import cross_entropy
from paribus.model.initial import Draw, initial_draw
from paribus.model.layers import Block, Linear, Norm, normalise, rotary_table
from paribus.model.shapes import applied_blocks, logit_rows, rotary_channels, window_of

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
        self.window_kernel = "flex"  # on CUDA; or flash (model/window_kernel.py)
        self.embedding = nn.Embedding(vocab_size, config.width)
        if config.position == "learned":
            self.positions = nn.Embedding(config.seq_len, config.width)
        if config.embedding_norm:
            self.embedding_norm = Norm(config)
        self.blocks = nn.ModuleList(
            Block(config, vocab_size, layer) for layer in range(config.depth)
        )
        self.final_norm = Norm(config)
        if not config.tied_head:
            self.head = Linear(config.width, vocab_size)
        if config.future_tokens:
            heads = [Linear(config.width, config.width) for _ in range(config.future_tokens)]
            self.head_future = nn.ModuleList(heads)
        cos, sin = rotary_table(config.seq_len, rotary_channels(config), config.rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._loss: Callable[..., tuple[Tensor, Tensor]] = cross_entropy
        self._block_mask: Callable[..., object] = attention.block_mask

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Give every tensor its first values: those of matrices from a generator named by (seed, tensor name).

        Arms of an ablation start from the same values of a tensor where its shape and its draw agree
        (`initial.shared_initial_tensors`). By default matrices that write to the residual stream start at zero, so that
        every block starts as the identity; so does the head.
        """
        for name, tensor in self.named_parameters():
            draw = initial_draw(self.config, name, tuple(tensor.shape))
            if draw.kind == "constant":
                tensor.fill_(draw.scale)
                continue
            digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            tensor.copy_(drawn(draw, tensor.shape, generator))

    # ------------------------------------------------------------ training

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        documents: Tensor | None = None,
        weights: Tensor | None = None,
        future_loss: float = 0.0,
        **terms: float,
    ) -> Tensor:
        """Sum over tokens of weight x loss, nats, fp32 ().

        tokens, targets (B, T) int64: inputs, and what to predict at each; targets of -1 are not learned. documents (B, T):
        as in `hidden`. weights (B, T): factors in the sum; None: 1 each. future_loss: weight of each further token that
        `model.future_tokens` has predicted; 0: none is. terms: temperature and top_k, how the targets were
        drawn if not from the model's own distribution, and the other arguments of `cross_entropy` that name its terms.
        """
        hidden = self.hidden(tokens, documents)
        if future_loss:
            hidden, targets, weights = self._with_future(hidden, targets, future_loss)
        flat_weights = None if weights is None else weights.flatten()
        return self._cross_entropy(hidden.flatten(0, 1), targets.flatten(), flat_weights, **terms)[
            0
        ]

    def _with_future(
        self, hidden: Tensor, targets: Tensor, future_loss: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The rows once more for every further token: hidden (B', T, D), targets (B', T), weights (B', T) of the loss.

        What comes after the end of a row is not learned. Bytes: `footprint.future`.
        """
        streams, wanted = [hidden], [targets]
        weights = [torch.ones(targets.shape, device=targets.device)]
        for number, head in enumerate(self.head_future, 1):
            streams.append(normalise(hidden + head(hidden), self.config.norm))
            wanted.append(nn.functional.pad(targets[:, number:], (0, number), value=-1))
            weights.append(torch.full_like(weights[0], future_loss))
        return torch.cat(streams), torch.cat(wanted), torch.cat(weights)

    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each token in nats, without gradient: hidden (N, D), targets (N,) -> (N,) fp32; 0 where -1."""
        with torch.no_grad():
            return self._cross_entropy(hidden, targets, None)[1]

    def _cross_entropy(
        self,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        **terms: Any,
    ) -> tuple[Tensor, Tensor]:
        rows = logit_rows(self.vocab_size, hidden.device.type)
        return self._loss(
            hidden,
            self.head_weight,
            targets,
            weights,
            self.config.softcap,
            rows,
            **terms,
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
        x = x0 = self._embed(tokens, positions)  # (B, T, D)
        last = applied_blocks(self.config) - 1
        for applied in range(last + 1):
            number = applied % self.config.depth
            block: Any = self.blocks[number]  # a Block, which the type of a ModuleList does not say
            if number == 0 and applied > 0:
                context = dataclasses.replace(context, first_layer=applied)
            if places is not None and applied == last:
                x = block.at_places(x, x0, tokens, context, places)  # (B, R, D)
            elif self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, x0, tokens, context, use_reentrant=False)
            else:
                x = block(x, x0, tokens, context)
        result: Tensor = self.final_norm(x)
        return result

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The residual stream before the first block: tokens (B, T), positions (B or 1, T) -> (B, T, D)."""
        x = self.embedding(tokens)
        if self.config.position == "learned":
            x = x + self.positions(positions)
        x = x.to(self.compute_dtype)
        if self.config.embedding_norm:
            x = self.embedding_norm(x)
        elif self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        if self.config.embedding_dropout:
            x = nn.functional.dropout(x, self.config.embedding_dropout, self.training)
        result: Tensor = x
        return result

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V) fp32, soft-capped."""
        logits = self._product_with_head(hidden).float()
        return kernels.softcap(logits, self.config.softcap) if self.config.softcap else logits

    def _product_with_head(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V), in the dtype of `hidden`."""
        if self.config.tied_head:
            return nn.functional.linear(hidden, self.head_weight.to(hidden.dtype))
        product: Tensor = self.head(hidden)
        return product

    @property
    def head_weight(self) -> Tensor:
        """(V, D)."""
        return self.embedding.weight if self.config.tied_head else self.head.weight

    def use_float8(self) -> None:
        """Multiply 8-bit floats in training, in the matrices of all blocks (`train.fp8`)."""
        for block in self.blocks:
            assert isinstance(block, Block)
            block.use_float8()

    @property
    def has_dropout(self) -> bool:
        """Whether a forward pass in training mode drops anything."""
        config = self.config
        shares = (
            config.attention_dropout,
            config.mlp_dropout,
            config.residual_dropout,
            config.embedding_dropout,
        )
        return any(shares)

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
        """Cosines and sines of positions (B or 1, T), each (B or 1, T, 1, C / 2); None without rotary positions."""
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
    ) -> dict[str, object]:
        """Letter of each kind of window in the model -> what its blocks' attention takes."""
        windows = {}
        for letter in {window_of(self.config, layer) for layer in range(self.config.depth)}:
            window = self.config.window if letter == "S" else None
            if window is not None and window >= self.config.seq_len:
                window = None
            windows[letter] = window
        masks = {}
        for window in set(windows.values()):
            masks[window] = self._mask(window, positions, documents, cache, read)
        return {letter: masks[window] for letter, window in windows.items()}

    def _mask(
        self,
        window: int | None,
        positions: Tensor,
        documents: Tensor | None,
        cache: Cache | None,
        read: Tensor | None,
    ) -> object:
        if cache is not None:
            return cache.mask(positions, read, window)
        length = positions.shape[1]
        chosen = attention.backend(
            self.device.type,
            length,
            window,
            documents is not None,
            read is not None,
            self.config.attention_softcap > 0,
            self.config.attention_dropout > 0,
            self.compute_dtype,
        )
        if chosen == "causal":
            return None
        whole_rows = documents is None and not self.config.attention_softcap
        if chosen == "flex" and self.window_kernel == "flash" and whole_rows:
            assert window is not None, "plain rows without a window are causal"
            return attention.FlashWindow(window)
        if chosen == "flex":
            return self._block_mask(length, window, documents, self.device)
        seen = attention.dense_mask(positions, window, documents, read)
        if chosen == "banded":
            keeps = self.config.seq_len <= banded.KEPT_LENGTH
            return banded.band(seen, window, self.compute_dtype, keeps=keeps)
        return seen

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


def drawn(draw: Draw, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A matrix's first values, fp32; orthogonal: of the standard deviation that a normal one would have.

    Args:
        draw: kind and standard deviation.
        shape: of the matrix.
        generator: of random numbers; its state moves on.
    """
    values = torch.randn(shape, generator=generator)
    if draw.kind == "orthogonal":
        values = nearest_orthogonal(values) * max(shape) ** 0.5
    return values * draw.scale


def nearest_orthogonal(matrix: Tensor) -> Tensor:
    """The (semi-)orthogonal factor of a matrix (rows, columns), the nearest one to it: its rows or columns have norm 1."""
    left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    orthogonal: Tensor = left @ right
    return orthogonal.float()


# ---------------------------------------------------------------- checkpoints


def save_checkpoint(
    folder: Path,
    model: GPT,
    tokenizer: Path,
    provenance: dict[str, Any],
    beside: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({}),
) -> None:
    """Write model.safetensors, config.json, tokenizer.json and provenance.json: all that using the model needs.

    All at once: whoever is killed here leaves the checkpoint that was there before, or none.

    Args:
        folder: of the checkpoint.
        model: whose weights are saved.
        tokenizer: the tokenizer.json to copy.
        provenance: what the weights are a function of, as JSON.
        beside: name -> weights by name, to be kept in NAME.safetensors.
    """
    from safetensors.torch import save_file

    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.named_parameters()
        if not name.startswith("head_future.")  # only pretraining uses them
    }
    config = dataclasses.replace(model.config, future_tokens=0)
    shape = {"model": dataclasses.asdict(config), "vocab_size": model.vocab_size}
    with whole_folder(folder) as partial:
        with replacing(partial / "model.safetensors") as aside:
            save_file(tensors, aside)
        for name, weights in beside.items():
            others = {}
            for key, tensor in tensors.items():
                others[key] = weights.get(key, tensor).detach().cpu().contiguous()
            with replacing(partial / f"{name}.safetensors") as aside:
                save_file(others, aside)
        write_atomic(partial / "config.json", json.dumps(shape, indent=1) + "\n")
        write_atomic(partial / "tokenizer.json", tokenizer.read_bytes())
        record = provenance | {saved.DIGESTS: saved.digests_of(partial)}
        text = json.dumps(record, indent=1, sort_keys=True) + "\n"
        write_atomic(partial / "provenance.json", text)


def load_checkpoint(
    folder: str | Path,
    device: torch.device | str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    *,
    recorded: bool = True,
) -> GPT:
    """The model of a checkpoint folder.

    Raises UserError if it is absent, damaged, out of the bounds of params.yaml, or of another shape or vocabulary than
    it says; no model larger than the file is built then.

    Args:
        folder: of the checkpoint.
        device: for the weights.
        compute_dtype: of matrix products; the weights stay in fp32.
        recorded: whether provenance.json has to be there and to vouch for the other files; without one, False takes a
          checkpoint whose files agree with each other.
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
