"""A matrix that has a way of its own for the fewest tokens on an NVIDIA GPU: csrc/product.cuh.

There a product is reading its weights, and ours fetches them while the kernel before it still runs,
and computes the norm that stands before it on the way (H200, one token, us with the norm: 24576 x
4096 takes 48 where cuBLAS and a norm take 53, 6144 x 4096 14.3 instead of 19.3, 6144 x 1024 6.1
instead of 7.9; without, 1024 x 2048 takes 3.4 instead of 12.7; of 2 or 4 tokens, cuBLAS is as fast
where a matrix is large).
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from minisgl.kernel.base import Matrix

import os
from minisgl.kernel.compile import load_cuda
_MANY = int(os.environ.get("MANY", "0"))
_MAXMANY = int(os.environ.get("MAXMANY", "128"))
_mod = None
def many():
    global _mod
    if _mod is None:
        _mod = load_cuda((9, 0), source="many.cu")["multiply"]
    return _mod
def ok(w, n):
    return _MANY and 5 <= n <= _MAXMANY and w.numel() <= 16 << 20

_TOKENS: Final = (1, 2, 4)
_LARGEST_INPUT: Final = 40 << 10  # bytes of few tokens' rows, of which each block makes a copy
_SMALL: Final = 4096  # outputs and inputs of a matrix for which more than one token counts as few


class FewTokens:
    """A ``Matrix`` of numbers as they were read."""

    def __init__(self, module: Any, plain: Matrix, weight: Tensor, bias: Tensor | None) -> None:
        self._product, self._normed = module["product"], module["normed_product"]
        self._plain, self.weight, self.bias = plain, weight, bias
        self.shape, self.num_bytes, self.rows = plain.shape, plain.num_bytes, plain.rows
        row = weight.shape[1] * weight.element_size()
        some = _TOKENS if max(weight.shape) <= _SMALL else (1,)
        self._tokens = tuple(n for n in some if n * row <= _LARGEST_INPUT)

    def __call__(self, x: Tensor) -> Tensor:
        """See ``Matrix``."""
        if not self.takes(x):
            n = len(x)
            if ok(self.weight, n) and x.stride(1) == 1:
                o = self.shape[0]
                out = x.new_empty(n, o)
                if o <= 2048:
                    many()(x, self.weight, self.bias, out, False, 64, 64, 4, 1, 1)
                    return out
                if n <= 64 or _MANY > 1:
                    many()(x, self.weight, self.bias, out, False, 64, 64 if n <= 16 else 48, 1, 1, 1)
                    return out
            return self._plain(x)
        out = x.new_empty(len(x), self.shape[0])
        self._product(x, self.weight, self.bias, out)
        return out

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

    def gated(self, x):
        n, o = len(x), self.shape[0] // 2
        out = x.new_empty(n, o)
        many()(x, self.weight, self.bias, out, True, 64, 48, 1, 1, 1)
        return out
