"""One matrix on its way to four bits: which factors it took, and what it becomes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from minisgl.kernel.int4 import Int4, dequantise
from minisgl.quantize.bench import Probe
from minisgl.quantize.grid import grid, to_int4
from minisgl.quantize.search import best_factors, best_grid, grouped, nearest, outputs_error


class MatrixError(NamedTuple):
    """How far a matrix's outputs are off on the calibration text, relative to their size (rms)."""

    name: str
    rounded: float  # its numbers plainly rounded to four bits
    fitted: float  # as it is written


class Fitting:
    """Stored matrices that read the same inputs. Owns the probe's weight, and changes it."""

    def __init__(self, probe: Probe, group: int | None) -> None:
        self._probe, self._group = probe, group or probe.shape[1]
        self._x, self._before = probe.inputs, probe.weight.clone()
        self._columns = torch.ones(probe.shape[1])  # what it was multiplied by
        self._rows = torch.ones(probe.shape[0], 1)  # what it was divided by

    def search(self, magnitude: Tensor | None = None) -> Tensor:
        """The factors of its inputs: (inputs,). magnitude: how large they are, if not as seen."""
        if magnitude is None:
            magnitude = self._probe.magnitude
        stacked = [self._probe.of(name, self._probe.weight) for name in self._probe.names]
        return best_factors(self._x, magnitude, stacked, self._group)

    def multiply_columns(self, factors: Tensor) -> None:
        """Its inputs come divided by these from now on."""
        self._probe.weight *= factors
        self._columns *= factors

    def divide_rows(self, name: str, factors: Tensor) -> None:
        """Give the outputs of one of its matrices divided by these."""
        probe = self._probe
        probe.of(name, probe.weight).div_(factors[:, None])
        probe.of(name, self._rows).mul_(factors[:, None])
        if probe.bias is not None:
            probe.of(name, probe.bias).div_(factors)

    def bias_of(self, name: str) -> Tensor | None:
        """The bias of one of its matrices, as it is now."""
        bias = self._probe.bias
        return None if bias is None else self._probe.of(name, bias)

    def results(self) -> Iterator[tuple[str, Int4, MatrixError]]:
        """Each of its matrices in four bits.

        Queries and keys keep their whole range: an error that is small in each is not in their
        product (Lin et al.'s code leaves them out, too).
        """
        x = self._x / self._columns
        for name in self._probe.names:
            weight = self._probe.of(name, self._probe.weight)
            groups = grouped(weight, self._group)
            whole = name.endswith((".q_proj", ".k_proj"))
            packed = to_int4(groups, grid(groups) if whole else best_grid(x, groups))
            yield name, packed, self._error(name, packed)

    def _error(self, name: str, packed: Int4) -> MatrixError:
        before = self._probe.of(name, self._before)
        after = dequantise(packed) / self._columns * self._probe.of(name, self._rows)
        norm = max(outputs_error(before, self._x), 1e-30)
        rounded = outputs_error(nearest(before, self._group) - before, self._x)
        return MatrixError(
            name,
            math.sqrt(rounded / norm),
            math.sqrt(outputs_error(after - before, self._x) / norm),
        )
