"""A model's pages and tables, and how what they hold is copied out and put back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from minisgl.config import EngineConfig
from minisgl.distributed.group import Group, share_kv_heads
from minisgl.executor.kv_pool import Contents, KVPool
from minisgl.executor.tables import Tables
from minisgl.kernel.base import Kernels
from minisgl.models.config import ModelConfig
from minisgl.models.decoder import Model


class Memory:
    """What a rank's device remembers between batches. Who computes batches writes to it."""

    def __init__(
        self,
        model: Model,
        model_config: ModelConfig,
        config: EngineConfig,
        group: Group,
        *,
        spare: int = 0,
        kernels: Kernels | None = None,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """config: resolved. spare: pages and slots more than it has; their slots' pages are the
        first of them. kernels: see ``KVPool``. stream: what batches are queued on; None: on a CPU.
        Raises MemoryError where a GPU has no room."""
        limits, self.device, self._stream = config.limits, model.device, stream
        self.pool = KVPool(
            model_config.num_layers,
            limits.num_pages + spare,
            limits.page_size,
            len(share_kv_heads(model_config.num_kv_heads, group)),
            model_config.head_dim,
            model.dtype,
            model.device,
            kernels,
        )
        max_pages = -(-limits.max_seq_len // limits.page_size)
        self.tables = Tables(limits.max_running + spare, max_pages, model.device)
        self.tables.pages[limits.max_running :] = limits.num_pages

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """What is computed within comes after what was computed so before."""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            yield

    def read(self, pages: Sequence[int]) -> Contents:
        """Copies of these pages."""
        with self.in_order():
            return self.pool.read(self._indices(pages))

    def put(self, pages: Sequence[int], contents: Contents, rows: Sequence[int]) -> None:
        """Write to these pages what ``read`` returned in ``rows``, here or in another."""
        with self.in_order():
            self.pool.put(self._indices(pages), contents, self._indices(rows))

    def copy_tables(self) -> Tables:
        """An independent copy of the tables."""
        with self.in_order():
            return self.tables.twin()

    def set_tables(self, tables: Tables) -> None:
        """Take over what ``copy_tables`` returned, here or in another."""
        with self.in_order():
            self.tables.copy_(tables)

    def _indices(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)
