"""Where four bits are spent best: a factor for each input, and how far each group's grid reaches.

Both keep the outputs of a matrix close to what they were on the given inputs, not its numbers.
Source: Lin et al. 2023 (AWQ), sec. 3.2 and appendix; the searched grids are those of its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from minisgl.quantize.grid import Grid, grid

_STEPS: Final = 20  # exponents that are tried
_SHRINKS: Final = tuple(1 - 0.05 * i for i in range(10))  # parts of a group's range that are tried
_BLOCK: Final = 1 << 22  # numbers of a weight looked at together


def best_factors(x: Tensor, magnitude: Tensor, weights: Sequence[Tensor], group: int) -> Tensor:
    """The factor by which each input's column is multiplied before rounding, the input divided.

    Inputs that are large on average get larger factors, and so finer steps: magnitude ** a, for the
    a in [0, 1) that leaves the least error, relative to each matrix's outputs; 0 is plain rounding.
    x: (tokens, inputs); magnitude: (inputs,), how large each is; weights: (outputs, inputs) each.
    Returns (inputs,), geometrically centred on 1.
    """
    norms = [outputs_error(weight, x) for weight in weights]
    best, least = torch.ones_like(magnitude), float("inf")
    for step in range(_STEPS):
        factors = magnitude.clamp(min=1e-4) ** (step / _STEPS)
        factors = factors / (factors.max() * factors.min()).sqrt()
        error = 0.0
        for weight, norm in zip(weights, norms, strict=True):
            rounded = nearest(weight * factors, group) / factors
            error += outputs_error(rounded - weight, x) / max(norm, 1e-30)
        if error < least:
            best, least = factors, error
    return best


def best_grid(x: Tensor, weight: Tensor) -> Grid:
    """The grid of each group whose reach leaves the least error in that group's part of the output.

    x: (tokens, inputs); weight: (outputs, groups, group). What is beyond the reach becomes its end.
    """
    # of each group: (groups, group, group), so that an error is a product with what was changed
    by_group = x.view(len(x), weight.shape[1], weight.shape[2]).transpose(0, 1)
    squares = by_group.transpose(1, 2) @ by_group
    step = max(1, _BLOCK // x.shape[1])
    grids = [_best_grid(part, squares) for part in weight.split(step)]
    return Grid(*(torch.cat(parts) for parts in zip(*grids, strict=True)))


def _best_grid(weight: Tensor, squares: Tensor) -> Grid:
    shrink = torch.ones_like(weight[..., :1])
    least = torch.full_like(shrink, float("inf"))
    for tried in _SHRINKS:
        change = (grid(weight, tried).nearest(weight) - weight).transpose(0, 1)
        error = ((change @ squares) * change).sum(2).t()[..., None]
        better = error < least
        least = torch.where(better, error, least)
        shrink = torch.where(better, tried, shrink)
    return grid(weight, shrink)


def nearest(weight: Tensor, group: int) -> Tensor:
    """A weight (outputs, inputs) plainly rounded to four bits."""
    groups = grouped(weight, group)
    return grid(groups).nearest(groups).view_as(weight)


def grouped(weight: Tensor, group: int) -> Tensor:
    """(outputs, inputs) as (outputs, groups, group)."""
    return weight.reshape(len(weight), -1, group)


def outputs_error(change: Tensor, x: Tensor) -> float:
    """The sum of squares of what a change of a weight changes in its outputs."""
    return float((x @ change.t()).square_().sum())
