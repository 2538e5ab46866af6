"""Going back: checkpoints of host and device, and the way from one to any later moment.

The host replays its inputs; the device goes to the checkpoint's snapshot and computes the recorded
batches again. What it computes is compared with the record on the way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import Final, NamedTuple

from minisgl.config import EngineConfig
from minisgl.core import (
    Abort,
    Add,
    Batch,
    Change,
    Event,
    Finished,
    Input,
    Outcome,
    Plan,
    Request,
    Span,
    StepRecord,
    as_int,
)
from minisgl.engine.breakpoint import Condition, as_condition
from minisgl.engine.runner import Launch, Runner, Snapshot
from minisgl.scheduler.scheduler import Scheduler
from minisgl.trace.history import History

_THINGS_PER_STEP: Final = 8  # requests and pages that a step may cost in copies
# Steps between checkpoints: the most that a rewind computes again. At 64 they would cost a small
# model more than 1 % of a step.
EVERY: Final = 256


class InFlight(NamedTuple):
    """A committed step on its way."""

    plan: Plan
    batch: Batch
    events: tuple[Event, ...]  # of its commit
    spans: tuple[Span, ...]  # of the host, so far
    launch: Launch


class Known:
    """The launch of a batch whose outcome is known already."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def result(self) -> Outcome:
        """The outcome."""
        return self._outcome


class _Failed:
    def __init__(self, error: Exception) -> None:
        self._error = error

    def result(self) -> Outcome:
        raise self._error


class Checkpoint(NamedTuple):
    """All that is needed to go on from one moment. Nobody changes it: the scheduler is copied."""

    num_records: int
    num_inputs: int
    scheduler: Scheduler
    pending: tuple[Event, ...]  # of adds and aborts that no record tells yet
    in_flight: tuple[InFlight, ...]
    device: Snapshot | None  # None: no batch had been launched, or there was no room for one
    full: Mapping[int, int]  # the pages that were full then; see PagePool.full
    next_rid: int

    @property
    def is_reachable(self) -> bool:
        """Whether a device can be brought here."""
        return self.device is not None or not self.num_records

    @property
    def parts(self) -> Mapping[int, int]:
        """The pieces of device memory that it keeps, with their bytes."""
        return self.device.parts if self.device else {}


class Moment(NamedTuple):
    """An engine's state, as it was."""

    scheduler: Scheduler
    requests: dict[int, Request]  # those that were not over at the checkpoint
    pending: list[Event]
    in_flight: deque[InFlight]
    next_rid: int


class Checkpoints:
    """Checkpoints in order of time, within a budget of bytes for what they keep of the device.

    The first is the beginning of the history. Over budget, every second one between the first and
    the last goes, so they grow sparser towards the past. A snapshot takes half the budget at most;
    a moment with more than that in use gets none and cannot be gone back to from there.
    """

    def __init__(self, first: Checkpoint, budget: int, every: int) -> None:
        self._kept, self.budget, self.every = [first], budget, every

    @property
    def first(self) -> Checkpoint:
        """The beginning of what can be gone back to."""
        return self._kept[0]

    @property
    def last(self) -> Checkpoint:
        """The latest."""
        return self._kept[-1]

    @property
    def reachable(self) -> Checkpoint | None:
        """The earliest moment that a device can be brought to."""
        return next((c for c in self._kept if c.is_reachable), None)

    def is_due(self, num_records: int, num_things: int) -> bool:
        """Whether the next checkpoint should be made.

        num_things: requests and pages that a copy of the host state copies; the more there are, the
        more steps share the cost of one.
        """
        every = max(self.every, num_things // _THINGS_PER_STEP)
        return num_records - self._kept[-1].num_records >= every

    def add(self, checkpoint: Checkpoint) -> None:
        """Keep one more."""
        self._kept.append(checkpoint)
        while len(self._kept) > 2 and self.num_bytes > self.budget:
            middle = self._kept[1:-1]
            self._kept[1:-1] = middle[1::2] if len(middle) > 1 else []

    @property
    def num_bytes(self) -> int:
        """The device memory that they keep, shared pieces counted once."""
        return sum({k: size for kept in self._kept for k, size in kept.parts.items()}.values())

    def before(self, num_records: int) -> Checkpoint:
        """The nearest at or before the moment at which so many records exist, to go on from."""
        kept = (c for c in reversed(self._kept) if c.is_reachable)
        return next(c for c in kept if c.num_records <= num_records)

    def until(self, num_records: int) -> Checkpoints:
        """Those that a history cut at this moment has."""
        twin = Checkpoints(self._kept[0], self.budget, self.every)
        twin._kept = [c for c in self._kept if c.num_records <= num_records]
        return twin

    def forget(self, num_records: int) -> Checkpoint:
        """Begin with the last one at or before this moment; returns it."""
        first = next(c for c in reversed(self._kept) if c.num_records <= num_records)
        self._kept = self._kept[self._kept.index(first) :]
        return first


class Past:
    """What an engine has behind it: the history, and checkpoints to go back to.

    It keeps nothing with ``config.record`` off, and about ``config.history`` steps where that is
    set.
    """

    def __init__(self, config: EngineConfig, first: Checkpoint) -> None:
        self.history = History()
        self.start: Scheduler | None = None  # where the history begins; None: at the beginning
        self.config = config  # that of the engine which the history began with
        every = EVERY if config.history is None else min(EVERY, max(1, config.history // 2))
        self.checkpoints = Checkpoints(first, config.snapshots << 20, every)

    @property
    def position(self) -> tuple[int, int]:
        """Records and inputs so far."""
        return len(self.history), self.history.num_inputs

    def add_input(self, item: Input) -> None:
        """Note what passed a door."""
        if self.config.record:
            self.history.add_input(item)

    def add_record(self, record: StepRecord, present: Callable[[], Checkpoint]) -> list[int]:
        """Note a record, make a checkpoint where one is due, and forget what is too old.

        Returns the requests that are forgotten.
        """
        if not self.config.record:
            return [event.rid for event in record.events if isinstance(event, Finished)]
        history, limit, gauges = self.history, self.config.history, record.gauges
        history.add_record(record)
        if not self.checkpoints.is_due(len(history), 8 * gauges.waiting + gauges.cached_pages):
            return []
        self.checkpoints.add(present())
        if limit is None or len(history) - history.first <= limit + self.checkpoints.every:
            return []
        first = self.checkpoints.forget(len(history) - limit)
        self.start = first.scheduler
        return history.forget(first.num_records, first.num_inputs)

    def moment(self, to: int | None, until: Condition | None) -> int:
        """How many records exist at the moment that is asked for.

        Raises RuntimeError without a record, ValueError if there is no such moment.
        """
        if not self.config.record:
            raise RuntimeError("nothing was recorded; load with record=True to go back")
        if (to is None) == (until is None):
            raise TypeError("give either to= or until=")
        reachable, now = self.checkpoints.reachable, len(self.history)
        if reachable is None:
            raise ValueError(
                f"no snapshot of the KV pages is kept: one takes more than half of the "
                f"{self.config.snapshots} MiB they may have; load with a larger snapshots"
            )
        first = reachable.num_records
        if until is not None:
            holds = as_condition(until)
            for k in range(now - 2, first - 1, -1):
                if holds(self.history.record(k)):
                    return k + 1
            raise ValueError(f"{until!r} holds for no record from {first} to {now - 2}")
        k = as_int("to", to, 0)
        if not first <= k <= now:
            raise ValueError(f"there is no moment {k}: one can go back to {first} to {now}")
        return k

    def go(self, runner: Runner, num_records: int) -> Moment:
        """Bring ``runner`` to a moment, from the nearest checkpoint before it; see ``go``."""
        return go(runner, self.checkpoints.before(num_records), self.history, num_records)

    def until(self, num_records: int) -> Past:
        """The past of an engine that stands at this moment."""
        twin = Past(self.config, self.checkpoints.first)
        twin.history, twin.start = self.history.cut(num_records), self.start
        twin.checkpoints = self.checkpoints.until(num_records)
        return twin

    def begin_with(self, checkpoint: Checkpoint) -> None:
        """Nothing before this moment can be gone back to; the history stays readable."""
        old = self.checkpoints
        self.checkpoints = Checkpoints(checkpoint, old.budget, old.every)


def checkpoint(
    position: tuple[int, int],
    scheduler: Scheduler,
    pending: Sequence[Event],
    in_flight: Sequence[InFlight],
    runner: Runner,
    next_rid: int,
    last: Checkpoint | None,
    budget: int | None,
) -> Checkpoint:
    """The present moment. Pages that were full at the last one and still are, are not copied again.

    position: records and inputs so far. budget: bytes that the contents of the pages in use may
    take, else they are left out; None: any number.
    """
    full, device = scheduler.full_pages(), None
    used = scheduler.pool.used
    if scheduler.step and (budget is None or runner.snapshot_bytes(len(used)) <= budget):
        base = last.full if last and last.device else {}
        fresh = [page for page in used if page not in base or base[page] != full.get(page)]
        device = runner.snapshot(used, fresh, last.device if last else None)
    flying, twin = tuple(in_flight), scheduler.copy()
    return Checkpoint(*position, twin, tuple(pending), flying, device, full, next_rid)


def go(runner: Runner, start: Checkpoint, history: History, num_records: int) -> Moment:
    """Bring ``runner`` to the moment at which so many records exist, and return the rest of it.

    Raises RuntimeError if a step computes other tokens than were recorded; then the runner is at no
    moment of the history.
    """
    scheduler = start.scheduler.copy()
    requests = {**scheduler.waiting, **scheduler.running}
    pending, next_rid = list(start.pending), start.next_rid
    if start.device is not None:
        runner.restore(start.device)
    # their effect is in the snapshot, and their outcome has been recorded since
    in_flight = deque(map(_known, start.in_flight, repeat(history)))
    for item in history.inputs(start.num_inputs, history.end(num_records)):
        match item:
            case Add():
                request, events = scheduler.add(item)
                requests[item.rid], next_rid = request, item.rid + 1
                pending += events
            case Abort():
                pending += scheduler.abort(item)
            case Plan():
                batch, events = scheduler.commit(item)
                spans = _of_the_launch(history, batch)
                empty = Known(Outcome(batch.step, ()))
                launch = start_batch(runner, batch) if batch.rows else empty
                in_flight.append(InFlight(item, batch, events, spans, launch))
            case Change():
                scheduler.change(item)
            case Outcome():
                _compare(in_flight.popleft(), item)
                if item.error is not None:  # what was on its way then built on what failed
                    in_flight = deque(map(_known, in_flight, repeat(history)))
                scheduler.apply(item)
                pending.clear()
    return Moment(scheduler, requests, pending, in_flight, next_rid)


def start_batch(runner: Runner, batch: Batch) -> Launch:
    """Launch a batch; a runner that refuses makes a launch that fails when it is waited for."""
    try:
        return runner.launch(batch)
    except Exception as error:
        return _Failed(error)


def _known(flight: InFlight, history: History) -> InFlight:
    """The step with its recorded outcome, if there is one by now."""
    step = flight.batch.step
    if step >= len(history):
        return flight
    return flight._replace(launch=Known(history.record(step).outcome))


def _of_the_launch(history: History, batch: Batch) -> tuple[Span, ...]:
    if batch.step >= len(history):
        return ()
    names = ("plan", "commit", "launch")
    return tuple(
        s for s in history.record(batch.step).spans if s.lane == "host" and s.name in names
    )


def _compare(flight: InFlight, recorded: Outcome) -> None:
    if recorded.error is not None:
        return  # whatever it computes now, nobody uses it
    again = flight.launch.result()
    if again.tokens != recorded.tokens:
        raise RuntimeError(
            f"step {recorded.step} computed {again.tokens} and had computed {recorded.tokens}; the "
            f"device does not repeat itself, so it cannot be rewound"
        )
