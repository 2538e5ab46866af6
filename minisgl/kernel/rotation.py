"""Rotary position embedding in torch, for whoever has no kernel for it."""

from __future__ import annotations

import torch
from torch import Tensor


def rotation(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See ``Kernels``."""
    angles = torch.outer(positions.float(), frequencies)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pair (i, i + head_dim / 2) of each head turned. x: (tokens, heads, head_dim), kept."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
