"""Who may see whom, and which kernel computes it.

Shapes: B rows, T tokens, R places that are read, H query heads, K key/value heads, E head_dim, S keys seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from paribus.model import banded, kernels
from paribus.model.banded import Band

if TYPE_CHECKING:
    from paribus.model.cache import Cache

# Cosines and sines, each (B or 1, T, 1, C / 2), of C channels that turn.
Rotary = tuple[Tensor, Tensor]
Backend = Literal["causal", "flex", "masked", "banded"]
# All but plain products.
FUSED = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
]


@dataclass(frozen=True)
class Context:
    """What every block of one forward pass shares: where the tokens stand, and whom each of them sees."""

    rotary: Rotary | None  # of the positions; None: no rotary positions
    masks: dict[str, Any]  # window letter -> what `attend` takes, or the cache's own
    cache: Cache | None
    first_layer: int = 0  # blocks applied in earlier passes over them
    first_values: list[Tensor] = field(
        default_factory=list
    )  # of the first block, (B, T, K, E), once it is through


@dataclass(frozen=True)
class FlashWindow:
    """A window over whole rows for flash attention: each token sees so many keys, its own the last of them."""

    keys: int


@dataclass(frozen=True)
class Places:
    """The only positions whose output is read, in each row.

    The last block answers at these alone: of the others it needs keys and values, but no queries, no output and no MLP.
    """

    index: Tensor  # (B, R) int64
    rotary: Rotary | None  # of these positions, each (B, R, 1, C / 2)
    masks: dict[str, Any]  # window letter -> what these positions see

    def of(self, x: Tensor) -> Tensor:
        """Select the places of each row: x (B, T, ...) -> (B, R, ...)."""
        return at(x, self.index)


def backend(
    device_type: str,
    length: int,
    window: int | None,
    documents: bool,
    read: bool,
    softcap: bool = False,
    dropout: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Backend:
    """What computes the attention of `length` tokens to themselves.

    Args:
        device_type: "cuda" or "cpu".
        length: tokens of a row.
        window: keys that a token sees; None: all.
        documents: whether rows hold several documents that must not see each other.
        read: whether only some places ask.
        softcap: whether logits are soft-capped, which SDPA does not do.
        dropout: whether weights are dropped in training.
        dtype: of the products.

    Returns:
        causal: each sees all before it; SDPA without a mask, which on CUDA in 16 bits is a flash kernel.
        flex: windows and packed documents on CUDA; FlexAttention skips blocks of keys that no query sees, so that a
        window costs its own width and not the sequence's, and makes no (T, S) mask in its kernels.
        banded: all of it on a CPU in bf16; plain products of blocks (banded.py).
        masked: windows and packed documents elsewhere, and where only some places ask; SDPA with a mask in memory.
    """
    if device_type == "cuda" and not read:
        sees_all = window is None or window >= length
        return "flex" if documents or softcap or not sees_all else "causal"
    if _has_blocks(device_type, dtype) and not (read or softcap or dropout):
        return "banded"
    return "masked" if documents or read or window is not None else "causal"


def _has_blocks(device_type: str, dtype: torch.dtype) -> bool:
    """Whether products of blocks are quicker than SDPA: on a CPU in bf16."""
    return device_type == "cpu" and dtype == torch.bfloat16


def at(x: Tensor, places: Tensor | None) -> Tensor:
    """Select places (B, R) of each row: x (B or 1, T, ...) -> (B, R, ...); None selects all of x."""
    if places is None:
        return x
    return x.expand(len(places), *x.shape[1:])[
        torch.arange(len(places), device=x.device)[:, None], places
    ]


def near(distance: Tensor, window: int | None) -> Tensor:
    """Whether a key so many places before the query is seen: not after it, and within its window.

    Args:
        distance: places from the key to the query.
        window: keys that a query sees; None: all before it.
    """
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """(…, T, S): key position at or before the query's and within its window.

    queries: positions (…, T). keys: positions (…, S).
    """
    return near(queries[..., :, None] - keys, window)


def dense_mask(
    positions: Tensor, window: int | None, documents: Tensor | None, read: Tensor | None
) -> Tensor:
    """(B or 1, 1, T or R, T) True where seen; positions (B or 1, T), documents (B, T), read (B, R).

    window: keys that a query sees; None: all before it.
    """
    mask = visible(at(positions, read), positions[:, None, :], window)
    if documents is not None:
        mask = mask & (at(documents, read)[:, :, None] == documents[:, None, :])
    return mask[:, None]


def block_mask(
    length: int, window: int | None, documents: Tensor | None, device: torch.device
) -> Any:
    """FlexAttention's form of the mask: blocks of 128 x 128 that are seen in part, in whole, or not at all.

    Args:
        length: T, of queries and keys.
        window: keys that a token sees; None: all.
        documents: (B, T), the document of each token; None: one a row.
        device: where the mask lies.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        causal = near(query - key, window)
        return (
            causal if documents is None else causal & (documents[row, query] == documents[row, key])
        )

    rows = None if documents is None else len(documents)
    return create_block_mask(seen, rows, None, length, length, device=device)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Any, softcap: float = 0.0, dropout: float = 0.0
) -> Tensor:
    """Attend: q (B, H, T, E), k, v (B, K, S, E) -> (B, H, T, E).

    mask: None (plain causal), a flash window, a dense or a block mask, or a band. softcap: of the logits; 0: none.
    dropout: share of the weights.
    On CUDA in 16 bits plain causal attention uses one of the fused kernels, or raises; fp32 has no flash kernel.
    """
    if isinstance(mask, FlashWindow):
        return kernels.flash_window(q, k, v, mask.keys)
    if isinstance(mask, Band):
        keys, values = kernels.equal_heads(k, q.shape[1]), kernels.equal_heads(v, q.shape[1])
        return banded.attend(q, keys, values, mask)
    if mask is not None and not isinstance(mask, Tensor):
        return kernels.flex(q, k, v, mask, softcap)
    if softcap:
        return capped(q, k, v, mask, softcap, dropout)
    if q.shape[1] != k.shape[1] and kernels.needs_equal_heads(q, mask):
        k, v = kernels.equal_heads(k, q.shape[1]), kernels.equal_heads(v, q.shape[1])
    grouped = q.shape[1] != k.shape[1]
    if q.is_cuda and mask is None and q.dtype != torch.float32:
        with sdpa_kernel(FUSED):
            return F.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=grouped
            )
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, enable_gqa=grouped
    )


def capped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, softcap: float, dropout: float
) -> Tensor:
    """`attend` with soft-capped logits by plain products, which form all of them: (B, H, T, S).

    q (B, H, T, E), k, v (B, K, S, E). mask: True where seen; None: causal. softcap: bound of the logits. dropout:
    share of weights that is dropped.
    """
    k, v = kernels.equal_heads(k, q.shape[1]), kernels.equal_heads(v, q.shape[1])
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    logits = (q @ k.mT) * q.shape[-1] ** -0.5
    logits = softcap * torch.tanh(logits / softcap)
    weights = logits.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return F.dropout(weights, dropout) @ v if dropout else weights @ v
