"""A norm and a product as one kernel after the other, for whoever has none for both."""

from __future__ import annotations

from torch import Tensor

from minisgl.kernel.base import Kernels, Matrix


def normed_product(
    kernels: Kernels, matrix: Matrix, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See ``Kernels``. The sum is in the residual's memory."""
    if residual is None:
        return matrix(kernels.rms_norm(x, weight, eps)), x
    return matrix(kernels.add_rms_norm(x, residual, weight, eps)), residual
