"""The timeline in Chrome's trace event format, which Perfetto opens.

Source: the "Trace Event Format" document: complete events ("X") in microseconds, one pid for the
engine's lanes and one for the requests, a tid of its own for each so that slices never overlap.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from minisgl.core import StepRecord

_LANES, _REQUESTS = 1, 2


def save_chrome(records: Sequence[StepRecord], path: str | PathLike[str]) -> None:
    """Write the spans of every step, and each request's share of the device's time."""
    start = min((span.start for r in records for span in r.spans), default=0.0)
    events = [*_names(records), *(e for record in records for e in _slices(record, start))]
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
