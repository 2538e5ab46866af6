"""Noise that is a function of seed, output index and token id: no generator, so no state to keep.

A row's draw is the same on every device, in every batch and after every rewind. The hash is
SplitMix64. Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from minisgl.attention.base import Ints

_GAMMA: Final = 0x9E3779B97F4A7C15
_MIX: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS: Final = (30, 27, 31)


def row_keys(seeds: Ints, indexes: Ints) -> Ints:
    """One well-mixed 64-bit key for each seed and output index: (rows,) int64."""
    state = _mixed(seeds.astype(np.int64).view(np.uint64))
    state = _mixed(state + indexes.astype(np.uint64) * np.uint64(_GAMMA))
    return state.view(np.int64)


def gumbel(keys: Tensor, ids: Tensor) -> Tensor:
    """Standard Gumbel noise for each key and token id: (rows, n) float32.

    Adding it to logits and taking the largest draws from their softmax. Source: Gumbel 1954,
    "Statistical theory of extreme values". keys: (rows,) int64; ids: (n,) or (rows, n) int64.
    """
    state = keys[:, None] + (ids + 1) * _signed(_GAMMA)  # int64 wraps, as the hash wants it
    for shift, factor in zip(_SHIFTS, (*_MIX, None), strict=True):
        state ^= (state >> shift) & ((1 << (64 - shift)) - 1)  # >> copies the sign bit: mask it
        if factor is not None:
            state *= _signed(factor)
    # 32 bits, small values fine-grained: they become the large noise, which decides
    uniform = ((state >> 32) & 0xFFFFFFFF).float().add_(0.5).mul_(2.0**-32).clamp_(max=1 - 2**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _mixed(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    out: Any = state + np.uint64(_GAMMA)
    for shift, factor in zip(_SHIFTS, (*_MIX, 1), strict=True):
        out = (out ^ (out >> np.uint64(shift))) * np.uint64(factor)
    mixed: npt.NDArray[np.uint64] = out
    return mixed


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
