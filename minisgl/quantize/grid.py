"""Sixteen evenly spaced numbers for each group of a matrix, zero among them.

Source: Lin et al. 2023 (AWQ), sec. 2.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from minisgl.kernel.int4 import Int4, pack

_TOP: Final = 15  # the largest code
_LEAST: Final = 2.0**-20  # a scale below it would lose its digits in float16


class Grid(NamedTuple):
    """For each output and group (outputs, groups, 1): the sixteen numbers (code - zero) * scale."""

    scales: Tensor  # float32, each a float16
    zeros: Tensor  # float32, each a code

    def codes(self, weight: Tensor) -> Tensor:
        """The code of each number's nearest: (outputs, groups, group), floats 0 to 15."""
        return ((weight / self.scales).round_() + self.zeros).clamp_(0, _TOP)

    def nearest(self, weight: Tensor) -> Tensor:
        """What a weight (outputs, groups, group) becomes."""
        return (self.codes(weight) - self.zeros) * self.scales


def grid(weight: Tensor, shrink: Tensor | float = 1.0) -> Grid:
    """From each group's least to its greatest number, times ``shrink`` (outputs, groups, 1).

    weight: (outputs, groups, group) float32. Raises ValueError if a scale is too large for float16.
    """
    low = weight.amin(2, keepdim=True).clamp_(max=0) * shrink
    high = weight.amax(2, keepdim=True).clamp_(min=0) * shrink
    scales = ((high - low) / _TOP).clamp_(min=_LEAST).half().float()
    if not torch.isfinite(scales).all():
        raise ValueError(f"weights up to {float(weight.abs().max()):g} are too large for four bits")
    return Grid(scales, (-low / scales).round_().clamp_(0, _TOP))


def to_int4(weight: Tensor, on: Grid) -> Int4:
    """A weight (outputs, groups, group) on its grid, as checkpoints store it."""
    codes = on.codes(weight).flatten(1).t()
    zeros, scales = on.zeros[..., 0].t(), on.scales[..., 0].t()
    return Int4(pack(codes), pack(zeros), scales.half().contiguous(), torch.float32)
