"""The kernels in torch: on every device, in every dtype. Oracle of the native ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minisgl.kernel import paging, separate
from minisgl.kernel.base import AllLayers, LayerWeights, Matrix, Place, Shape
from minisgl.kernel.int4 import Int4, dequantise
from minisgl.kernel.rotation import rotate, rotation


class PlainKernels:
    """One torch call after the other."""

    decode_inputs = staticmethod(paging.decode_inputs)
    flatten_pages = staticmethod(paging.flatten_pages)
    choose_greedy = staticmethod(paging.choose_greedy)
    rotation = staticmethod(rotation)

    def matrix(self, weight: Tensor, bias: Tensor | None, *, half: bool, rows: bool) -> Matrix:
        """See ``Kernels``. As it is, or as FBGEMM packs float16."""
        return FbgemmMatrix(weight, bias, rows) if half else PlainMatrix(weight, bias)

    def int4(self, weight: Int4, bias: Tensor | None) -> Matrix:
        """See ``Kernels``. Dequantised once: as fast as other weights, and as large."""
        return PlainMatrix(dequantise(weight), bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See ``Kernels``."""
        return F.rms_norm(x, weight.shape, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See ``Kernels``."""
        return F.rms_norm(residual.add_(x), weight.shape, weight, eps)

    def silu_and_mul(self, x: Tensor) -> Tensor:
        """See ``Kernels``."""
        gate, up = x.chunk(2, -1)
        return F.silu(gate).mul_(up)

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
        """See ``Kernels``. There is none."""
        return None

    def turn_and_store(
        self, qkv: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor, to: Place
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Kernels``."""
        kv_heads = to.keys.shape[1]
        turned, v = qkv[:, :-kv_heads], qkv[:, -kv_heads:]
        if weight is not None:
            turned = F.rms_norm(turned, turned.shape[-1:], None, eps).mul_(weight)
        turned = rotate(turned, cos, sin)
        q, k = turned[:, :-kv_heads], turned[:, -kv_heads:]
        paging.store_kv(k, v, to)
        return q, k, v


class PlainMatrix:
    """A weight as it was read."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias
        self.shape, self.num_bytes = (len(weight), weight.shape[1]), weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """See ``Matrix``."""
        return F.linear(x, self._weight, self._bias)

    def rows(self, ids: Tensor) -> Tensor:
        """See ``Matrix``."""
        return F.embedding(ids, self._weight)


class FbgemmMatrix:
    """A weight in float16, packed by FBGEMM; x, sums and result are float32.

    Source: Khudia et al. 2021 (FBGEMM).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: bool) -> None:
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        self._rows = weight.half() if rows else None  # FBGEMM unpacks all or nothing
        self.shape = (len(weight), weight.shape[1])
        self.num_bytes = weight.nbytes if rows else weight.nbytes // 2

    def __call__(self, x: Tensor) -> Tensor:
        """See ``Matrix``."""
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self._packed)
        return y

    def rows(self, ids: Tensor) -> Tensor:
        """See ``Matrix``."""
        assert self._rows is not None, "its rows were not asked for"
        return self._rows[ids].float()
