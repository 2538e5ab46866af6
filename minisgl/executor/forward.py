"""One batch through the model, here and now. Knows no threads, processes or launch order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minisgl import registry
from minisgl.attention.base import Attention, Ints, Meta, Paged
from minisgl.config import EngineConfig
from minisgl.core import Batch, Logprob, Outcome, Row, Span
from minisgl.distributed.group import Group
from minisgl.executor.logprobs import of_prompts, of_tokens
from minisgl.executor.memory import Memory
from minisgl.executor.sampler import choose
from minisgl.executor.tables import Staging, ranges, spread
from minisgl.models.config import ModelConfig
from minisgl.models.decoder import Model

_FED_BACK = (0,)  # stands where a row's token is on the device already


class Forward:
    """A model with its pages and tables. Used by one thread, which gives it batches in launch
    order.

    config: resolved, so that its sizes are numbers. depth: batches that may be in flight.
    """

    def __init__(
        self,
        model: Model,
        model_config: ModelConfig,
        config: EngineConfig,
        group: Group,
        depth: int,
    ) -> None:
        limits = config.limits
        self._made_of = (model, model_config, config, group, depth)
        self._model, self._page_size, self._group = model, limits.page_size, group
        self._samples = group.rank == 0
        self.lane = "device" if group.size == 1 else f"device {group.rank}"
        self.memory = Memory(model, model_config, config, group)
        self._pool, self._tables = self.memory.pool, self.memory.tables
        self._staging = Staging(depth, model.device)
        self._sampling_staging = Staging(depth, model.device)
        self._vocab_size = model_config.vocab_size
        backend = registry.find("attention", config.attention)
        self._attention: Attention = backend(self._pool, model_config.traits.windows)

    @torch.inference_mode()
    def run(self, batch: Batch) -> Outcome:
        """Compute a batch and wait for its tokens.

        Its time is a span on the lane "device", or "device 1" for rank 1 of several. The first rank
        samples for all; what the others return says no tokens.
        """
        begin = perf_counter()
        inputs = self._stage(batch)
        self._attention.prepare(inputs.meta)
        memory = Paged(self._pool, self._attention, inputs.meta.locations)
        hidden = self._model(inputs.ids, inputs.positions, memory)
        tokens, scores = self._sample(hidden, inputs)
        out = spread(tokens, batch.rows)
        logprobs = spread(scores, batch.rows) if any(scores) else ()
        prompts = of_prompts(hidden, batch.rows, self._model.logits, self._vocab_size)
        span = Span(self.lane, f"step {batch.step}", begin, perf_counter())
        if not self._samples:
            return Outcome(batch.step, (), (span,))
        return Outcome(batch.step, out, (span,), None, logprobs, prompts)

    def fork(self) -> Forward:
        """The same model with pages and tables of its own, all blank.

        Raises MemoryError, with the bytes they need, where there is no room for them.
        """
        try:
            return Forward(*self._made_of)
        except (MemoryError, RuntimeError) as error:  # torch says RuntimeError, CUDA a kind of it
            need = self._pool.num_pages * self._pool.page_bytes
            raise MemoryError(
                f"a fork needs {need} bytes for KV pages of its own, and they are not to be had "
                f"({str(error).splitlines()[0]}); close other engines, or load with fewer num_pages"
            ) from error

    def _sample(self, hidden: Tensor, inputs: _Inputs) -> tuple[list[int], list[Logprob | None]]:
        """The emitting rows' tokens, which every rank keeps to feed them back, and logprobs."""
        rows = inputs.emitting
        if not rows:
            return [], []
        logits = self._model.logits(hidden[inputs.sampling_tokens])
        if self._samples:
            tokens = choose(logits, rows, self._tables.penalties, self._sampling_staging)
        else:
            tokens = torch.empty_like(inputs.sampling_slots)
        tokens = self._group.broadcast(tokens)
        self._tables.last[inputs.sampling_slots] = tokens
        return tokens.tolist(), of_tokens(logits, tokens, rows)

    def _stage(self, batch: Batch) -> _Inputs:
        """Bring the page table up to date and lay the batch out, token after token.

        Work is per row only where a row brings pages or tokens; the rest is numpy.
        """
        _, slots_, starts_, lengths_, ids_, first_, new_, emits_, _, draws = zip(
            *batch.rows, strict=True
        )
        slots, starts, lengths = np.array(slots_), np.array(starts_), np.array(lengths_)
        emits = np.array(emits_, dtype=bool)
        entries, pages = self._new_entries(slots, np.array(first_), new_)
        last_token = lengths.cumsum() - 1
        fed_back = np.array([ids is None for ids in ids_])
        given = chain.from_iterable(_FED_BACK if ids is None else ids for ids in ids_)
        ids = np.fromiter(given, np.int64)
        assert len(ids) == last_token[-1] + 1, f"{len(ids)} ids for {last_token[-1] + 1} positions"
        sent = self._staging.send(
            entries,
            pages,
            slots,
            np.repeat(slots, lengths),
            ranges(starts, lengths),
            ids,
            last_token[fed_back],
            slots[fed_back],
            last_token[emits],
            slots[emits],
        )
        entry, page, slot, token_slot, position, id_, fed_token, fed_slot, sampled, into = sent
        tables, size = self._tables, self._page_size
        # first of all: later batches count on these pages even if this one fails
        tables.pages.view(-1)[entry] = page.int()
        id_[fed_token] = tables.last[fed_slot]
        at = tables.pages[token_slot, position // size] * size + position % size
        width = -(-int((starts + lengths).max()) // size)
        meta = Meta(starts, lengths, tables.pages[slot, :width], at)
        drawing = self._samples and any(draws)
        for slot_, draw in zip(slots_, draws, strict=True) if drawing else ():
            if draw and draw.history:
                tables.penalties.begin(slot_, draw.history, self._vocab_size)
        emitting = [row for row in batch.rows if row.emits]
        return _Inputs(id_, position, meta, sampled, into, emitting)

    def _new_entries(
        self, slots: Ints, first: Ints, new: Sequence[tuple[int, ...]]
    ) -> tuple[Ints, Ints]:
        """Which entries of the flat page table change, and to which pages."""
        counts = np.fromiter(map(len, new), np.int64, len(new))
        width = self._tables.pages.shape[1]
        if (first + counts > width).any():
            row = int((first + counts).argmax())
            raise ValueError(
                f"slot {slots[row]} was given {first[row] + counts[row]} pages; "
                f"its table has {width}"
            )
        return ranges(slots * width + first, counts), np.fromiter(
            chain.from_iterable(new), np.int64
        )


class _Inputs(NamedTuple):
    """A batch as the model takes it, on the device but for ``emitting``."""

    ids: Tensor  # (tokens,)
    positions: Tensor  # (tokens,)
    meta: Meta
    sampling_tokens: Tensor  # (emitting rows,): the token whose hidden state each samples from
    sampling_slots: Tensor  # (emitting rows,)
    emitting: list[Row]
