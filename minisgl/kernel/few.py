"""A matrix that has a way of its own for the fewest tokens on an NVIDIA GPU, csrc/product.cuh, and
one for more of them, kernel/many.py.

Of the fewest, a product is reading its weights, and ours fetches them while the kernel before it
still runs, and computes the norm that stands before it on the way (H200, one token, us with the
norm: 24576 x 4096 takes 48 where cuBLAS and a norm take 53, 6144 x 4096 14.3 instead of 19.3, 6144
x 1024 6.1 instead of 7.9; without, 1024 x 2048 takes 3.4 instead of 12.7; of 2 or 4 tokens, cuBLAS
is as fast where a matrix is large).
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from minisgl.kernel.base import Matrix
from minisgl.kernel.many import ManyTokens

_TOKENS: Final = (1, 2, 4)
_LARGEST_INPUT: Final = 40 << 10  # bytes of few tokens' rows, of which each block makes a copy
_SMALL: Final = 4096  # outputs and inputs of a matrix for which more than one token counts as few


class FewTokens:
    """A ``Matrix`` of numbers as they were read. many: of the same ones."""

    def __init__(
        self, module: Any, plain: Matrix, weight: Tensor, bias: Tensor | None, many: ManyTokens
    ) -> None:
        self._product, self._normed = module["product"], module["normed_product"]
        self._plain, self.weight, self.bias, self.many = plain, weight, bias, many
        self.shape, self.num_bytes, self.rows = plain.shape, plain.num_bytes, plain.rows
        row = weight.shape[1] * weight.element_size()
        some = _TOKENS if max(weight.shape) <= _SMALL else (1,)
        self._tokens = tuple(n for n in some if n * row <= _LARGEST_INPUT)

    def __call__(self, x: Tensor) -> Tensor:
        """See ``Matrix``."""
        if not self.takes(x):
            tiles = self.many.tiles(x)
            return self._plain(x) if tiles is None else self.many.product(x, tiles)
        out = x.new_empty(len(x), self.shape[0])
        self._product(x, self.weight, self.bias, out)
        return out

    def gates(self, x: Tensor) -> bool:
        """See ``GatedMatrix``."""
        return self.many.tiles(x, gated=True) is not None

    def gated(self, x: Tensor) -> Tensor:
        """See ``GatedMatrix``."""
        tiles = self.many.tiles(x, gated=True)
        assert tiles is not None, "asked for without asking first"
        return self.many.product(x, tiles, gated=True)

    def takes(self, x: Tensor) -> bool:
        """Whether x, or its norm, is multiplied in the way for few tokens."""
        return len(x) in self._tokens and x.is_contiguous()

    def normed(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See ``Kernels.normed_product``."""
        out, total = x.new_empty(len(x), self.shape[0]), None
        if residual is not None:
            total = torch.empty_like(x)
        self._normed(x, residual, weight, eps, total, self.weight, self.bias, out)
        return out, x if total is None else total
