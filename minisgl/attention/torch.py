"""The oracle: attention as the paper writes it, one row at a time, in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minisgl.attention.base import Meta, Pool


class TorchAttention:
    """softmax(Q K^T / sqrt(d)) V, explicitly. Source: Vaswani et al. 2017, sec. 3.2.1."""

    def __init__(self, pool: Pool, windows: Sequence[int | None]) -> None:
        self._pool, self._windows = pool, windows
        self._meta: Meta | None = None

    def prepare(self, meta: Meta) -> None:
        """Keep the batch's metadata."""
        self._meta = meta

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See ``attention.base.Attention``."""
        meta, out, first = self._meta, torch.empty_like(q), 0
        assert meta is not None, "prepare comes before attend"
        window = self._windows[layer] if self._windows else None
        for start, length, pages in zip(meta.starts, meta.lengths, meta.pages, strict=True):
            row = slice(first, first + int(length))
            out[row] = self._row(layer, q[row], int(start), pages, window)
            first = row.stop
        return out.flatten(1)

    def _row(self, layer: int, q: Tensor, start: int, pages: Tensor, window: int | None) -> Tensor:
        end = start + len(q)
        used = pages[: -(-end // self._pool.page_size)].long()
        group = q.shape[1] // self._pool.keys[layer].shape[2]  # query heads that share a key head
        keys, values = (
            pool[used].flatten(0, 1)[:end].float().repeat_interleave(group, 1)
            for pool in (self._pool.keys[layer], self._pool.values[layer])
        )
        scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * q.shape[-1] ** -0.5
        age = torch.arange(start, end, device=q.device)[:, None] - torch.arange(
            end, device=q.device
        )
        hidden = age < 0 if window is None else (age < 0) | (age >= window)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype)
