"""Which request computes what next, and what its outcome means. Integers only: no device or clock.

Asking for a plan changes nothing. Four doors do: ``add``, ``abort``, ``commit`` and ``apply``. What
passes them is immutable, so the list of it is the whole history (``replay``), and each returns the
events it caused. Two rules keep pages and slots safe:

- every page counts its holders, the running requests and the prefix cache (``kvcache.pages``);
- a request's slot and pages go back only when no launched step names it any more (``in_flight``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from copy import copy
from dataclasses import replace
from itertools import chain

from minisgl.config import Limits
from minisgl.core import (
    Abort,
    Add,
    Added,
    Admitted,
    Batch,
    Change,
    Draw,
    Event,
    Evicted,
    Finished,
    FinishReason,
    Gauges,
    Inserted,
    Outcome,
    Plan,
    Preempted,
    Released,
    Request,
    Reused,
    Row,
    Sampled,
    StopHit,
)
from minisgl.kvcache.base import PrefixCache
from minisgl.kvcache.pages import PagePool
from minisgl.scheduler.ledger import Ledger
from minisgl.scheduler.policy import Policy
from minisgl.scheduler.validate import validate


class Scheduler:
    """The queue, the running requests and their pages. It owns every ``Request`` it was given.

    eos: token ids that end a request unless it ignores them.
    """

    def __init__(
        self,
        limits: Limits,
        policy: Policy,
        cache: PrefixCache,
        eos: Iterable[int] = (),
    ) -> None:
        self.limits = limits
        self.policy = policy
        self.eos = frozenset(eos)
        self.pool = PagePool(limits.num_pages, limits.page_size, cache)
        self.waiting: OrderedDict[int, Request] = OrderedDict()  # from the head of the queue
        self.running: dict[int, Request] = {}  # holds a slot: by admission, leaving ones included
        self.step = 0  # the next step's number
        self.next_after_decode = 0  # the step after the last one that decoded
        self._free_slots = list(range(limits.max_running - 1, -1, -1))
        self._in_flight: OrderedDict[int, Batch] = OrderedDict()
        self._promised = 0  # pages kept for running requests to grow into
        self._expected = limits.expected_output * 8  # running mean of generated lengths, in eighths

    # ---- what it knows ---------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.waiting or self.running)

    @property
    def gauges(self) -> Gauges:
        """The state in numbers."""
        pool, waiting, running = self.pool, len(self.waiting), len(self.running)
        pages = (pool.num_free, pool.num_cached, pool.num_evictable, self._promised)
        return Gauges(*pages, waiting, running)

    @property
    def num_free_slots(self) -> int:
        """Slots no request holds."""
        return len(self._free_slots)

    @property
    def in_flight(self) -> tuple[Batch, ...]:
        """The batches that were committed and not applied yet, the oldest first."""
        return tuple(self._in_flight.values())

    @property
    def pages_left(self) -> int:
        """Pages that are neither held nor promised."""
        return self.pool.num_free + self.pool.num_evictable - self._promised

    def pages_for(self, positions: int) -> int:
        """Pages that this many positions fill."""
        return -(-positions // self.limits.page_size)

    def match(self, request: Request) -> list[int]:
        """Cached pages that a waiting request could use now. Its last token is always computed.

        None while it asks for logprobs of its prompt, for these are of computed positions only.
        """
        if request.scores_prompt:
            return []
        return self.pool.match(request.tokens, (len(request.tokens) - 1) // self.limits.page_size)

    def reserve_len(self, request: Request) -> int:
        """Positions that admission counts for a waiting request.

        All it can need; under optimistic admission what is expected, unless it was preempted once:
        then it would only be preempted again.
        """
        if not self.limits.optimistic or request.preemptions:
            return request.max_len
        return min(request.max_len, len(request.tokens) + self._expected // 8)

    def needs_page(self, request: Request) -> bool:
        """Whether its next position begins a page."""
        return request.scheduled == len(request.pages) * self.limits.page_size

    def may_chunk(self, request: Request) -> bool:
        """Whether its prompt may be split; what is computed again may exceed a step, so always."""
        return self.limits.chunked_prefill or request.preemptions > 0

    def full_pages(self) -> dict[int, int]:
        """Pages whose every position is computed or in flight; see ``PagePool.full``."""
        size = self.limits.page_size
        held = (r.pages[: r.scheduled // size] for r in self.running.values())
        return self.pool.full(chain.from_iterable(held))

    def plan(self, policy: Policy | None = None) -> Plan:
        """What this policy would do now. Changes nothing, so ask as often as you like.

        Raises TypeError if the policy returns no plan, and whatever the policy raises.
        """
        chosen = policy or self.policy
        plan = chosen(Ledger(self))
        if not isinstance(plan, Plan):
            raise TypeError(f"policy {chosen!r} returned {plan!r}; return ledger.plan")
        return plan

    # ---- the four doors --------------------------------------------------------------------------

    def add(self, item: Add) -> tuple[Request, tuple[Event, ...]]:
        """Queue a request; ``max_tokens`` beyond what the context holds is clipped and noted.

        Raises ValueError if it can never run, saying what it needs and what there is.
        """
        limits, asked = self.limits, item.sampling.max_tokens
        name, length = f"request {item.rid}", len(item.prompt)
        if not item.prompt:
            raise ValueError(f"{name} has an empty prompt; give it at least one token")
        if item.rid in self.waiting or item.rid in self.running:
            raise ValueError(f"{name} exists already")
        room = limits.max_seq_len - length
        if room < min(1, asked):
            raise ValueError(
                f"{name} has {length} prompt tokens, which leaves no room for output in a context "
                f"of {limits.max_seq_len}; shorten the prompt, or raise max_seq_len or num_pages"
            )
        sampling = item.sampling if asked <= room else replace(item.sampling, max_tokens=room)
        request = Request(item.rid, list(item.prompt), length, sampling, self.step)
        self.settle(request)
        if asked > room:
            request.clipped_from = asked
        need = self.pages_for(request.max_len)
        if need > limits.num_pages:
            raise ValueError(
                f"{name} needs {need} pages ({request.max_len} positions), the pool has "
                f"{limits.num_pages}; raise num_pages or lower max_tokens"
            )
        if length > limits.max_step_tokens and not limits.chunked_prefill:
            raise ValueError(
                f"{name} has {length} prompt tokens and a step computes {limits.max_step_tokens}; "
                f"turn chunked_prefill on or raise max_step_tokens"
            )
        self.waiting[item.rid] = request
        return request, (Added(item.rid, length, self.step),)

    def settle(self, request: Request) -> None:
        """Work out what follows from a request's sampling."""
        sampling = request.sampling
        request.plain = sampling.plain
        request.stop_ids = (frozenset() if sampling.ignore_eos else self.eos).union(
            sampling.stop_token_ids
        )

    def abort(self, item: Abort) -> tuple[Event, ...]:
        """End a request early; one that is unknown or finished stays as it is.

        While a launched step names it, it keeps slot and pages.
        """
        request = self.waiting.pop(item.rid, None) or self.running.get(item.rid)
        if request is None or request.finish is not None:
            return ()
        return tuple(self._finish(request, "abort"))

    def commit(self, plan: Plan) -> tuple[Batch, tuple[Event, ...]]:
        """Take the slots and pages a plan needs and mark its rows in flight.

        Raises ValueError if the plan cannot run as it is; then nothing has changed.
        """
        matches = validate(plan, self)
        events: list[Event] = []
        for rid in plan.preempt:
            events += self._preempt(self.running[rid])
        # What this step reuses is held before it takes pages, or it could evict them itself.
        for rid, shared in matches.items():
            events += self._admit(self.waiting.pop(rid), shared)
        fresh = []
        for rid, length in plan.rows:
            request = self.running[rid]
            fresh.append(self.pages_for(request.scheduled + length) - len(request.pages))
        pages, gone = self.pool.take(sum(fresh))
        if gone:
            events.append(Evicted(gone))
        rows, at = [], 0
        for (rid, length), n in zip(plan.rows, fresh, strict=True):
            rows.append(self._row(self.running[rid], length, pages[at : at + n], rid in matches))
            at += n
        prompts = [row for row in rows if row.token_ids is not None]
        for row in prompts:  # findable from now on: batches take effect in launch order
            events += self._share(self.running[row.rid])
        batch = Batch(self.step, tuple(rows))
        self._in_flight[self.step] = batch
        self.step += 1
        if len(prompts) < len(rows) or not self._can_decode:
            self.next_after_decode = self.step
        return batch, tuple(events)

    def apply(self, outcome: Outcome) -> tuple[Event, ...]:
        """Book the oldest step in flight: append tokens, finish, release what nothing needs now.

        A failed outcome finishes every running request with "error" and empties the prefix cache,
        for nothing says which pages the failed step has written. Waiting requests go on.
        Raises ValueError if the outcome is not that of the oldest step in flight.
        """
        batch = next(iter(self._in_flight.values()), None)
        if batch is None or batch.step != outcome.step or len(batch.rows) != len(outcome.tokens):
            oldest = "none" if batch is None else f"{batch.step} with {len(batch.rows)} rows"
            raise ValueError(
                f"the outcome of step {outcome.step} with {len(outcome.tokens)} rows was given; "
                f"the oldest in flight is {oldest}"
            )
        del self._in_flight[outcome.step]
        events: list[Event] = []
        for row in batch.rows:
            self.running[row.rid].in_flight -= 1
        if outcome.error is not None:
            return tuple(self._fail(outcome.error))
        if outcome.logprobs or outcome.prompt_logprobs:
            self._book_logprobs(batch, outcome)
        hits = {hit.rid: hit for hit in outcome.stops}
        for row, token in zip(batch.rows, outcome.tokens, strict=True):
            request = self.running[row.rid]
            if request.finish is None:
                reason = self.reason(request, token)
                if token is not None:
                    request.tokens.append(token)
                    events.append(Sampled(row.rid, token))
                if reason or hits and row.rid in hits:
                    events += self._end(request, token, reason, hits.get(row.rid))
                elif request.preempting:
                    events += self._release(request)
            else:
                events += self._release(request)
        return tuple(events)

    # ---- a plan becomes a batch ------------------------------------------------------------------

    def _admit(self, request: Request, shared: list[int]) -> Iterable[Event]:
        request.slot = self._free_slots.pop()
        self.pool.hold(shared)
        self.pool.touch(shared[-1] if shared else None, self.step)
        request.pages, request.shared = shared, len(shared)
        request.scheduled = len(shared) * self.limits.page_size
        if not request.preemptions:
            request.cached = request.scheduled
        request.prefill_end = len(request.tokens)
        request.promised = self.pages_for(self.reserve_len(request)) - len(shared)
        self._promised += request.promised
        self.running[request.rid] = request
        yield Admitted(request.rid, request.slot)
        if shared:
            yield Reused(request.rid, request.scheduled, tuple(shared))

    def _row(self, request: Request, length: int, fresh: list[int], admitted: bool) -> Row:
        start, end, old = request.scheduled, request.scheduled + length, len(request.pages)
        if fresh:
            request.pages += fresh
            kept = min(len(fresh), request.promised)
            request.promised -= kept
            self._promised -= kept
        first = 0 if admitted else old  # its first row also names the pages it shares
        known = start < request.prefill_end
        request.scheduled = end
        request.in_flight += 1
        assert request.slot is not None
        return Row(
            request.rid,
            request.slot,
            start,
            length,
            tuple(request.tokens[start:end]) if known else None,
            first,
            tuple(request.pages[first:]) if admitted else tuple(fresh),
            end >= request.prefill_end and request.sampling.max_tokens > 0,
            request.sampling,
            None if request.plain else self._draw(request, start, end, admitted),
        )

    def _draw(self, request: Request, start: int, end: int, admitted: bool) -> Draw:
        sampling, tokens, length = request.sampling, request.tokens, request.prompt_len
        history = None
        if admitted and sampling.penalises:
            history = tuple(tokens[:length]), tuple(tokens[length:])
        targets = tuple(tokens[start + 1 : min(end + 1, length)]) if request.scores_prompt else ()
        return Draw(sampling.seed or 0, max(0, end - length), history, targets)

    def _share(self, request: Request) -> Iterable[Event]:
        """Let others find the whole prompt pages that are computed or in flight.

        Where a twin's pages are cached already it keeps its own to itself until it is released: who
        holds a cached page must hold the cached pages before it.
        """
        size, at = self.limits.page_size, request.shared
        end = min(request.scheduled, request.prefill_end) // size
        if end <= at or not self.pool.shares:
            return
        path = request.pages[at - 1] if at else None
        if self.pool.knows(path, request.tokens[at * size : (at + 1) * size]):
            return
        pages = request.pages[at:end]
        self.pool.insert(path, request.tokens[at * size : end * size], pages, self.step)
        request.shared = end
        yield Inserted(request.rid, tuple(pages))

    @property
    def _can_decode(self) -> bool:
        running = self.running.values()
        return any(r.prefill_end <= r.scheduled < r.max_len and r.finish is None for r in running)

    # ---- a request leaves ------------------------------------------------------------------------

    def reason(self, request: Request, token: int | None) -> FinishReason | None:
        """Why a request ends once this next token of its is booked; None if it goes on.

        token: None for a row that emits nothing.
        """
        if token is None:  # a chunk; the last one ends a request that generates nothing
            done = not request.in_flight and request.scheduled >= request.prompt_len
            return "length" if request.sampling.max_tokens == 0 and done else None
        if token in request.stop_ids:
            return "stop"
        return "length" if len(request.tokens) >= request.max_len else None

    def _end(
        self,
        request: Request,
        token: int | None,
        reason: FinishReason | None,
        hit: StopHit | None,
    ) -> list[Event]:
        if hit is not None:
            request.stopped_by, request.text_len = hit.stop, hit.text_len
            return self._finish(request, "stop")
        assert reason is not None
        if reason == "stop":
            request.stopped_by = token
        return self._finish(request, reason)

    def _book_logprobs(self, batch: Batch, outcome: Outcome) -> None:
        """Note them for requests that go on. What a preempted prompt computes again is known."""
        for row, score in zip(batch.rows, outcome.logprobs, strict=False):
            if score is not None and self.running[row.rid].finish is None:
                self.running[row.rid].scores.append(score)
        for row, scores in zip(batch.rows, outcome.prompt_logprobs, strict=False):
            if scores and self.running[row.rid].finish is None:
                known = self.running[row.rid].prompt_scores
                known += scores[max(0, len(known) - row.start) :]

    def _finish(self, request: Request, reason: FinishReason) -> list[Event]:
        request.finish = reason
        self._void_promise(request)
        if reason in ("stop", "length"):
            made = len(request.tokens) - request.prompt_len
            self._expected += made - self._expected // 8
        return [Finished(request.rid, reason), *self._release(request)]

    def _preempt(self, request: Request) -> list[Event]:
        request.preempting = True
        self._void_promise(request)
        return [Preempted(request.rid), *self._release(request)]

    def _release(self, request: Request) -> list[Event]:
        """Give back slot and pages, but only once no launched step reads or writes them."""
        if request.in_flight or request.slot is None:
            return []
        events: list[Event] = []
        size, at = self.limits.page_size, request.shared
        if not request.tainted:
            end = min(request.scheduled, len(request.tokens)) // size
            path, tokens = request.pages[at - 1] if at else None, request.tokens
            pages = request.pages[at:end]
            new = self.pool.insert(path, tokens[at * size : end * size], pages, self.step)
            if new:
                events.append(Inserted(request.rid, new))
        num_cached = sum(map(self.pool.is_cached, request.pages))
        self.pool.drop(request.pages)
        self._free_slots.append(request.slot)
        del self.running[request.rid]
        request.pages, request.slot, request.shared = [], None, 0
        events.append(Released(request.rid, num_cached))
        if request.finish is None:  # preempted: back to the head of the queue
            request.preempting, request.preemptions = False, request.preemptions + 1
            request.scheduled = request.prefill_end = 0
            self.waiting[request.rid] = request
            self.waiting.move_to_end(request.rid, last=False)
        return events

    def _fail(self, error: str) -> Iterable[Event]:
        self.pool.forget_all()
        for request in list(self.running.values()):
            request.tainted, request.shared = True, 0
            if request.finish is None:
                request.error = error
                yield from self._finish(request, "error")
            else:
                yield from self._release(request)

    def _void_promise(self, request: Request) -> None:
        self._promised -= request.promised
        request.promised = 0

    # ---- forks -----------------------------------------------------------------------------------

    def copy(self) -> Scheduler:
        """An independent twin. Immutable records are shared, requests are copied."""
        twin = copy(self)
        twin.pool, twin._free_slots = self.pool.copy(), self._free_slots.copy()
        twin._in_flight = self._in_flight.copy()
        twin.waiting = OrderedDict((rid, _twin(r)) for rid, r in self.waiting.items())
        twin.running = {rid: _twin(r) for rid, r in self.running.items()}
        return twin

    def change(self, item: Change, policy: Policy | None = None) -> None:
        """Keep to other limits, and to another policy, from here on: how a fork begins.

        Raises ValueError if a request could never run under them; then nothing has changed.
        """
        if not item.chunked_prefill:
            for request in (*self.waiting.values(), *self.running.values()):
                end = request.prefill_end or len(request.tokens)
                left = end - request.scheduled
                if left > item.max_step_tokens and not request.preemptions:
                    raise ValueError(
                        f"request {request.rid} has {left} prompt tokens left to compute and a "
                        f"step would compute {item.max_step_tokens}; raise max_step_tokens too"
                    )
        self.limits = self.limits._replace(**item._asdict())
        self.policy = policy or self.policy

    # ---- what must always hold -------------------------------------------------------------------

    def check(self) -> None:
        """Raise AssertionError at the first page, slot, promise or count that does not add up."""
        running, size = self.running.values(), self.limits.page_size
        self.pool.check(request.pages for request in running)
        slots = [request.slot for request in running] + self._free_slots
        assert sorted(s for s in slots if s is not None) == list(range(self.limits.max_running))
        assert self._promised == sum(request.promised for request in running), "a promise leaks"
        assert self.pages_left >= 0, "more pages are promised than there are"
        named = [row.rid for batch in self._in_flight.values() for row in batch.rows]
        for request in running:
            name = f"r{request.rid}"
            assert request.in_flight == named.count(request.rid), f"{name} counts its steps wrongly"
            assert request.scheduled <= len(request.pages) * size, f"{name} runs beyond its pages"
            shared = request.pages[: request.shared]
            assert all(map(self.pool.is_cached, shared)), f"{name} shares what is not cached"
            live = request.finish is None and not request.preempting
            assert live or request.in_flight, f"{name} should have been released"
        for request in self.waiting.values():
            held = request.pages or request.slot is not None or request.in_flight
            held = held or request.scheduled or request.promised or request.shared
            assert not held and request.finish is None, f"r{request.rid} waits and holds something"


def _twin(request: Request) -> Request:
    return replace(
        request,
        tokens=request.tokens.copy(),
        pages=request.pages.copy(),
        scores=request.scores.copy(),
        prompt_scores=request.prompt_scores.copy(),
    )
