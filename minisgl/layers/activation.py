"""Activations."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu_and_mul(x: Tensor) -> Tensor:
    """silu of the first half times the second half: (tokens, 2n) -> (tokens, n). x is kept."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate).mul_(up)
