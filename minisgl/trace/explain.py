"""Where a request's time went: one cause for every step between its arrival and its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from minisgl import display
from minisgl.core import Added, Finished, Refusal, StepRecord, Why
from minisgl.trace.frames import as_frame

if TYPE_CHECKING:
    import pandas

# What only a request that holds a slot is refused for, and what closes no door: nobody stands in
# line behind it.
_OF_RUNNING: Final = (
    Why.PREFILL_PRIORITY,
    Why.AWAITS_TOKEN,
    Why.AWAITS_RELEASE,
    Why.KV_DRY,
    Why.POLICY,
)


class Part(NamedTuple):
    """One step of a request's life.

    doing: "prefill" or "decode" where it ran; "waiting" with every refusal; "preempted" where it
    gave its pages back; "launched before" where the step was under way when the request arrived;
    "not looked at" where the policy neither took nor refused anybody.
    """

    step: int
    doing: str
    refusals: tuple[Refusal, ...] = ()

    @property
    def cause(self) -> str:
        """What it did, or the first reason why it waited, in a policy's own words where it has."""
        if not self.refusals:
            return self.doing
        return self.refusals[0].words or self.refusals[0].why.name.lower()

    @property
    def words(self) -> str:
        """Every refusal's sentence; "" where it was not refused."""
        return "; ".join(refusal.reason for refusal in self.refusals)


class Explanation:
    """A request's latency, step by step; ``parts`` counts the causes and sums to ``latency``."""

    def __init__(self, rid: int, steps: Sequence[Part], finished: bool) -> None:
        self.rid, self.steps, self.finished = rid, tuple(steps), finished

    @property
    def latency(self) -> int:
        """Steps from the first that could have known of the request to the one that ended it."""
        return len(self.steps)

    @property
    def parts(self) -> dict[str, int]:
        """Steps by cause, in order of first appearance."""
        return dict(Counter(part.cause for part in self.steps))

    def __repr__(self) -> str:
        state = "" if self.finished else " so far"
        lines = [f"r{self.rid}: {self.latency} steps{state}"]
        lines += [f"{steps:>6}  {cause}" for cause, steps in self.parts.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> display.Html:
        parts = [
            display.Part(cause, steps, cause if cause in ("prefill", "decode") else "waiting")
            for cause, steps in self.parts.items()
        ]
        rows = (
            (
                display.swatch(state, cause),
                steps,
                f"{steps / self.latency:.0%}",
                next(part.words for part in self.steps if part.cause == cause),
            )
            for cause, steps, state in parts
        )
        state = "" if self.finished else " so far"
        return display.card(
            f"Request {self.rid}",
            display.counted(self.latency, "step") + state,
            display.bar("steps", parts),
            display.table(("cause", "steps", "share", "at first"), rows),
        )

    def to_frame(self) -> pandas.DataFrame:
        """A pandas frame with a row per step: what the request did, the cause, every refusal.

        Raises ModuleNotFoundError without pandas (the extra [lab]).
        """
        return as_frame(
            {"step": p.step, "doing": p.doing, "cause": p.cause, "refusals": p.words}
            for p in self.steps
        )


def explain(records: Sequence[StepRecord], rid: int) -> Explanation:
    """Attribute every step of a request. Raises KeyError if its arrival is not in ``records``."""
    parts: list[Part] = []
    arrival, ended = None, False
    for record in records:
        events = [event for event in record.events if getattr(event, "rid", None) == rid]
        for event in events:
            if isinstance(event, Added):
                arrival = event.step
        if arrival is None:
            continue
        parts.append(part(record, rid, arrival))
        if any(isinstance(event, Finished) for event in events):
            ended = True
            break
    if arrival is None:
        raise KeyError(f"request {rid} does not arrive in this trace")
    return Explanation(rid, parts, ended)


def part(record: StepRecord, rid: int, arrival: int) -> Part:
    """What a request that had not ended did in one step, or why it waited.

    arrival: the first step that could be planned with it.
    """
    step, plan = record.batch.step, record.plan
    if step < arrival:
        return Part(step, "launched before")
    for row in record.batch.rows:
        if row.rid == rid:
            return Part(step, "decode" if row.token_ids is None else "prefill")
    refusals = tuple(refusal for refusal in plan.refusals if refusal.rid == rid)
    if refusals:
        return Part(step, "waiting", refusals)
    if rid in plan.preempt:
        return Part(step, "preempted")
    line = [refusal.rid for refusal in plan.refusals if refusal.why not in _OF_RUNNING]
    if line:  # whoever was refused last closed the door behind itself, in whatever order
        return Part(step, "waiting", (Refusal(rid, Why.HEAD_OF_LINE, by=line[-1]),))
    return Part(step, "not looked at")
