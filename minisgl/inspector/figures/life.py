"""Requests' lives as the records tell them: when each waited, what each of its rows was for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from minisgl.core import Added, Batch, Finished, FinishReason, Preempted, Reused, StepRecord
from minisgl.request import Request
from minisgl.scheduler.scheduler import Scheduler

Fate = Literal["kept", "dropped", "failed"]


class Box(NamedTuple):
    """One request's row in one step.

    prompt: it computes given tokens, not one that was just sampled. fate: "dropped" where the
    request was over before the row's result was there, "failed" where the whole step failed.
    """

    step: int
    tokens: int
    prompt: bool
    fate: Fate


@dataclass
class Life:
    """A request as far as the records know it. All numbers are steps unless said."""

    rid: int
    since: int  # the first step that could be planned with it, or the first that is known
    arrives: bool
    boxes: list[Box] = field(default_factory=list)
    reused: list[tuple[int, int]] = field(default_factory=list)  # step, tokens
    preempted: list[int] = field(default_factory=list)
    end: tuple[int, FinishReason] | None = None

    def waits(self, last: int) -> list[tuple[int, int]]:
        """(first, last) of the stretches up to step ``last`` in which it lived and had no row."""
        until = last if self.end is None else min(last, self.end[0])
        out, at = [], self.since
        for step in [*(box.step for box in self.boxes if box.step <= until), until + 1]:
            if step > at:
                out.append((at, step - 1))
            at = step + 1
        return out


def lives(records: Sequence[StepRecord], start: Scheduler | None = None) -> list[Life]:
    """Every request that these records name, by rid.

    start: the state before the first of them, where that is known.
    """
    if not records:
        return []
    begin = records[0].batch.step
    found: dict[int, Life] = {}
    over = set[int]()  # before the result of the step at hand was there
    if start is not None:
        for request in (*start.waiting.values(), *start.running.values()):
            found[request.rid] = Life(request.rid, max(begin, request.arrival), False)
            over.update([request.rid] if request.finish is not None else [])
    left = frozenset(over)

    def life(rid: int) -> Life:
        return found.setdefault(rid, Life(rid, begin, False))

    for record in records:
        step = record.batch.step
        for event in record.events:
            match event:
                case Added(rid=rid, step=arrival):
                    found[rid] = Life(rid, arrival, True)
                case Reused(rid=rid, num_tokens=tokens):
                    life(rid).reused.append((step, tokens))
                case Preempted(rid=rid):
                    life(rid).preempted.append(step)
                case Finished(rid=rid, reason=reason):
                    life(rid).end = (step, reason)
                    over.update([rid] if reason == "abort" else [])
        failed = record.outcome.error is not None
        for row in record.batch.rows:
            fate: Fate = "dropped" if row.rid in over else "failed" if failed else "kept"
            box = Box(step, row.length, row.token_ids is not None, fate)
            life(row.rid).boxes.append(box)
        over.update(event.rid for event in record.events if isinstance(event, Finished))
    for rid in left & found.keys():  # it ended before the records begin, so it waits for nothing
        boxes = found[rid].boxes
        if not boxes:
            del found[rid]
        elif found[rid].end is None:
            found[rid].since = boxes[-1].step + 1
    return [found[rid] for rid in sorted(found)]


def reused_at_admission(request: Request, batches: Iterable[Batch]) -> int:
    """Positions that the prefix cache gave a running request when it was admitted last.

    batches: the newest last; they are looked at for requests that were preempted.
    """
    if not request.preemptions:
        return request.cached
    for batch in reversed(list(batches)):
        for row in batch.rows:
            if row.rid == request.rid and not row.first_page:  # its first row since
                return row.start
    return request.cached


def ranges(stretches: Iterable[tuple[int, int]]) -> str:
    """Growing (first, last) pairs in words, neighbours put together: ``0 to 3, 7``."""
    joined = list[tuple[int, int]]()
    for a, b in stretches:
        if joined and joined[-1][1] + 1 == a:
            joined[-1] = (joined[-1][0], b)
        else:
            joined.append((a, b))
    return ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in joined)
