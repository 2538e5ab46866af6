"""What happens to a layer's rows between attention calls, as functions that have two makers."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Matrix(Protocol):
    """A weight matrix in the form in which it is multiplied: (outputs, inputs), maybe a bias."""

    shape: tuple[int, int]
    num_bytes: int  # what it takes, the bias left out

    def __call__(self, x: Tensor) -> Tensor:
        """x: (tokens, inputs). Returns x W^T + b: (tokens, outputs)."""
        ...

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of W in the dtype that is computed in: (n, inputs), which the caller may write to.

        ids: (n,) int64.
        """
        ...


class Kernels(Protocol):
    """The twins: ``kernel.plain`` anywhere, ``kernel.native`` on a CPU in float32."""

    def matrix(self, weight: Tensor, bias: Tensor | None, *, half: bool, rows: bool) -> Matrix:
        """Take over a weight (outputs, inputs), which may be rearranged in place.

        half: round its numbers to float16, which can hold them; else they stay what they are.
        rows: whether its rows will be asked for. Raises ValueError where ``half`` cannot be had.
        """
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / rms(x) * weight of each row. x: (tokens, size), kept."""
        ...

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Add x to ``residual`` in place, then the norm of that. Both (tokens, size)."""
        ...

    def silu_and_mul(self, x: Tensor) -> Tensor:
        """silu of the first half times the second half: (tokens, 2n) -> (tokens, n). x is kept."""
        ...

    def norm_and_rotate(
        self, x: Tensor, heads: int, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """Turn the first ``heads`` heads of each token, RMS-normalised first if there is a weight.

        x: (tokens, heads and more, head_dim), which may be written to. weight: (heads, head_dim).
        cos, sin: (tokens, 1, head_dim / 2). Returns (tokens, heads, head_dim).
        """
        ...
