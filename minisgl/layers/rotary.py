"""Rotary position embedding: each pair of a head's values turns by an angle that its position sets.

Source: Su et al. 2021 (RoFormer), sec. 3.2; pairs are (i, i + head_dim / 2), as in GPT-NeoX.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from minisgl.kernel.base import Kernels


@dataclass(frozen=True)
class Rope:
    """How fast each pair turns.

    theta: base of the geometric series of frequencies.
    kind: "linear" divides all frequencies by ``factor`` (Chen et al. 2023, position interpolation).
    "llama3" divides those whose wave is longer than ``original_context / low_freq_factor``
    positions, keeps those shorter than ``original_context / high_freq_factor``, and blends between.
    """

    theta: float = 10_000.0
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def frequencies(self, head_dim: int) -> Tensor:
        """Radians per position of each pair: (head_dim / 2,) float32."""
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        plain = 1.0 / self.theta**exponent
        if self.kind == "default":
            return plain
        if self.kind == "linear":
            return plain / self.factor
        waves_in_context = self.original_context * plain / (2 * math.pi)
        keep = (waves_in_context - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        keep = keep.clamp(0.0, 1.0)
        return plain * keep + plain / self.factor * (1.0 - keep)


class Rotation(NamedTuple):
    """Cosine and sine of every token's angles: (tokens, 1, head_dim / 2) each."""

    cos: Tensor
    sin: Tensor


class Rotary:
    """Angles for positions. No table: computing them once per forward pass costs less than the
    64 MB that a context of 131072 would keep."""

    def __init__(self, rope: Rope, head_dim: int, device: torch.device, kernels: Kernels) -> None:
        self._frequencies, self._kernels = rope.frequencies(head_dim).to(device), kernels

    def at(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """The rotation of each position; angles are float32, the result ``dtype``."""
        return Rotation(*self._kernels.rotation(positions, self._frequencies, dtype))
