"""The what-if account of one step: policies charge it, and nothing is taken.

Each charge answers yes, or no with every check that failed. What it costs is proportional to the
requests that are charged or refused, never to the queue, the pool or the tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from minisgl.config import Limits
from minisgl.core import Plan, Refusal, Request, Why
from minisgl.kvcache.pages import PagePool

# How many waiting requests a plan may refuse before it stops looking: a bound on host work.
WINDOW = 32


class State(Protocol):
    """What planning may ask of the scheduler. It changes none of it."""

    @property
    def limits(self) -> Limits:
        """The sizes that a plan keeps to."""
        ...

    @property
    def pool(self) -> PagePool:
        """The pages and the prefix cache."""
        ...

    @property
    def waiting(self) -> dict[int, Request]:
        """The queue, from its head."""
        ...

    @property
    def running(self) -> dict[int, Request]:
        """Requests that hold a slot, in order of admission; leaving ones included."""
        ...

    @property
    def step(self) -> int:
        """The number of the step that is being planned."""
        ...

    @property
    def next_after_decode(self) -> int:
        """The number of the step after the last one that decoded or had nobody to decode."""
        ...

    @property
    def num_free_slots(self) -> int:
        """Slots that no request holds."""
        ...

    @property
    def pages_left(self) -> int:
        """Pages that are neither held nor promised."""
        ...

    def pages_for(self, positions: int) -> int:
        """Pages that this many positions fill."""
        ...

    def match(self, request: Request) -> list[int]:
        """Cached pages that a waiting request could use now."""
        ...

    def reserve_len(self, request: Request) -> int:
        """Positions that admission counts for a waiting request."""
        ...

    def needs_page(self, request: Request) -> bool:
        """Whether its next position begins a page."""
        ...

    def may_chunk(self, request: Request) -> bool:
        """Whether its prompt may be split."""
        ...


class Account:
    """What one step has left: the arithmetic that a plan is made with, and validated with again."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.tokens_left = state.limits.max_step_tokens
        self.slots_left = state.num_free_slots
        self.pages_left = state.pages_left
        self._pinned = set[int]()  # idle cached pages that an admission of this step holds
        self._freed = set[int]()  # pages that a preemption of this step gives back

    def admission_cost(self, request: Request, shared: list[int]) -> tuple[int, int]:
        """(fresh pages, cached pages to pin) that admitting a request with this match costs."""
        fresh = self._state.pages_for(self._state.reserve_len(request)) - len(shared)
        return fresh, len(self._to_pin(shared))

    def admit(self, request: Request, shared: list[int], length: int) -> None:
        """Charge an admission and the positions it computes."""
        pinned = self._to_pin(shared)
        self.slots_left -= 1
        self.pages_left -= sum(self.admission_cost(request, shared))
        self.tokens_left -= length
        self._pinned.update(pinned)

    def grow(self, request: Request, length: int) -> None:
        """Charge more positions of a running request; promised pages are paid for already."""
        self.tokens_left -= length
        if not request.promised:
            needed = self._state.pages_for(request.scheduled + length)
            self.pages_left -= max(0, needed - len(request.pages))

    def preempt(self, victim: Request) -> None:
        """Count what comes back at once from a request that no step in flight names."""
        self.pages_left += victim.promised
        if not victim.in_flight:
            freed = self._state.pool.given_back(victim.pages)
            self._freed.update(freed)
            self.pages_left += len(freed)
            self.slots_left += 1

    def _to_pin(self, shared: list[int]) -> list[int]:
        idle = self._state.pool.is_idle
        pages = (page for page in shared if page not in self._pinned)
        return [page for page in pages if idle(page) or page in self._freed]


class Ledger:
    """One step's account, opened by the scheduler and handed to a policy.

    prefilling: running requests with prompt left to compute; decoding: those with a token to feed;
    waiting: the queue from its head, drawn lazily. ``plan`` is what has been charged so far.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self.prefilling: list[Request] = []
        self.decoding: list[Request] = []
        self._rows: list[tuple[int, int]] = []
        self._preempt: dict[int, None] = {}  # in the order in which they were named
        self._charged: set[int] = set()
        self._refusals: list[Refusal] = []
        for request in state.running.values():
            if request.finish is not None:
                continue
            if request.preempting:
                self._refuse(request, Why.AWAITS_RELEASE)
            elif request.scheduled < request.prefill_end:
                self.prefilling.append(request)
            elif request.scheduled < request.max_len:
                self.decoding.append(request)
            else:
                self._refuse(request, Why.AWAITS_TOKEN)
        self._account = Account(state)
        self.closed = False  # nothing further can be admitted in this step
        self._looks = WINDOW
        self._computing: dict[tuple[int | None, tuple[int, ...]], int] = {}
        self._coming_back: bool | None = None  # pages that a step in flight will give back
        self._victims: Iterator[Request] | None = None  # from the youngest
        self._continues: int | None = None  # the prompt that took the rest of the step
        for request in self.prefilling:
            self._note_computing(request, request.pages, request.shared, request.prefill_end)

    @property
    def steps_without_decode(self) -> int:
        """How many steps in a row computed prompts alone."""
        return self._state.step - self._state.next_after_decode

    @property
    def now(self) -> int:
        """The number of the step that is being planned."""
        return self._state.step

    @property
    def tokens_left(self) -> int:
        """Positions that the step can still compute."""
        return self._account.tokens_left

    @property
    def slots_left(self) -> int:
        """Slots that no request holds."""
        return self._account.slots_left

    @property
    def pages_left(self) -> int:
        """Pages that are neither held nor promised."""
        return self._account.pages_left

    @property
    def waiting(self) -> Iterator[Request]:
        """The queue in order of arrival, preempted first; it ends once admission is closed."""
        for request in self._state.waiting.values():
            if self.closed:
                return
            yield request

    @property
    def charged(self) -> bool:
        """Whether the step computes anything yet."""
        return bool(self._rows)

    @property
    def plan(self) -> Plan:
        """What has been charged and refused so far."""
        return Plan(tuple(self._rows), tuple(self._preempt), tuple(self._refusals))

    def match_len(self, request: Request) -> int:
        """How many of a waiting request's positions the prefix cache holds now."""
        return len(self._state.match(request)) * self._state.limits.page_size

    def decode(self, request: Request) -> bool:
        """Charge one position of a decoding request.

        Under optimistic admission this may name requests to preempt, youngest first.
        """
        if self._preempt and request.rid in self._preempt:
            return self._refuse(request, Why.AWAITS_RELEASE)
        if self.tokens_left < 1:
            return self._refuse(request, Why.TOKEN_BUDGET, 1, 0)
        if not request.promised and self._state.needs_page(request):
            if self._account.pages_left < 1 and not self._make_room(request):
                return self._refuse(request, Why.KV_DRY)
        self._account.grow(request, 1)
        self._charge(request, 1)
        return True

    def prefill(self, request: Request, most: int | None = None) -> bool:
        """Charge as much of a prompt as fits, ``most`` at most, admitting the request if it waits.

        A refusal for want of slots, pages or tokens closes admission, so that nobody overtakes a
        large request for ever; one that waits for a prefix in progress lets others pass.
        """
        if request.slot is None:
            return self._admit(request, most)
        if self._preempt and request.rid in self._preempt:
            return self._refuse(request, Why.AWAITS_RELEASE)
        want = request.prefill_end - request.scheduled
        length = self._chunk(request, want, most)
        if not length:
            return self._refuse(request, Why.TOKEN_BUDGET, want, self.tokens_left)
        if length < want:
            self._continues = request.rid
        self._account.grow(request, length)
        self._charge(request, length)
        return True

    def pass_over(self, requests: Iterable[Request], why: Why | str) -> None:
        """Note that these requests do not run in this step, and why: one of ours, or your words.

        Raises TypeError for a reason that is neither.
        """
        if not isinstance(why, Why | str):
            raise TypeError(f"a reason is words or one of Why, got {why!r:.80}")
        for request in requests:
            if isinstance(why, Why):
                self._refuse(request, why)
            else:
                self._refusals.append(Refusal(request.rid, Why.POLICY, words=why))

    def _admit(self, request: Request, most: int | None) -> bool:
        state, failed = self._state, len(self._refusals)
        shared = state.match(request)
        start, known = len(shared) * state.limits.page_size, len(request.tokens)
        if self.slots_left < 1:
            self._refuse(request, Why.NO_SLOT, state.limits.max_running)
        fresh, pinned = self._account.admission_cost(request, shared)
        if fresh > self.pages_left:
            self._refuse(request, Why.KV_RESERVE, fresh, self.pages_left)
        elif fresh + pinned > self.pages_left:
            self._refuse(request, Why.KV_PINNED, fresh + pinned, self.pages_left)
        length = self._chunk(request, known - start, most)
        if not length and self._continues is not None:
            self._refuse(request, Why.CHUNK_CONTINUES, by=self._continues)
        elif not length:
            self._refuse(request, Why.TOKEN_BUDGET, known - start, self.tokens_left)
        self.closed = len(self._refusals) > failed
        key = self._next_page(request, shared, len(shared), known - 1)
        if request.scores_prompt:
            key = None  # it computes every page itself
        if key is not None and key in self._computing:
            self._refuse(request, Why.PREFIX_IN_PROGRESS, by=self._computing[key])
        if len(self._refusals) > failed:
            self._looks -= 1
            self.closed = self.closed or self._looks < 1
            return False
        self._note_computing(request, shared, len(shared), known)
        if length < known - start:
            self._continues = request.rid
        self._account.admit(request, shared, length)
        self._charge(request, length)
        return True

    def _chunk(self, request: Request, want: int, most: int | None) -> int:
        """Positions of a prompt that this step can take; 0 if it cannot take any."""
        length = min(want, self.tokens_left, want if most is None else most)
        if length < want and not self._state.may_chunk(request):
            return 0
        return max(length, 0)

    def _charge(self, request: Request, length: int) -> None:
        self._rows.append((request.rid, length))
        self._charged.add(request.rid)

    def _refuse(
        self,
        request: Request,
        why: Why,
        asked: int | None = None,
        left: int | None = None,
        by: int | None = None,
    ) -> bool:
        self._refusals.append(Refusal(request.rid, why, asked, left, by))
        return False

    def _next_page(
        self, request: Request, pages: list[int], index: int, end: int
    ) -> tuple[int | None, tuple[int, ...]] | None:
        """What names the page after a cached path: the path and the tokens. None if not whole."""
        size = self._state.limits.page_size
        if not self._state.pool.shares or (index + 1) * size > end:
            return None
        tokens = tuple(request.tokens[index * size : (index + 1) * size])
        return (pages[index - 1] if index else None, tokens)

    def _note_computing(self, request: Request, pages: list[int], index: int, end: int) -> None:
        key = self._next_page(request, pages, index, end)
        if key is not None:
            self._computing.setdefault(key, request.rid)

    def _make_room(self, request: Request) -> bool:
        """Find a page for a request that outgrew its expected length, by naming victims.

        Youngest first, by admission; never one that was admitted with its full reservation, nor one
        that runs in this very step. While pages are on their way back, it waits for those instead.
        """
        running = self._state.running
        if self._coming_back is None:
            leaving = (r for r in running.values() if r.preempting or r.finish is not None)
            self._coming_back = any(r.in_flight for r in leaving)
        if self._victims is None:  # one look at each per plan: charged ones stay charged
            self._victims = reversed(running.values())
        while not self._coming_back:
            victim = next(self._victims, None)
            if victim is None:
                return False
            if victim.preemptions or victim.rid in self._charged:
                continue
            self._preempt[victim.rid] = None
            self._account.preempt(victim)
            self._coming_back = victim.in_flight > 0
            if victim is request:
                return False
            if self.pages_left > 0:
                return True
        return False
