"""Attention in C++, for float32 on a CPU: it reads pages where they lie.

One call attends every row of a batch, whatever their lengths; there is no gathering, padding or
masking for torch to do. ``attention.torch`` is its oracle.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minisgl.attention.base import Meta, Pool
from minisgl.kernel.functions import functions


class NativeAttention:
    """Raises kernel.compile.NoKernels where it cannot be built, ValueError for another dtype."""

    def __init__(self, pool: Pool, windows: Sequence[int | None]) -> None:
        keys = pool.keys[0]
        if keys.dtype != torch.float32 or keys.device.type != "cpu":
            raise ValueError(
                f"attention='native' computes float32 on a CPU; the pool is {keys.dtype} on "
                f"{keys.device}; use attention='grouped'"
            )
        self._pool, self._windows = pool, windows
        self._native = functions()
        self._meta: Meta | None = None
        self._starts = self._lengths = torch.empty(0)

    def prepare(self, meta: Meta) -> None:
        """Keep the batch's metadata."""
        self._meta = meta
        self._starts, self._lengths = torch.from_numpy(meta.starts), torch.from_numpy(meta.lengths)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See ``attention.base.Attention``."""
        meta, (tokens, heads, dim) = self._meta, q.shape
        assert meta is not None, "prepare comes before attend"
        out = torch.empty(tokens, heads * dim)
        window = self._windows[layer] if self._windows else None
        self._native.attend(
            q,
            self._pool.keys[layer],
            self._pool.values[layer],
            meta.pages,
            self._starts,
            self._lengths,
            window or 0,
            out,
            torch.get_num_threads(),
        )
        return out
