"""Weights in the four bits that an AWQ checkpoint has; what is not packed there stays as it is.

In float32 the result is (code - zero) * scale and a float32 product, exactly: on a CPU by the
kernels' own four-bit matrices. On a GPU Triton kernels of ours unpack weights where they are used.
Source: Lin et al. 2023.

Measured on one thread of an AVX-512 machine (8 layers of the shape of Qwen3-0.6B, C++ kernels, ms a
step at 1, 4, 16 and 64 requests): four bits 9, 14, 40 and 126; the same numbers in 16 bits, which
rounds them, 11, 12, 32 and 114; unpacked to float32 in torch 37, 70, 113 and 282.
"""

from __future__ import annotations

import warnings
from typing import Final

import torch
from torch import Tensor

from minisgl.kernel.base import Kernels, Matrix
from minisgl.kernel.int4 import Int4
from minisgl.kernel.triton import TritonInt4
from minisgl.layers.quantization.stored import stored

_OLDEST: Final = (7, 5)  # compute capability that the Triton kernels are for


def awq(kernels: Kernels, weight: Tensor | Int4, bias: Tensor | None, *, rows: bool) -> Matrix:
    """See ``Quantization``."""
    if not isinstance(weight, Int4):
        return stored(kernels, weight, bias, rows=rows)
    if weight.codes.is_cuda:
        try:
            return _on_gpu(weight, bias)
        except (ImportError, ValueError) as error:
            warnings.warn(f"weights of four bits are unpacked: {error}", RuntimeWarning, 2)
    return kernels.int4(weight, bias)


def _on_gpu(weight: Int4, bias: Tensor | None) -> Matrix:
    capability = torch.cuda.get_device_capability(weight.codes.device)
    if capability < _OLDEST:
        raise ValueError(f"the Triton kernels need compute capability {_OLDEST}, not {capability}")
    return TritonInt4(weight, bias)
