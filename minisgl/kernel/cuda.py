"""The kernels in CUDA C++, for NVIDIA GPUs. Numbers agree with the plain ones up to rounding.

Matrix products are cuBLAS's but for the fewest tokens (kernel/few.py) and, on Hopper, some tens of
them (kernel/many.py), and a step of one token is one kernel (kernel/megakernel.py;
``megakernel=False`` switches it off). What stands between products is bound by memory and launches,
so each step of it is one kernel here where torch has two to six.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from minisgl.kernel import separate
from minisgl.kernel.base import DecodeInputs, DecodeTables, LayerWeights, Matrix, Place, Shape
from minisgl.kernel.compile import load_cuda
from minisgl.kernel.few import FewTokens
from minisgl.kernel.int4 import Int4
from minisgl.kernel.many import ManyTokens, products_on
from minisgl.kernel.megakernel import Megakernel
from minisgl.kernel.paging import split
from minisgl.kernel.plain import PlainKernels

_PIECE: Final = 16  # bytes that a thread reads at a time
_LARGEST_NORM: Final = 4 * 1024 * _PIECE  # bytes of a row that one block keeps in registers
_LARGEST_HEAD: Final = 256
_HEAD_STEP: Final = 8  # what a thread reads of the largest
_MOST_ROWS: Final = 1024  # whose tokens are chosen at once


class CudaKernels:
    """What ``csrc/cuda.cu`` exports, compiled at the first use on a machine.

    A size that a kernel does not have is computed by torch. All that one of these computes is on
    one stream. module, many: where they and those of csrc/many.cu are compiled already.
    Raises kernel.compile.NoKernels.
    """

    def __init__(self, module: Any = None, many: Any = None, device: str = "cuda") -> None:
        if module is None:
            capability = torch.cuda.get_device_capability()
            module, many = load_cuda(capability), products_on(capability)
        self._plain, self._module, self._many = PlainKernels(), module, many
        self._rms_norm = module["rms_norm"]
        self._silu_and_mul = module["silu_and_mul"]
        self._rotation = module["rotation"]
        self._turn_and_store = module["turn_and_store"]
        self._decode_inputs = module["decode_inputs"]
        self._flatten_pages = module["flatten_pages"]
        self._choose_greedy = module["choose_greedy"]
        # a launch leaves it as it was, and graphs keep its address
        self._contests = torch.zeros(_MOST_ROWS, 2, dtype=torch.int64, device=device)

    def matrix(self, weight: Tensor, bias: Tensor | None, *, half: bool, rows: bool) -> Matrix:
        """See ``Kernels``."""
        plain = self._plain.matrix(weight, bias, half=half, rows=rows)
        fits = weight.shape[1] * weight.element_size() % _PIECE == 0 and weight.is_contiguous()
        if not fits:
            return plain
        many = ManyTokens(self._many, weight, bias)
        return FewTokens(self._module, plain, weight, bias, many)

    def int4(self, weight: Int4, bias: Tensor | None) -> Matrix:
        """See ``Kernels``. As torch has it."""
        return self._plain.int4(weight, bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See ``Kernels``."""
        if not _has_norm(x):
            return self._plain.rms_norm(x, weight, eps)
        out = torch.empty_like(x)
        self._rms_norm(x, None, weight, eps, out)
        return out

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See ``Kernels``."""
        if not (_has_norm(x) and residual.is_contiguous()):
            return self._plain.add_rms_norm(x, residual, weight, eps)
        out = torch.empty_like(x)
        self._rms_norm(x, residual, weight, eps, out)
        return out

    def silu_and_mul(self, x: Tensor) -> Tensor:
        """See ``Kernels``."""
        size = x.shape[1] // 2
        if size * x.element_size() % _PIECE or not x.is_contiguous():
            return self._plain.silu_and_mul(x)
        out = x.new_empty(len(x), size)
        self._silu_and_mul(x, out)
        return out

    def normed_product(
        self, matrix: Matrix, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See ``Kernels``. In one kernel for few tokens; the sum is then in new memory."""
        whole = residual is None or residual.is_contiguous()
        if isinstance(matrix, FewTokens) and matrix.takes(x) and whole:
            return matrix.normed(x, residual, weight, eps)
        return separate.normed_product(self, matrix, x, residual, weight, eps)

    def normed_gated_product(
        self, matrix: Matrix, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See ``Kernels``. Of many tokens a norm, then one kernel."""
        if isinstance(matrix, FewTokens) and (tiles := matrix.many.tiles(x, gated=True)):
            x, total = separate.norm(self, x, residual, weight, eps)
            return matrix.many.product(x, tiles, gated=True), total
        return separate.normed_gated_product(self, matrix, x, residual, weight, eps)

    def megakernel(self, layers: Sequence[LayerWeights], shape: Shape) -> Megakernel | None:
        """See ``Kernels``."""
        return Megakernel.of(layers, shape)

    def rotation(
        self, positions: Tensor, frequencies: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """See ``Kernels``."""
        cos, sin = frequencies.new_empty(2, len(positions), 1, len(frequencies), dtype=dtype)
        self._rotation(positions, frequencies, cos, sin)
        return cos, sin

    def turn_and_store(
        self, qkv: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor, to: Place
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Kernels``. In place."""
        if qkv.shape[2] > _LARGEST_HEAD or qkv.shape[2] % _HEAD_STEP:
            return self._plain.turn_and_store(qkv, weight, eps, cos, sin, to)
        self._turn_and_store(qkv, weight, eps, cos, sin, *to)
        return split(qkv, to.keys.shape[1])

    def decode_inputs(self, packed: Tensor, tables: DecodeTables, into: DecodeInputs) -> None:
        """See ``Kernels``."""
        self._decode_inputs(packed, *tables, *into)

    def flatten_pages(self, pages: Tensor, first: Tensor, out: Tensor) -> None:
        """See ``Kernels``."""
        self._flatten_pages(pages, first, out)

    def choose_greedy(self, logits: Tensor, slots: Tensor, last: Tensor) -> Tensor:
        """See ``Kernels``."""
        if len(logits) > _MOST_ROWS or logits.stride(1) != 1:
            return self._plain.choose_greedy(logits, slots, last)
        tokens = torch.empty_like(slots)
        self._choose_greedy(logits, slots, self._contests, tokens, last)
        return tokens


def _has_norm(x: Tensor) -> bool:
    row = x.shape[1] * x.element_size()
    return row % _PIECE == 0 and row <= _LARGEST_NORM and x.is_contiguous()
