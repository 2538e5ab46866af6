"""Decode steps as CUDA graphs: one launch instead of hundreds, for batches of one position a row.

A graph has a fixed number of rows; a smaller batch is padded with rows that live in a slot and a
page of their own. Graphs are captured when a size is first needed and share one pool of memory.
"""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minisgl.attention.base import DeviceMeta, Meta, Paged, Replan
from minisgl.core import Row
from minisgl.executor.kv_pool import KVPool
from minisgl.executor.tables import Staging, Tables
from minisgl.kernel.base import DecodeInputs, DecodeTables
from minisgl.models.decoder import Model

_STEP: Final = 8  # between sizes, above 8 rows


def sizes(most: int) -> tuple[int, ...]:
    """The numbers of rows that graphs have: 1, 2, 4, 8, 16, 24 and so on, up to ``most``."""
    small = [size for size in (1, 2, 4) if size < most]
    return (*small, *range(_STEP, most, _STEP), most)


class Parts(NamedTuple):
    """What graphs compute with."""

    model: Model
    pool: KVPool
    tables: Tables
    attention: Any  # a ``Capturable``
    heads: int  # query heads
    addresses: Tensor | None  # the pool's, where one kernel may compute all layers of a token


class Graphs:
    """The graphs of one model on its pages and tables. Used on the stream of that model alone.

    most: rows of the largest graph.
    Padding uses the last slot of the tables, whose pages are all the last page of the pool.
    """

    def __init__(self, parts: Parts, most: int) -> None:
        self.parts = parts
        self._sizes, self._kept = sizes(most), dict[tuple[int, bool], Decode]()
        self._memory = torch.cuda.graph_pool_handle()
        self._failed = False

    def fit(self, rows: Sequence[Row]) -> bool:
        """Whether a graph can compute these rows: each one position and a token, few new pages."""
        return (
            not self._failed
            and len(rows) <= self._sizes[-1]
            and all(row.length == 1 and row.emits and len(row.new_pages) <= 1 for row in rows)
        )

    def of(self, count: int, greedy: bool) -> Decode | None:
        """The graph for so many rows, captured now if it is not yet; None if it cannot be.

        greedy: it chooses tokens, too, and notes them; else it ends with hidden states.
        """
        size = self._sizes[bisect_left(self._sizes, count)]
        step = self._kept.get((size, greedy))
        if step is None:
            try:
                step = self._kept[size, greedy] = Decode(self, size, greedy)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                self._failed = True
                warnings.warn(
                    f"no CUDA graph of {size} rows: {type(error).__name__}: {error}; decode steps "
                    f"are launched kernel by kernel from now on (cuda_graph=False to choose that)",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return step

    def begin_capture(self, graph: torch.cuda.CUDAGraph) -> None:
        """Start to capture on the current stream, into the shared memory."""
        graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")


def _renew_generator(device: torch.device) -> None:
    """Give torch's generator of random numbers a new state, equal to the one it has.

    A capture that fails leaves the old one waiting for its end: no number could be drawn any more.
    """
    stuck, fresh = torch.cuda.default_generators[device.index or 0], torch.Generator(device)
    fresh.manual_seed(stuck.initial_seed())
    fresh.set_offset(stuck.get_offset())
    stuck.graphsafe_set_state(fresh.graphsafe_get_state())


class Decode:
    """One graph. What it computed is valid until the next one is queued.

    tokens: (size,), if it chooses any; hidden: (size, hidden_size); slots: (size,).
    """

    def __init__(self, graphs: Graphs, size: int, greedy: bool) -> None:
        model, pool, tables, attention, heads, addresses = graphs.parts
        device, width = model.device, tables.pages.shape[1]
        self._size, self._page_size, self._width = size, pool.page_size, width
        self._blank = self._packed_padding(len(tables.pages) - 1)
        self._packed = torch.from_numpy(self._blank.ravel()).to(device)
        self.slots = self._packed[:size]
        wide = torch.zeros(3, size, dtype=torch.int64, device=device)
        ends = torch.ones(size, dtype=torch.int32, device=device)
        pages = torch.zeros(size, width, dtype=torch.int32, device=device)
        inputs = DecodeInputs(wide[0], wide[1], wide[2], ends, pages)
        state = DecodeTables(tables.pages, tables.last, pool.page_size)
        first = torch.arange(size + 1, dtype=torch.int32, device=device)
        host = np.zeros(size, np.int64), np.ones(size, np.int64)
        meta = Meta(*host, pages, inputs.locations, DeviceMeta(ends, first))
        memory = Paged(pool, attention, inputs.locations, meta.token(addresses, pool.page_size))
        self._kept = inputs, meta  # a graph keeps addresses, not tensors
        self._replan: Replan = attention.capture(meta, heads)
        self._graph = torch.cuda.CUDAGraph()

        def body() -> tuple[Tensor, Tensor | None]:
            pool.kernels.decode_inputs(self._packed, state, inputs)
            attention.captured()
            hidden = model(inputs.ids, inputs.positions, memory)
            if not greedy:
                return hidden, None
            logits = model.logits(hidden)
            return hidden, pool.kernels.choose_greedy(logits, self.slots, tables.last)

        body()  # once as it is: libraries set themselves up, and padding may be computed any time
        graphs.begin_capture(self._graph)
        try:
            try:
                self.hidden, tokens = body()
            finally:
                self._graph.capture_end()
        except Exception:
            _renew_generator(device)
            raise
        self.tokens = self.slots if tokens is None else tokens

    def replay(self, rows: Sequence[Row], staging: Staging, begin: torch.cuda.Event) -> None:
        """Fill in the batch and queue the graph. begin: recorded where the device's part begins."""
        packed, count = self._blank.copy(), len(rows)
        _, slots, starts, _, ids, first, new, _, _, _ = zip(*rows, strict=True)
        packed[0, :count], packed[1, :count] = slots, starts
        packed[2, :count] = [-1 if given is None else given[0] for given in ids]
        for row, pages in enumerate(new):
            if pages:
                packed[3, row] = slots[row] * self._width + first[row]
                packed[4, row] = pages[0]
        begin.record()
        staging.send_into(self._packed, packed.ravel())
        self._replan(packed[1] + 1)
        self._graph.replay()

    def _packed_padding(self, slot: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Rows that compute position 0 of the padding's slot: (5, size)."""
        blank = np.zeros((5, self._size), np.int64)
        blank[0], blank[3] = slot, -1
        return blank
