"""The fast path on a CPU: pages gathered into a small scratch buffer, then torch's fused attention.

Three choices, each measured (Qwen3-0.6B's shape, 512 positions a row, fp32, one thread of a 2-core
AVX2 machine; ms per layer and 64 decoding rows):
- Query heads that share a key head become the query positions of one head: no key is repeated.
- Decoding rows go together, but only as many as keep the gathered keys in the cache: 22 ms. All
  rows in one call take 38 ms; even keys that lie contiguous already, in one call, take 21.
- The scratch buffer is kept; gathering into fresh memory takes 127 ms instead of 14.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minisgl.attention.base import Ints, Meta, Pool

_SCRATCH_BYTES: Final = 2 << 20  # gathered keys of one call, unless a single row has more


class GroupedAttention:
    """Attention for decoding rows in groups of similar length, and for other rows one by one."""

    def __init__(self, pool: Pool, windows: Sequence[int | None]) -> None:
        self._pool, self._windows = pool, windows
        self._gather = _Gather(pool)
        self._meta: Meta | None = None
        self._decodes: list[_Decode] = []
        self._prefills: list[_Prefill] = []

    def prepare(self, meta: Meta) -> None:
        """Group the batch's rows. A row of one new position is a decode, whatever it is called."""
        self._meta = meta
        ends = meta.starts + meta.lengths
        first = meta.lengths.cumsum() - meta.lengths
        many = np.flatnonzero(meta.lengths > 1)
        self._prefills = [
            _Prefill(int(first[row]), int(meta.starts[row]), int(ends[row]), meta.pages[row])
            for row in many
        ]
        one = np.flatnonzero(meta.lengths == 1)
        one = one[np.argsort(-ends[one], kind="stable")]  # longest first
        self._decodes = [
            _Decode(first[rows], rows, ends[rows], meta.pages) for rows in self._groups(one, ends)
        ]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See ``attention.base.Attention``."""
        assert self._meta is not None, "prepare comes before attend"
        window = self._windows[layer] if self._windows else None
        out = torch.empty_like(q)
        for decode in self._decodes:
            decode.attend(layer, q, self._gather, window, out)
        for prefill in self._prefills:
            prefill.attend(layer, q, k, v, self._gather, window, out)
        return out.flatten(1)

    def _groups(self, rows: Ints, ends: Ints) -> list[Ints]:
        """Cut rows, longest first, where the scratch is full or the padding would exceed a half."""
        groups, i = list[Ints](), 0
        falling = -ends[rows]
        while i < len(rows):
            longest = int(ends[rows[i]])
            fit = max(1, _SCRATCH_BYTES // self._gather.num_bytes(longest))
            alike = int(np.searchsorted(falling, -(longest // 2), side="right"))
            j = min(i + fit, max(alike, i + 1))
            groups.append(rows[i:j])
            i = j
        return groups


class _Gather:
    """Copies pages next to each other. Owns the memory it copies to, which the next call reuses."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self.page_size = pool, pool.page_size
        self._page = pool.keys[0].shape[1:]
        empty = pool.keys[0].new_empty(0)
        self._keys, self._values = empty, empty

    def num_bytes(self, length: int) -> int:
        """What the keys of so many positions take."""
        return self.num_pages(length) * self._page.numel() * self._keys.element_size()

    def num_pages(self, length: int) -> int:
        """Pages that hold so many positions."""
        return -(-length // self.page_size)

    def __call__(self, layer: int, pages: Tensor) -> tuple[Tensor, Tensor]:
        """pages: (rows, n). Returns keys and values: (rows, kv_heads, n * page_size, head_dim)."""
        size = pages.numel() * self._page.numel()
        if size > len(self._keys):
            self._keys, self._values = self._keys.new_empty(size), self._keys.new_empty(size)
        flat, rows = pages.flatten(), len(pages)
        keys = self._keys[:size].view(-1, *self._page)
        values = self._values[:size].view(-1, *self._page)
        torch.index_select(self._pool.keys[layer], 0, flat, out=keys)
        torch.index_select(self._pool.values[layer], 0, flat, out=values)
        shape = (rows, -1, *self._page[1:])
        return keys.view(shape).transpose(1, 2), values.view(shape).transpose(1, 2)


class _Decode:
    """Rows of one new position each, padded to the longest."""

    def __init__(self, tokens: Ints, rows: Ints, ends: Ints, pages: Tensor) -> None:
        device = pages.device
        self._tokens = torch.from_numpy(tokens).to(device)
        self._pages = pages[torch.from_numpy(rows).to(device)]
        self._length = int(ends[0])
        self._ends = torch.from_numpy(ends).to(device)[:, None]
        self._shortest = int(ends[-1])
        self._masks: dict[int | None, Tensor | None] = {}

    def attend(
        self, layer: int, q: Tensor, gather: _Gather, window: int | None, out: Tensor
    ) -> None:
        """Write the rows' results into ``out``."""
        length, (heads, dim) = self._length, q.shape[1:]
        keys, values = gather(layer, self._pages[:, : gather.num_pages(length)])
        kv_heads = keys.shape[1]
        if window not in self._masks:
            self._masks[window] = self._mask(window, q)
        result = F.scaled_dot_product_attention(
            q[self._tokens].view(-1, kv_heads, heads // kv_heads, dim),
            keys[:, :, :length],
            values[:, :, :length],
            self._masks[window],
        )
        out[self._tokens] = result.reshape(-1, heads, dim)

    def _mask(self, window: int | None, like: Tensor) -> Tensor | None:
        if self._shortest == self._length and (window is None or window >= self._length):
            return None
        position = torch.arange(self._length, device=like.device)
        hidden = position >= self._ends
        if window is not None:
            hidden |= position < self._ends - window
        return _as_scores(hidden, like)[:, None, None]


class _Prefill:
    """One row of several new positions, after a computed prefix or none."""

    def __init__(self, first: int, start: int, end: int, pages: Tensor) -> None:
        self._tokens = slice(first, first + end - start)
        self._start, self._end, self._pages = start, end, pages[None]
        self._masks: dict[int | None, Tensor] = {}

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gather: _Gather,
        window: int | None,
        out: Tensor,
    ) -> None:
        """Write the row's results into ``out``."""
        tokens, end, (heads, dim) = self._tokens, self._end, q.shape[1:]
        causal = self._start == 0 and (window is None or window >= end)
        if self._start == 0:
            keys, values = k[tokens].transpose(0, 1)[None], v[tokens].transpose(0, 1)[None]
        else:
            keys, values = gather(layer, self._pages[:, : gather.num_pages(end)])
        if not causal and window not in self._masks:
            self._masks[window] = self._mask(window, q)
        kv_heads = keys.shape[1]
        shape = (kv_heads, heads // kv_heads, -1, dim)
        # (kv_heads, group, positions, dim): the group's heads see the same keys, which are not
        # copied
        result = F.scaled_dot_product_attention(
            q[tokens].transpose(0, 1).reshape(shape),
            keys[0, :, None, :end].expand(shape),
            values[0, :, None, :end].expand(shape),
            None if causal else self._masks[window],
            is_causal=causal,
        )
        out[tokens] = result.flatten(0, 1).transpose(0, 1)

    def _mask(self, window: int | None, like: Tensor) -> Tensor:
        new = torch.arange(self._start, self._end, device=like.device)[:, None]
        age = new - torch.arange(self._end, device=like.device)
        return _as_scores(age < 0 if window is None else (age < 0) | (age >= window), like)


def _as_scores(hidden: Tensor, like: Tensor) -> Tensor:
    """What is added to the scores: minus infinity where hidden."""
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(
        hidden, float("-inf")
    )
