"""FlashAttention 3 over pages, from the package sglang-kernel. For Hopper GPUs.

Source: Shah et al. 2024 (FlashAttention-3).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from minisgl.attention.base import DeviceMeta, Meta, Pool, Replan, device_meta, no_plan


class FlashAttention:
    """One kernel for prompts and decode steps. Raises ImportError where it is not installed."""

    def __init__(self, pool: Pool, windows: Sequence[int | None]) -> None:
        from sgl_kernel.flash_attn import flash_attn_with_kvcache

        self._attend = flash_attn_with_kvcache
        self._pool, self._windows = pool, windows
        self._meta: Meta | None = None
        self._longest = 1  # new positions of a row

    def prepare(self, meta: Meta) -> None:
        """Keep the batch's metadata."""
        self._keep(meta, device_meta(meta), int(meta.lengths.max()))

    def capture(self, meta: Meta, heads: int) -> Replan:
        """See ``Capturable``. The kernel reads all lengths on the device."""
        self._keep(meta, device_meta(meta), 1)
        return no_plan

    def captured(self) -> None:
        """See ``Capturable``."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See ``attention.base.Attention``."""
        meta, pool = self._meta, self._pool
        assert meta is not None and meta.device is not None, "prepare comes before attend"
        window = self._windows[layer] if self._windows else None
        out: Tensor = self._attend(
            q=q,
            k_cache=pool.keys[layer],
            v_cache=pool.values[layer],
            cache_seqlens=meta.device.ends,
            page_table=meta.pages,
            cu_seqlens_q=meta.device.first,
            max_seqlen_q=self._longest,
            softmax_scale=q.shape[-1] ** -0.5,
            causal=True,
            window_size=(-1, -1) if window is None else (window - 1, 0),
        )
        return out.view(len(q), -1)

    def _keep(self, meta: Meta, device: DeviceMeta, longest: int) -> None:
        self._meta, self._longest = meta._replace(device=device), longest
