"""Kernels: which ones a card runs, how often a function is compiled, and operations fused by hand.

What is fused here computes what the plain formula in its docstring says; `layers.py` calls it by name.

Shapes: B rows, T tokens, H query heads, K key/value heads, E head_dim, S keys seen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paribus.config import Architecture
from paribus.errors import UserError
from paribus.model.compiler import require_tools
from paribus.model.shapes import window_of

WINDOWS = (
    "train.device: cuda with sliding windows or packed conversations"  # what needs FlexAttention
)
HEAD_DIMS = range(16, 257)  # FlexAttention's kernels begin at 16, flash attention's end at 256

# FlexAttention pads heads to a power of two. Its own choice of blocks for the backward pass fits every supported card up
# to this many bytes a padded head (128 in fp32, 256 in bf16 where a block may hold 160 KiB and more); measured with
# torch 2.13's compiler for compute capabilities 7.5, 8.0, 8.6, 9.0, 10.0 and 12.0 (docs/gpu.md has the table).
DEFAULT_HEAD_BYTES, LARGE_HEAD_BYTES, LARGE_SHARED_BYTES = 256, 512, 160 * 1024
# Bytes of shared memory a kernel takes for each byte of one block of keys: 5.1 to 5.5 measured, at blocks of 16 and 32.
SHARED_PER_BLOCK_BYTE = 5.5
BLOCKS = (32, 16)
BLOCK_NAMES = ("BLOCK_M", "BLOCK_N", "BLOCK_M1", "BLOCK_N1", "BLOCK_M2", "BLOCK_N2")
# Inductor asks of every tensor of an attention on CUDA whether its strides are multiples of 8 (`sdpa_constraint` in torch
# 2.13's _inductor/lowering.py; the logarithms of the softmax's sums, (B, H, T), are among them). The answer is a guard on T,
# so that lengths that divide by 8 and lengths that do not are two variants of the whole model.
COMPILED_LENGTH_STEP = 8


# ---------------------------------------------------------------- what a model needs


def check_device(
    model: Architecture, device: str, dtype: str, *, compiled: bool, documents: bool
) -> None:
    """Raises UserError, before anything is computed, where this machine cannot run a model's kernels.

    device: "cuda", "cpu" or "mps"; dtype: "float32" or "bfloat16", of its products; compiled: whether `train.compile`
    is on; documents: whether rows hold several documents that must not see each other.
    """
    flex = device == "cuda" and (documents or has_windows(model) or model.attention_softcap > 0)
    if compiled:
        require_tools(device, "train.compile")
    elif flex:
        require_tools(device, WINDOWS)
    if device == "cuda":
        check_head_dim(model.head_dim, device)
    if flex and model.attention_dropout:
        raise UserError(
            f"model.attention_dropout: {model.attention_dropout:g} does not go with sliding windows, packed conversations or "
            "model.attention_softcap on CUDA: FlexAttention has no dropout; set it to 0, or set model.window_pattern: L"
        )
    if flex:
        item = getattr(torch, dtype).itemsize
        flex_options(model.head_dim, item, shared_memory(torch.device("cuda")))


def check_head_dim(head_dim: int, device_type: str) -> None:
    """Raises UserError where training has no attention kernel for heads of this width: none is taken in its place.

    Args:
        head_dim: channels of a head.
        device_type: cpu, cuda or mps.
    """
    if device_type == "cuda" and head_dim not in HEAD_DIMS:
        raise UserError(
            f"model.head_dim: {head_dim} has no attention kernels on CUDA; "
            f"{HEAD_DIMS.start} to {HEAD_DIMS.stop - 1} have"
        )


def has_windows(model: Architecture) -> bool:
    """Whether some block sees less than the whole sequence."""
    letters = {window_of(model, layer) for layer in range(model.depth)}
    return "S" in letters and model.window is not None and model.window < model.seq_len


# ---------------------------------------------------------------- compiling


def compiled(function: Callable[..., Any], *, dynamic: bool | None = None) -> Any:
    """torch.compile, with an error in place of dynamo's warning where a function has too many variants.

    Past `recompile_limit` (8) dynamo runs the function uncompiled: a model many times slower, an attention that forms
    all of its scores. dynamic: whether sizes are left open; None: after the second one was seen.
    """
    import torch._dynamo.config
    import torch.fx.experimental._config

    torch._dynamo.config.fail_on_recompile_limit_hit = True
    # Else open sizes that happen to be equal at first (as many rows as heads) are compiled as one, and again when they differ.
    torch.fx.experimental._config.use_duck_shape = False
    options: dict[str, Any] = {"dynamic": dynamic, "isolate_recompiles": True}
    return torch.compile(function, **options)


def length_step(compiled: bool) -> int:
    """Of what number of tokens the lengths of rows are multiples where they differ from one micro-batch to the next.

    compiled: whether the model is compiled, which then has one variant of each of its graphs fewer.
    """
    return COMPILED_LENGTH_STEP if compiled else 1


def too_many_variants(error: BaseException) -> bool:
    """Whether an error says that a function was compiled too often."""
    return type(error).__name__ == "FailOnRecompileLimitHit"


# ---------------------------------------------------------------- FlexAttention


def flex(q: Tensor, k: Tensor, v: Tensor, mask: Any, softcap: float = 0.0) -> Tensor:
    """FlexAttention: q (B, H, T, E), k, v (B, K, S, E), a block mask -> (B, H, T, E).

    softcap: of the logits; 0: none.
    """
    from torch.nn.attention.flex_attention import flex_attention

    options: dict[str, Any] | None = None
    if q.is_cuda:
        # one kernel for all lengths: the one for short sequences has shared memory and variants of its own
        options = {"FORCE_USE_FLEX_ATTENTION": True}
        options |= flex_options(q.shape[-1], q.element_size(), shared_memory(q.device))
    function: Callable[..., Any] = flex_attention
    if must_compile(q):
        function = compiled_flex()
    grouped = q.shape[1] != k.shape[1]
    result: Tensor = function(
        q,
        k,
        v,
        score_mod=capping(softcap) if softcap else None,
        block_mask=mask,
        enable_gqa=grouped,
        kernel_options=options,
    )
    return result


@functools.cache
def capping(softcap: float) -> Callable[..., Tensor]:
    """FlexAttention's form of a soft cap on logits; one function for each value, so that it is compiled once."""

    def cap(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


def must_compile(q: Tensor) -> bool:
    """Uncompiled, FlexAttention forms all scores; what is being compiled takes it in as it is."""
    return q.is_cuda and not torch.compiler.is_compiling()


def compiled_flex() -> Any:
    """FlexAttention as compiled for the autograd mode it is called in.

    Each mode has variants of its own, and dynamo's limit of eight counts them apart: for one row or several, with and
    without documents and windows. A stage has at most four of them, all stages in one process six.
    """
    if torch.is_inference_mode_enabled():
        return flex_of("inference", True)
    if not torch.is_grad_enabled():
        return flex_of("no_grad", True)
    return flex_of("training", None)  # one size in pretraining; open ones once RL brings a second


@functools.cache
def flex_of(mode: str, dynamic: bool | None) -> object:
    """FlexAttention compiled for one mode.

    Args:
        mode: inference, no_grad or training; it only keeps the compiled functions apart.
        dynamic: whether shapes may vary without another compilation; None: torch decides.
    """
    from torch.nn.attention.flex_attention import flex_attention

    require_tools("cuda", WINDOWS)  # for callers without a stage, such as a chat
    return compiled(flex_attention, dynamic=dynamic)


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one block of threads may take on a card."""
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


def flex_options(head_dim: int, item: int, shared: int) -> dict[str, int]:
    """FlexAttention's block sizes for a head dimension on a card.

    Args:
        head_dim: numbers in a head.
        item: bytes of a number.
        shared: bytes of shared memory that the card gives a block of threads.

    Returns:
        The options to pass; {} leaves the sizes to torch, whose choice for wide heads does not fit every card.

    Raises:
        UserError: where no blocks fit.
    """
    head_bytes = max(1 << (head_dim - 1).bit_length(), 16) * item
    if head_bytes <= DEFAULT_HEAD_BYTES:
        return {}
    if head_bytes <= LARGE_HEAD_BYTES and shared >= LARGE_SHARED_BYTES:
        return {}
    for block in BLOCKS:
        if SHARED_PER_BLOCK_BYTE * block * head_bytes <= shared:
            return dict.fromkeys(BLOCK_NAMES, block)
    raise UserError(
        f"model.head_dim: heads of {head_dim} do not fit the {shared:,} bytes of shared memory of this card's blocks "
        "with sliding windows or packed conversations; take narrower heads, or train.dtype: bfloat16"
    )


# ---------------------------------------------------------------- flash attention


def flash_window(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention within a window by flash attention: q (B, H, T, E), k, v (B, K, T, E) of 16 bits -> (B, H, T, E).

    window: keys that a token sees, its own included. torch offers windows for rows of any length, one behind the other.
    """
    from torch.nn.attention.varlen import varlen_attn

    rows, heads, length, width = q.shape
    ends = torch.arange(0, (rows + 1) * length, length, dtype=torch.int32, device=q.device)
    queries, keys, values = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    grouped = heads != k.shape[1]
    before = (window - 1, 0)  # keys to the left of a token's own, and to the right
    attended = varlen_attn(
        queries, keys, values, ends, ends, length, length, window_size=before, enable_gqa=grouped
    )
    assert isinstance(attended, Tensor)
    return attended.view(rows, length, heads, width).transpose(1, 2)


# ---------------------------------------------------------------- grouped queries


def needs_equal_heads(q: Tensor, mask: Tensor | None) -> bool:
    """Whether CUDA has no fused kernel that lets several query heads share keys: with a mask, or in fp32.

    Without one, plain products form all scores: 4.3 GB for 32 rows of 2,048 tokens and 16 heads in bf16.

    Args:
        q: queries (B, H, T, E), for their device and dtype.
        mask: of attention; None: causal.
    """
    return q.is_cuda and (mask is not None or q.dtype == torch.float32)


def equal_heads(x: Tensor, heads: int) -> Tensor:
    """Keys or values (B, K, S, E), each repeated for the query heads that share it -> (B, heads, S, E).

    Args:
        x: keys or values.
        heads: of the queries; a multiple of K.
    """
    rows, kv_heads, keys, width = x.shape
    shared = x.unsqueeze(2).expand(rows, kv_heads, heads // kv_heads, keys, width)
    return shared.flatten(1, 2)


# ---------------------------------------------------------------- decoding


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply x (..., inputs) by a matrix as `inference.inference_copy` makes it -> (..., outputs).

    bias: (outputs,), of the dtype of x; None: none.
    """
    if not weight.is_mkldnn:
        return F.linear(x, weight, bias)
    operators: Any = torch.ops.mkldnn
    y: Tensor = operators._linear_pointwise(x, weight, bias, "none", [], "")
    return y


# ---------------------------------------------------------------- fused operations


class RootMeanSquare(torch.autograd.Function):
    """x / rms(x) over the last axis, keeping its result for the backward pass.

    On a CPU it takes a third of the time of F.rms_norm, which is five operations there (measured: forward and backward of
    4,096 x 192, 1.4 against 4.2 ms). Bytes: `footprint.norm`.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        """Normalise x (..., D) over its last axis."""
        scale = inverse_root_mean_square(x)
        y: Tensor = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        """The gradient with respect to x, from `grad` (..., D), that of the result.

        With y = x * scale it is scale * (grad - y * mean(grad * y)).
        """
        y, scale = ctx.saved_tensors
        along = torch.linalg.vecdot(grad, y)[..., None].div_(y.shape[-1])
        return torch.addcmul(grad, y, along, value=-1).mul_(scale)


def inverse_root_mean_square(x: Tensor) -> Tensor:
    """One over the root mean square of x (..., D) over its last axis, (..., 1); computed in fp32 at least."""
    coarse = x.dtype.itemsize < torch.float32.itemsize
    precise = torch.float32 if coarse else x.dtype
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise)
    mean = norm.square_().div_(x.shape[-1])
    inverse: Tensor = mean.add_(torch.finfo(x.dtype).eps).rsqrt_().to(x.dtype)
    return inverse


def rms_norm(x: Tensor) -> Tensor:
    """Divide x (..., D) by its root mean square over the last axis."""
    if x.device.type != "cpu":
        return F.rms_norm(x, (x.shape[-1],))
    if not torch.is_grad_enabled():
        return x * inverse_root_mean_square(x)
    y: Tensor = RootMeanSquare.apply(x)  # type: ignore[no-untyped-call]
    return y


class ReluSquaredProduct(torch.autograd.Function):
    """The product relu(up)^2 W', which keeps relu(up) alone for its backward pass.

    Separate operations also keep `up`, its square and the weight's cast copy (4 + 4 of a block's 18 residual-stream sizes);
    writing them takes a tenth of a CPU training step (measured: depth 4, width 192). The products are the same in the same
    order, so the bits are the same. Bytes: `footprint.mlp`.
    """

    @staticmethod
    def forward(ctx, up: Tensor, weight: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        """Multiply: up (..., F), weight (D, F) -> (..., D)."""
        positive = up.relu()
        ctx.save_for_backward(positive, weight)
        return F.linear(positive.square(), weight.to(up.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        """The gradients of `up` (..., F) and the weight (D, F), from `grad` (..., D)."""
        positive, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        grad_weight = (rows.T @ positive.square().flatten(0, -2)).to(weight.dtype)
        grad_up = (rows @ weight.to(grad.dtype)).view_as(positive)
        return grad_up.mul_(positive).mul_(2), grad_weight


def relu_squared_product(up: Tensor, weight: Tensor) -> Tensor:
    """relu(up)^2 W': up (..., F), which may be overwritten, weight (D, F) -> (..., D)."""
    if torch.is_grad_enabled():
        y: Tensor = ReluSquaredProduct.apply(up, weight)  # type: ignore[no-untyped-call]
        return y
    return F.linear(up.relu_().square_(), weight.to(up.dtype))


def softcap(logits: Tensor, cap: float) -> Tensor:
    """Cap the logits softly: cap x tanh(logits / cap) (Gemma 2, arXiv:2408.00118); without gradients in place."""
    if torch.is_grad_enabled():
        return cap * torch.tanh(logits / cap)
    # The same by the vectorised sigmoid, which takes a quarter of tanh's time on a CPU.
    return logits.mul_(2 / cap).sigmoid_().mul_(2 * cap).sub_(cap)
