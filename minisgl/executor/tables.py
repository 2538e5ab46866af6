"""What the device remembers of each slot between batches, and how a batch's numbers get there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from minisgl.attention.base import Ints
from minisgl.core import Row
from minisgl.executor.penalties import Penalties

T = TypeVar("T")


class Tables:
    """One row per slot. The one writer is the thread that computes batches, from the batches alone.

    pages: (slots, max_pages) int32, entry j holding the slot's positions from j * page_size on.
    last: (slots,) int64, the token sampled last, which a decode step feeds back.
    penalties: the tokens used so far, for requests with penalties.
    """

    def __init__(self, slots: int, max_pages: int, device: torch.device) -> None:
        self.pages = torch.zeros(slots, max_pages, dtype=torch.int32, device=device)
        self.last = torch.zeros(slots, dtype=torch.int64, device=device)
        self.penalties = Penalties(device)

    def copy_(self, other: Tables) -> Tables:
        """Take over all that another of the same shape says; returns itself."""
        self.pages.copy_(other.pages)
        self.last.copy_(other.last)
        self.penalties.copy_(other.penalties)
        return self

    def twin(self) -> Tables:
        """An independent copy."""
        slots, max_pages = self.pages.shape
        return Tables(slots, max_pages, self.pages.device).copy_(self)

    @property
    def num_bytes(self) -> int:
        """The memory it takes."""
        return self.pages.nbytes + self.last.nbytes + self.penalties.num_bytes


class Staging:
    """Takes a batch's small integers to the device in one copy.

    A ring of ``depth`` flat host buffers, pinned where the device is a GPU, so that one can be
    filled while those before it are still being copied; one that is not copied yet is waited for.
    On a CPU the buffer is the device's own memory and nothing is copied: what ``send`` returned is
    valid until ``depth`` further calls.
    """

    def __init__(self, depth: int, device: torch.device) -> None:
        self._device, self._pinned = device, device.type == "cuda"
        self._ring = [self._buffer(4096) for _ in range(depth)]
        self._copied = [torch.cuda.Event() for _ in range(depth)] if self._pinned else []
        self._next = 0

    def send(self, *parts: Ints) -> Sequence[Tensor]:
        """The same parts as int64 tensors on the device."""
        sizes = [len(part) for part in parts]
        on_device = self._fill(parts, sizes).to(self._device, non_blocking=True)
        self._note()
        return on_device.split_with_sizes(sizes)

    def send_into(self, target: Tensor, part: Ints) -> None:
        """The same numbers to int64 memory on a GPU, flat and of the same size."""
        target.copy_(self._fill((part,), [len(part)]), non_blocking=True)
        self._note()

    def _fill(self, parts: Sequence[Ints], sizes: Sequence[int]) -> Tensor:
        total, self._next = sum(sizes), (self._next + 1) % len(self._ring)
        if self._pinned:
            self._copied[self._next].synchronize()
        if total > len(self._ring[self._next]):
            self._ring[self._next] = self._buffer(2 * total)
        buffer, begin = self._ring[self._next], 0
        view = buffer.numpy()
        for part, size in zip(parts, sizes, strict=True):
            view[begin : begin + size] = part
            begin += size
        return buffer[:total]

    def _note(self) -> None:
        if self._pinned:
            self._copied[self._next].record()

    def _buffer(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int64, pin_memory=self._pinned)


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """range(starts[i], starts[i] + lengths[i]) for each i, one after the other."""
    before = lengths.cumsum() - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def spread(values: Sequence[T], rows: Sequence[Row]) -> tuple[T | None, ...]:
    """The values of the emitting rows, None where a row emits nothing."""
    each = iter(values)
    return tuple(next(each) if row.emits else None for row in rows)
