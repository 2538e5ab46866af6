"""Weights as they are stored: exact."""

from __future__ import annotations

from torch import Tensor

from minisgl.kernel.base import Kernels, Matrix
from minisgl.kernel.int4 import Int4, dequantise


def stored(kernels: Kernels, weight: Tensor | Int4, bias: Tensor | None, *, rows: bool) -> Matrix:
    """See ``Quantization``. The kernels arrange the numbers and change none of them."""
    numbers = dequantise(weight) if isinstance(weight, Int4) else weight
    return kernels.matrix(numbers, bias, half=False, rows=rows)
