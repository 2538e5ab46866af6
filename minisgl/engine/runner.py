"""The seam to a device: one method starts a batch, one waits for it. And the oracle behind it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from minisgl.core import Batch, KernelSpan, Logprob, Outcome, Row, SamplingParams, Span


class Launch(Protocol):
    """A batch under way."""

    def result(self) -> Outcome:
        """Wait for the batch. Asked again, it answers the same.

        Raises whatever stopped the device from computing it.
        """
        ...


class Snapshot(Protocol):
    """What batches had made of a runner's pages and tables at one moment. Nobody writes it."""

    @property
    def parts(self) -> Mapping[int, int]:
        """The pieces of memory it needs, with their bytes. Snapshots share pieces."""
        ...


class Worker(NamedTuple):
    """A process that computes for an engine."""

    rank: int
    pid: int


class Runner(Protocol):
    """Weights, KV pages and per-slot tables. Batches take effect in the order they are launched."""

    @property
    def workers(self) -> tuple[Worker, ...]:
        """The processes that compute, in order of rank; () if it is this one, or none any more."""
        ...

    @property
    def broken(self) -> str | None:
        """Why nothing can be computed any more, and the way out; None while it can."""
        ...

    def launch(self, batch: Batch) -> Launch:
        """Start computing a batch; return before it is done where the device allows."""
        ...

    def snapshot_bytes(self, num_pages: int) -> int:
        """What the contents of so many pages take."""
        ...

    def snapshot(
        self, pages: Sequence[int], fresh: Sequence[int], base: Snapshot | None
    ) -> Snapshot:
        """The tables and the contents of ``pages`` after all that was launched.

        fresh: those of the pages that have changed since ``base``; the others are taken from there.
        It may still be being made when this returns; what is launched later does not change it.
        """
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this runner or of one it was forked from.

        Pages that the snapshot does not hold keep what they have: nobody reads them before they are
        written.
        """
        ...

    def fork(self) -> Runner:
        """A runner with the same weights and with pages and tables of its own, all blank.

        Raises MemoryError, with the bytes it needs, where there is no room for them.
        """
        ...

    def profile(self) -> AbstractContextManager[list[KernelSpan]]:
        """Watch what is launched while this lasts. Then the list holds what was seen, by time.

        What was launched before is waited for first, and what was launched meanwhile at the end.
        Raises RuntimeError where nothing can be seen, or somebody watches already.
        """
        ...

    def close(self) -> None:
        """Finish what was launched and give the memory back. Called twice, it does nothing."""
        ...


def next_token(sequence: tuple[int, ...], vocab_size: int) -> int:
    """The hash model: the token after ``sequence`` (FNV-1a over its ids, so equal everywhere)."""
    state = 0xCBF29CE484222325
    for token in sequence:
        state = ((state ^ token) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return (state >> 17) % vocab_size


def drawn_token(
    sequence: tuple[int, ...], sampling: SamplingParams, made: int, vocab_size: int
) -> int:
    """The same, sampled. It depends on the seed and the number of tokens made before, too; with
    penalties, once more on the sequence.

    sampling: that of a request, whose seed is known.
    """
    past = tuple(token - 1 for token in sequence) if sampling.penalises else ()
    return _drawn((*sequence, *past), sampling.seed or 0, made, sampling.greedy, vocab_size)


def _drawn(sequence: tuple[int, ...], seed: int, made: int, greedy: bool, vocab_size: int) -> int:
    return next_token(sequence if greedy else (*sequence, seed, made), vocab_size)


def hash_logprob(sequence: tuple[int, ...], token: int) -> Logprob:
    """What the hash model says of a token after ``sequence``. It knows no other tokens."""
    return Logprob(-next_token((*sequence, token), 997) / 100, 1)


class HashRunner:
    """A language model without torch: the next token is a hash of the sequence *as read through the
    page table*, so one wrong, stale or reused page changes the text. The scheduler's oracle.

    What is sampled depends on seed and output index; with penalties, on the tokens used so far as
    the rows tell them. It has no top_k, top_p, min_p or logit_bias.

    A launched batch is computed only when somebody waits for it: the worst case of overlap.
    """

    workers: tuple[Worker, ...] = ()
    broken: str | None = None

    def __init__(self, num_pages: int, page_size: int, num_slots: int, vocab_size: int) -> None:
        self.page_size, self.vocab_size = page_size, vocab_size
        self._kv: list[list[int | None]] = [[None] * page_size for _ in range(num_pages)]
        self._table: list[list[int]] = [[] for _ in range(num_slots)]
        self._last: list[int | None] = [None] * num_slots  # sampled for the slot, not fed yet
        self._past: list[tuple[int, ...]] = [()] * num_slots  # used so far, for penalties
        self._queue: deque[_Lazy] = deque()
        self._clock = 0.0

    def launch(self, batch: Batch) -> Launch:
        """Queue a batch."""
        self._queue.append(_Lazy(self, batch))
        return self._queue[-1]

    def snapshot_bytes(self, num_pages: int) -> int:
        """Eight bytes a position, for the sake of it."""
        return 8 * num_pages * self.page_size

    def snapshot(
        self, pages: Sequence[int], fresh: Sequence[int], base: Snapshot | None
    ) -> Snapshot:
        """Compute what is queued, then copy."""
        self._drain()
        old = base.kv if isinstance(base, _Saved) else {}
        kept = {page: old[page] for page in pages if page in old}
        kept |= {page: self._kv[page].copy() for page in fresh}
        assert len(kept) == len(pages), "a page is neither fresh nor in the base"
        tables = [table.copy() for table in self._table]
        return _Saved(kept, tables, self._last.copy(), self._past.copy())

    def restore(self, snapshot: Snapshot) -> None:
        """Copy back. What is queued is computed before."""
        assert isinstance(snapshot, _Saved)
        self._drain()
        for page, positions in snapshot.kv.items():
            self._kv[page] = positions.copy()
        self._table = [table.copy() for table in snapshot.table]
        self._last, self._past = snapshot.last.copy(), snapshot.past.copy()

    def fork(self) -> HashRunner:
        """Another of the same size."""
        sizes = (len(self._kv), self.page_size, len(self._table))
        twin = HashRunner(*sizes, self.vocab_size)
        twin._clock = self._clock
        return twin

    def profile(self) -> AbstractContextManager[list[KernelSpan]]:
        """There is nothing to see."""
        raise RuntimeError(
            "the hash model has no kernels to profile; load with runner='torch', or look at "
            "trace.timeline()"
        )

    def close(self) -> None:
        """Nothing to give back."""

    def _drain(self) -> None:
        if self._queue:
            self.run_until(self._queue[-1].batch)

    def run_until(self, batch: Batch) -> None:
        """Compute queued batches in launch order, up to and with this one."""
        while self._queue:
            lazy = self._queue[0]  # an interrupted computation begins again
            try:
                lazy.outcome = self._run(lazy.batch)
            except Exception:
                self._queue.popleft()
                raise
            self._queue.popleft()
            if lazy.batch is batch:
                return

    def _run(self, batch: Batch) -> Outcome:
        size, tokens = self.page_size, list[int | None]()
        for row in batch.rows:
            table = self._table[row.slot]
            table[row.first_page :] = row.new_pages
            last = self._last[row.slot]
            inputs = row.token_ids if row.token_ids is not None else (last,)
            assert len(inputs) == row.length, f"r{row.rid}: {row.length} positions, {inputs} given"
            if row.draw and row.draw.history:
                prompt, output = row.draw.history
                self._past[row.slot] = prompt + output
            for position, token in enumerate(inputs, row.start):
                self._kv[table[position // size]][position % size] = token
        for row in batch.rows:  # every row has written before any row reads, as on a device
            if not row.emits:
                tokens.append(None)
                continue
            seen = self._read(row, row.length)
            if row.draw is None:
                token = next_token(seen, self.vocab_size)
            else:
                past = self._past[row.slot] if row.sampling.penalises else ()
                seed, made, greedy = row.draw.seed, row.draw.made, row.sampling.greedy
                token = _drawn((*seen, *past), seed, made, greedy, self.vocab_size)
                self._past[row.slot] += (token,)
            self._last[row.slot] = token
            tokens.append(token)
        start, self._clock = self._clock, self._clock + 1e-3 + 1e-6 * batch.num_tokens
        span = Span("device", f"step {batch.step}", start, self._clock)
        scores = self._scores(batch, tokens)
        return Outcome(batch.step, tuple(tokens), (span,), None, *scores)

    def _read(self, row: Row, length: int) -> tuple[int, ...]:
        """A row's sequence up to its first ``length`` positions, 0 where nothing was written."""
        table, size = self._table[row.slot], self.page_size
        read = [self._kv[table[p // size]][p % size] for p in range(row.start + length)]
        return tuple(0 if token is None else token + 1 for token in read)

    def _scores(
        self, batch: Batch, tokens: Sequence[int | None]
    ) -> tuple[tuple[Logprob | None, ...], tuple[tuple[Logprob, ...], ...]]:
        """The logprobs of each row's token and of its targets, where asked."""
        if not any(row.draw for row in batch.rows):
            return (), ()
        outputs, prompts = list[Logprob | None](), list[tuple[Logprob, ...]]()
        for row, token in zip(batch.rows, tokens, strict=True):
            score = None
            if token is not None and row.sampling.logprobs is not None:
                score = hash_logprob(self._read(row, row.length), token)
            outputs.append(score)
            targets = row.draw.targets if row.draw else ()
            prompts.append(
                tuple(hash_logprob(self._read(row, n), t) for n, t in enumerate(targets, 1))
            )
        return tuple(outputs), tuple(prompts)


class _Lazy:
    def __init__(self, runner: HashRunner, batch: Batch) -> None:
        self._runner, self.batch = runner, batch
        self.outcome: Outcome | None = None

    def result(self) -> Outcome:
        if self.outcome is None:
            self._runner.run_until(self.batch)
        assert self.outcome is not None
        return self.outcome


class _Saved:
    def __init__(
        self,
        kv: dict[int, Any],
        table: list[list[int]],
        last: list[int | None],
        past: list[tuple[int, ...]],
    ) -> None:
        self.kv, self.table, self.last, self.past = kv, table, last, past

    @property
    def parts(self) -> Mapping[int, int]:
        return {id(piece): 8 * len(piece) for piece in (*self.kv.values(), self.table, self.last)}
