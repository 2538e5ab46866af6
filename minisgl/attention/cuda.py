"""Attention of decode steps in CUDA C++: csrc/decode.cuh. Another backend computes prompts.

Pages come to shared memory by copies that no thread has to issue piece by piece, so that memory is
read at its full rate; the first of them while the kernel ahead still runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minisgl.attention.base import (
    DeviceMeta,
    Meta,
    Pool,
    Replan,
    device_meta,
    equal_shares,
    no_plan,
)
from minisgl.kernel.compile import load_cuda


class CudaAttention:
    """For rows of one new position each, of 16-bit numbers, heads of 64 or 128 of them, up to 8
    query heads a key head, pages of a multiple of 16 positions. module: where the kernel is
    compiled already.

    Raises kernel.compile.NoKernels, and ValueError for another pool and for too many rows.
    """

    def __init__(self, pool: Pool, windows: Sequence[int | None], module: Any = None) -> None:
        module = module or load_cuda(torch.cuda.get_device_capability(), source="decode.cu")
        self._attend, self._most_shares = module["attend"], module["shares"]
        self._pool, self._windows = pool, windows
        keys = pool.keys[0]
        if int(self._most_shares(keys, 1)) == 0:
            raise ValueError(
                f"decode attention in CUDA takes heads of 64 and 128 on pages of a multiple of 16 "
                f"positions; here are heads of {keys.shape[3]} on pages of {keys.shape[1]}; "
                "use attention='auto'"
            )
        self._shares = dict[int, tuple[int, Tensor]]()  # of so many rows; what has arrived of each
        self._now: tuple[Meta, DeviceMeta] | None = None

    def prepare(self, meta: Meta) -> None:
        """See ``attention.base.Attention``."""
        assert (meta.lengths == 1).all(), "decode steps alone"
        self._now = meta, device_meta(meta)
        rows, keys = len(self._now[1].ends), self._pool.keys[0]
        if rows not in self._shares:
            most = int(self._most_shares(keys, rows))
            if most == 0:
                raise ValueError(
                    f"decode attention in CUDA has no room for {rows} rows in a block's shared "
                    "memory; lower max_running, or use attention='triton'"
                )
            shares = equal_shares(most, rows)
            arrived = torch.zeros(shares * keys.shape[2], dtype=torch.int32, device=keys.device)
            self._shares[rows] = shares, arrived

    def capture(self, meta: Meta, heads: int) -> Replan:
        """See ``Capturable``. The kernel reads all lengths on the device."""
        self.prepare(meta)
        return no_plan

    def captured(self) -> None:
        """See ``Capturable``."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See ``attention.base.Attention``."""
        assert self._now is not None, "prepare comes before attend"
        (meta, device), (rows, heads, dim) = self._now, q.shape
        (shares, arrived), out = self._shares[rows], q.new_empty(rows, heads * dim)
        self._attend(
            q if q.stride(1) == dim else q.contiguous(),
            self._pool.keys[layer],
            self._pool.values[layer],
            meta.pages,
            device.ends,
            out,
            torch.empty(2 * shares, heads, dim, dtype=torch.float32, device=q.device),
            torch.empty(2 * shares, heads, dtype=torch.float32, device=q.device),
            arrived,
            (self._windows[layer] if self._windows else None) or 0,
            shares,
        )
        return out
