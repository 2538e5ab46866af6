"""The nouns that every room shares: a request and immutable records. No torch, no I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from minisgl.display import Html, Part, bar, card, counted, folded, line, table
from minisgl.request import FinishReason as FinishReason
from minisgl.request import Logprob as Logprob
from minisgl.request import Request as Request
from minisgl.sampling import SamplingParams as SamplingParams
from minisgl.sampling import as_int as as_int


class Why(Enum):
    """Why a request does not run in a step; the value is the sentence that says so."""

    NO_SLOT = "all {asked} slots are taken"
    KV_RESERVE = "{asked} pages asked, {left} left"
    KV_PINNED = "{asked} pages asked once its cached prefix is pinned, {left} left"
    KV_DRY = "the page pool is dry"
    TOKEN_BUDGET = "{asked} tokens asked, {left} left in the step"
    CHUNK_CONTINUES = "the prompt of r{by} fills the step"
    PREFIX_IN_PROGRESS = "r{by} is computing the prefix they share"
    PREFILL_PRIORITY = "prompts go first"
    DECODE_PRIORITY = "decodes go first"
    AWAITS_TOKEN = "its last token is still being computed"
    AWAITS_RELEASE = "its steps in flight must end first"
    HEAD_OF_LINE = "r{by} waits before it"
    POLICY = "the policy leaves it out"


class Refusal(NamedTuple):
    """One check that failed for one request while a plan was made."""

    rid: int
    why: Why
    asked: int | None = None
    left: int | None = None
    by: int | None = None  # the request that is in the way
    words: str | None = None  # of a policy that says itself why; ``why`` is POLICY then

    @property
    def reason(self) -> str:
        """Why it waits, in words."""
        if self.words is not None:
            return self.words
        return self.why.value.format(asked=self.asked, left=self.left, by=self.by)

    def __str__(self) -> str:
        return f"r{self.rid} waits: {self.reason}"

    def __repr__(self) -> str:
        """As one would write it: the numbers that this check has, and no others."""
        more = {"asked": self.asked, "left": self.left, "by": self.by, "words": self.words}
        known = "".join(f", {name}={n!r}" for name, n in more.items() if n is not None)
        return f"Refusal({self.rid}, {self.why}{known})"


@dataclass(frozen=True, slots=True)
class Plan:
    """A decision and nothing else: how many positions each request computes next.

    rows: (rid, positions) in batch order. preempt: requests that give their pages back first.
    refusals: for each request that was looked at and does not run, every check that failed.
    False if it runs nothing.
    """

    rows: tuple[tuple[int, int], ...] = ()
    preempt: tuple[int, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.rows)

    def without(self, *rids: int) -> Plan:
        """The same plan with these requests' rows left out: the simplest edit by hand."""
        return replace(self, rows=tuple(row for row in self.rows if row[0] not in rids))

    def _repr_html_(self) -> Html:
        positions = counted(sum(length for _, length in self.rows), "position")
        says = f"{counted(len(self.rows), 'row')}, {positions}" if self.rows else "runs nothing"
        rows = ((f"r{rid}", length) for rid, length in self.rows)
        out = ((f"r{rid}", "gives its pages back first") for rid in self.preempt)
        return card(
            "Plan", says, table(("request", "positions"), rows), table((), out), self._waits()
        )

    def _waits(self) -> Html:
        """Who does not run, and all that is in the way."""
        why: dict[int, list[str]] = {}
        for refusal in self.refusals:
            why.setdefault(refusal.rid, []).append(refusal.reason)
        return table(
            ("waits", "because"), ((f"r{rid}", "; ".join(reasons)) for rid, reasons in why.items())
        )


class Draw(NamedTuple):
    """What a row brings besides, where its request wants more than the largest logit."""

    seed: int
    made: int  # output tokens before the one that the row samples
    # On the first row of a slot whose request has penalties: the prompt, and the output so far.
    history: tuple[tuple[int, ...], tuple[int, ...]] | None
    targets: tuple[int, ...]  # the tokens after the row's first positions, to report logprobs of


class Row(NamedTuple):
    """One request's share of a batch, with all a runner needs to compute it.

    A NamedTuple because hundreds are made per step: it builds three times faster than a frozen
    dataclass.
    """

    rid: int
    slot: int
    start: int  # first position to compute
    length: int
    token_ids: tuple[int, ...] | None  # None: one token, the one the runner sampled last itself
    first_page: int  # index in the slot's page table where new_pages go
    new_pages: tuple[int, ...]
    emits: bool  # it reaches the last known position, so a token is sampled
    sampling: SamplingParams
    draw: Draw | None = None  # None: the token with the largest logit, and nothing else is asked


class Batch(NamedTuple):
    """A committed plan: the only thing that is ever sent to a device."""

    step: int
    rows: tuple[Row, ...]

    @property
    def num_tokens(self) -> int:
        """Positions the batch computes."""
        return sum(row.length for row in self.rows)

    @property
    def words(self) -> str:
        """What it computes: ``prefill r3[0:256]; decode 6``."""
        prefills = [row for row in self.rows if row.token_ids is not None]
        chunks = [f"r{row.rid}[{row.start}:{row.start + row.length}]" for row in prefills]
        parts = ["prefill " + " ".join(chunks)] if chunks else []
        if decodes := len(self.rows) - len(prefills):
            parts.append(f"decode {decodes}")
        return "; ".join(parts)

    def __repr__(self) -> str:
        return f"Batch(step {self.step}: {self.words or 'nothing to compute'})"

    def _repr_html_(self) -> Html:
        says = f"{counted(len(self.rows), 'row')}, {counted(self.num_tokens, 'position')}"
        return card(f"Batch of step {self.step}", says, self._drawn(()))

    def _drawn(self, tokens: Sequence[int | None]) -> Html:
        """Its positions by request, and its rows; beside these the tokens that came back."""
        chunks = [row for row in self.rows if row.token_ids is not None]
        parts = [Part(f"r{row.rid}", row.length, "prefill") for row in chunks]
        parts.append(Part("decode", len(self.rows) - len(chunks), "decode"))
        heads = ("request", "computes", "from", "to", "new pages", *("token",) * bool(tokens))
        rows = (
            (
                f"r{row.rid}",
                "decode" if row.token_ids is None else "prefill",
                row.start,
                row.start + row.length,
                ", ".join(map(str, row.new_pages)),
                *tokens[i : i + 1],
            )
            for i, row in enumerate(self.rows)
        )
        return Html(bar("positions computed", parts) + table(heads, rows))


class Span(NamedTuple):
    """A named interval on one lane of the timeline, in seconds of ``time.perf_counter``."""

    lane: str
    name: str
    start: float
    end: float


class KernelSpan(NamedTuple):
    """An interval in which a profiler saw a device at work, in seconds of ``time.perf_counter``.

    lane: "device stream 7" for what runs on a GPU (kernels, copies), "device graphs" for replays of
    CUDA graphs, "device operators" for torch on a CPU.
    step: whose batch launched it; None for what no batch did, as a copy of pages.
    launched: when the host queued it; None where host and device are one.
    """

    lane: str
    name: str
    start: float
    end: float
    step: int | None
    launched: float | None = None


class StopHit(NamedTuple):
    """A request's output now contains one of its stop strings, as the engine's codec reads it."""

    rid: int
    stop: str
    text_len: int  # characters of the output before it


class Outcome(NamedTuple):
    """What the device says about a batch. ``tokens[i]`` is None where row i emits nothing.

    ``error`` is set when the batch failed: then no token counts, and nothing it wrote is trusted.
    """

    step: int
    tokens: tuple[int | None, ...]
    spans: tuple[Span, ...] = ()
    error: str | None = None
    logprobs: tuple[Logprob | None, ...] = ()  # of each row's token; () if nobody asked
    prompt_logprobs: tuple[tuple[Logprob, ...], ...] = ()  # of each row's targets; () likewise
    stops: tuple[StopHit, ...] = ()


class Added(NamedTuple):
    """A request joined the queue with this many prompt tokens."""

    rid: int
    prompt_len: int
    step: int  # the first step that could be planned with it


class Admitted(NamedTuple):
    """A request got a slot."""

    rid: int
    slot: int


class Reused(NamedTuple):
    """At admission these cached pages served the first ``num_tokens`` positions of a request."""

    rid: int
    num_tokens: int
    pages: tuple[int, ...]


class Inserted(NamedTuple):
    """Pages that a request computes became findable in the prefix cache."""

    rid: int
    pages: tuple[int, ...]


class Evicted(NamedTuple):
    """Cached pages that nobody used were forgotten to make room."""

    pages: tuple[int, ...]


class Preempted(NamedTuple):
    """A request must give its pages back and wait again."""

    rid: int


class Sampled(NamedTuple):
    """A request's next token."""

    rid: int
    token: int


class Finished(NamedTuple):
    """A request's generation ended."""

    rid: int
    reason: FinishReason


class Released(NamedTuple):
    """A request's slot and pages went back; ``num_cached`` of the pages stay findable."""

    rid: int
    num_cached: int


Event = Added | Admitted | Reused | Inserted | Evicted | Preempted | Sampled | Finished | Released


class Gauges(NamedTuple):
    """The scheduler in numbers, after a step."""

    free_pages: int
    cached_pages: int  # findable in the prefix cache, whether or not a request holds them too
    evictable_pages: int  # the cached pages that no request holds
    promised_pages: int  # kept for running requests to grow into
    waiting: int
    running: int

    def _repr_html_(self) -> Html:
        return table((), ((name.replace("_", " "), n) for name, n in self._asdict().items()))

    @property
    def words(self) -> str:
        """All six in a line: ``free pages 7, cached pages 2, ...``."""
        return ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in self._asdict().items())


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One collected step, whole: the only thing observers ever receive.

    events: what was added and aborted since the last record, then what this step's commit did, then
    what its outcome did.
    """

    plan: Plan
    batch: Batch
    outcome: Outcome
    events: tuple[Event, ...]
    gauges: Gauges
    spans: tuple[Span, ...]

    def __repr__(self) -> str:
        """The step in one sentence."""
        parts = [self.batch.words] if self.batch.rows else []
        reused = [event for event in self.events if isinstance(event, Reused)]
        parts += [f"r{event.rid} reuses {event.num_tokens} tokens" for event in reused]
        if gone := sum(len(event.pages) for event in self.events if isinstance(event, Evicted)):
            parts.append(f"{gone} pages evicted")
        ended = [event for event in self.events if isinstance(event, Finished)]
        parts += [f"r{event.rid} ends ({event.reason})" for event in ended]
        parts += [str(refusal) for refusal in self.plan.refusals]
        return f"step {self.batch.step}: " + ("; ".join(parts) or "nothing computed")

    def _repr_html_(self) -> Html:
        error = () if self.outcome.error is None else (("failed", self.outcome.error),)
        events = [event for event in self.events if not isinstance(event, Sampled)]
        happened = ((type(event).__name__, repr(event).partition("(")[2][:-1]) for event in events)
        return card(
            f"Step {self.batch.step}",
            repr(self).partition(": ")[2],
            table((), error),
            self.batch._drawn(self.outcome.tokens),
            self.plan._waits(),
            line(f"Afterwards: {self.gauges.words}"),
            folded(counted(len(events), "event") + " besides tokens", table((), happened)),
        )


class Add(NamedTuple):
    """The input that queues a request."""

    rid: int
    prompt: tuple[int, ...]
    sampling: SamplingParams


class Abort(NamedTuple):
    """The input that ends a request early."""

    rid: int


class Change(NamedTuple):
    """The input with which a fork begins: limits that it keeps to from here on."""

    max_step_tokens: int
    chunked_prefill: bool
    optimistic: bool


# What may pass the scheduler's doors. A list of these is its whole history.
Input = Add | Abort | Change | Plan | Outcome
