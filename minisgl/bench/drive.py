"""A workload through an engine, and what each request got out of it.

Requests are added between steps, as a server does. A request's time begins when it was due, not
when the engine came to take it: otherwise a slow step would hide the waiting that it causes.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final, NamedTuple

from minisgl.bench.workload import Workload
from minisgl.core import Finished, Request, Reused, Sampled, SamplingParams, StepRecord
from minisgl.engine.engine import Engine
from minisgl.engine.prompt import Prompt


class Wall(NamedTuple):
    """A clock that counts seconds, and how to wait by it."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep


class Metric(NamedTuple):
    """A number that a run yields: its meaning, its unit and which way is good."""

    meaning: str
    unit: str
    higher_is_better: bool = False
    counts: bool = False  # a whole number that no clock has a part in


METRICS: Final[dict[str, Metric]] = {
    "throughput": Metric("generated tokens per second, until the last of them", "1/s", True),
    "ttft": Metric("time to first token, from when a request was due: mean over requests", "s"),
    "tpot": Metric("time per output token after the first: mean over requests", "s"),
    "itl": Metric("time between two tokens of a request: mean over all", "s"),
    "itl_p99": Metric("time between two tokens of a request: 99th percentile", "s"),
    "steps": Metric("batches that were computed", "", counts=True),
    "queued": Metric("steps that requests stood in the queue, summed", "steps", counts=True),
    "computed": Metric("positions that were computed", "tokens", counts=True),
    "reused": Metric("positions that came from the prefix cache", "tokens", True, counts=True),
    "peak_pages": Metric("KV pages that requests held at once, at most", "pages", counts=True),
}


class Served(NamedTuple):
    """What one request got. Times are in seconds from the start of the run."""

    arrival: float  # when it was due
    prompt_len: int
    tokens: tuple[int, ...]
    times: tuple[float, ...]  # when each token was known to the host
    reused: int  # positions of it that came from the prefix cache

    @property
    def ttft(self) -> float:
        """Time to first token."""
        return self.times[0] - self.arrival

    @property
    def itl(self) -> tuple[float, ...]:
        """Times between its tokens."""
        return tuple(b - a for a, b in zip(self.times, self.times[1:], strict=False))

    @property
    def tpot(self) -> float | None:
        """Mean time per output token after the first; None if there is no second."""
        return _mean(self.itl)

    @property
    def latency(self) -> float:
        """Time to the last token."""
        return self.times[-1] - self.arrival


@dataclass(frozen=True)
class Run:
    """A workload, served once: numbers per request in ``requests``, and totals."""

    requests: tuple[Served, ...]
    steps: int
    queued: int
    computed: int
    peak_pages: int

    @property
    def seconds(self) -> float:
        """From the start to the last token."""
        return max(served.times[-1] for served in self.requests)

    @property
    def tokens(self) -> tuple[tuple[int, ...], ...]:
        """What each request generated."""
        return tuple(served.tokens for served in self.requests)

    @property
    def metrics(self) -> dict[str, float | None]:
        """One number for each of ``METRICS``; None where nothing was to be measured."""
        gaps = sorted(gap for served in self.requests for gap in served.itl)
        tpots = [served.tpot for served in self.requests if served.tpot is not None]
        return {
            "throughput": sum(map(len, self.tokens)) / self.seconds if self.seconds else None,
            "ttft": _mean([served.ttft for served in self.requests]),
            "tpot": _mean(tpots),
            "itl": _mean(gaps),
            "itl_p99": gaps[ceil(0.99 * len(gaps)) - 1] if gaps else None,
            "steps": self.steps,
            "queued": self.queued,
            "computed": self.computed,
            "reused": sum(served.reused for served in self.requests),
            "peak_pages": self.peak_pages,
        }

    def __repr__(self) -> str:
        reused = sum(served.reused for served in self.requests)
        return (
            f"Run({len(self.requests)} requests in {self.steps} steps: {self.computed} positions "
            f"computed, {reused} reused, {sum(map(len, self.tokens))} tokens generated)"
        )


Driver = Callable[[Engine, Workload, Sequence[Prompt]], Run]


def drive(
    engine: Engine,
    workload: Workload,
    prompts: Sequence[Prompt] | None = None,
    wall: Wall | None = None,
) -> Run:
    """Serve a workload on an engine that has nothing else to do, to the last token.

    prompts: ``workload.prompts`` of this engine or one with the same vocabulary.
    wall: what times are taken from. Raises ValueError for a request that the engine cannot serve
    whole, RuntimeError if the engine is busy or a request fails.
    """
    if engine.gauges.waiting or engine.gauges.running:
        raise RuntimeError("the engine has other requests; run them to their end first")
    prompts = workload.prompts(engine) if prompts is None else prompts
    if len(prompts) != len(workload):
        raise ValueError(f"{len(prompts)} prompts were given for {len(workload)} requests")
    return _Drive(engine, workload, prompts, wall or Wall()).run()


class _Due(NamedTuple):
    order: float  # of two that may be sent the lower goes first
    place: int
    time: float  # since when it may be, in the workload's unit


class _Drive:
    """One run under way. Requests are known by their place in the workload."""

    def __init__(
        self, engine: Engine, workload: Workload, prompts: Sequence[Prompt], wall: Wall
    ) -> None:
        self.engine, self.workload, self.prompts, self.wall = engine, workload, prompts, wall
        self.place: dict[int, int] = {}  # rid -> place
        self.sent: dict[int, Request] = {}
        self.arrived: dict[int, float] = {}
        self.times: list[list[float]] = [[] for _ in prompts]
        self.reused = [0] * len(prompts)
        self.under_way = self.steps = self.queued = self.computed = self.peak_pages = 0
        self.skipped = -float(engine.next_step)  # from the engine's steps to the workload's
        self.due: list[_Due] = []  # a heap; what waits for another's end is not yet in it
        self.then: dict[int, list[int]] = {}  # place -> those that wait for its end
        for i, item in enumerate(workload):
            if item.after is None:
                self._enqueue(i, item.arrival)
            else:
                self.then.setdefault(item.after, []).append(i)
        self.start = wall.now()

    def run(self) -> Run:
        while True:
            self._send()
            record = self.engine.step()
            if record is not None:
                self._book(record)
            elif self.due:
                self._wait(self.due[0].time)
            else:
                break
        served = [self._served(i) for i in range(len(self.prompts))]
        return Run(tuple(served), self.steps, self.queued, self.computed, self.peak_pages)

    def _seconds(self) -> float:
        return self.wall.now() - self.start

    def _now(self) -> float:
        if self.workload.clock == "steps":
            return self.engine.next_step + self.skipped
        return self._seconds()

    def _wait(self, until: float) -> None:
        if self.workload.clock == "steps":
            self.skipped += max(0.0, until - self._now())
        elif (left := until - self._now()) > 0:
            self.wall.sleep(left)

    def _enqueue(self, i: int, time: float) -> None:
        """Closed arrivals finish one conversation before they begin the next."""
        order = time if self.workload.concurrency is None else 0.0
        heapq.heappush(self.due, _Due(order, i, time))

    def _send(self) -> None:
        most = self.workload.concurrency or len(self.prompts)
        now = self._now()
        while self.due and self.due[0].time <= now and self.under_way < most:
            due = heapq.heappop(self.due)
            item = self.workload[due.place]
            sampling = SamplingParams(max_tokens=item.output_len, ignore_eos=True)
            request = self.engine.add(self.prompts[due.place], sampling)
            if request.clipped_from is not None:
                holds = self.engine.config.limits.max_seq_len
                raise ValueError(
                    f"request {due.place} has {request.prompt_len} tokens and generates "
                    f"{item.output_len}; the engine's context holds {holds}"
                )
            # in a closed loop, and on a clock of steps, it is due when it is sent
            by_time = self.workload.clock == "seconds" and self.workload.concurrency is None
            self.arrived[due.place] = due.time if by_time else self._seconds()
            self.place[request.rid], self.sent[due.place] = due.place, request
            self.under_way += 1

    def _book(self, record: StepRecord) -> None:
        at = self._seconds()
        gauges = record.gauges
        held = self.engine.config.limits.num_pages - gauges.free_pages - gauges.evictable_pages
        self.peak_pages = max(self.peak_pages, held)
        self.steps += bool(record.batch.rows)
        self.queued += gauges.waiting
        self.computed += record.batch.num_tokens
        for event in record.events:
            match event:
                case Sampled(rid=rid) if rid in self.place:
                    self.times[self.place[rid]].append(at)
                case Reused(rid=rid, num_tokens=n) if rid in self.place:
                    self.reused[self.place[rid]] += n
                case Finished(rid=rid, reason=reason) if rid in self.place:
                    i = self.place[rid]
                    if reason != "length":
                        why = self.sent[i].error or "nobody should have ended it"
                        raise RuntimeError(f"request {i} ended with {reason!r}: {why}")
                    self.under_way -= 1
                    now = self._now() if self.workload.clock == "steps" else at
                    for later in self.then.pop(i, ()):
                        self._enqueue(later, max(now, self.workload[later].arrival))

    def _served(self, i: int) -> Served:
        request = self.sent[i]
        assert len(request.output) == len(self.times[i]) == self.workload[i].output_len
        lens = (request.prompt_len, request.output, tuple(self.times[i]), self.reused[i])
        return Served(self.arrived[i], *lens)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
