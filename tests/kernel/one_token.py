"""Random decoder layers, for one token: by the megakernel, and one after the other in torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from minisgl.kernel.base import Kernels, LayerWeights, Matrix, Place, Shape, TokenMemory
from minisgl.kernel.int4 import Int4, dequantise
from minisgl.kernel.marlin import MarlinInt4, Room
from minisgl.kernel.megakernel import Megakernel
from minisgl.kernel.plain import PlainKernels, PlainMatrix
from tests.kernel.test_int4 import random

GROUPS: Final = (0, 32, 128)  # 0: weights of 16 bits
NEAR: Final = {torch.bfloat16: 2e-2, torch.float16: 3e-3}  # of a row's length


@dataclass(frozen=True)
class Case:
    """One decoder and one row."""

    group: int = 0
    dtype: torch.dtype = torch.bfloat16
    layers: int = 2
    hidden: int = 256
    inner: int = 384
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    seen: int = 70  # positions of the row, this token's included
    page_size: int = 16
    normed: bool = True
    biased: bool = False
    window: int | None = None
    seed: int = 0

    @property
    def shape(self) -> Shape:
        sizes = self.hidden, self.inner, self.heads, self.kv_heads, self.head_dim
        return Shape(*sizes, eps=1e-6, head_eps=1e-5)


class OneToken:
    """A case on a device. room: of the four-bit kernels."""

    def __init__(self, case: Case, kernels: Kernels, room: Room | None, device: str) -> None:
        torch.manual_seed(case.seed)
        self.case, self._kernels, self._room, self._device = case, kernels, room, device
        self._kept = list[Tensor]()  # all that the kernel finds by its address
        self._exact = list[tuple[Matrix, ...]]()
        self.layers = [self._layer() for _ in range(case.layers)]
        self.draw(case.seen)

    def draw(self, seen: int) -> None:
        """Another token behind other positions; seen: their number, this token's included."""
        case, device = self.case, self._device
        self._seen, pages = seen, -(-seen // case.page_size)
        self._pages = torch.randperm(pages + 3, device=device)[None, :pages].int()
        shape = (case.layers, 2, (pages + 3) * case.page_size, case.kv_heads, case.head_dim)
        self._pools = self._normal(*shape)
        self._x = self._normal(1, case.hidden)
        angle = torch.rand(1, 1, case.head_dim // 2, device=device) * 6
        self._turn = angle.cos().to(case.dtype), angle.sin().to(case.dtype)

    def agree(self, module: Any = None, calls: int = 2, whole: Megakernel | None = None) -> None:
        """The kernel's result is the twin's, and so are the keys and values that it stores.

        module: the emulation's; None: it is compiled. whole: made of these layers before."""
        case = self.case
        whole = whole or Megakernel.of(self.layers, case.shape, module)
        assert whole is not None
        want, keys = self._twin()
        pools, results = self._pools.clone(), list[Tensor]()
        if module is not None:
            for tensor in (*self._kept, pools):
                module["know"](tensor)
        where = [[pool.data_ptr() for pool in layer] for layer in pools]
        memory = TokenMemory(
            torch.tensor(where, device=self._device),
            self._pages,
            torch.tensor([self._seen], dtype=torch.int32, device=self._device),
            case.page_size,
        )
        for _ in range(calls):
            results.append(whole(self._x, *self._turn, memory))
        for got in results:
            assert (got - want).norm() < NEAR[case.dtype] * want.norm()
            assert torch.equal(got, results[0])  # whatever the order of blocks
        new, old = self._location, torch.ones(pools.shape[2], dtype=torch.bool)
        old[new] = False
        assert torch.equal(pools[:, :, old], self._pools[:, :, old])
        for ours, theirs in zip(pools[:, :, new].flatten(0, 1), keys, strict=True):
            assert (ours - theirs).norm() < NEAR[case.dtype] * theirs.norm()

    @property
    def _location(self) -> int:
        last, size = self._seen - 1, self.case.page_size
        return int(self._pages[0, last // size]) * size + last % size

    def _normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        x = (torch.randn(shape, device=self._device) * scale).to(self.case.dtype)
        self._kept.append(x)
        return x

    def _layer(self) -> LayerWeights:
        s = self.case.shape
        wide = s.heads * s.head_dim
        made = [
            self._matrix(outputs, inputs)
            for outputs, inputs in (
                (wide + 2 * s.kv_heads * s.head_dim, s.hidden),
                (s.hidden, wide),
                (2 * s.inner, s.hidden),
                (s.hidden, s.inner),
            )
        ]
        (qkv, o, gate_up, down), exact = zip(*made, strict=True)
        self._exact.append(exact)
        head_norm = None
        if self.case.normed:
            head_norm = self._normal(s.heads + s.kv_heads, s.head_dim)
        norms = [self._normal(s.hidden) for _ in range(2)]
        return LayerWeights(norms[0], qkv, head_norm, o, norms[1], gate_up, down, self.case.window)

    def _matrix(self, outputs: int, inputs: int) -> tuple[Matrix, Matrix]:
        case = self.case
        bias = self._normal(outputs) if case.biased else None
        if case.group == 0:
            weight = self._normal(outputs, inputs, scale=inputs**-0.5)
            ours = self._kernels.matrix(weight, bias, half=False, rows=False)
            return ours, PlainMatrix(weight, bias)
        packed = random(outputs, inputs // case.group, case.group, case.dtype)
        codes, zeros, scales = (x.to(self._device) for x in packed[:3])
        packed = Int4(codes, zeros, scales, case.dtype)
        packed.scales.mul_(8 * inputs**-0.5)
        ours = MarlinInt4(packed, bias, self._room)
        self._kept += [ours.packed.words, ours.packed.groups]
        return ours, PlainMatrix(dequantise(packed), bias)

    def _twin(self) -> tuple[Tensor, list[Tensor]]:
        """The residual stream behind the last layer; each layer's new key and value."""
        case, s, kernels, stored = self.case, self.case.shape, PlainKernels(), list[Tensor]()
        x, residual = self._x.clone(), None
        where = torch.tensor([self._location], device=self._device)
        positions = torch.arange(self._seen, device=self._device)
        at = self._pages[0, positions // case.page_size] * case.page_size
        at = (at + positions % case.page_size)[-(case.window or 0) :]
        for layer, exact, pools in zip(self.layers, self._exact, self._pools, strict=True):
            qkv, o, gate_up, down = exact
            keys, values = pools.clone()
            y, residual = kernels.normed_product(qkv, x, residual, layer.attention_norm, s.eps)
            q, _, _ = kernels.turn_and_store(
                y.view(1, -1, s.head_dim),
                layer.head_norm,
                s.head_eps,
                *self._turn,
                Place(keys, values, where),
            )
            stored += [keys[self._location], values[self._location]]
            queries = q[0].double().view(s.kv_heads, -1, s.head_dim)
            scores = queries @ keys[at].double().permute(1, 2, 0) * s.head_dim**-0.5
            found = scores.softmax(-1) @ values[at].double().transpose(0, 1)
            x = o(found.view(1, -1).to(case.dtype))
            x, residual = kernels.normed_gated_product(gate_up, x, residual, layer.mlp_norm, s.eps)
            x = down(x)
        assert residual is not None
        return residual + x, stored
