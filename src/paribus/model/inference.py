"""A model's matrices as decoding multiplies by them: cast once, and on a CPU in the order in which oneDNN reads them.

A step of decoding multiplies few rows by every matrix, so that reading the weights, and in bf16 casting them, takes most of
its time. Measured on an AMD EPYC with AVX512-BF16, one thread, all 16.7 MB of matrices of a model of depth 4 and width 256,
ms of processor time: 16 rows 4.0 to 2.4 in fp32 and 3.0 to 1.2 in bf16, 256 rows 26 to 23 and 13 to 11. Products in bf16 keep
their bits; those in fp32 round differently, as they do at another number of rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paribus.model.layers import Linear


class InferenceWeights:
    """Copies of a model's matrices, by which the model multiplies within `with weights:`.

    They do not follow the model: whoever trains it makes new ones. Bytes: `footprint.inference_weights`.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        """model: whose `Linear` layers are copied. dtype: of its products."""
        # attributes of a layer, by which each step sets them: a module's own way to set one costs 1.3 us
        self._copies: list[tuple[dict[str, Any], Tensor]] = []
        for layer in model.modules():
            if isinstance(layer, Linear):
                copy = inference_copy(layer.weight.detach(), dtype)
                self._copies.append((vars(layer), copy))

    def __enter__(self) -> None:
        for attributes, copy in self._copies:
            attributes["inference_weight"] = copy

    def __exit__(self, *_: object) -> None:
        for attributes, _copy in self._copies:
            del attributes["inference_weight"]


def inference_copy(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix (outputs, inputs) as `kernels.product` takes it: cast, and reordered where oneDNN can multiply by it."""
    cast = weight.to(dtype)
    if not reorders(weight.device.type, dtype):
        return cast
    operators: Any = torch.ops.mkldnn
    # Without a number of rows oneDNN picks one order for all of them: no slower at 1, 16 or 256 rows.
    reordered: Tensor = operators._reorder_linear_weight(cast, None)
    return reordered


def reorders(device_type: str, dtype: torch.dtype) -> bool:
    """Whether this torch and this machine multiply by reordered matrices.

    Args:
        device_type: of the products.
        dtype: of the products.
    """
    if device_type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    operators: Any = torch.ops.mkldnn
    if dtype == torch.bfloat16:
        return bool(operators._is_mkldnn_bf16_supported())
    return dtype == torch.float32
