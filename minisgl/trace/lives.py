"""Every request's life in numbers, from one walk over the records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from minisgl.core import Added, Finished, FinishReason, Preempted, Reused, Sampled, StepRecord


@dataclass(slots=True)
class Life:
    """One request, from its arrival to its end or the last record. Steps are counted as records.

    Of its ``latency`` it ``waited`` in the steps that neither computed anything of it nor were
    launched before it came; ``explain`` says why.
    """

    rid: int
    prompt_len: int
    arrival: int  # the first step that could be planned with it
    added: int  # the step whose record tells of it
    over: int | None = None  # the step whose record tells its end
    finish: FinishReason | None = None
    latency: int = 0
    waited: int = 0
    computed: int = 0  # positions, those after its end included
    reused: int = 0
    preemptions: int = 0
    output: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)  # that sampled them


def lives(records: Sequence[StepRecord]) -> dict[int, Life]:
    """The requests that arrive in these records, by rid in order of arrival."""
    found: dict[int, Life] = {}
    busy: dict[int, int] = {}  # steps that computed something of it before its end
    for record in records:
        step = record.batch.step
        for event in record.events:
            if isinstance(event, Added):
                found[event.rid] = Life(event.rid, event.prompt_len, event.step, step)
                busy[event.rid] = 0
        for row in record.batch.rows:
            if (life := found.get(row.rid)) is not None:
                life.computed += row.length
                busy[row.rid] += life.over is None
        for event in record.events:
            match event:
                case Reused(rid=rid, num_tokens=reused) if rid in found:
                    found[rid].reused += reused
                case Preempted(rid=rid) if rid in found:
                    found[rid].preemptions += 1
                case Sampled(rid=rid, token=token) if rid in found:
                    found[rid].output.append(token)
                    found[rid].steps.append(step)
                case Finished(rid=rid, reason=reason) if rid in found:
                    found[rid].over, found[rid].finish = step, reason
    for life in found.values():
        last = records[-1].batch.step if life.over is None else life.over
        life.latency = last - life.added + 1
        launched_before = min(max(0, life.arrival - life.added), life.latency)
        life.waited = life.latency - launched_before - busy[life.rid]
    return found
