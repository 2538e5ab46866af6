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
    outlier: float = 0.0  # about the size of one input of `down`, whose weights are 0; with biases
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
        pools, memory = self._memory(module)
        results = [whole(self._x, *self._turn, memory) for _ in range(calls)]
        for got in results:
            assert (got - want).norm() < NEAR[case.dtype] * want.norm()
            assert torch.equal(got, results[0])  # whatever the order of blocks
        new, old = self._location, torch.ones(pools.shape[2], dtype=torch.bool)
        old[new] = False
        assert torch.equal(pools[:, :, old], self._pools[:, :, old])
        for ours, theirs in zip(pools[:, :, new].flatten(0, 1), keys, strict=True):
            assert (ours - theirs).norm() < NEAR[case.dtype] * theirs.norm()

    def result_with(self, number: float, module: Any = None) -> Tensor:
        """The kernel's result with this as the residual stream's first number."""
        whole = Megakernel.of(self.layers, self.case.shape, module)
        assert whole is not None
        self._x[0, 0] = number
        _, memory = self._memory(module)
        return whole(self._x, *self._turn, memory)

    def _memory(self, module: Any) -> tuple[Tensor, TokenMemory]:
        """The pools as they are before the token, and what the kernel is told of them."""
        pools = self._pools.clone()
        if module is not None:
            for tensor in (*self._kept, pools):
                module["know"](tensor)
        where = [[pool.data_ptr() for pool in layer] for layer in pools]
        memory = TokenMemory(
            torch.tensor(where, device=self._device),
            self._pages,
            torch.tensor([self._seen], dtype=torch.int32, device=self._device),
            self.case.page_size,
        )
        return pools, memory

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
        of_outlier = s.inner // 2 if self.case.outlier else None
        made = [
            self._matrix(outputs, inputs, without)
            for outputs, inputs, without in (
                (wide + 2 * s.kv_heads * s.head_dim, s.hidden, None),
                (s.hidden, wide, None),
                (2 * s.inner, s.hidden, None),
                (s.hidden, s.inner, of_outlier),
            )
        ]
        (qkv, o, gate_up, down), exact = zip(*made, strict=True)
        if of_outlier is not None:
            assert gate_up.bias is not None
            gate_up.bias[of_outlier] = gate_up.bias[s.inner + of_outlier] = self.case.outlier**0.5
        self._exact.append(exact)
        head_norm = None
        if self.case.normed:
            head_norm = self._normal(s.heads + s.kv_heads, s.head_dim)
        norms = [self._normal(s.hidden) for _ in range(2)]
        return LayerWeights(norms[0], qkv, head_norm, o, norms[1], gate_up, down, self.case.window)

    def _matrix(self, outputs: int, inputs: int, without: int | None) -> tuple[Matrix, Matrix]:
        """A random matrix and its twin. without: an input whose weights are 0, in four bits."""
        case = self.case
        bias = self._normal(outputs) if case.biased else None
        if case.group == 0:
            weight = self._normal(outputs, inputs, scale=inputs**-0.5)
            ours = self._kernels.matrix(weight, bias, half=False, rows=False)
            return ours, PlainMatrix(weight, bias)
        packed = random(outputs, inputs // case.group, case.group, case.dtype)
        codes, zeros, scales = (x.to(self._device) for x in packed[:3])
        if without is not None:
            codes[without] = zeros[without // case.group]
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
