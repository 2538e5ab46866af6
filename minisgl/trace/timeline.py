"""Where the time went on the clock: when the devices computed, when they did not, and why not.

Plain arithmetic over the spans of records. Everything is in seconds.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

from minisgl.core import StepRecord
from minisgl.display import Html, card, line, table
from minisgl.trace.frames import as_frame

if TYPE_CHECKING:
    import pandas

Cause = Literal["host-bound", "waiting for a collect", "between steps", "nothing to run", "unknown"]
CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)
HOST: Final = "host"
_WAIT: Final = "wait"
# Device times may come from another clock and be converted; beyond this it is not the host's.
_TOLERANCE: Final = 1e-3

_Interval = tuple[float, float]


class Gap(NamedTuple):
    """A time in which a device lane computed nothing, between two of its batches.

    cause: what the host did meanwhile. "host-bound": it planned, committed, launched or applied;
    "waiting for a collect": it waited for a result, so this is the way to and from the device;
    "between steps": requests were there and it did none of these (it recorded, told observers, or
    nobody called ``step``); "nothing to run": no request was there, as far as the last record
    knows; "unknown": the host has no spans, or another clock.
    step: the step that the device waited for, whose batch ends the gap.
    """

    lane: str
    start: float
    end: float
    cause: Cause
    step: int

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.start


class Lane(NamedTuple):
    """One device's time, from the start of its first batch to the end of its last.

    ``busy`` and the parts of ``idle`` sum to ``end - start``.
    """

    name: str
    start: float
    end: float
    busy: float
    idle: Mapping[Cause, float]


@dataclass(frozen=True)
class Account:
    """A run's time on the clock. ``trace.timeline()`` makes one.

    host: seconds by activity (plan, commit, launch, wait, apply). hidden, exposed: the host's work,
    all but its waiting, while at least one device computed and while none did; NaN where
    ``clocks_agree`` is False: then the device's times are not the host's clock, and no gap has a
    known cause.
    """

    lanes: tuple[Lane, ...]
    gaps: tuple[Gap, ...] = field(repr=False)
    host: Mapping[str, float]
    hidden: float
    exposed: float
    clocks_agree: bool

    @property
    def total(self) -> float:
        """Device seconds: from each lane's first batch to its last, all lanes together."""
        return math.fsum(lane.end - lane.start for lane in self.lanes)

    @property
    def busy(self) -> float:
        """Device seconds in which batches were computed."""
        return math.fsum(lane.busy for lane in self.lanes)

    @property
    def idle(self) -> dict[Cause, float]:
        """Device seconds in which nothing was computed, by cause; causes that occur."""
        sums = {c: math.fsum(lane.idle.get(c, 0.0) for lane in self.lanes) for c in CAUSES}
        return {cause: seconds for cause, seconds in sums.items() if seconds}

    @property
    def hidden_share(self) -> float:
        """The part of the host's work that ran while a device computed, 0 to 1; NaN if unknown."""
        work = self.hidden + self.exposed
        return self.hidden / work if work else math.nan

    def to_frame(self) -> pandas.DataFrame:
        """A row for each lane and what it did: ``lane``, ``doing``, ``seconds``."""
        return as_frame(self._rows())

    def _repr_html_(self) -> Html:
        says, *more = repr(self).splitlines()
        rows = ((row["lane"], row["doing"], _time(row["seconds"])) for row in self._rows())
        heads = ("lane", "doing", "time")
        return card("Timeline", says, *map(line, more), table(heads, rows))

    def _rows(self) -> Iterator[dict[str, Any]]:
        for lane in self.lanes:
            yield {"lane": lane.name, "doing": "busy", "seconds": lane.busy}
            for cause, seconds in lane.idle.items():
                yield {"lane": lane.name, "doing": cause, "seconds": seconds}
        for activity, seconds in self.host.items():
            yield {"lane": HOST, "doing": activity, "seconds": seconds}

    def __repr__(self) -> str:
        if not self.lanes:
            return "no batch was timed"
        total = self.total or math.inf
        parts = [("busy", self.busy), *self.idle.items()]
        shares = ", ".join(f"{name} {_percent(seconds / total)}" for name, seconds in parts)
        lines = [f"devices: {_time(self.total)}: {shares}"]
        if self.host:
            spent = ", ".join(f"{name} {_time(seconds)}" for name, seconds in self.host.items())
            lines.append(f"host: {spent}")
        if not self.clocks_agree:
            lines.append("the devices' clock is not the host's: nothing says why they were idle")
        elif self.hidden + self.exposed:
            lines.append(
                f"host work: {_percent(self.hidden_share)} hidden behind the devices, "
                f"{_time(self.exposed)} exposed"
            )
        return "\n".join(lines)


def account(records: Sequence[StepRecord], steps: range | None = None) -> Account:
    """Add up the spans of these steps, all of ``records`` by default.

    Give all records there are, for a batch may hide the host's work on another step. Where the
    first steps of a run are not among them, what the host did for those is "between steps".
    """
    found = gaps(records, steps)
    lanes = tuple(
        _lane(name, batches, [gap for gap in found if gap.lane == name])
        for name, batches in _batches(_chosen(records, steps)).items()
    )
    host: dict[str, float] = {}
    for start, end, name in _host_spans(_chosen(records, steps)):
        host[name] = host.get(name, 0.0) + end - start
    agree = clocks_agree(records)
    hidden = exposed = math.nan
    if agree:
        work = _union(
            (s, e) for s, e, name in _host_spans(_chosen(records, steps)) if name != _WAIT
        )
        every = _batches(records).values()
        device = _union((start, end) for batches in every for start, end, _ in batches)
        hidden, whole = _overlap(work, device), math.fsum(end - start for start, end in work)
        exposed = max(0.0, whole - hidden)
    return Account(lanes, found, host, hidden, exposed, agree)


def gaps(records: Sequence[StepRecord], steps: range | None = None) -> tuple[Gap, ...]:
    """Every time in which a lane was idle between batches of these steps, split by cause.

    Lane by lane, in order of time; a lane's batches and gaps cover its time exactly. See
    ``account`` for what to give.
    """
    agree = clocks_agree(records)
    host = _partition(records) if agree else []
    ends = [end for _, end, _ in host]
    out: list[Gap] = []
    for lane, batches in _batches(_chosen(records, steps)).items():
        for (_, start, _), (end, _, step) in zip(batches, batches[1:], strict=False):
            if not agree:
                out.append(Gap(lane, start, end, "unknown", step))
                continue
            at = start
            for piece in range(bisect_right(ends, start), len(host)):
                begin, until, cause = host[piece]
                if begin >= end or at >= end:
                    break
                if begin > at:
                    out.append(Gap(lane, at, begin, "between steps", step))
                    at = begin
                out.append(Gap(lane, at, min(until, end), cause, step))
                at = min(until, end)
            if at < end:
                out.append(Gap(lane, at, end, "between steps", step))
    return tuple(out)


def clocks_agree(records: Iterable[StepRecord]) -> bool:
    """Whether host and devices were timed by one clock: no batch begins before its launch, nor
    ends after its result was there. False without spans of the host.
    """
    known = False
    for record in records:
        host = {span.name: span for span in record.spans if span.lane == HOST}
        known = known or bool(host)
        first = host["launch"].start - _TOLERANCE if "launch" in host else -math.inf
        last = host[_WAIT].end + _TOLERANCE if _WAIT in host else math.inf
        devices = [span for span in record.spans if span.lane != HOST]
        if not all(first <= span.start and span.end <= last for span in devices):
            return False
    return known


def _chosen(records: Sequence[StepRecord], steps: range | None) -> Sequence[StepRecord]:
    if steps is None:
        return records
    if steps.step != 1:
        raise ValueError(f"steps must follow one another, got {steps!r}; use range(first, end)")
    return [record for record in records if record.batch.step in steps]


def _batches(records: Iterable[StepRecord]) -> dict[str, list[tuple[float, float, int]]]:
    """By device lane its busy times, apart and in order, each with the step that began it."""
    lanes: dict[str, list[tuple[float, float, int]]] = {}
    for record in records:
        for span in record.spans:
            if span.lane != HOST:
                item = (span.start, span.end, record.batch.step)
                lanes.setdefault(span.lane, []).append(item)
    for name, spans in lanes.items():
        spans.sort()
        apart = spans[:1]
        for start, end, step in spans[1:]:
            if start <= apart[-1][1]:
                apart[-1] = (apart[-1][0], max(end, apart[-1][1]), apart[-1][2])
            else:
                apart.append((start, end, step))
        lanes[name] = apart
    return dict(sorted(lanes.items()))


def _lane(name: str, batches: Sequence[tuple[float, float, int]], found: Sequence[Gap]) -> Lane:
    busy = math.fsum(end - start for start, end, _ in batches)
    idle = {c: math.fsum(gap.seconds for gap in found if gap.cause == c) for c in CAUSES}
    occurring = {cause: seconds for cause, seconds in idle.items() if seconds}
    return Lane(name, batches[0][0], batches[-1][1], busy, occurring)


def _host_spans(records: Iterable[StepRecord]) -> list[tuple[float, float, str]]:
    return [
        (span.start, span.end, span.name)
        for record in records
        for span in record.spans
        if span.lane == HOST
    ]


def _partition(records: Sequence[StepRecord]) -> list[tuple[float, float, Cause]]:
    """The host's time in pieces that do not overlap, in order; what is left out is between steps.

    Where spans overlap, work counts before waiting.
    """
    spans = _host_spans(records)
    work = _union((start, end) for start, end, name in spans if name != _WAIT)
    wait = _less(_union((start, end) for start, end, name in spans if name == _WAIT), work)
    rest = _less(_rests(records, sorted(start for start, _, _ in spans)), _union(work + wait))
    causes: list[tuple[list[_Interval], Cause]] = [
        (work, "host-bound"),
        (wait, "waiting for a collect"),
        (rest, "nothing to run"),
    ]
    return sorted((start, end, cause) for pieces, cause in causes for start, end in pieces)


def _rests(records: Sequence[StepRecord], starts: Sequence[float]) -> list[_Interval]:
    """From each booking after which no request was there until the host did something again."""
    rests = []
    for record in records:
        ends = [span.end for span in record.spans if span.lane == HOST]
        if not ends or record.gauges.waiting or record.gauges.running:
            continue
        after = bisect_left(starts, max(ends))
        if after < len(starts):
            rests.append((max(ends), starts[after]))
    return _union(rests)


def _union(intervals: Iterable[_Interval]) -> list[_Interval]:
    """The same times as intervals that lie apart, in order."""
    apart: list[_Interval] = []
    for start, end in sorted(intervals):
        if apart and start <= apart[-1][1]:
            apart[-1] = (apart[-1][0], max(end, apart[-1][1]))
        elif end > start:
            apart.append((start, end))
    return apart


def _less(these: Sequence[_Interval], those: Sequence[_Interval]) -> list[_Interval]:
    """What of these times is in none of those; both apart and in order."""
    out, at = [], 0
    for start, end in these:
        while at < len(those) and those[at][1] <= start:
            at += 1
        k = at
        while k < len(those) and those[k][0] < end:
            if those[k][0] > start:
                out.append((start, those[k][0]))
            start = max(start, those[k][1])
            k += 1
        if start < end:
            out.append((start, end))
    return out


def _overlap(these: Sequence[_Interval], those: Sequence[_Interval]) -> float:
    """How long both go on; both apart and in order."""
    whole = math.fsum(end - start for start, end in these)
    return whole - math.fsum(end - start for start, end in _less(these, those))


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
