"""Weights of four bits as AWQ checkpoints hold them, and in plain torch what they mean.

A weight is (code - zero) * scale: a code for each number, a zero and a float16 scale for each group
of inputs that an output reads. That is exact in float32: 5 bits times 11.
Source: Lin et al. 2023 (AWQ); the layout is AutoAWQ's "GEMM".
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

PER_WORD: Final = 8  # codes in an int32
_NIBBLES: Final = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word the codes of 8 outputs are, in order
_BLOCK: Final = 1 << 20  # numbers made at a time


class Int4(NamedTuple):
    """A matrix (outputs, inputs) of four-bit weights. Outputs are a multiple of 8."""

    codes: Tensor  # (inputs, outputs / 8) int32, as ``pack`` makes it
    zeros: Tensor  # (groups, outputs / 8) int32, too
    scales: Tensor  # (groups, outputs) float16
    dtype: torch.dtype  # that is computed in

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.scales.shape[1], len(self.codes)

    @property
    def group(self) -> int:
        """Inputs that share a zero and a scale; their groups follow each other."""
        return len(self.codes) // len(self.scales)


def pack(codes: Tensor) -> Tensor:
    """Codes 0 to 15, (n, outputs), eight in an int32: (n, outputs / 8)."""
    shifts = 4 * torch.tensor(_NIBBLES, device=codes.device)
    words = codes.long().view(len(codes), -1, PER_WORD) << shifts
    return words.sum(-1).to(torch.int32)


def unpack(words: Tensor) -> Tensor:
    """What ``pack`` packed: (n, words) int32 to (n, outputs) uint8."""
    shifts = 4 * torch.tensor(_NIBBLES, dtype=torch.int32, device=words.device)
    codes = (words[:, :, None] >> shifts).bitwise_and_(15)
    return codes.to(torch.uint8).view(len(words), -1)


def dequantise(weight: Int4) -> Tensor:
    """The numbers that a weight stands for, rounded once to its dtype: (outputs, inputs)."""
    outputs, inputs = weight.shape
    out = torch.empty(outputs, inputs, dtype=weight.dtype, device=weight.codes.device)
    group = weight.group
    step = max(1, _BLOCK // (group * outputs))
    for first in range(0, len(weight.scales), step):
        some = slice(first, first + step)
        zeros, scales = unpack(weight.zeros[some]).float(), weight.scales[some].float()
        codes = unpack(weight.codes[first * group : (first + step) * group]).float()
        numbers = (codes.view(len(scales), group, outputs) - zeros[:, None]) * scales[:, None]
        out[:, first * group : (first + step) * group] = numbers.view(-1, outputs).t()
    return out
