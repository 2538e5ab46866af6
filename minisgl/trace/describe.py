"""A run in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minisgl import display
from minisgl.core import Evicted, StepRecord
from minisgl.display import counted
from minisgl.trace.explain import Explanation, explain
from minisgl.trace.frames import as_frame
from minisgl.trace.lives import lives
from minisgl.trace.timeline import Account

if TYPE_CHECKING:
    import pandas

_RAN = ("prefill", "decode", "launched before")


@dataclass(frozen=True)
class Description:
    """A run as a paragraph and as the numbers in it. ``trace.describe()`` makes one.

    Of the steps that are kept. positions: of prompts. running, waiting, pages: what a step ran,
    what waited after one, and the pages that requests held after one. longest: the request that
    waited in the most steps; None if none did. Times are in it only where ``timeline`` is.
    """

    first: int  # the first step that is kept
    steps: int
    requests: int
    ends: Mapping[str, int]  # how many finished, by reason
    computed: int  # positions of prompts
    reused: int
    generated: int  # tokens
    mean_running: float
    peak_running: int
    peak_waiting: int
    peak_pages: int
    num_pages: int
    evicted: int  # pages
    again: int  # tokens that were evicted and computed again
    preemptions: int
    longest: Explanation | None
    timeline: Account | None

    @property
    def hit_share(self) -> float:
        """The part of all prompt positions that the prefix cache had; 0 without any."""
        asked = self.computed + self.reused
        return self.reused / asked if asked else 0.0

    def to_frame(self) -> pandas.DataFrame:
        """A row for each number: ``name``, ``value``."""
        return as_frame({"name": name, "value": value} for name, value in self._numbers())

    def _numbers(self) -> Iterator[tuple[str, Any]]:
        for name in (
            *("steps", "requests", "computed", "reused", "hit_share", "generated"),
            *("mean_running", "peak_running", "peak_waiting", "peak_pages", "num_pages"),
            *("evicted", "again", "preemptions"),
        ):
            yield name, getattr(self, name)

    def __repr__(self) -> str:
        lines = [" ".join(self._sentences())]
        return "\n".join(lines + ([repr(self.timeline)] if self.timeline else []))

    def _repr_html_(self) -> display.Html:
        return display.card("Run", "", *map(display.line, [*self._sentences()]))

    def _sentences(self) -> Iterator[str]:
        if not self.steps:
            yield "Nothing has run yet."
            return
        since = f" from step {self.first} on" if self.first else ""
        ends = [f"{n} ended ({reason})" for reason, n in self.ends.items()]
        if unfinished := self.requests - sum(self.ends.values()):
            ends.append(f"{unfinished} not over")
        came = f"{counted(self.requests, 'request')} came"
        yield f"{counted(self.steps, 'step')}{since}; {'; '.join([came, *ends])}."
        yield (
            f"Of {counted(self.computed + self.reused, 'prompt position')} {self.computed:,} were "
            f"computed and {self.reused:,} ({100 * self.hit_share:.1f} %) found in the prefix "
            f"cache; {counted(self.generated, 'token')} were generated."
        )
        yield (
            f"A step ran {self.mean_running:.1f} requests on average and {self.peak_running} at "
            f"most; after a step at most {self.peak_waiting} waited, and requests held at most "
            f"{self.peak_pages:,} of {self.num_pages:,} pages."
        )
        if self.evicted:
            again = f", and {self.again:,} of the tokens in them computed again"
            gone = f"{counted(self.evicted, 'page')} {'was' if self.evicted == 1 else 'were'}"
            yield f"{gone} evicted{again if self.again else ''}."
        if self.preemptions:
            yield f"Requests were preempted {counted(self.preemptions, 'time')}."
        if self.longest is not None:
            yield _longest(self.longest)


def describe(
    records: Sequence[StepRecord], num_pages: int, again: int, timeline: Account | None
) -> Description:
    """Put a run into words.

    again: tokens that were evicted and computed again. timeline: told too where it is given.
    """
    known = lives(records)
    prompts = [row for r in records for row in r.batch.rows if row.token_ids is not None]
    gone = (e for r in records for e in r.events if isinstance(e, Evicted))
    ran = [len(record.batch.rows) for record in records]
    gauges = [record.gauges for record in records]
    held = [num_pages - g.free_pages - g.evictable_pages for g in gauges]
    waiters = [life for life in known.values() if life.waited]
    patient = max(waiters, key=lambda life: life.waited, default=None)
    return Description(
        first=records[0].batch.step if records else 0,
        steps=len(records),
        requests=len(known),
        ends=dict(Counter(life.finish for life in known.values() if life.finish is not None)),
        computed=sum(row.length for row in prompts),
        reused=sum(life.reused for life in known.values()),
        generated=sum(len(life.output) for life in known.values()),
        mean_running=sum(ran) / len(ran) if ran else 0.0,
        peak_running=max(ran, default=0),
        peak_waiting=max((g.waiting for g in gauges), default=0),
        peak_pages=max(held, default=0),
        num_pages=num_pages,
        evicted=sum(len(event.pages) for event in gone),
        again=again,
        preemptions=sum(life.preemptions for life in known.values()),
        longest=None if patient is None else explain(records, patient.rid),
        timeline=timeline,
    )


def _longest(why: Explanation) -> str:
    causes = {cause: n for cause, n in why.parts.items() if cause not in _RAN}
    said = ", ".join(
        f"{cause.replace('_', ' ')} {n}"
        for cause, n in sorted(causes.items(), key=lambda item: -item[1])
    )
    waited = counted(sum(causes.values()), "step")
    return f"r{why.rid} waited longest, {waited} of {why.latency}: {said}."
