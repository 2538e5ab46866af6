"""What the prefix cache saved: how many tokens each request found computed, and by whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from minisgl.core import Admitted, Reused, StepRecord
from minisgl.display import Html, Part, bar, card, table
from minisgl.scheduler.scheduler import Scheduler
from minisgl.trace.cost import seconds_per_token
from minisgl.trace.frames import SHOWN, as_frame
from minisgl.trace.provenance import Owners

if TYPE_CHECKING:
    import pandas


class Source(NamedTuple):
    """Tokens that were computed by one request. None: it computed them before the history began."""

    rid: int | None
    tokens: int


class Reuse(NamedTuple):
    """What one request found in the prefix cache, whenever it was admitted.

    reused: positions; computed: positions of its prompt that it computed itself, what it computed
    again after a preemption included. sources: who had computed the reused ones, the largest part
    first; after a preemption also the request itself. seconds: device time saved, an estimate.
    """

    rid: int
    reused: int
    computed: int
    sources: tuple[Source, ...]
    seconds: float


@dataclass(frozen=True)
class Reuses:
    """A ``Reuse`` for each request that was admitted. ``trace.reuse()`` makes one.

    seconds_per_token: what a prompt's token cost on the device, estimated by fitting the times of
    the run's batches (``trace.cost``); NaN where it has none.
    """

    requests: tuple[Reuse, ...]
    seconds_per_token: float

    @property
    def reused(self) -> int:
        """Positions that were found."""
        return sum(request.reused for request in self.requests)

    @property
    def computed(self) -> int:
        """Positions of prompts that were computed."""
        return sum(request.computed for request in self.requests)

    @property
    def share(self) -> float:
        """The part of all prompt positions that was found; 0 if nothing was asked."""
        asked = self.reused + self.computed
        return self.reused / asked if asked else 0.0

    @property
    def seconds(self) -> float:
        """Device time saved: an estimate."""
        return self.reused * self.seconds_per_token

    def to_frame(self) -> pandas.DataFrame:
        """A row per request; ``sources`` is a tuple of (rid, tokens)."""
        return as_frame(self._rows(), Reuse._fields)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for request in self.requests:
            yield request._asdict() | {"sources": tuple(map(tuple, request.sources))}

    def __repr__(self) -> str:
        """Without times, so that a run always reads alike."""
        asked = self.reused + self.computed
        lines = [f"{self.reused} of {asked} prompt tokens reused ({100 * self.share:.1f} %)"]
        found = [request for request in self.requests if request.reused]
        for request in found[:SHOWN]:
            lines.append(f"r{request.rid}: {request.reused} tokens: {_parts(request.sources)}")
        if len(found) > SHOWN:
            lines.append(f"... and {len(found) - SHOWN} more requests: see to_frame()")
        return "\n".join(lines)

    def _repr_html_(self) -> Html:
        found = [request for request in self.requests if request.reused]
        says, *_ = repr(self).splitlines()
        parts = (Part("reused", self.reused, "reused"), Part("computed", self.computed, "prefill"))
        rows = ((f"r{r.rid}", r.reused, r.computed, _parts(r.sources)) for r in found)
        heads = ("request", "reused", "computed", "of what was computed by")
        return card("Reuse", says, bar("prompt tokens", parts), table(heads, rows))


def reuse(records: Sequence[StepRecord], start: Scheduler) -> Reuses:
    """Follow each page from who computed it to who found it.

    start: the scheduler's state before the first of the records.
    """
    owners, cost = Owners(start), seconds_per_token(records)
    sources: dict[int, Counter[int | None]] = {}
    computed: Counter[int] = Counter()
    size = start.limits.page_size
    for record in records:
        for event in record.events:
            if isinstance(event, Admitted):
                sources.setdefault(event.rid, Counter())
            elif isinstance(event, Reused):
                for page in event.pages:  # found before this batch takes any
                    sources[event.rid][owners[page]] += size
        owners.take(record.batch, record.events)
        for row in record.batch.rows:
            if row.token_ids is not None:
                computed[row.rid] += row.length
    requests = []
    for rid, found in sources.items():
        parts = sorted(
            found.items(), key=lambda part: (-part[1], -1 if part[0] is None else part[0])
        )
        by = tuple(Source(owner, tokens) for owner, tokens in parts)
        requests.append(Reuse(rid, found.total(), computed[rid], by, cost * found.total()))
    return Reuses(tuple(requests), cost)


def _parts(sources: Iterable[Source]) -> str:
    return ", ".join(f"{source.tokens} of {_name(source.rid)}" for source in sources)


def _name(rid: int | None) -> str:
    return "an earlier time" if rid is None else f"r{rid}"
