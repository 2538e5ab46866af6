"""Weights as they are stored: exact."""

from __future__ import annotations

from torch import Tensor

from minisgl.kernel.base import Kernels, Matrix


def stored(kernels: Kernels, weight: Tensor, bias: Tensor | None, *, rows: bool) -> Matrix:
    """See ``Quantization``. The kernels arrange the numbers and change none of them."""
    return kernels.matrix(weight, bias, half=False, rows=rows)
