"""Which request computed what each KV page holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from minisgl.core import Batch, Event, Reused
from minisgl.scheduler.scheduler import Scheduler


class Owners:
    """For each KV page the request that computed it; give it the batches in order.

    A page is written by the request that takes it fresh, and by nobody else before it is taken
    fresh again: what others share is whole. None where that was before ``start``.
    """

    def __init__(self, start: Scheduler) -> None:
        """start: the scheduler's state before the first batch."""
        self._of: dict[int, int] = {}
        size = start.limits.page_size
        for request in start.running.values():
            if not request.preemptions:  # else some of its pages may be another's
                self._of.update(dict.fromkeys(request.pages[request.cached // size :], request.rid))

    def __getitem__(self, page: int) -> int | None:
        """Who computed a page, or is computing it."""
        return self._of.get(page)

    def take(self, batch: Batch, events: Iterable[Event]) -> None:
        """Note what a batch writes. events: with those of its commit."""
        for rid, pages in taken(batch, events):
            self._of.update(dict.fromkeys(pages, rid))


def taken(batch: Batch, events: Iterable[Event]) -> Iterator[tuple[int, Sequence[int]]]:
    """The pages that each row of a batch takes fresh. events: with those of its commit."""
    shared = {event.rid: len(event.pages) for event in events if isinstance(event, Reused)}
    for row in batch.rows:
        if row.new_pages:  # a request's first row also names the pages that it shares
            at = 0 if row.first_page else shared.get(row.rid, 0)
            yield row.rid, row.new_pages[at:]
