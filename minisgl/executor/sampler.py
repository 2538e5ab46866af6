"""From logits to tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from minisgl.core import SamplingParams


def sample(logits: Tensor, sampling: Sequence[SamplingParams]) -> Tensor:
    """Each row's next token: (rows,) int64 on the logits' device. Greedy; the first of equals wins.

    logits: (rows, vocab_size). sampling: how each row's request generates.
    """
    assert len(logits) == len(sampling)
    return logits.argmax(-1)
