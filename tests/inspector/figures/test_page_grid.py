"""Every page is a cell in the state that its holders give it."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import QuadMesh

from minisgl.core import (
    Evicted,
    Preempted,
    Reused,
)
from minisgl.inspector.figures.page_grid import STATES_OF_PAGES, Pages
from minisgl.scheduler.scheduler import Scheduler
from minisgl.trace import Trace
from tests.inspector.drawn import axes_of, boxes, of
from tests.inspector.figures.runs import driven
from tests.scheduler.test_workloads import Options, Workload, engines, workloads


@settings(max_examples=40, deadline=None)
@given(workloads, engines, st.data())
def test_every_page_is_in_the_state_that_its_holders_give_it(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    _pages_hold(driven(workload, options, data).trace)


def test_a_preempted_request_holds_what_it_found_when_it_came_back(trace: Trace) -> None:
    _pages_hold(trace)


def _pages_hold(trace: Trace) -> None:
    records = list(trace)
    reused: dict[int, tuple[int, ...]] = {}  # by a run of its own: what each got when admitted last
    for k, record in enumerate(records):
        state = trace.scheduler(k)
        pages, gauges = Pages(records[: k + 1], state), state.gauges
        assert pages.count("free") == gauges.free_pages
        assert pages.count("evictable") == gauges.evictable_pages
        assert sum(cell.cached for cell in pages.cells) == gauges.cached_pages
        for event in record.events:
            if isinstance(event, Reused):
                reused[event.rid] = event.pages
            elif isinstance(event, Preempted):
                reused.pop(event.rid, None)
        for page, cell in enumerate(pages.cells):
            assert len(cell.requests) + cell.cached == state.pool.counts[page]
            known = [rid for rid in cell.requests if not _came_later(state, rid, k)]
            if len(known) == len(cell.requests) and cell.requests:
                got = any(page in reused.get(rid, ()) for rid in cell.requests)
                assert (cell.state == "reused") == got


def _came_later(state: Scheduler, rid: int, step: int) -> bool:
    """Whether it was admitted by a step whose record was not there yet."""
    return any(
        row.rid == rid and not row.first_page
        for batch in state.in_flight
        if batch.step > step
        for row in batch.rows
    )


def test_the_grid_shows_every_page_once(trace: Trace) -> None:
    for step in range(0, len(trace), 4):
        picture, state = of(trace.plot.pages(step)), trace.scheduler(step)
        (ax,) = axes_of(picture)
        (grid,) = (shapes for shapes in ax.collections if isinstance(shapes, QuadMesh))
        codes: list[float] = np.ma.asarray(grid.get_array()).compressed().tolist()
        drawn = Counter(STATES_OF_PAGES[int(code)] for code in codes)
        assert sum(drawn.values()) == state.limits.num_pages
        assert drawn["free"] == state.gauges.free_pages
        assert drawn["evictable"] == state.gauges.evictable_pages
        assert f"{state.gauges.promised_pages} promised" in picture.alt
        gone = {page for e in trace[step].events if isinstance(e, Evicted) for page in e.pages}
        assert len(boxes(picture, "evicted")) == len(gone)
        owners = Counter(t.get_text() for t in ax.texts if t.get_text().startswith("r"))
        for name, n in owners.items():
            pages = state.running[int(name[1:])].pages
            assert n == sum(sum(p in r.pages for r in state.running.values()) == 1 for p in pages)
