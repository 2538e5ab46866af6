"""A step in one sentence, short enough to read at a glance however many requests it serves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from minisgl.core import Evicted, Finished, Preempted, Refusal, Reused, Sampled, StepRecord

_NAMED = 4  # of one kind; beyond it they are counted


def sentence(record: StepRecord) -> str:
    """What a step computed, reused, evicted and ended, and who waits for what."""
    return f"step {record.batch.step}: " + ("; ".join(_parts(record)) or "nothing computed")


def waits(refusals: Iterable[Refusal]) -> Iterator[str]:
    """Who waits, by their first failed check; a reason in common is said once."""
    first: dict[int, Refusal] = {}
    for refusal in refusals:
        first.setdefault(refusal.rid, refusal)
    by_reason: dict[str, list[str]] = {}
    reasons: dict[object, str] = {}  # of all that is the same but for who waits: often very many
    for rid, refusal in first.items():
        if (reason := reasons.get(refusal[1:])) is None:
            reason = reasons[refusal[1:]] = refusal.reason
        by_reason.setdefault(reason, []).append(f"r{rid}")
    for reason, who in by_reason.items():
        yield f"{names(who)} {'wait' if len(who) > 1 else 'waits'}: {reason}"


def names(who: Sequence[str]) -> str:
    """``r1, r2`` or, of many, ``r1 … r9 (7)``."""
    return ", ".join(who) if len(who) <= _NAMED else f"{who[0]} … {who[-1]} ({len(who)})"


def _parts(record: StepRecord) -> Iterator[str]:
    rows = record.batch.rows
    prefills = [row for row in rows if row.token_ids is not None]
    if len(prefills) > _NAMED:
        yield f"prefill {len(prefills)} prompts, {sum(r.length for r in prefills)} positions"
    elif prefills:
        chunks = [f"r{row.rid}[{row.start}:{row.start + row.length}]" for row in prefills]
        yield "prefill " + " ".join(chunks)
    if decodes := len(rows) - len(prefills):
        yield f"decode {decodes}"
    # most events are tokens, of which a sentence says nothing
    events = [event for event in record.events if type(event) is not Sampled]
    reused = [event for event in events if isinstance(event, Reused)]
    if len(reused) > _NAMED:
        yield f"{len(reused)} reuse {sum(event.num_tokens for event in reused)} positions"
    else:
        yield from (f"r{event.rid} reuses {event.num_tokens} positions" for event in reused)
    if gone := sum(len(event.pages) for event in events if isinstance(event, Evicted)):
        yield f"{gone} {'page' if gone == 1 else 'pages'} evicted"
    if out := [f"r{event.rid}" for event in events if isinstance(event, Preempted)]:
        yield f"{names(out)} preempted"
    ended: dict[str, list[str]] = {}
    for event in events:
        if isinstance(event, Finished):
            ended.setdefault(event.reason, []).append(f"r{event.rid}")
    for reason, who in ended.items():
        yield f"{names(who)} {'end' if len(who) > 1 else 'ends'} ({reason})"
    if record.outcome.error is not None:
        yield f"the step failed: {record.outcome.error}"
    yield from waits(record.plan.refusals)
