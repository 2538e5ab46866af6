"""Weights in the four bits of an AWQ checkpoint, multiplied on tensor cores; see ``kernel.marlin``.

A matrix whose shape the kernels do not have is kept as ``awq`` keeps it.
"""

from __future__ import annotations

import warnings

from torch import Tensor

from minisgl.kernel.base import Kernels, Matrix
from minisgl.kernel.compile import NoKernels
from minisgl.kernel.int4 import Int4
from minisgl.kernel.marlin import MarlinInt4
from minisgl.layers.quantization.awq import awq


def awq_marlin(
    kernels: Kernels, weight: Tensor | Int4, bias: Tensor | None, *, rows: bool
) -> Matrix:
    """See ``Quantization``."""
    if isinstance(weight, Int4):
        try:
            return MarlinInt4(weight, bias)
        except (NoKernels, ValueError) as error:
            warnings.warn(f"awq computes what awq_marlin cannot: {error}", RuntimeWarning, 2)
    return awq(kernels, weight, bias, rows=rows)
