"""All layers of a decoder for one token as one CUDA kernel; csrc/megakernel.cuh says how.

A step of one token is reading the weights once. As a chain of kernels, eight a layer, the memory
idles while each ends and the next begins. ``EngineConfig.megakernel=False`` switches it off: the
twin is layer after layer (models/decoder.py), which also computes what this is not made for, as
heads of other sizes than 64 and 128, or a part of a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minisgl.kernel.base import LayerWeights, Matrix, Shape, TokenMemory
from minisgl.kernel.compile import load_cuda
from minisgl.kernel.few import FewTokens
from minisgl.kernel.marlin import MarlinInt4
from minisgl.resolve import BULK_COPIES


class _Weight(NamedTuple):
    """A matrix's tensors. group: inputs that share a scale in four bits; 0: numbers of 16 bits."""

    numbers: Tensor
    groups: Tensor | None
    bias: Tensor | None
    group: int


class Megakernel:
    """An ``AllLayers``. Its calls come one after the other, on one stream: the blocks' exchange has
    one place in memory. ``of`` makes one."""

    def __init__(
        self, module: Any, layers: Sequence[LayerWeights], shape: Shape, group: int, room: int
    ) -> None:
        device = layers[0].attention_norm.device
        self._decode, self._shape, self._group = module["decode"], shape, group
        self._weights = layers  # the table keeps addresses, not tensors
        # steps that nobody waits for may be under way
        table = torch.tensor([_fields(layer) for layer in layers])
        self._table = table.to(device, non_blocking=True)
        self._words = torch.zeros(room, dtype=torch.int64, device=device)
        self._counts = torch.zeros(2, dtype=torch.int32, device=device)

    @staticmethod
    def of(layers: Sequence[LayerWeights], shape: Shape, module: Any = None) -> Megakernel | None:
        """The kernel for these layers; None for sizes, numbers or a GPU that it is not for.

        module: where it is compiled already. Raises kernel.compile.NoKernels.
        """
        weights = [_weight(matrix) for layer in layers for matrix in _matrices(layer)]
        norm = layers[0].attention_norm
        if norm.dtype not in (torch.float16, torch.bfloat16):
            return None
        groups = {None if weight is None else weight.group for weight in weights}
        group = groups.pop()
        if group is None or groups:
            return None
        device = norm.device.index or 0
        if module is None:
            capability = torch.cuda.get_device_capability(device)
            if capability < BULK_COPIES:
                return None
            module = load_cuda(capability, source="megakernel.cu")
        room = module["room"](len(layers), *shape[:5], group, device)
        return Megakernel(module, layers, shape, group, room) if room else None

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, memory: TokenMemory) -> Tensor:
        """See ``AllLayers``."""
        s, out = self._shape, torch.empty_like(x)
        self._decode(
            self._table,
            memory.pools,
            *(x, out, cos, sin),
            *(memory.pages, memory.end, self._words, self._counts),
            *(s.inner, s.heads, s.kv_heads, self._group, memory.page_size, s.eps, s.head_eps),
        )
        return out


def _matrices(layer: LayerWeights) -> tuple[Matrix, ...]:
    return layer.qkv, layer.o, layer.gate_up, layer.down


def _weight(matrix: Matrix) -> _Weight | None:
    match matrix:
        case FewTokens():
            return _Weight(matrix.weight, None, matrix.bias, 0)
        case MarlinInt4():
            packed = matrix.packed
            return _Weight(packed.words, packed.groups, matrix.bias, packed.group)
    return None


def _fields(layer: LayerWeights) -> list[int]:
    """mega::Layer of csrc/megakernel.cuh."""
    numbers = list[int]()
    for matrix in _matrices(layer):
        weight = _weight(matrix)
        assert weight is not None
        numbers += map(_address, weight[:3])
    norms = layer.attention_norm, layer.mlp_norm, layer.head_norm
    return [*numbers, *map(_address, norms), layer.window or 0]


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
