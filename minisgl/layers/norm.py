"""Root-mean-square normalisation. Source: Zhang and Sennrich 2019."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from minisgl.layers.source import Source


class RMSNorm:
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, source: Source, name: str, size: int, eps: float) -> None:
        self.weight = source.empty(size)
        source.fill(self.weight, f"{name}.weight", (size,))
        self._shape, self._eps = (size,), eps

    def __call__(self, x: Tensor) -> Tensor:
        """The normalised x; x is kept."""
        return F.rms_norm(x, self._shape, self.weight, self._eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Add x to the residual stream, then normalise that: (normalised, residual).

        Writes the sum into ``residual``. One door, so that a fused kernel can stand behind it.
        """
        residual.add_(x)
        return self(residual), residual


class HeadNorm:
    """RMS normalisation of each query head and each key head, all of them in one call."""

    def __init__(
        self, source: Source, name: str, heads: int, kv_heads: int, head_dim: int, eps: float
    ) -> None:
        self.weight = source.empty(heads + kv_heads, head_dim)
        source.fill(self.weight[0], f"{name}.q_norm.weight", (head_dim,))
        source.fill(self.weight[heads], f"{name}.k_norm.weight", (head_dim,))
        self.weight[1:heads] = self.weight[0]
        self.weight[heads + 1 :] = self.weight[heads]
        self._shape, self._eps = (head_dim,), eps

    def __call__(self, qk: Tensor) -> Tensor:
        """qk: (tokens, heads + kv_heads, head_dim), queries first. Returns the same shape."""
        return F.rms_norm(qk, self._shape, None, self._eps).mul_(self.weight)
