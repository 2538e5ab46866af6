"""Attention over pages in Triton: our own, for every head size, page size, window and dtype.

Keys are read where they lie. Rows of one new position are split along their keys where they are too
few to fill the GPU, and the parts merged. Sources: Dao 2023 (FlashAttention-2), sec. 3; Dao et al.
2023 (Flash-Decoding).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from minisgl.attention.base import Ints, Meta, Pool, Replan, device_meta

_PROMPT_LINES: Final = 64
_KEYS: Final = 64  # positions that a program looks at together
# For decode steps, the best that was measured on an H200, at contexts of 300 to 740: below so many
# rows times key heads, a row's keys have so many splits, and so many are looked at together.
_DECODES: Final = ((64, 16, 128), (128, 8, 128), (512, 2, 128), (1024, 1, 64))
_MANY: Final = (1, 128)


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
        self._meta: Meta | None = None
        self._longest = 1  # new positions of a row

    def prepare(self, meta: Meta) -> None:
        """Keep the batch's metadata."""
        self._meta = meta._replace(device=device_meta(meta))
        self._longest = int(meta.lengths.max())

    def capture(self, meta: Meta, heads: int) -> Replan:
        """See ``Capturable``. The kernels read all lengths on the device."""
        self.prepare(meta)
        return _nothing

    def captured(self) -> None:
        """See ``Capturable``."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See ``attention.base.Attention``."""
        meta, (tokens, heads, dim) = self._meta, q.shape
        assert meta is not None and meta.device is not None, "prepare comes before attend"
        if q.stride(1) != dim:
            q = q.contiguous()
        group, rows = heads // self._kv_heads, len(meta.device.ends)
        lines = max(16, 1 << (group - 1).bit_length())
        if self._longest > 1:
            lines = max(lines, _PROMPT_LINES)
        blocks = -(-self._longest // (lines // group))
        splits, together = 1, _KEYS
        if self._longest == 1:
            count = rows * self._kv_heads
            sizes = ((splits, keys) for most, splits, keys in _DECODES if count < most)
            splits, together = next(sizes, _MANY)
        out = torch.empty(tokens, heads * dim, dtype=q.dtype, device=q.device)
        parts = sums = out
        if splits > 1:
            parts = torch.empty(splits, tokens, heads, dim, device=q.device)
            sums = torch.empty(splits, tokens, heads, device=q.device)
        window = self._windows[layer] if self._windows else None
        keys = self._pool.keys[layer]
        self._kernels.attend_pages[(rows, blocks, self._kv_heads * splits)](
            q,
            parts,
            sums,
            keys,
            self._pool.values[layer],
            meta.pages,
            meta.device.ends,
            meta.device.first,
            dim**-0.5 * math.log2(math.e),
            q.stride(0),
            meta.pages.stride(0),
            keys.stride(1),
            heads,
            tokens * heads,
            WINDOW=window or 0,
            PAGE=self._pool.page_size,
            GROUP=group,
            DIM=dim,
            WIDE=self._wide,
            BLOCK_M=lines,
            BLOCK_K=together,
            SPLITS=splits,
            **self._early,
        )
        if splits > 1:
            self._kernels.merge_splits[(tokens * heads,)](
                parts,
                sums,
                out,
                tokens * heads,
                DIM=dim,
                WIDE=self._wide,
                SPLITS=splits,
                COUNT=1 << (splits - 1).bit_length(),
                **self._early,
            )
        return out


def _nothing(ends: Ints) -> None:
    """No plan is made on the host."""
