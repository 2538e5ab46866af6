"""The kernels in C++, for float32 on a CPU. Numbers agree with the plain ones up to rounding.

Why there are any (one thread of an AVX-512 machine, fp32, median): a weight of 1024 outputs and 256
inputs takes 8 us for one token, 22 us for 8 and 170 us for 64; torch's own product 17, 65 and 390.
A norm takes 1 us instead of 10: a small model's step is mostly the way from Python to the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from minisgl.kernel import paging, separate
from minisgl.kernel.base import AllLayers, LayerWeights, Matrix, Place, Shape
from minisgl.kernel.functions import functions
from minisgl.kernel.int4 import PER_WORD, Int4, unpack
from minisgl.kernel.rotation import rotation

_BLOCK: Final = 1 << 20  # numbers rearranged at a time


class NativeKernels:
    """What ``csrc/cpu.cpp`` exports, compiled at the first use on a machine.

    Uses as many threads as torch does on the calling thread. Raises kernel.compile.NoKernels.
    """

    decode_inputs = staticmethod(paging.decode_inputs)
    flatten_pages = staticmethod(paging.flatten_pages)
    choose_greedy = staticmethod(paging.choose_greedy)
    rotation = staticmethod(rotation)

    def __init__(self) -> None:
        self._native = functions()
        self._panel = int(self._native.panel())

    def matrix(self, weight: Tensor, bias: Tensor | None, *, half: bool, rows: bool) -> Matrix:
        """See ``Kernels``. Numbers that all fit 16 bits, as a checkpoint stored in 16 bits has
        them, are kept in 16 bits: that is exact and halves what a token reads."""
        assert weight.dtype == torch.float32 and weight.device.type == "cpu", "float32 on a CPU"
        dtype = torch.float16 if half else _smallest(weight)
        return _Panels(self._panel, weight, bias, dtype)

    def int4(self, weight: Int4, bias: Tensor | None) -> Matrix:
        """See ``Kernels``. Four bits stay four bits."""
        assert weight.dtype == torch.float32 and weight.codes.device.type == "cpu", "float32, CPU"
        return _Int4Panels(self._panel, weight, bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See ``Kernels``."""
        out = torch.empty_like(x)
        self._native.rms_norm(x, None, weight, eps, out)
        return out

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See ``Kernels``."""
        out = torch.empty_like(x)
        self._native.rms_norm(x, residual, weight, eps, out)
        return out

    def silu_and_mul(self, x: Tensor) -> Tensor:
        """See ``Kernels``."""
        out = torch.empty(len(x), x.shape[1] // 2)
        self._native.silu_and_mul(x, out)
        return out

    def normed_product(
        self, matrix: Matrix, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See ``Kernels``."""
        return separate.normed_product(self, matrix, x, residual, weight, eps)

    def normed_gated_product(
        self, matrix: Matrix, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See ``Kernels``."""
        return separate.normed_gated_product(self, matrix, x, residual, weight, eps)

    def megakernel(self, layers: Sequence[LayerWeights], shape: Shape) -> AllLayers | None:
        """See ``Kernels``. There is none: between two C++ functions nothing idles."""
        return None

    def turn_and_store(
        self, qkv: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor, to: Place
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Kernels``. In place."""
        self._native.turn_and_store(qkv, weight, eps, cos, sin, *to)
        return paging.split(qkv, to.keys.shape[1])


class _Panels:
    """(panels, inputs, panel): the weights of ``panel`` outputs side by side, input by input.

    In the weight's own dtype it is made in the weight's own memory, where that is whole panels.
    """

    def __init__(self, panel: int, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        outputs, inputs = weight.shape
        self.shape, self._bias = (outputs, inputs), bias
        self._native, self._panel = functions(), panel
        count = -(-outputs // panel)
        # a column needs no rearranging, and torch would not copy it
        in_place = dtype == weight.dtype and outputs % panel == 0 and inputs > 1
        self._weight = (
            weight.view(count, inputs, panel)
            if in_place
            else weight.new_zeros(count, inputs, panel, dtype=dtype)
        )
        step = max(1, _BLOCK // (panel * inputs))
        whole = outputs // panel
        for i in range(0, whole, step):
            j = min(i + step, whole)
            rows = weight[i * panel : j * panel].view(j - i, panel, inputs)
            self._weight[i:j] = rows.transpose(1, 2).to(dtype).contiguous()
        if whole < count:
            self._weight[whole, :, : outputs - whole * panel] = weight[whole * panel :].t()
        self.num_bytes = self._weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """See ``Matrix``."""
        out = torch.empty(len(x), self.shape[0])
        self._native.linear(x, self._weight, self._bias, out, torch.get_num_threads())
        return out

    def rows(self, ids: Tensor) -> Tensor:
        """See ``Matrix``."""
        return self._weight[ids // self._panel, :, ids % self._panel].float()


class _Int4Panels:
    """(panels, groups, words, panel) int32: eight inputs' codes of one output in a word.

    Beside them, for each panel and group, the outputs' scales and zeros in float16.
    """

    def __init__(self, panel: int, weight: Int4, bias: Tensor | None) -> None:
        outputs, inputs = weight.shape
        self.shape, self._bias, self._native = (outputs, inputs), bias, functions()
        self._group, groups = weight.group, len(weight.scales)
        count, words = -(-outputs // panel), -(-weight.group // PER_WORD)
        self._codes = torch.zeros(count, groups, words, panel, dtype=torch.int32)
        self._scales = torch.zeros(count, groups, panel, dtype=torch.float16)
        self._zeros = torch.zeros_like(self._scales)
        shifts = 4 * torch.arange(PER_WORD, dtype=torch.int32)[:, None]
        for i in range(count):  # outputs are a multiple of 8, and so is a panel
            end = min((i + 1) * panel, outputs)
            some, width = slice(i * panel // PER_WORD, end // PER_WORD), end - i * panel
            codes = torch.zeros(groups, words * PER_WORD, width, dtype=torch.int32)
            codes[:, : self._group] = unpack(weight.codes[:, some]).view(groups, -1, width)
            spread = codes.view(groups, words, PER_WORD, width) << shifts
            self._codes[i, ..., :width] = spread.sum(2, dtype=torch.int32)
            self._scales[i, :, :width] = weight.scales[:, i * panel : end]
            self._zeros[i, :, :width] = unpack(weight.zeros[:, some])
        self.num_bytes = self._codes.nbytes + self._scales.nbytes + self._zeros.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """See ``Matrix``."""
        out = torch.empty(len(x), self.shape[0])
        parts = self._codes, self._scales, self._zeros, self._group
        self._native.linear_int4(x, *parts, self._bias, out, torch.get_num_threads())
        return out

    def rows(self, ids: Tensor) -> Tensor:
        """See ``Matrix``."""
        raise AssertionError("its rows were not asked for")


def _smallest(weight: Tensor) -> torch.dtype:
    """The smallest dtype that holds each number exactly."""
    step = max(1, _BLOCK // weight.shape[1])
    blocks = [weight[i : i + step] for i in range(0, len(weight), step)]
    for dtype in (torch.float16, torch.bfloat16):
        if all(bool((block.to(dtype).float() == block).all()) for block in blocks):
            return dtype
    return weight.dtype
