"""The loop: ask the scheduler, launch on the runner, collect, book, tell the observers.

The engine owns the order of things and the record of them; decisions are the scheduler's, numbers
the runner's.
"""

from __future__ import annotations

import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from time import perf_counter
from types import MappingProxyType, TracebackType
from typing import Any, Final

from minisgl.config import EngineConfig
from minisgl.core import (
    Abort,
    Add,
    Batch,
    Change,
    Event,
    Gauges,
    Input,
    Outcome,
    Plan,
    Request,
    SamplingParams,
    Span,
    StepRecord,
    as_int,
)
from minisgl.engine.breakpoint import Breakpoint, Condition
from minisgl.engine.card import engine_card
from minisgl.engine.codec import Codec
from minisgl.engine.interrupts import Held
from minisgl.engine.prompt import Prompt, check_ids, needed, token_ids
from minisgl.engine.runner import Runner, Worker
from minisgl.engine.stops import Stops
from minisgl.engine.travel import (
    Checkpoint,
    InFlight,
    Moment,
    Past,
    checkpoint,
    go,
    start_batch,
)
from minisgl.kvcache.view import CacheView
from minisgl.sampling import request_seed
from minisgl.scheduler.policy import find_policy
from minisgl.scheduler.scheduler import Scheduler
from minisgl.scheduler.state import written
from minisgl.trace.file import Header
from minisgl.trace.profile import Profile
from minisgl.trace.trace import Trace

Observer = Callable[[StepRecord], None]
Listener = Callable[[Input], None]  # is told of every input as it passes; it must not fail


# What a fork may change: its pages and tables fit all of these.
FORKABLE: Final = ("policy", "admission", "overlap", "max_step_tokens", "chunked_prefill")


class Engine:
    """Requests in, one batch at a time, tokens out. ``minisgl.load`` makes one.

    ``config.overlap`` keeps two steps in flight: the next is planned and launched before the last
    is collected. Usable with ``with``. Not for several threads at once.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        config: EngineConfig,
        *,
        vocab_size: int,
        codec: Codec | None = None,
        model: str = "",
    ) -> None:
        self.config = config
        self.model = model  # as it was asked for
        self.observers: list[Observer] = []
        self.listeners: list[Listener] = []
        self._scheduler = scheduler
        self._runner = runner
        self._codec = codec
        self._vocab_size = vocab_size
        self._requests: dict[int, Request] = {}
        self._in_flight: deque[InFlight] = deque()
        self._events: list[Event] = []  # of adds and aborts since the last record
        self._next_rid = 0
        self._closed = False
        self._telling = False  # observers are being told
        self._held = Held()
        self._depth = 2 if config.overlap else 1
        self._stops = Stops(codec)
        self._breakpoints: list[Breakpoint] = []
        self._past = Past(config, checkpoint((0, 0), scheduler, (), (), runner, 0, None, None))

    @property
    def depth(self) -> int:
        """How many steps may be in flight: 2 with overlap, else 1; any number may be set."""
        return self._depth

    @depth.setter
    def depth(self, depth: int) -> None:
        self._depth = as_int("depth", depth, 1)

    # ---- requests --------------------------------------------------------------------------------

    def add(
        self, prompt: Prompt, sampling: SamplingParams | None = None, *, rid: int | None = None
    ) -> Request:
        """Queue a request: a text, a list of token ids, or a chat (a list of messages).

        One that is sampled without a seed gets one; ``request.sampling.seed`` says which.
        rid: its number, where it has one already; above every one so far. The next by default.
        Raises TypeError for a prompt of another kind, ValueError for one that can never run.
        """
        self._check_open()
        number = self._next_rid if rid is None else as_int("rid", rid, self._next_rid)
        if sampling is not None and not isinstance(sampling, SamplingParams):
            raise TypeError(f"sampling must be SamplingParams, got {sampling!r}")
        params = sampling or SamplingParams()
        if params.stop:
            needed(self._codec)
        if not params.greedy and params.seed is None:
            params = replace(params, seed=request_seed(self.config.seed, number))
        ids = token_ids(prompt, self._codec, self._vocab_size)
        check_ids(params, self._vocab_size)
        item = Add(number, ids, params)
        with self._held:
            request, events = self._scheduler.add(item)
            request.decode = self._codec.decode if self._codec else None
            self._stops.watch(request)
            self._note(item)
            self._next_rid = number + 1
            self._requests[item.rid] = request
            self._events += events
        return request

    def abort(self, rid: int) -> None:
        """End a request early. One that is unknown or finished: nothing happens."""
        self._check_open()
        item = Abort(as_int("rid", rid, -sys.maxsize))
        with self._held:
            self._note(item)
            self._events += self._scheduler.abort(item)
            self._stops.forget(item.rid)

    def flush_cache(self) -> StepRecord:
        """Empty the prefix cache. It is recorded as a step without rows that gives this reason.

        Raises RuntimeError while requests run: their pages are shared with the cache.
        """
        self._check_open()
        self._check_not_telling()
        if running := len(self._scheduler.running):
            raise RuntimeError(
                f"the prefix cache can be emptied once no request runs; {running} do"
            )
        return self._flush("nothing failed; the prefix cache was emptied as asked")

    # ---- stepping --------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """The plan that would be launched next, after all that is in flight. Changes nothing."""
        return self._scheduler.plan()

    def launch(self, plan: Plan | None = None) -> Batch:
        """Commit a plan, the policy's or yours, and start its batch without waiting for it.

        Raises RuntimeError if there is nothing to launch, ValueError for a plan that cannot run;
        then nothing has changed.
        """
        self._check_open()
        self._check_not_telling()
        start = perf_counter()
        if plan is None:
            plan = self.plan()
        if not plan:
            waits = "; ".join(map(str, plan.refusals)) or "no request waits"
            raise RuntimeError(f"nothing to launch: {waits}")
        return self._launch(plan, start)

    def collect(self) -> StepRecord:
        """Wait for the oldest step in flight, book its outcome and tell the observers.

        A step that failed on the device finishes its requests with "error" and is recorded like
        any other; requests that wait go on. Interrupted while it waits, nothing is lost.
        Raises RuntimeError if no step is in flight, or if an observer asks.
        """
        self._check_not_telling()
        if not self._in_flight:
            raise RuntimeError("no step is in flight; launch one first")
        plan, batch, events, spans, launch = self._in_flight[0]
        start = perf_counter()
        try:
            outcome = launch.result()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"step {batch.step} failed: {reason}", RuntimeWarning, stacklevel=2)
            outcome = Outcome(batch.step, (None,) * len(batch.rows), error=reason)
        waited = perf_counter()
        with self._held:
            outcome = self._stops.found(batch, outcome, self._requests, self._scheduler.reason)
            self._in_flight.popleft()
            self._note(outcome)
            done = self._scheduler.apply(outcome)
            booked = perf_counter()
            spans = (*spans, Span("host", "wait", start, waited))
            spans = (*spans, Span("host", "apply", waited, booked), *outcome.spans)
            record = self._emit(plan, batch, outcome, events + done, spans)
        return self._tell(record)

    def step(self) -> StepRecord | None:
        """Keep ``depth`` steps in flight and collect the oldest. None when there is nothing to do.

        What was added or aborted while nothing could run is recorded as a step without rows.
        Raises RuntimeError if requests wait and the policy runs none of them; and if a process that
        computes was lost, once all requests have ended with "error".
        """
        self._check_open()
        self._check_not_telling()
        plan = None
        while len(self._in_flight) < self.depth and (plan is None or plan):
            start = perf_counter()
            if plan := self.plan():
                self._launch(plan, start)
        if self._in_flight:
            return self.collect()
        if self._scheduler.busy:
            waits = "; ".join(map(str, plan.refusals if plan else ())) or "it names none of them"
            raise RuntimeError(f"requests wait and the policy runs none: {waits}")
        if self._events:
            return self._flush()
        if self._runner.broken is not None:
            raise RuntimeError(self._runner.broken)
        return None

    def steps(self) -> Iterator[StepRecord]:
        """Step until nothing is left to do."""
        while record := self.step():
            yield record

    def run(
        self,
        until: Callable[[StepRecord], bool] | None = None,
        max_steps: int | None = None,
    ) -> list[StepRecord]:
        """Step now: to the end, to the first record for which ``until`` holds, or so many steps."""
        records = []
        for record in islice(self.steps(), max_steps):
            records.append(record)
            if until is not None and until(record):
                break
            if any(breakpoint_.holds(record) for breakpoint_ in self._breakpoints):
                break
        return records

    def profile(self, steps: int = 8) -> Profile:
        """Run so many steps with a profiler that sees every kernel, on the clock of the host.

        They are run as ``run`` does, breakpoints included, and recorded as ever; steps in flight
        are collected before them and do not count. Watching takes time: read shares, not speed.
        Raises RuntimeError for the hash model, and where a profiler of torch is on already.
        """
        self._check_open()
        self._check_not_telling()
        first = self.next_step
        last = first + as_int("steps", steps, 1) - 1
        with self._runner.profile() as seen:
            records = self.run(until=lambda record: record.batch.step >= last)
        mine = range(first, records[-1].batch.step + 1 if records else first)
        kernels = tuple(span for span in seen if span.step is None or span.step in mine)
        return Profile(tuple(records), mine, kernels)

    # ---- time ------------------------------------------------------------------------------------

    @property
    def trace(self) -> Trace:
        """The history so far. After a rewind the trace that was asked for before keeps the rest."""
        past, decode = self._past, self._codec.decode if self._codec else None
        return Trace(past.history, self.header, past.start, decode)

    @property
    def header(self) -> Header:
        """What a file of this run begins with."""
        about = (self._vocab_size, self.model, self._past.config)
        return Header(self.config, self._scheduler.eos, *about)

    def state(self) -> dict[str, Any]:
        """The host's state as plain data; ``scheduler.state.read`` reads it.

        Raises ValueError while a step is in flight.
        """
        return written(self._scheduler)

    def break_when(self, condition: Condition) -> Breakpoint:
        """Let ``run`` stop after each record for which this holds.

        condition: a function of a StepRecord, or one of the names in ``engine.breakpoint.EVENTS``.
        Returns a handle with ``enabled`` and ``remove()``. Raises ValueError for an unknown name.
        """
        handle = Breakpoint(condition, self._breakpoints)
        self._breakpoints.append(handle)
        return handle

    @property
    def breakpoints(self) -> tuple[Breakpoint, ...]:
        """The breakpoints that were set and not removed."""
        return tuple(self._breakpoints)

    def rewind(self, to: int | None = None, until: Condition | None = None) -> None:
        """Go back to the moment at which records 0 to ``to`` - 1 exist, or to just after the last
        earlier record for which ``until`` holds.

        Steps in flight are collected first. Requests that were not over then are new objects: ask
        ``requests`` again. Inputs from the next commit on are forgotten; a trace taken before has
        them. Raises ValueError if there is no such moment, RuntimeError without a record.
        """
        self._check_open()
        self._check_not_telling()
        self._drain()
        num_records = self._past.moment(to, until)
        try:
            moment = self._past.go(self._runner, num_records)
        except BaseException:
            self.close()  # the device is between two moments
            raise
        self._become(moment, self._past.until(num_records))

    def fork(self, at: int | None = None, **changes: Any) -> Engine:
        """A twin, as of now or as of the moment at which records 0 to ``at`` - 1 exist.

        It shares the weights and has pages of its own; the two never meet again. Steps in flight
        are collected first. changes: any of the toggles in ``FORKABLE``.
        Raises ValueError for a change of any other, MemoryError if its pages do not fit.
        """
        self._check_open()
        self._check_not_telling()
        if wrong := sorted(set(changes) - set(FORKABLE)):
            raise ValueError(
                f"a fork cannot change {', '.join(wrong)}, which its pages are made for; it can "
                f"change {', '.join(FORKABLE)}; use minisgl.replay for the others"
            )
        config = self.config.but(**changes)
        find_policy(config.policy)
        self._drain()
        past = self._past
        num_records = len(past.history) if at is None else past.moment(at, None)
        # of the present nothing need be computed again, and nothing need have been recorded
        start = self._present(whole=True) if at is None else past.checkpoints.before(num_records)
        vocab_size, codec, model = self._vocab_size, self._codec, self.model
        runner = self._runner.fork()
        try:
            moment = go(runner, start, past.history, num_records)
            twin = Engine(
                moment.scheduler, runner, config, vocab_size=vocab_size, codec=codec, model=model
            )
            twin._requests = dict(self._requests)
            twin._become(moment, past.until(num_records))
            twin._begin()
        except BaseException:
            runner.close()
            raise
        return twin

    # ---- looking ---------------------------------------------------------------------------------

    @property
    def requests(self) -> Mapping[int, Request]:
        """Every request by rid. Read-only."""
        return MappingProxyType(self._requests)

    @property
    def queue(self) -> tuple[Request, ...]:
        """The waiting requests, from the head of the queue."""
        return tuple(self._scheduler.waiting.values())

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return self._scheduler.busy

    @property
    def running(self) -> tuple[Request, ...]:
        """The requests that hold a slot, by admission."""
        return tuple(self._scheduler.running.values())

    @property
    def codec(self) -> Codec | None:
        """What turns text into token ids and back; None without tokenizer files."""
        return self._codec

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._vocab_size

    @property
    def eos_ids(self) -> frozenset[int]:
        """The token ids that end a text."""
        return frozenset(self._scheduler.eos)

    @property
    def gauges(self) -> Gauges:
        """Pages and requests in numbers."""
        return self._scheduler.gauges

    @property
    def in_flight(self) -> int:
        """How many steps were launched and not collected yet."""
        return len(self._in_flight)

    @property
    def next_step(self) -> int:
        """The number of the step that will be planned next."""
        return self._scheduler.step

    @property
    def cache(self) -> CacheView:
        """What the prefix cache knows now."""
        return CacheView(self._scheduler.pool, self._codec.decode if self._codec else None)

    @property
    def pages(self) -> tuple[int, ...]:
        """How many hold each KV page: running requests and the prefix cache."""
        return self._scheduler.pool.counts

    @property
    def workers(self) -> tuple[Worker, ...]:
        """The processes that compute, as (rank, pid); () where it is this one."""
        return self._runner.workers

    def check(self) -> None:
        """Raise AssertionError at the first page or slot that does not add up."""
        self._scheduler.check()

    # ---- ending ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Give back the runner's memory and threads; what was recorded stays readable."""
        self._closed = True
        self._runner.close()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        gauges = self.gauges
        return (
            f"Engine(step {self._scheduler.step}: {gauges.waiting} waiting, {gauges.running} "
            f"running, {len(self._in_flight)} in flight; {gauges.free_pages} pages free, "
            f"{gauges.cached_pages} cached)"
        )

    def _repr_html_(self) -> str:
        return engine_card(repr(self)[7:-1], self.config, self.gauges, self._requests)

    # ---- inside ----------------------------------------------------------------------------------

    def _note(self, item: Input) -> None:
        self._past.add_input(item)
        for listener in self.listeners:
            listener(item)

    def _launch(self, plan: Plan, start: float) -> Batch:
        with self._held:
            planned = perf_counter()
            batch, events = self._scheduler.commit(plan)
            self._note(plan)
            committed = perf_counter()
            launch = start_batch(self._runner, batch)
            spans = (
                Span("host", "plan", start, planned),
                Span("host", "commit", planned, committed),
                Span("host", "launch", committed, perf_counter()),
            )
            self._in_flight.append(InFlight(plan, batch, events, spans, launch))
        return batch

    def _flush(self, error: str | None = None) -> StepRecord:
        """Record what happened while nothing could run: a step without rows, by the same doors.

        error: the step has failed for this reason, so nothing in the prefix cache is trusted.
        """
        plan = Plan()
        with self._held:
            batch, events = self._scheduler.commit(plan)
            self._note(plan)
            outcome = Outcome(batch.step, (), error=error)
            self._note(outcome)
            events += self._scheduler.apply(outcome)
            record = self._emit(plan, batch, outcome, events, ())
        return self._tell(record)

    def _emit(
        self,
        plan: Plan,
        batch: Batch,
        outcome: Outcome,
        events: tuple[Event, ...],
        spans: tuple[Span, ...],
    ) -> StepRecord:
        events = (*self._events, *events)
        self._events.clear()
        record = StepRecord(plan, batch, outcome, events, self.gauges, spans)
        for rid in self._past.add_record(record, self._present):
            self._requests.pop(rid, None)
        if self.config.check:
            self.check()
        return record

    def _tell(self, record: StepRecord) -> StepRecord:
        """Let the observers see a record. A view may fail; the engine goes on without it."""
        self._telling = True
        try:
            for observer in tuple(self.observers):
                try:
                    observer(record)
                except Exception as error:
                    self.observers.remove(observer)
                    message = f"observer {observer!r} failed and was removed: {error!r}"
                    warnings.warn(message, RuntimeWarning, stacklevel=3)
        finally:
            self._telling = False
        return record

    def _present(self, whole: bool = False) -> Checkpoint:
        """This moment; the contents of the pages only within budget, unless the whole is asked."""
        past, flying = self._past, tuple(self._in_flight)
        where = (past.position, self._scheduler, self._events, flying, self._runner)
        budget = None if whole else past.checkpoints.budget // 2
        return checkpoint(*where, self._next_rid, past.checkpoints.last, budget)

    def _begin(self) -> None:
        """Be an engine of its own from here on: a fork keeps to its own configuration."""
        limits = self.config.limits
        change = Change(limits.max_step_tokens, limits.chunked_prefill, limits.optimistic)
        self._scheduler.change(change, find_policy(self.config.policy))
        self._note(change)
        self._past.begin_with(self._present())

    def _become(self, moment: Moment, past: Past) -> None:
        """Be at a moment that the runner is at already."""
        self._past, self._scheduler = past, moment.scheduler
        self._in_flight, self._events = moment.in_flight, moment.pending
        self._stops = Stops(self._codec)
        for request in moment.requests.values():
            request.decode = self._codec.decode if self._codec else None
            self._stops.watch(request)
        before = {
            rid: request
            for rid, request in self._requests.items()
            if request.finish is not None and rid not in moment.requests
        }
        self._next_rid = moment.next_rid
        kept = {rid: request for rid, request in before.items() if rid < moment.next_rid}
        self._requests = kept | moment.requests

    def _drain(self) -> None:
        while self._in_flight:
            self.collect()

    def _check_not_telling(self) -> None:
        if self._telling:
            raise RuntimeError("an observer may look, add and abort; it cannot step the engine")

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the engine is closed; load another")
