"""Four-bit weights as tensor cores take them: how they are arranged, and the CUDA kernels' matrix.

Arranging is plain torch and runs anywhere, and so does its inverse; the product needs an NVIDIA GPU
of compute capability 8.0 or more and is compiled at the first use. csrc/marlin.cuh says how.
Source: Frantar et al. 2024 (MARLIN).
"""

from __future__ import annotations

import functools
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from minisgl.kernel.compile import load_cuda
from minisgl.kernel.int4 import Int4, pack, unpack
from minisgl.resolve import TENSOR_CORES

_STRIP: Final = 32  # outputs of a warp
_INPUTS: Final = 128  # of a chunk
_FEW: Final = 256  # rows up to which a weight is unpacked where it is used
_LEAST: Final = 8  # chunks that are worth a block of their own
_TILES: Final = 1 << 16  # whose arrivals can be counted
_BLOCK: Final = 1 << 24  # codes arranged at a time
# codes[chunk, step, t, s, c, h, strip, m, r, g]: input 32 step + 8 t + 4 s + 2 c + h of a chunk,
# output 16 m + 8 r + g of a strip. Words lie [strip, chunk, step, g, t, m, s], and code (h, c, r)
# is at bit 16 h + 8 c + 4 r of its word.
_SPLIT: Final = (4, 4, 2, 2, 2)
_THERE: Final = (6, 0, 1, 9, 2, 7, 3, 5, 4, 8)
_BITS: Final = tuple(16 * h + 8 * c + 4 * r for h in range(2) for c in range(2) for r in range(2))


class Packed(NamedTuple):
    """A weight (outputs, inputs) of four bits. ``arranged`` makes one."""

    words: Tensor  # (outputs / 32, inputs / 128, 512) int32: eight codes each
    groups: Tensor  # (groups, outputs) int32: a float16 scale's bits, and from bit 16 on a zero;
    # of a strip's outputs 8 j + g is at place 4 g + j
    dtype: torch.dtype  # that is computed in

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.groups.shape[1], self.words.shape[1] * _INPUTS

    @property
    def group(self) -> int:
        """Inputs that share a zero and a scale."""
        return self.shape[1] // len(self.groups)


def arranged(weight: Int4) -> Packed:
    """A weight as the kernels take it; no number that it stands for is changed.

    Raises ValueError for a shape that they do not have, with the numbers.
    """
    outputs, inputs = weight.shape
    if outputs % _STRIP or inputs % _INPUTS or weight.group % 32:
        raise ValueError(
            f"a weight of {outputs} outputs and {inputs} inputs in groups of {weight.group}; "
            f"the Marlin kernel takes multiples of {_STRIP}, {_INPUTS} and 32"
        )
    weight = _without_zero_scales(weight)
    chunks, strips = inputs // _INPUTS, outputs // _STRIP
    words = torch.empty(strips, chunks, 512, dtype=torch.int32, device=weight.codes.device)
    shifts = torch.tensor(_BITS, dtype=torch.int32, device=words.device)
    step = max(1, _BLOCK // (inputs * _STRIP))
    for first in range(0, strips, step):
        some = weight.codes[:, first * 4 : (first + step) * 4]
        codes = unpack(some).view(chunks, *_SPLIT, -1, 2, 2, 8).permute(_THERE)
        eight = codes.reshape(-1, 8).int() << shifts
        words[first : first + step] = eight.sum(-1, dtype=torch.int32).view(-1, chunks, 512)
    scales = weight.scales.view(torch.int16).int() & 0xFFFF
    groups = scales | unpack(weight.zeros).int() << 16
    return Packed(words, _turned(groups, 4, 8), weight.dtype)


def restored(weight: Packed) -> Int4:
    """The weight that was ``arranged``: the inverse, for tests and for looking."""
    outputs, inputs = weight.shape
    shifts = torch.tensor(_BITS, dtype=torch.int32, device=weight.words.device)
    codes = (weight.words.reshape(-1, 1) >> shifts) & 15
    split = (inputs // _INPUTS, *_SPLIT, outputs // _STRIP, 2, 2, 8)
    laid = codes.view([split[i] for i in _THERE])
    back = laid.permute([_THERE.index(i) for i in range(len(_THERE))])
    groups = _turned(weight.groups, 8, 4)
    scales = groups.to(torch.int16).view(torch.float16)
    zeros = pack(groups >> 16 & 15)
    return Int4(pack(back.reshape(inputs, outputs)), zeros, scales, weight.dtype)


def _without_zero_scales(weight: Int4) -> Int4:
    """The same weight; where a scale is 0, which the kernels would divide by, codes are zeros."""
    none = weight.scales == 0
    if not none.any():
        return weight
    each = unpack(weight.zeros).repeat_interleave(weight.group, 0)
    codes = torch.where(none.repeat_interleave(weight.group, 0), each, unpack(weight.codes))
    return weight._replace(codes=pack(codes), scales=weight.scales.masked_fill(none, 1.0))


def _turned(groups: Tensor, rows: int, columns: int) -> Tensor:
    """Each strip's numbers, (rows, columns) as they lie, as (columns, rows)."""
    return groups.view(len(groups), -1, rows, columns).transpose(2, 3).reshape(groups.shape)


class Room(NamedTuple):
    """A GPU's compiled kernels, and what its products, one after the other on its stream, share."""

    module: Any  # what csrc/marlin.cu exports
    parts: Tensor  # float32: sums of tiles that are not done
    arrived: Tensor  # int32: zeros between products

    @staticmethod
    def made(module: Any, device: torch.device) -> Room:
        """Room on this device for any product."""
        parts = torch.empty(module["room_for_parts"](device.index or 0), device=device)
        return Room(module, parts, torch.zeros(_TILES, dtype=torch.int32, device=device))


@functools.cache
def room_on(device: torch.device) -> Room:
    """The room of a GPU. Raises ValueError for one that is too old, NoKernels if the kernels cannot
    be compiled."""
    capability = torch.cuda.get_device_capability(device)
    if capability < TENSOR_CORES:
        raise ValueError(
            f"the Marlin kernel needs compute capability {TENSOR_CORES}, not {capability}"
        )
    with torch.cuda.device(device):
        return Room.made(load_cuda(capability, source="marlin.cu"), device)


class MarlinInt4:
    """A ``Matrix`` of four-bit weights on tensor cores, float16 or bfloat16. No weight is rounded.

    Many rows are multiplied with weights that are unpacked first, rounded to the dtype.
    room: by default that of the weight's GPU, which see. Raises ValueError for a shape or a dtype
    that the kernels do not have.
    """

    def __init__(self, weight: Int4, bias: Tensor | None, room: Room | None = None) -> None:
        if weight.dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"the Marlin kernel computes in float16 and bfloat16, not in {weight.dtype}"
            )
        self.packed, self.bias = arranged(weight), bias
        self._room = room or room_on(weight.codes.device)
        self.shape = weight.shape
        self.num_bytes = self.packed.words.nbytes + self.packed.groups.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """See ``Matrix``."""
        if len(x) <= _FEW:
            return self.multiply(x)
        return torch.nn.functional.linear(x, self.dequantise(), self.bias)

    def rows(self, ids: Tensor) -> Tensor:
        """See ``Matrix``."""
        raise AssertionError("its rows were not asked for")

    def multiply(self, x: Tensor, blocks: int = 0, *, gated: bool = False) -> Tensor:
        """x W^T + b with weights unpacked where they are used. blocks: that share the work; 0: as
        many as the GPU holds at a time. gated: silu(first half) * second half of that."""
        if x.stride(1) != 1 or x.stride(0) % 8 or x.data_ptr() % 16:
            x = x.contiguous()
        weight, room = self.packed, self._room
        out = x.new_empty(len(x), self.shape[0] // 2 if gated else self.shape[0])
        at = (weight.words, weight.groups, self.bias, out, room.parts, room.arrived)
        room.module["multiply"](x, *at, gated, weight.group, blocks, _LEAST)
        return out

    def gates(self, x: Tensor) -> bool:
        """See ``GatedMatrix``."""
        halves = self.shape[0] % (2 * _STRIP) == 0
        return halves and len(x) <= _FEW and self._room.module["gates"](len(x), x.device.index or 0)

    def gated(self, x: Tensor) -> Tensor:
        """See ``GatedMatrix``."""
        return self.multiply(x, gated=True)

    def dequantise(self) -> Tensor:
        """The weights in the dtype that is computed in: (outputs, inputs)."""
        weight = self.packed
        out = torch.empty(self.shape, dtype=weight.dtype, device=weight.words.device)
        self._room.module["unpack"](weight.words, weight.groups, out, weight.group)
        return out
