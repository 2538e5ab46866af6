"""Batches made by hand: sequences on scrambled pages, as a scheduler hands them to a runner."""

from __future__ import annotations

import random
from typing import Any

from minisgl.config import EngineConfig
from minisgl.core import Batch, Row, SamplingParams


def config(page_size: int, attention: str = "grouped", **changes: Any) -> EngineConfig:
    """A small resolved configuration on the CPU: C++ attention goes with C++ kernels."""
    sizes: dict[str, Any] = dict(
        page_size=page_size,
        num_pages=512 // page_size + 8,
        max_running=6,
        max_step_tokens=256,
        max_seq_len=192,
        attention=attention,
        kernels="native" if attention == "native" else "torch",
        quantization=None,
        device="cpu",
        dtype="float32",
        threads=1,
    )
    return EngineConfig().but(**sizes | changes)


class Sequences:
    """Gives pages, in scrambled order, to sequences that are named by their slot."""

    def __init__(self, page_size: int, num_pages: int, seed: int = 0) -> None:
        self._size, self._step = page_size, 0
        self._free = list(range(num_pages))
        random.Random(seed).shuffle(self._free)
        self.pages: dict[int, list[int]] = {}
        self.computed: dict[int, int] = {}

    def row(
        self, slot: int, ids: list[int] | None = None, emits: bool = True, start: int | None = None
    ) -> Row:
        """The slot's next positions: these tokens, or None for the one that it sampled last."""
        held = self.pages.setdefault(slot, [])
        begin = self.computed.setdefault(slot, 0) if start is None else start
        length = 1 if ids is None else len(ids)
        first, wanted = len(held), -(-(begin + length) // self._size)
        new = tuple(self._free.pop() for _ in range(wanted - first))
        held.extend(new)
        self.computed[slot] = begin + length
        given = None if ids is None else tuple(ids)
        return Row(slot, slot, begin, length, given, first, new, emits, SamplingParams())

    def after_cached(self, slot: int, source: int, num_pages: int, ids: list[int]) -> Row:
        """A new sequence whose first pages are another's: as after a hit in the prefix cache."""
        shared = self.pages[source][:num_pages]
        self.pages[slot] = list(shared)
        row = self.row(slot, ids, start=num_pages * self._size)
        return row._replace(first_page=0, new_pages=(*shared, *row.new_pages))

    def batch(self, *rows: Row) -> Batch:
        """These rows as the next batch."""
        self._step += 1
        return Batch(self._step - 1, rows)
