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

from minisgl.attention.base import Meta, Pool, Replan, device_meta, equal_shares, no_plan

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
        self._wide = max(16, 1 << (self._dim - 1).bit_length())
        processors = 1
        if keys.is_cuda:
            processors = torch.cuda.get_device_properties(keys.device).multi_processor_count
        programs = max(_PROGRAMS * processors, self._kv_heads)
        self._arrived = torch.zeros(programs, dtype=torch.int32, device=keys.device)
        self._meta: Meta | None = None
        self._longest = 1  # new positions of a row

    def prepare(self, meta: Meta) -> None:
        """Keep the batch's metadata."""
        self._meta = meta._replace(device=device_meta(meta))
        self._longest = int(meta.lengths.max())

    def capture(self, meta: Meta, heads: int) -> Replan:
        """See ``Capturable``. The kernels read all lengths on the device."""
        self.prepare(meta)
        return no_plan

    def captured(self) -> None:
        """See ``Capturable``."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See ``attention.base.Attention``."""
        meta, (tokens, heads, dim) = self._meta, q.shape
        assert meta is not None and meta.device is not None, "prepare comes before attend"
        if q.stride(1) != dim:
            q = q.contiguous()
        group, rows = heads // self._kv_heads, len(meta.device.ends)
        lines = max(_LEAST_LINES, 1 << (group - 1).bit_length())
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        out = torch.empty(tokens, heads * dim, dtype=q.dtype, device=q.device)
        scale = dim**-0.5 * math.log2(math.e)
        strides = q.stride(0), meta.pages.stride(0), keys.stride(1)
        constants = {
            "WINDOW": (self._windows[layer] if self._windows else None) or 0,
            "PAGE": self._pool.page_size,
            "GROUP": group,
            "DIM": dim,
            "WIDE": self._wide,
            "BLOCK_K": _KEYS,
            **self._early,
        }
        pages, ends, first = meta.pages, meta.device.ends, meta.device.first
        if self._longest == 1:
            shares = equal_shares(len(self._arrived) // self._kv_heads, rows)
            self._kernels.attend_newest[(self._kv_heads, shares)](
                q,
                out,
                torch.empty(2 * shares, heads, dim, dtype=torch.float32, device=q.device),
                torch.empty(2 * shares, heads, dtype=torch.float32, device=q.device),
                self._arrived,
                keys,
                values,
                pages,
                ends,
                rows,
                scale,
                *strides,
                ROWS=max(_ROWS, 1 << (rows - 1).bit_length()),
                BLOCK_M=lines,
                maxnreg=_REGISTERS,
                **constants,
            )
            return out
        lines = max(lines, _PROMPT_LINES)
        blocks = -(-self._longest // (lines // group))
        self._kernels.attend_pages[(rows, blocks, self._kv_heads)](
            q,
            out,
            keys,
            values,
            pages,
            ends,
            first,
            scale,
            *strides,
            heads,
            BLOCK_M=lines,
            **constants,
        )
        return out
