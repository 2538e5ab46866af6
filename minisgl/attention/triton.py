"""Attention over pages in Triton: our own, for every head size, page size, window and dtype.

Keys are read where they lie. In a decode step the keys of all rows, one after the other, are cut
into equal shares wherever a row ends, one for each program that the GPU holds at a time: none waits
for a longer one, be rows few or many, short or long. Parts of a row are merged by whoever is the
last to finish one. Sources: Dao 2023 (FlashAttention-2), sec. 3; Dao et al. 2023 (Flash-Decoding);
Osama et al. 2023 (Stream-K).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from minisgl.attention.base import DeviceMeta, Ints, Meta, Pool, Replan, device_meta
from minisgl.kernel.base import Turn
from minisgl.kernel.plain import PlainKernels

_PROMPT_LINES: Final = 64
_LEAST_LINES: Final = 16  # of a tensor core's product
_KEYS: Final = 64  # positions that a program looks at together
# Decode steps: so many programs a multiprocessor, with so few registers that all are there at once.
# On an H200, 16, 64 and 256 rows of 300 to 1500 positions, 8 key heads: 23.8, 58.6, 219 us a layer
# (at 4.3 TB/s 13.9, 49.7, 218); twice as many programs took 27.1, 65.4, 225.
_PROGRAMS: Final = 4
_REGISTERS: Final = 128
_ROWS: Final = 256  # kernels are compiled for so many rows, and for each doubling above


class TritonAttention:
    """Raises ImportError where Triton is not installed."""

    def __init__(self, pool: Pool, windows: Sequence[int | None]) -> None:
        from minisgl.attention import triton_kernels

        self._kernels: Any = triton_kernels
        self._pool, self._windows = pool, windows
        keys = pool.keys[0]
        self._kv_heads, self._dim = keys.shape[2], keys.shape[3]
        # programmatic dependent launch, as the CUDA kernels around it have it
        early = keys.is_cuda and torch.cuda.get_device_capability(keys.device) >= (9, 0)
        self._early: dict[str, bool] = {"EARLY": early} | ({"launch_pdl": True} if early else {})
        self._scale = self._dim**-0.5 * math.log2(math.e)
        self._wide = max(16, 1 << (self._dim - 1).bit_length())
        processors = 1
        if keys.is_cuda:
            processors = torch.cuda.get_device_properties(keys.device).multi_processor_count
        programs = max(_PROGRAMS * processors, self._kv_heads)
        self._arrived = torch.zeros(programs, dtype=torch.int32, device=keys.device)
        self._meta: tuple[Meta, DeviceMeta] | None = None
        self._longest = 1  # new positions of a row

    def prepare(self, meta: Meta) -> None:
        """Keep the batch's metadata."""
        self._meta = meta, device_meta(meta)
        self._longest = int(meta.lengths.max())

    def capture(self, meta: Meta, heads: int) -> Replan:
        """See ``Capturable``. The kernels read all lengths on the device."""
        self.prepare(meta)
        return _nothing

    def captured(self) -> None:
        """See ``Capturable``."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See ``attention.base.Attention``."""
        if q.stride(1) != self._dim:
            q = q.contiguous()
        if self._longest == 1:
            return self._newest(layer, q, q.shape[1], None)
        assert self._meta is not None, "prepare comes before attend"
        (meta, device), (tokens, heads, dim) = self._meta, q.shape
        out = torch.empty(tokens, heads * dim, dtype=q.dtype, device=q.device)
        keys, group = self._pool.keys[layer], heads // self._kv_heads
        lines = max(_lines(group), _PROMPT_LINES)
        blocks = -(-self._longest // (lines // group))
        self._kernels.attend_pages[(len(device.ends), blocks, self._kv_heads)](
            q,
            out,
            keys,
            self._pool.values[layer],
            meta.pages,
            device.ends,
            device.first,
            self._scale,
            q.stride(0),
            meta.pages.stride(0),
            keys.stride(1),
            heads,
            BLOCK_M=lines,
            **self._constants(layer, group),
        )
        return out

    def turn_and_attend(self, layer: int, qkv: Tensor, turn: Turn) -> Tensor | None:
        """See ``TurnAndAttend``. For decode steps; plain kernels are asked for to see each step."""
        if (
            self._longest > 1
            or isinstance(turn.kernels, PlainKernels)
            or qkv.stride(1) != self._dim
        ):
            return None
        return self._newest(layer, qkv, qkv.shape[1] - 2 * self._kv_heads, turn)

    def _newest(self, layer: int, q: Tensor, heads: int, turn: Turn | None) -> Tensor:
        """Attention of one new position a row. q: its query heads; with a turn, all its heads."""
        assert self._meta is not None, "prepare comes before attend"
        (meta, device), (rows, _, dim) = self._meta, q.shape
        out = torch.empty(rows, heads * dim, dtype=q.dtype, device=q.device)
        keys, shares = self._pool.keys[layer], _shares(len(self._arrived) // self._kv_heads, rows)
        weight = None if turn is None else turn.weight
        self._kernels.attend_newest[(self._kv_heads, shares)](
            q,
            out,
            q if weight is None else weight,
            q if turn is None else turn.cos,
            q if turn is None else turn.sin,
            torch.empty(2 * shares, heads, dim, device=q.device),
            torch.empty(2 * shares, heads, device=q.device),
            self._arrived,
            keys,
            self._pool.values[layer],
            meta.pages,
            device.ends,
            rows,
            self._scale,
            0.0 if turn is None else turn.eps,
            q.stride(0),
            meta.pages.stride(0),
            keys.stride(1),
            TURN=turn is not None,
            NORM=weight is not None,
            ROWS=max(_ROWS, 1 << (rows - 1).bit_length()),
            BLOCK_M=_lines(heads // self._kv_heads),
            maxnreg=_REGISTERS,
            **self._constants(layer, heads // self._kv_heads),
        )
        return out

    def _constants(self, layer: int, group: int) -> dict[str, int]:
        """What the kernels are compiled for."""
        return {
            "WINDOW": (self._windows[layer] if self._windows else None) or 0,
            "PAGE": self._pool.page_size,
            "GROUP": group,
            "DIM": self._dim,
            "WIDE": self._wide,
            "BLOCK_K": _KEYS,
            **self._early,
        }


def _lines(group: int) -> int:
    """Of a tensor core's product: the query heads of a key head, and as many more as it needs."""
    return max(_LEAST_LINES, 1 << (group - 1).bit_length())


def _shares(most: int, rows: int) -> int:
    """As many as fit, or a few less, so that rows of the same length are not cut across."""
    even = most - most % rows
    return even if even >= 0.9 * most else most


def _nothing(ends: Ints) -> None:
    """No plan is made on the host."""
