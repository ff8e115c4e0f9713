"""A model's matrices as decoding multiplies by them: cast once, and on a CPU in the order in which oneDNN reads them.

A step of decoding multiplies few rows by every matrix, so that reading the weights, and in bf16 casting them, takes most of
its time. Measured on an AMD EPYC with AVX512-BF16, one thread, all 16.7 MB of matrices of a model of depth 4 and width 256,
ms of processor time: 16 rows 4.0 to 2.4 in fp32 and 3.0 to 1.2 in bf16, 256 rows 26 to 23 and 13 to 11. Products in bf16 keep
their bits; those in fp32 round differently, as they do at another number of rows.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from paribus.model.gpt import GPT
from paribus.model.layers import Linear


def for_inference(model: GPT) -> GPT:
    """The same model, multiplying by copies of its matrices. The model itself stays as it is, whoever else uses it meanwhile.

    Everything else is shared. The copies do not follow the matrices: whoever trains the model asks for new ones. Bytes:
    `footprint.inference_weights`.
    """
    twin = _twin(model, model.compute_dtype)
    assert isinstance(twin, GPT)
    return twin


def _twin(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A module of the same parameters and of twins of its modules. dtype: of the products."""
    twin = copy.copy(module)
    children = module._modules.items()
    twin._modules = {name: child and _twin(child, dtype) for name, child in children}
    if isinstance(twin, Linear):
        twin.inference_weight = inference_copy(twin.weight.detach(), dtype)
    return twin


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
