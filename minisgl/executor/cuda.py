"""Batches on an NVIDIA GPU: everything is queued on one stream, and only tokens are waited for.

The host's numbers of a batch travel in one copy from pinned memory; tables, decode inputs and
sampling are the device's. Between two batches the host does not wait: a batch is launched while
the one before it is computed, and its tokens are read when somebody asks. What asks for logprobs,
and the first row of a request with penalties, waits while it is launched.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence
from itertools import chain
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minisgl import registry
from minisgl.attention.base import Attention, DeviceMeta, Meta, Paged
from minisgl.config import EngineConfig
from minisgl.core import Batch, Logprob, Outcome, Row, Span
from minisgl.distributed.group import Group
from minisgl.engine.runner import Launch
from minisgl.executor.clock import DeviceClock
from minisgl.executor.graph import Graphs, Parts
from minisgl.executor.logprobs import of_prompts, of_tokens
from minisgl.executor.memory import Memory
from minisgl.executor.sampler import choose
from minisgl.executor.tables import Staging, ranges, spread
from minisgl.kernel.base import Kernels
from minisgl.models.config import ModelConfig
from minisgl.models.decoder import Model

_FED_BACK = (0,)  # stands where a row's token is on the device already


@functools.cache
def stream_of(device: torch.device) -> torch.cuda.Stream:
    """The stream of all engines on a GPU: libraries keep memory for each stream that they see."""
    return torch.cuda.Stream(device)


class CudaForward:
    """A model with its pages and tables on a GPU. ``executor.forward.Forward`` is its slow twin.

    One page and one slot more than the configuration has belong to it: rows that pad a batch live
    there. config: resolved. depth: batches that may be in flight without any waiting.
    """

    def __init__(
        self,
        model: Model,
        model_config: ModelConfig,
        config: EngineConfig,
        group: Group,
        depth: int,
        kernels: Kernels,
    ) -> None:
        limits = config.limits
        self._made_of = (model, model_config, config, group, depth, kernels)
        self._model, self._page_size, self._group = model, limits.page_size, group
        self._samples = group.rank == 0
        self.lane = "device" if group.size == 1 else f"device {group.rank}"
        self._num_pages, self._vocab_size = limits.num_pages, model_config.vocab_size
        self._stream = stream_of(model.device)
        self.memory = Memory(
            model, model_config, config, group, spare=1, kernels=kernels, stream=self._stream
        )
        self._pool, self._tables = self.memory.pool, self.memory.tables
        self._staging = Staging(depth, model.device)
        self._sampling_staging = Staging(depth, model.device)
        backend = registry.find("attention", config.attention)
        self._attention: Attention = backend(self._pool, model_config.traits.windows)
        self._addresses = self._pool.addresses() if config.megakernel is True else None
        self._graphs: Graphs | None = None
        if config.cuda_graph and hasattr(self._attention, "capture"):
            heads = model_config.num_heads // group.size
            made = model, self._pool, self._tables, self._attention, heads, self._addresses
            self._graphs = Graphs(Parts(*made), int(config.graph_rows))
        self._clock, self._last_end = DeviceClock(), torch.cuda.Event(enable_timing=True)
        self._results = [
            torch.empty(limits.max_running, dtype=torch.int64, pin_memory=True)
            for _ in range(depth)
        ]  # those that no launch has
        self._flying = deque[_Launch]()
        torch.cuda.synchronize(model.device)  # what was prepared, was on another stream
        with self.memory.in_order():
            self._last_end.record()

    def run(self, batch: Batch) -> Outcome:
        """Compute a batch and wait for its tokens. See ``Forward.run``."""
        return self.launch(batch).result()

    def launch(self, batch: Batch) -> Launch:
        """Queue a batch. Its span is measured by the device and lies on the host's clock.

        What goes wrong here is raised by ``result``, so that a step fails where others do.
        """
        launched = perf_counter()
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        try:
            with self.memory.in_order():
                tokens, logprobs, prompts = self._compute(batch, begin)
                host = self._results.pop() if self._results else self._more_results()
                host[: len(tokens)].copy_(tokens, non_blocking=True)
                end.record()
        except torch.OutOfMemoryError as error:
            return _Failed(MemoryError(self._no_memory(batch, error)))
        except Exception as error:
            return _Failed(error)
        made = _Launch(self, batch, launched, begin, end, len(tokens), host, logprobs, prompts)
        self._flying.append(made)
        return made

    def settle(self, launch: _Launch) -> None:
        """Read the outcomes up to this one, in launch order. Waits for them."""
        while launch.outcome is None:
            first = self._flying[0]
            waited = not first.end.query()
            first.end.synchronize()
            seen = perf_counter()
            self._flying.popleft()
            gap = self._last_end.elapsed_time(first.begin) * 1e-3
            duration = first.begin.elapsed_time(first.end) * 1e-3
            self._last_end = first.end
            place = self._clock.place(gap, duration, first.launched, seen, waited)
            span = Span(self.lane, f"step {first.batch.step}", *place)
            tokens: list[int] = first.host[: first.num_tokens].tolist()
            self._results.append(first.host)
            outcome = Outcome(first.batch.step, (), (span,))
            if self._samples:
                out = spread(tokens, first.batch.rows)
                outcome = outcome._replace(
                    tokens=out, logprobs=first.logprobs, prompt_logprobs=first.prompts
                )
            first.outcome, first.forward = outcome, None

    def fork(self) -> CudaForward:
        """The same model with pages and tables of its own, all blank.

        Raises MemoryError, with the bytes they need, where there is no room for them.
        """
        try:
            return CudaForward(*self._made_of)
        except MemoryError as error:
            raise MemoryError(f"a fork has KV pages of its own: {error}") from error

    def close(self) -> None:
        """Wait for what was launched."""
        if self._flying:
            self.settle(self._flying[-1])
        self._stream.synchronize()

    def _more_results(self) -> Tensor:
        """More than ``depth`` batches are in flight."""
        return torch.empty(len(self._tables.last), dtype=torch.int64, pin_memory=True)

    def _compute(
        self, batch: Batch, begin: torch.cuda.Event
    ) -> tuple[Tensor, tuple[Logprob | None, ...], tuple[tuple[Logprob, ...], ...]]:
        rows = batch.rows
        for row in rows if self._samples else ():
            if row.draw and row.draw.history:
                self._tables.penalties.begin(row.slot, row.draw.history, self._vocab_size)
        if self._graphs is not None and self._graphs.fit(rows):
            greedy = not any(row.draw for row in rows)
            step = self._graphs.of(len(rows), greedy)
            if step is not None:
                step.replay(rows, self._staging, begin)
                if greedy:
                    return step.tokens[: len(rows)], (), ()
                hidden, slots = step.hidden[: len(rows)], step.slots[: len(rows)]
                tokens, scores = self._sample(hidden, slots, rows)
                asked = of_prompts(hidden, rows, self._model.logits, self._vocab_size)
                return tokens, scores, asked
        inputs = self._stage(rows, begin)
        self._attention.prepare(inputs.meta)
        token = inputs.meta.token(self._addresses, self._page_size)
        memory = Paged(self._pool, self._attention, inputs.meta.locations, token)
        hidden = self._model(inputs.ids, inputs.positions, memory)
        emitting = [row for row in rows if row.emits]
        tokens, scores = self._sample(hidden[inputs.sampling_tokens], inputs.slots, emitting)
        scores = spread(scores, rows) if scores else ()
        return tokens, scores, of_prompts(hidden, rows, self._model.logits, self._vocab_size)

    def _sample(
        self, hidden: Tensor, slots: Tensor, rows: Sequence[Row]
    ) -> tuple[Tensor, tuple[Logprob | None, ...]]:
        """The next token of each row, which its slot remembers, and logprobs if any row asks."""
        if not rows:
            return slots, ()
        logits = self._model.logits(hidden)
        if self._samples:
            tokens = choose(logits, rows, self._tables.penalties, self._sampling_staging)
        else:
            tokens = torch.empty_like(slots)
        tokens = self._group.broadcast(tokens)
        self._tables.last.index_copy_(0, slots, tokens)
        if any(row.draw and row.sampling.logprobs is not None for row in rows):
            return tokens, tuple(of_tokens(logits, tokens, rows))
        return tokens, ()

    def _stage(self, rows: Sequence[Row], begin: torch.cuda.Event) -> _Inputs:
        """Bring the page table up to date and lay the batch out, token after token."""
        _, slots_, starts_, lengths_, ids_, first_, new_, emits_, _, _ = zip(*rows, strict=True)
        slots, starts, lengths = np.array(slots_), np.array(starts_), np.array(lengths_)
        emits = np.array(emits_, dtype=bool)
        counts = np.fromiter(map(len, new_), np.int64, len(new_))
        width = self._tables.pages.shape[1]
        entries = ranges(slots * width + np.array(first_), counts)
        ends, after = starts + lengths, lengths.cumsum()
        fed_back = np.array([ids is None for ids in ids_])
        given = chain.from_iterable(_FED_BACK if ids is None else ids for ids in ids_)
        ids = np.fromiter(given, np.int64)
        assert len(ids) == after[-1], f"{len(ids)} ids for {after[-1]} positions"
        new = np.fromiter(chain.from_iterable(new_), np.int64)
        begin.record()  # the device's part begins
        sent = self._staging.send(
            entries,
            new,
            slots,
            np.repeat(slots, lengths),
            ranges(starts, lengths),
            ids,
            (after - 1)[fed_back],
            slots[fed_back],
            (after - 1)[emits],
            slots[emits],
            ends,
            np.concatenate(([0], after)),
        )
        entry, page, slot, token_slot, position, id_, fed, fed_slot, sampled, into, end, first = (
            sent
        )
        tables, size = self._tables, self._page_size
        # first of all: later batches count on these pages even if this one fails
        tables.pages.view(-1)[entry] = page.int()
        id_[fed] = tables.last[fed_slot]
        at = tables.pages[token_slot, position // size] * size + position % size
        used = -(-int(ends.max()) // size)
        on_device = DeviceMeta(end.int(), first.int())
        meta = Meta(starts, lengths, tables.pages[slot, :used], at, on_device)
        return _Inputs(id_, position, meta, sampled, into)

    def _no_memory(self, batch: Batch, error: Exception) -> str:
        free, total = torch.cuda.mem_get_info(self.memory.device)
        kept = (self._num_pages + 1) * self._pool.page_bytes
        return (
            f"no GPU memory for the {batch.num_tokens} positions of a step ({free} of {total} "
            f"bytes are free, KV pages take {kept}): {str(error).splitlines()[0]} Lower "
            f"max_step_tokens or num_pages, or close other engines"
        )


class _Inputs(NamedTuple):
    """A batch as the model takes it, on the device."""

    ids: Tensor  # (tokens,)
    positions: Tensor  # (tokens,)
    meta: Meta
    sampling_tokens: Tensor  # (emitting rows,): the token whose hidden state each samples from
    slots: Tensor  # (emitting rows,)


class _Launch:
    """A batch that was queued. host: pinned memory that holds its tokens after ``end``."""

    def __init__(
        self,
        forward: CudaForward,
        batch: Batch,
        launched: float,
        begin: torch.cuda.Event,
        end: torch.cuda.Event,
        num_tokens: int,
        host: Tensor,
        logprobs: tuple[Logprob | None, ...],
        prompts: tuple[tuple[Logprob, ...], ...],
    ) -> None:
        self.forward: CudaForward | None = forward  # whose memory is not kept for this
        self.batch, self.launched = batch, launched
        self.begin, self.end, self.num_tokens, self.host = begin, end, num_tokens, host
        self.logprobs, self.prompts = logprobs, prompts
        self.outcome: Outcome | None = None

    def result(self) -> Outcome:
        if self.forward is not None:
            self.forward.settle(self)
        assert self.outcome is not None
        return self.outcome


class _Failed(NamedTuple):
    """A batch that could not be queued."""

    error: Exception

    def result(self) -> Outcome:
        raise self.error
