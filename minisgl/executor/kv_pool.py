"""The memory that holds every key and value. It knows pages and positions, and no requests."""

from __future__ import annotations

import contextlib
import math
import mmap

import torch
from torch import Tensor

from minisgl.kernel.base import Kernels, Place
from minisgl.kernel.plain import PlainKernels

Contents = list[tuple[Tensor, Tensor]]  # keys and values of some pages on each layer


class KVPool:
    """``num_pages`` pages of ``page_size`` positions, on each layer, for keys and for values.

    ``keys[layer]``, ``values[layer]``: (num_pages, page_size, kv_heads, head_dim). Who holds which
    page is the scheduler's business; the one writer is the thread that computes batches.
    """

    def __init__(
        self,
        num_layers: int,
        num_pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels | None = None,
    ) -> None:
        """kernels: what lays out decode steps; None: torch. Raises MemoryError, with the bytes
        that are asked and free, where a GPU has no room."""
        self.num_pages, self.page_size = num_pages, page_size
        self.kernels: Kernels = kernels or PlainKernels()
        shape = (num_pages, page_size, kv_heads, head_dim)
        try:
            self.keys, self.values = (
                [_zeros(shape, dtype, device) for _ in range(num_layers)] for _ in range(2)
            )
        except torch.OutOfMemoryError as error:
            asked = 2 * num_layers * math.prod(shape) * dtype.itemsize
            free = torch.cuda.mem_get_info(device)[0]
            raise MemoryError(
                f"{num_pages} KV pages of {page_size} positions need {asked} bytes on {device}, "
                f"{free} are free there; lower num_pages, or close other engines"
            ) from error
        self._flat = [
            (keys.flatten(0, 1), values.flatten(0, 1))
            for keys, values in zip(self.keys, self.values, strict=True)
        ]

    def place(self, layer: int, locations: Tensor) -> Place:
        """Where keys and values of tokens at flat positions ``locations``, (tokens,) int64, go."""
        return Place(*self._flat[layer], locations)

    def addresses(self) -> Tensor:
        """Where each layer's keys and values begin: (layers, 2) int64, on the device."""
        where = [[keys.data_ptr(), values.data_ptr()] for keys, values in self._flat]
        return torch.tensor(where, device=self.keys[0].device)

    @property
    def page_bytes(self) -> int:
        """What one page takes on all layers."""
        return 2 * len(self.keys) * self.keys[0][0].nbytes

    def read(self, pages: Tensor) -> Contents:
        """Copies of these pages, (n,) int64: keys and values of each layer."""
        return [
            (keys[pages], values[pages])
            for keys, values in zip(self.keys, self.values, strict=True)
        ]

    def put(self, pages: Tensor, contents: Contents, rows: Tensor) -> None:
        """Write to these pages what ``read`` returned in ``rows``; both (n,) int64."""
        for keys, values, (old_keys, old_values) in zip(
            self.keys, self.values, contents, strict=True
        ):
            keys[pages], values[pages] = old_keys[rows], old_values[rows]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, for a masked position has weight 0, and 0 * NaN is NaN.

    On a CPU they take no memory before they are written; torch would write the zeros itself. Nor
    do they come in the system's large pages, as numpy's would: every layer begins its next 2 MiB
    in the same step, which then waits for all of them, 60 ms where a virtual machine gets them
    from its host.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without large pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
