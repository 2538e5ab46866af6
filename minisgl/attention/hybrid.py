"""One backend for prompts, another for decode steps, on the same pages."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from minisgl.attention.base import Attention, Capturable, Meta, Pool, Replan
from minisgl.attention.cuda import CudaAttention
from minisgl.attention.flash_attention import FlashAttention
from minisgl.attention.flashinfer import FlashInferAttention
from minisgl.attention.triton import TritonAttention


class HybridAttention:
    """``prompts`` where a row of the batch has several new positions, else ``decodes``."""

    def __init__(self, prompts: Attention, decodes: Capturable) -> None:
        self._prompts, self._decodes = prompts, decodes
        self._now: Attention = decodes

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


def fa3_flashinfer(pool: Pool, windows: Sequence[int | None]) -> HybridAttention:
    """FlashAttention 3, then FlashInfer: what the reference system takes on Hopper GPUs."""
    return HybridAttention(FlashAttention(pool, windows), FlashInferAttention(pool, windows))


def fa3_triton(pool: Pool, windows: Sequence[int | None]) -> HybridAttention:
    """FlashAttention 3, then our own."""
    return HybridAttention(FlashAttention(pool, windows), TritonAttention(pool, windows))


def fa3_cuda(pool: Pool, windows: Sequence[int | None]) -> HybridAttention:
    """FlashAttention 3, then our own in CUDA."""
    return HybridAttention(FlashAttention(pool, windows), CudaAttention(pool, windows))


def flashinfer_cuda(pool: Pool, windows: Sequence[int | None]) -> HybridAttention:
    """FlashInfer, then our own in CUDA."""
    return HybridAttention(FlashInferAttention(pool, windows), CudaAttention(pool, windows))


def flashinfer_triton(pool: Pool, windows: Sequence[int | None]) -> HybridAttention:
    """FlashInfer, then our own."""
    return HybridAttention(FlashInferAttention(pool, windows), TritonAttention(pool, windows))
