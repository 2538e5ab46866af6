"""Four-bit weights on a GPU in Triton, from compute capability 7.5 on: exact, and not the fastest.

Few rows are multiplied with weights that are unpacked where they are used, so that a weight is read
as four bits; many rows with a matrix that is unpacked first. Splitting the inputs keeps a GPU busy
when there are few outputs; the parts are added in order, so results repeat.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from minisgl.kernel.int4 import Int4

_FEW: Final = 128  # rows up to which a weight is unpacked where it is used
_PROGRAMS: Final = 264  # two for each multiprocessor of a Hopper GPU
_MOST_SPLITS: Final = 16


class Blocks(NamedTuple):
    """How much of each side one program takes."""

    rows: int
    inputs: int
    outputs: int


class TritonInt4:
    """A ``Matrix`` of four-bit weights. Raises ImportError where Triton is not installed."""

    def __init__(self, weight: Int4, bias: Tensor | None) -> None:
        from minisgl.kernel import triton_kernels

        self._kernels: Any = triton_kernels
        self._weight, self._bias, self.shape = weight, bias, weight.shape
        self.num_bytes = weight.codes.nbytes + weight.zeros.nbytes + weight.scales.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """See ``Matrix``."""
        if len(x) <= _FEW:
            return self.multiply(x)
        weight = self.dequantise()
        return x @ weight if self._bias is None else torch.addmm(self._bias, x, weight)

    def rows(self, ids: Tensor) -> Tensor:
        """See ``Matrix``."""
        raise AssertionError("its rows were not asked for")

    def dequantise(self) -> Tensor:
        """The weights in the dtype that is computed in: (inputs, outputs)."""
        (outputs, inputs), weight = self.shape, self._weight
        out = torch.empty(inputs, outputs, dtype=weight.dtype, device=weight.codes.device)
        blocks = Blocks(1, 32, 128)
        grid = (_count(inputs, blocks.inputs), _count(outputs, blocks.outputs))
        self._kernels.dequantise[grid](
            weight.codes,
            weight.zeros,
            weight.scales,
            out,
            inputs,
            outputs,
            GROUP=weight.group,
            BLOCK_K=blocks.inputs,
            BLOCK_N=blocks.outputs,
        )
        return out

    def multiply(self, x: Tensor, splits: int | None = None) -> Tensor:
        """x W^T + b with weights unpacked where they are used. splits: of the inputs."""
        (outputs, inputs), weight = self.shape, self._weight
        blocks = self._blocks(len(x))
        across, along = _count(len(x), blocks.rows), _count(outputs, blocks.outputs)
        if splits is None:
            most = min(_MOST_SPLITS, _count(inputs, 4 * blocks.inputs))
            splits = max(1, min(most, _PROGRAMS // (across * along)))
        dtype = x.dtype if splits == 1 else torch.float32
        out = torch.empty(splits, len(x), outputs, dtype=dtype, device=x.device)
        self._kernels.multiply[(across, along, splits)](
            x,
            weight.codes,
            weight.zeros,
            weight.scales,
            self._bias,
            out,
            len(x),
            inputs,
            outputs,
            x.stride(0),
            GROUP=weight.group,
            BLOCK_M=blocks.rows,
            BLOCK_K=blocks.inputs,
            BLOCK_N=blocks.outputs,
            SPLITS=splits,
        )
        if splits == 1:
            return out[0]
        total = out.sum(0)
        return (total if self._bias is None else total.add_(self._bias)).to(x.dtype)

    def _blocks(self, rows: int) -> Blocks:
        """Blocks of inputs that lie in one group where its size allows that."""
        inputs = next((size for size in (64, 32, 16) if self._weight.group % size == 0), 32)
        return Blocks(16 if rows <= 16 else 32 if rows <= 32 else 64, inputs, 64)


def _count(size: int, block: int) -> int:
    return -(-size // block)
