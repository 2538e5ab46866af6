"""Root-mean-square normalisation, and the rotation that follows it on queries and keys.

Source: Zhang and Sennrich 2019.
"""

from __future__ import annotations

from torch import Tensor

from minisgl.kernel.base import Matrix, Place
from minisgl.layers.rotary import Rotation
from minisgl.layers.source import Source


class RMSNorm:
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, source: Source, name: str, size: int, eps: float) -> None:
        self.weight = source.empty(size)
        source.fill(self.weight, f"{name}.weight", (size,))
        self._kernels, self._eps = source.kernels, eps

    def __call__(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """The normalised sum of x, which is kept, and the residual stream, if there is one yet."""
        if residual is None:
            return self._kernels.rms_norm(x, self.weight, self._eps)
        return self._kernels.add_rms_norm(x, residual, self.weight, self._eps)

    def then(self, matrix: Matrix, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same, multiplied by a matrix; and the sum, which is the residual stream from now on.

        Whoever calls gives up x and the old stream.
        """
        return self._kernels.normed_product(matrix, x, residual, self.weight, self._eps)

    def then_gated(
        self, matrix: Matrix, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same with silu of the product's first half times its second half."""
        return self._kernels.normed_gated_product(matrix, x, residual, self.weight, self._eps)


class HeadTurn:
    """Queries and keys of each token turned by its position, in some models normalised first."""

    def __init__(
        self, source: Source, name: str, heads: int, kv_heads: int, head_dim: int, eps: float | None
    ) -> None:
        """eps: of the RMS norm on each query and key head; None: there is none."""
        self._kernels, self._eps = source.kernels, eps or 0.0
        self.weight: Tensor | None = None
        if eps is not None:
            self.weight = weight = source.empty(heads + kv_heads, head_dim)
            source.fill(weight[0], f"{name}.q_norm.weight", (head_dim,))
            source.fill(weight[heads], f"{name}.k_norm.weight", (head_dim,))
            weight[1:heads] = weight[0]
            weight[heads + 1 :] = weight[heads]

    def __call__(self, qkv: Tensor, rotation: Rotation, to: Place) -> tuple[Tensor, Tensor, Tensor]:
        """Turn queries and keys; store keys and values.

        qkv: (tokens, q, k and v heads, head_dim), which may be written to.
        Returns q: (tokens, heads, head_dim), k and v: (tokens, kv_heads, head_dim).
        """
        return self._kernels.turn_and_store(qkv, self.weight, self._eps, *rotation, to)
