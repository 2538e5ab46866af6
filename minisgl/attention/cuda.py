"""Attention of decode steps in CUDA C++: csrc/decode.cuh. Another backend computes prompts.

It reads keys at the rate of memory from a step's first moment to its last, and turns and stores the
newest heads on the way, which is a kernel less in every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minisgl.attention.base import DeviceMeta, Ints, Meta, Pool, Replan, device_meta
from minisgl.kernel.base import Turn
from minisgl.kernel.compile import load_cuda
from minisgl.kernel.plain import PlainKernels


class CudaAttention:
    """For rows of one new position each, of 16-bit numbers, heads of 32, 64 or 128 of them, up to 8
    query heads a key head. module: where the kernel is compiled already.

    Raises kernel.compile.NoKernels.
    """

    def __init__(self, pool: Pool, windows: Sequence[int | None], module: Any = None) -> None:
        module = module or load_cuda(torch.cuda.get_device_capability(), source="decode.cu")
        self._attend, self._most_shares = module["attend"], module["shares"]
        self._pool, self._windows = pool, windows
        self._kv_heads = pool.keys[0].shape[2]
        self._arrived = torch.zeros(0, dtype=torch.int32, device=pool.keys[0].device)
        self._shares = dict[int, int]()  # by the number of rows
        self._now: tuple[Meta, DeviceMeta] | None = None

    def prepare(self, meta: Meta) -> None:
        """See ``attention.base.Attention``."""
        assert (meta.lengths == 1).all(), "decode steps alone"
        self._now = meta, device_meta(meta)
        rows = len(self._now[1].ends)
        if rows not in self._shares:
            most = int(self._most_shares(self._pool.keys[0], rows))
            even = most - most % rows  # a few less, if rows of the same length are not cut then
            self._shares[rows] = even if even >= 0.9 * most else most
            if len(self._arrived) < most * self._kv_heads:
                self._arrived = self._arrived.new_zeros(most * self._kv_heads)

    def capture(self, meta: Meta, heads: int) -> Replan:
        """See ``Capturable``. The kernel reads all lengths on the device."""
        self.prepare(meta)
        return _nothing

    def captured(self) -> None:
        """See ``Capturable``."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See ``attention.base.Attention``."""
        return self._run(layer, q, q.shape[1], None)

    def turn_and_attend(self, layer: int, qkv: Tensor, turn: Turn) -> Tensor | None:
        """See ``TurnAndAttend``. Who asks for plain kernels wants each step by itself."""
        if isinstance(turn.kernels, PlainKernels):
            return None
        return self._run(layer, qkv, qkv.shape[1] - 2 * self._kv_heads, turn)

    def _run(self, layer: int, x: Tensor, heads: int, turn: Turn | None) -> Tensor:
        assert self._now is not None, "prepare comes before attend"
        (meta, device), (rows, _, dim) = self._now, x.shape
        shares, out = self._shares[rows], x.new_empty(rows, heads * dim)
        self._attend(
            x if x.stride(1) == dim else x.contiguous(),
            *((None, 0.0, None, None) if turn is None else turn[1:]),
            self._pool.keys[layer],
            self._pool.values[layer],
            meta.pages,
            device.ends,
            out,
            torch.empty(2 * shares, heads, dim, device=x.device),
            torch.empty(2 * shares, heads, device=x.device),
            self._arrived,
            (self._windows[layer] if self._windows else None) or 0,
            shares,
        )
        return out


def _nothing(ends: Ints) -> None:
    """No plan is made on the host."""
