"""A product and what stands before it as one kernel after the other, for whoever has none for both.

Each function is what ``Kernels`` says of the method of its name.
"""

from __future__ import annotations

from torch import Tensor

from minisgl.kernel.base import Kernels, Matrix


def normed_product(
    kernels: Kernels, matrix: Matrix, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The sum is in the residual's memory."""
    if residual is None:
        return matrix(kernels.rms_norm(x, weight, eps)), x
    return matrix(kernels.add_rms_norm(x, residual, weight, eps)), residual


def gated_product(kernels: Kernels, matrix: Matrix, x: Tensor) -> Tensor:
    """In two steps."""
    return matrix(kernels.silu_and_mul(x))
