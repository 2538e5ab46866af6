"""The nouns that every room shares: immutable records and one request. No torch, no I/O, no clock.

A token's position is *computed* once its key and value are in the KV pages. The step that computes
the last known position of a request samples the token of the next one, so the last sampled token of
a request is never fed back and needs no position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal, NamedTuple

from minisgl.sampling import SamplingParams as SamplingParams
from minisgl.sampling import as_int as as_int

FinishReason = Literal["stop", "length", "abort", "error"]


class Logprob(NamedTuple):
    """How likely the model found a token, by its raw distribution: no penalty, no temperature."""

    logprob: float  # natural logarithm of the probability
    rank: int  # 1 for the likeliest; equals share the better rank
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens and their logprobs, best first


@dataclass(eq=False, slots=True)
class Request:
    """One generation. Owned and changed by the scheduler alone; everyone else reads it.

    Public: ``rid``, ``prompt``, ``output``, ``text``, ``finish``, ``stopped_by``, ``error``,
    ``logprobs``, ``prompt_logprobs``, ``cached``, ``sampling``, ``clipped_from``. The rest is the
    scheduler's account of pages, slot, steps in flight and what else a row needs.
    """

    rid: int
    tokens: list[int]  # the prompt, then every sampled token that the host has seen
    prompt_len: int
    sampling: SamplingParams
    arrival: int = 0  # the step that was next when it was added
    clipped_from: int | None = None  # the max_tokens asked for, where the context holds fewer
    decode: Callable[[Sequence[int]], str] | None = field(default=None, repr=False)
    finish: FinishReason | None = None
    error: str | None = None  # what failed, where finish is "error"
    stopped_by: int | str | None = None  # the token or the stop string, where finish is "stop"
    cached: int = 0  # positions found in the prefix cache at its first admission
    # the scheduler's account
    max_len: int = field(init=False)  # positions it can ever need
    plain: bool = True  # its rows bring nothing for sampling
    stop_ids: frozenset[int] = frozenset()  # tokens that end it
    text_len: int | None = None  # characters of its output before the stop string that ended it
    scores: list[Logprob] = field(default_factory=list)  # of the output, where asked
    prompt_scores: list[Logprob] = field(default_factory=list)  # of prompt[1:], as far as computed
    slot: int | None = None  # row of the device tables while it runs
    pages: list[int] = field(default_factory=list)  # page i holds positions [i*P, (i+1)*P)
    promised: int = 0  # further pages the pool keeps for it
    prefill_end: int = 0  # tokens known at admission; later inputs are already on the device
    scheduled: int = 0  # positions [0, scheduled) are computed or in flight
    shared: int = 0  # its first pages that are the prefix cache's own
    in_flight: int = 0  # launched and not yet collected steps that name it
    preempting: bool = False  # pages and slot go back once nothing is in flight
    preemptions: int = 0
    tainted: bool = False  # a failed step may have written its pages

    def __post_init__(self) -> None:
        self.max_len = self.prompt_len + max(self.sampling.max_tokens, 1) - 1

    @property
    def prompt(self) -> tuple[int, ...]:
        """The prompt's token ids."""
        return tuple(self.tokens[: self.prompt_len])

    @property
    def output(self) -> tuple[int, ...]:
        """The generated token ids, a stop token included."""
        return tuple(self.tokens[self.prompt_len :])

    @property
    def text(self) -> str:
        """The generated text so far, without the token that stopped it.

        A stop string and all after it are left out. Raises ValueError if the model was loaded
        without a tokenizer.
        """
        if self.decode is None:
            raise ValueError(f"request {self.rid}: this model has no tokenizer; read .output")
        output = self.output
        if self.text_len is not None:
            return self.decode(output)[: self.text_len]
        return self.decode(output[:-1] if self.finish == "stop" else output)

    @property
    def logprobs(self) -> tuple[Logprob, ...] | None:
        """One for each output token; None if they were not asked for."""
        return None if self.sampling.logprobs is None else tuple(self.scores)

    @property
    def prompt_logprobs(self) -> tuple[Logprob | None, ...] | None:
        """One for each prompt token computed so far, None for the first, which nothing precedes.

        None if they were not asked for.
        """
        if self.sampling.prompt_logprobs is None:
            return None
        return (None, *self.prompt_scores)

    @property
    def scores_prompt(self) -> bool:
        """Whether logprobs of its prompt are still to come: then it reuses no cached page."""
        asked = self.sampling.prompt_logprobs is not None
        return asked and len(self.prompt_scores) < self.prompt_len - 1

    def __repr__(self) -> str:
        state = self.finish or ("waiting" if self.slot is None else "running")
        made = len(self.tokens) - self.prompt_len
        return f"Request({self.rid}: {state}, prompt {self.prompt_len}, output {made})"


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


class Refusal(NamedTuple):
    """One check that failed for one request while a plan was made."""

    rid: int
    why: Why
    asked: int | None = None
    left: int | None = None
    by: int | None = None  # the request that is in the way

    def __str__(self) -> str:
        return f"r{self.rid} waits: " + self.why.value.format(
            asked=self.asked, left=self.left, by=self.by
        )


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


class Span(NamedTuple):
    """A named interval on one lane of the timeline, in seconds of ``time.perf_counter``."""

    lane: str
    name: str
    start: float
    end: float


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
        parts = []
        prefills = [row for row in self.batch.rows if row.token_ids is not None]
        if prefills:
            chunks = [f"r{row.rid}[{row.start}:{row.start + row.length}]" for row in prefills]
            parts.append("prefill " + " ".join(chunks))
        if decodes := len(self.batch.rows) - len(prefills):
            parts.append(f"decode {decodes}")
        reused = [event for event in self.events if isinstance(event, Reused)]
        parts += [f"r{event.rid} reuses {event.num_tokens} tokens" for event in reused]
        if gone := sum(len(event.pages) for event in self.events if isinstance(event, Evicted)):
            parts.append(f"{gone} pages evicted")
        ended = [event for event in self.events if isinstance(event, Finished)]
        parts += [f"r{event.rid} ends ({event.reason})" for event in ended]
        parts += [str(refusal) for refusal in self.plan.refusals]
        return f"step {self.batch.step}: " + ("; ".join(parts) or "nothing computed")


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
