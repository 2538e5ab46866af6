"""Weights rounded to float16 for a CPU that computes in float32.

Activations, sums and results stay float32, so only the rounding of the weights departs from exact:
by at most 2**-11 = 4.9e-4 of a weight above 6e-5, by at most 3e-8 of a smaller one. A weight above
65504 is refused, where FBGEMM by itself would saturate it.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from minisgl.kernel.base import Kernels, Matrix
from minisgl.kernel.int4 import Int4, dequantise

LARGEST: Final = torch.finfo(torch.float16).max


def fp16(kernels: Kernels, weight: Tensor | Int4, bias: Tensor | None, *, rows: bool) -> Matrix:
    """See ``Quantization``. Half the memory of float32, and of the bytes that a token reads."""
    if isinstance(weight, Int4):
        weight = dequantise(weight)
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise ValueError(
            f"quantization='fp16' packs weights for float32 on a CPU; these are {weight.dtype} on "
            f"{weight.device}; use dtype='float16' there"
        )
    low, high = weight.aminmax()
    largest = max(-float(low), float(high))
    if not largest <= LARGEST:
        raise ValueError(
            f"quantization='fp16' cannot hold a weight of {largest:g}: float16 ends at "
            f"{LARGEST:g}; use quantization=None"
        )
    return kernels.matrix(weight, bias, half=True, rows=rows)
