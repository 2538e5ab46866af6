"""A decoder layer laid open: its matrices keep what comes in, and let their numbers be changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from minisgl.kernel.base import Kernels, Matrix
from minisgl.kernel.plain import PlainKernels
from minisgl.layers.source import Part
from minisgl.models.weights import Weights

KEPT: Final = 1024  # inputs of each matrix that are kept, evenly spaced


class Probe:
    """A ``Matrix`` that remembers some of its inputs, and how large all were on average."""

    def __init__(self, parts: Sequence[Part], weight: Tensor, bias: Tensor | None, every: int):
        """every: of the inputs, one of so many is kept."""
        self.weight, self.bias, self._every = weight, bias, every
        self.shape, self.num_bytes = (len(weight), weight.shape[1]), weight.nbytes
        self._rows, begin = dict[str, slice](), 0
        for part in parts:
            self._rows[part.name] = slice(begin, begin + len(part.rows))
            begin += len(part.rows)
        self._kept = list[Tensor]()
        self._total, self._count = torch.zeros(weight.shape[1]), 0

    def __call__(self, x: Tensor) -> Tensor:
        """See ``Matrix``."""
        first = -self._count % self._every
        self._kept.append(x[first :: self._every].clone())
        self._total += x.abs().sum(0)
        self._count += len(x)
        return F.linear(x, self.weight, self.bias)

    def rows(self, ids: Tensor) -> Tensor:
        """See ``Matrix``."""
        raise AssertionError("its rows were not asked for")

    @property
    def names(self) -> tuple[str, ...]:
        """The stored matrices that are stacked in it."""
        return tuple(self._rows)

    @property
    def inputs(self) -> Tensor:
        """(kept, inputs)."""
        return torch.cat(self._kept)

    @property
    def magnitude(self) -> Tensor:
        """The mean of each input's absolute value: (inputs,)."""
        return self._total / max(1, self._count)

    def of(self, name: str, stacked: Tensor) -> Tensor:
        """The rows that belong to one stored matrix: a view."""
        return stacked[self._rows[name]]


class Bench:
    """A ``layers.source.Source`` whose matrices are probes, found by the names stacked in them."""

    def __init__(self, weights: Weights, tokens: int) -> None:
        """tokens: how many will be computed."""
        self.kernels: Kernels = PlainKernels()
        self.probes: dict[str, Probe] = {}
        self._weights, self._every = weights, max(1, tokens // KEPT)

    def empty(self, *shape: int) -> Tensor:
        """See ``Source``."""
        return self._weights.empty(*shape)

    def fill(
        self, into: Tensor, name: str, shape: tuple[int, ...], at: tuple[int, ...] | None = None
    ) -> None:
        """See ``Source``."""
        self._weights.fill(into, name, shape, at)

    def matrix(self, weight: Tensor, bias: Tensor | None = None, *, rows: bool = False) -> Matrix:
        """See ``Source``."""
        return self._weights.matrix(weight, bias, rows=rows)

    def linear(
        self, parts: Sequence[Part], inputs: int, columns: range, bias: Tensor | None = None
    ) -> Matrix:
        """See ``Source``."""
        weight, begin = self.empty(sum(len(part.rows) for part in parts), len(columns)), 0
        for name, total, rows in parts:
            own = weight[begin : begin + len(rows)]
            self.fill(own, f"{name}.weight", (total, inputs), (rows.start, columns.start))
            begin += len(rows)
        probe = Probe(parts, weight, bias, self._every)
        self.probes |= {part.name: probe for part in parts}
        return probe
