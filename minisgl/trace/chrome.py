"""The timeline in Chrome's trace event format, which Perfetto opens.

Source: the "Trace Event Format" document: complete events ("X") in microseconds, one pid for the
engine's lanes and one for the requests, a tid of its own for each so that slices never overlap.
Kernels have a pid too; those of one lane that overlap are put on further tids of the same name. An
arrow ("s" to "f") goes from the launch of a kernel, or of a graph, to its begin.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from minisgl.core import KernelSpan, StepRecord

_LANES, _REQUESTS, _KERNELS = 1, 2, 3


def save_chrome(
    records: Sequence[StepRecord], path: str | PathLike[str], kernels: Sequence[KernelSpan] = ()
) -> None:
    """Write the spans of every step, and each request's share of the device's time.

    kernels: what a profiler saw, by time.
    """
    starts = [span.start for record in records for span in record.spans]
    start = min([*starts, *(span.start for span in kernels)], default=0.0)
    events = [*_names(records), *(e for record in records for e in _slices(record, start))]
    events += _kernels(records, kernels, start)
    Path(path).write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))


def _lanes(records: Sequence[StepRecord]) -> list[str]:
    return list(dict.fromkeys(span.lane for record in records for span in record.spans))


def _names(records: Sequence[StepRecord]) -> Iterator[dict[str, Any]]:
    for pid, name in ((_LANES, "engine"), (_REQUESTS, "requests")):
        yield {"ph": "M", "pid": pid, "tid": 0, "name": "process_name", "args": {"name": name}}
    for lane in _lanes(records):
        args = {"name": lane}
        yield {"ph": "M", "pid": _LANES, "tid": _tid(lane), "name": "thread_name", "args": args}
    for rid in sorted({row.rid for record in records for row in record.batch.rows}):
        args = {"name": f"r{rid}"}
        yield {"ph": "M", "pid": _REQUESTS, "tid": rid, "name": "thread_name", "args": args}


def _tid(lane: str) -> int:
    """A lane's own number: the host first, then the devices by the digits in their names."""
    digits = "".join(filter(str.isdigit, lane))
    return 1 if lane == "host" else 2 + int(digits or 0)


def _slices(record: StepRecord, start: float) -> Iterator[dict[str, Any]]:
    step = record.batch.step
    for span in record.spans:
        when = {"ts": (span.start - start) * 1e6, "dur": (span.end - span.start) * 1e6}
        yield {
            "ph": "X",
            "pid": _LANES,
            "tid": _tid(span.lane),
            "name": span.name,
            "args": {"step": step},
            **when,
        }
        if span.lane == "host":
            continue
        for row in record.batch.rows:
            name = "decode" if row.token_ids is None else f"prefill {row.length}"
            args = {"step": step, "start": row.start, "length": row.length}
            yield {"ph": "X", "pid": _REQUESTS, "tid": row.rid, "name": name, "args": args, **when}


def _kernels(
    records: Sequence[StepRecord], kernels: Sequence[KernelSpan], start: float
) -> Iterator[dict[str, Any]]:
    """Slices with the requests of their batch, on as many threads as overlapping needs, and arrows.

    A kernel of a graph needs none of its own: its graph has one.
    """
    if not kernels:
        return
    named = {"name": "process_name", "args": {"name": "kernels"}}
    yield {"ph": "M", "pid": _KERNELS, "tid": 0, **named}
    requests: dict[int | None, list[int]] = {
        r.batch.step: [row.rid for row in r.batch.rows] for r in records
    }
    graphs = {span.launched for span in kernels if span.lane.endswith("graphs")}
    threads: dict[str, list[tuple[int, float]]] = {}  # of a lane: tid, and until when it is taken
    count = 0
    for number, span in enumerate(kernels):
        taken = threads.setdefault(span.lane, [])
        free = next((i for i, (_, until) in enumerate(taken) if until <= span.start), len(taken))
        if free == len(taken):
            count += 1
            taken.append((count, span.start))
            about = {"name": "thread_name", "args": {"name": span.lane}}
            yield {"ph": "M", "pid": _KERNELS, "tid": count, **about}
        tid = taken[free][0]
        taken[free] = (tid, span.end)
        begin = (span.start - start) * 1e6
        when = {"ts": begin, "dur": (span.end - span.start) * 1e6}
        known = span.step is not None
        args = {"step": span.step, "requests": requests.get(span.step, [])} if known else {}
        yield {"ph": "X", "pid": _KERNELS, "tid": tid, "name": span.name, "args": args, **when}
        is_inside = span.launched in graphs and not span.lane.endswith("graphs")
        if span.launched is not None and not is_inside:
            arrow = {"name": "launch", "cat": "launch", "id": number}
            host = {"pid": _LANES, "tid": _tid("host"), "ts": (span.launched - start) * 1e6}
            yield {"ph": "s", **arrow, **host}
            yield {"ph": "f", "bp": "e", **arrow, "pid": _KERNELS, "tid": tid, "ts": begin}
