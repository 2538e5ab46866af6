"""Products of some to some tens of tokens on Hopper GPUs, and when they are taken: csrc/many.cuh.

cuBLAS is as fast where a product is large. Where it is small, ours fetches weights while the kernel
before it still runs, and silu(gate) * up is not a kernel of its own.
"""

from __future__ import annotations

import functools
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from minisgl.kernel.compile import NoKernels, load_cuda
from minisgl.resolve import WARPGROUPS

_FEWEST: Final = 5  # tokens; up to 4, products of few tokens or cuBLAS are as fast
_MOST: Final = 128
_MOST_WIDE: Final = 64  # ... for more outputs than _NARROW, but with a gate
_NARROW: Final = 2048  # outputs
_LARGE: Final = 1 << 24  # numbers of a weight that reading takes long enough for cuBLAS
_CHUNK: Final = 64  # inputs


class Tiles(NamedTuple):
    """How a product is shared among blocks."""

    wide: int  # rows of the weight; 64 tokens high
    parts: int  # of a tile's inputs


def tiles_for(tokens: int, shape: tuple[int, int], gated: bool) -> Tiles | None:
    """The tiles of a product of so many tokens; None: it is left to others.

    shape: of the weight; gated: half of its rows are gates. The sizes are the best of those
    measured on an H200 in steps of Qwen3 0.6B.
    """
    outputs, inputs = shape
    if not _FEWEST <= tokens <= _MOST or outputs * inputs >= _LARGE:
        return None
    if outputs <= _NARROW:
        return Tiles(64, min(4, -(-inputs // _CHUNK)))
    if gated:
        return Tiles(48, 1)
    return Tiles(64 if tokens <= 16 else 48, 1) if tokens <= _MOST_WIDE else None


@functools.cache
def products_on(capability: tuple[int, int]) -> Any:
    """What csrc/many.cu exports, compiled if it is not yet; None: this GPU does without."""
    if capability != WARPGROUPS:
        return None
    try:
        return load_cuda(capability, source="many.cu")
    except NoKernels:  # the reason was said when the engine was built
        return None


class ManyTokens:
    """The products of one weight by many tokens. module: None where there are none."""

    def __init__(self, module: Any, weight: Tensor, bias: Tensor | None) -> None:
        has = module is not None and weight.dtype in (torch.float16, torch.bfloat16)
        self._multiply: Any = module["multiply"] if has else None
        self._weight, self._bias = weight, bias

    def tiles(self, x: Tensor, gated: bool = False) -> Tiles | None:
        """Those in which x, or what is like it, is multiplied; None: it is left to others."""
        outputs, inputs = self._weight.shape
        whole = outputs % (16 if gated else 8) == 0 and inputs % 8 == 0 and x.is_contiguous()
        if self._multiply is None or not whole:
            return None
        return tiles_for(len(x), (outputs, inputs), gated)

    def product(self, x: Tensor, tiles: Tiles, gated: bool = False) -> Tensor:
        """x W^T + b; gated: silu(first half) * second half of that. x: (tokens, inputs)."""
        outputs = len(self._weight)
        out = x.new_empty(len(x), outputs // 2 if gated else outputs)
        self._multiply(x, self._weight, self._bias, out, gated, *tiles)
        return out
