"""A norm, a product and a gate as one kernel after the other, for whoever has none for all."""

from __future__ import annotations

from torch import Tensor

from minisgl.kernel.base import Kernels, Matrix


def normed_product(
    kernels: Kernels, matrix: Matrix, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See ``Kernels``. The sum is in the residual's memory."""
    x, total = norm(kernels, x, residual, weight, eps)
    return matrix(x), total


def normed_gated_product(
    kernels: Kernels, matrix: Matrix, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See ``Kernels``."""
    product, total = kernels.normed_product(matrix, x, residual, weight, eps)
    return kernels.silu_and_mul(product), total


def norm(
    kernels: Kernels, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The norm of x + residual, and that sum, which is in the residual's memory."""
    if residual is None:
        return kernels.rms_norm(x, weight, eps), x
    return kernels.add_rms_norm(x, residual, weight, eps), residual
