"""Records from the lines of a file: every input passes the doors again, and nothing is believed.

The scheduler validates what it is asked; here is validated what an engine would never ask.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from minisgl.config import EngineConfig
from minisgl.core import (
    Abort,
    Add,
    Batch,
    Change,
    Event,
    Input,
    Logprob,
    Outcome,
    Plan,
    Refusal,
    SamplingParams,
    Span,
    StepRecord,
    StopHit,
    Why,
    as_int,
)
from minisgl.scheduler.replay import fresh
from minisgl.scheduler.scheduler import Scheduler
from minisgl.scheduler.state import read
from minisgl.trace.history import History

_MOST: Final = 2**31 - 1  # what the views store a number in
# Positions and pages that a file's plans may name for each of its bytes, and how many in any case.
# What an engine records stays below 3: a prompt stands in its line, and is rarely computed again.
_PER_BYTE, _ANYWAY = 16, 1_000_000


def number(name: str, value: object, least: int = 0, most: int | None = None) -> int:
    """A whole number within bounds. Raises TypeError or ValueError that names it."""
    found, most = as_int(name, value, least), _MOST if most is None else most
    if found > most:
        raise ValueError(f"{name} is {found!r:.40}, at most {most} can be read")
    return found


class Rebuild:
    """Passes a file's inputs through a scheduler's doors and collects the records they make."""

    def __init__(
        self, origin: EngineConfig, eos: frozenset[int], vocab_size: int, history: History
    ) -> None:
        self._scheduler, self._history = fresh(origin, eos), history
        self._vocab_size = vocab_size
        self._next_rid = 0
        self._room = _ANYWAY
        self._pending: list[Event] = []
        self._in_flight: deque[tuple[Plan, Batch, tuple[Event, ...]]] = deque()

    def begin(
        self, state: Any, num_bytes: int, origin: EngineConfig, eos: frozenset[int]
    ) -> Scheduler:
        """Begin with a state that was written down; returns a copy of it. Raises likewise."""
        self._room += _PER_BYTE * num_bytes
        self._scheduler = read(state, origin, eos)
        requests = (*self._scheduler.waiting.values(), *self._scheduler.running.values())
        for request in requests:
            self._ids(request.tokens)
            self._next_rid = max(self._next_rid, number("rid", request.rid) + 1)
        for node in self._scheduler.pool.nodes():
            self._ids(node.tokens)
        self._history.first = number("step", self._scheduler.step)
        return self._scheduler.copy()

    def take(self, line: Any, num_bytes: int) -> None:
        """One line of the file. Raises whatever a wrong one leads to."""
        self._room += _PER_BYTE * num_bytes
        match line:
            case {"add": rid, "prompt": prompt, "sampling": sampling}:
                add = Add(
                    number("rid", rid, self._next_rid),
                    self._ids(prompt),
                    SamplingParams(**sampling),
                )
                self._pending += self._scheduler.add(add)[1]
                self._next_rid = add.rid + 1
                self._note(add)
            case {"abort": rid}:
                abort = Abort(_whole("rid", rid))  # one that is unknown does nothing
                self._pending += self._scheduler.abort(abort)
                self._note(abort)
            case {"change": change}:
                self._change(Change(**change))
            case {"plan": rows, "preempt": preempt, "refusals": refusals}:
                pairs = tuple((number("rid", rid), number("length", n)) for rid, n in rows)
                out = tuple(number("rid", rid) for rid in preempt)
                self._plan(Plan(pairs, out, tuple(_refusal(*refusal) for refusal in refusals)))
            case {"outcome": outcome, "spans": spans}:
                self._outcome(self._told(**outcome), tuple(_span(*span) for span in spans))
            case _:
                raise ValueError(f"it is none of add, abort, change, plan, outcome: {line!r:.80}")

    def _change(self, change: Change) -> None:
        number("max_step_tokens", change.max_step_tokens, 1)
        for name in ("chunked_prefill", "optimistic"):
            if not isinstance(value := getattr(change, name), bool):
                raise TypeError(f"{name} must be True or False, got {value!r:.80}")
        self._scheduler.change(change)
        self._note(change)

    def _plan(self, plan: Plan) -> None:
        batch, events = self._scheduler.commit(plan)
        self._room -= sum(row.length + len(row.new_pages) for row in batch.rows)
        if self._room < 0:
            raise ValueError("the plans up to here compute far more than their requests hold")
        self._in_flight.append((plan, batch, events))
        self._note(plan)

    def _outcome(self, outcome: Outcome, spans: tuple[Span, ...]) -> None:
        plan, batch, committed = self._in_flight.popleft()
        _check(outcome, batch)
        applied = self._scheduler.apply(outcome)
        self._note(outcome)
        events = (*self._pending, *committed, *applied)
        self._pending.clear()
        gauges = self._scheduler.gauges
        device = tuple(span for span in spans if span.lane != "host")
        outcome = outcome._replace(spans=device)
        self._history.add_record(StepRecord(plan, batch, outcome, events, gauges, spans))

    def _note(self, item: Input) -> None:
        self._history.add_input(item)

    def _told(
        self,
        step: Any,
        tokens: Any,
        error: Any,
        logprobs: Any,
        prompt_logprobs: Any,
        stops: Any,
        spans: Any = (),
    ) -> Outcome:
        """An outcome from its fields. ``spans`` stand beside it."""
        self._ids(token for token in tokens if token is not None)
        return Outcome(
            step=number("step", step),
            tokens=tuple(tokens),
            error=None if error is None else _text("error", error),
            logprobs=tuple(None if score is None else _logprob(*score) for score in logprobs),
            prompt_logprobs=tuple(tuple(_logprob(*s) for s in row) for row in prompt_logprobs),
            stops=tuple(_stop(*stop) for stop in stops),
        )

    def _ids(self, tokens: Any) -> tuple[int, ...]:
        """Token ids of the model that was run."""
        ids = tuple(tokens)
        if set(map(type, ids)) - {int}:
            raise TypeError(f"token ids must be integers, got {list(ids)!r:.80}")
        if ids and not 0 <= min(ids) <= max(ids) < self._vocab_size:
            raise ValueError(
                f"token ids must be from 0 to {self._vocab_size - 1}, got {min(ids)!r:.40} to "
                f"{max(ids)!r:.40}"
            )
        return ids


def _check(outcome: Outcome, batch: Batch) -> None:
    """Raise ValueError unless the outcome can be that of the batch."""
    rows = batch.rows
    if len(outcome.tokens) != len(rows):
        return  # the door says so
    if outcome.error is None and any(
        (token is not None) != row.emits for token, row in zip(outcome.tokens, rows, strict=True)
    ):
        raise ValueError("a row has a token and emits none, or emits one and has none")
    named = {row.rid for row in rows}
    if not all(hit.rid in named for hit in outcome.stops):
        raise ValueError("a stop string ends a request that the step did not run")
    for scores in (outcome.logprobs, outcome.prompt_logprobs):
        if scores and len(scores) != len(rows):
            raise ValueError(f"there are {len(scores)} logprobs for {len(rows)} rows")
    for row, targets in zip(rows, outcome.prompt_logprobs, strict=False):
        if len(targets) > row.length:
            raise ValueError(f"r{row.rid} has {len(targets)} logprobs of {row.length} positions")


def _refusal(
    rid: Any, name: Any, asked: Any = None, left: Any = None, by: Any = None, words: Any = None
) -> Refusal:
    numbers = {"asked": asked, "left": left, "by": by}
    known = {
        field: None if value is None else number(field, value, -_MOST)
        for field, value in numbers.items()
    }
    own = None if words is None else _text("words", words)
    return Refusal(number("rid", rid), Why[_text("why", name)], **known, words=own)


def _span(lane: Any, name: Any, start: Any, end: Any) -> Span:
    if not _reals((start, end)) or not start <= end:
        raise ValueError(f"a span lasts from {start!r:.40} to {end!r:.40}")
    return Span(_text("lane", lane), _text("name", name), float(start), float(end))


def _stop(rid: Any, stop: Any, text_len: Any) -> StopHit:
    return StopHit(number("rid", rid), _text("stop", stop), number("text_len", text_len))


def _logprob(logprob: Any, rank: Any, top: Any) -> Logprob:
    pairs = tuple((number("token", token), value) for token, value in top)
    if not _reals((logprob, *(value for _, value in pairs))):
        raise ValueError(f"a logprob is no number: {logprob!r:.40}, {pairs!r:.40}")
    best = tuple((token, float(value)) for token, value in pairs)
    return Logprob(float(logprob), number("rank", rank, 1), best)


def _reals(values: Iterable[object]) -> bool:
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        for value in values
    )


def _whole(name: str, value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"{name} must be an integer, got {value!r:.80}")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, got {value!r:.80}")
    return value
