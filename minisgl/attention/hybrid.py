"""One backend for prompts, another for decode steps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from minisgl.attention.base import Attention, Meta, Pool, Replan
from minisgl.attention.flash_attention import FlashAttention
from minisgl.attention.flashinfer import FlashInferAttention


class HybridAttention:
    """FlashAttention 3 where a row has several new positions, else FlashInfer."""

    def __init__(self, pool: Pool, windows: Sequence[int | None]) -> None:
        self._prompts = FlashAttention(pool, windows)
        self._decodes = FlashInferAttention(pool, windows)
        self._now: Attention = self._decodes

    def prepare(self, meta: Meta) -> None:
        """See ``attention.base.Attention``."""
        self._now = self._decodes if (meta.lengths == 1).all() else self._prompts
        self._now.prepare(meta)

    def capture(self, meta: Meta, heads: int) -> Replan:
        """See ``Capturable``."""
        self._now = self._decodes
        return self._decodes.capture(meta, heads)

    def captured(self) -> None:
        """See ``Capturable``."""
        self._decodes.captured()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See ``attention.base.Attention``."""
        return self._now.attend(layer, q, k, v)
