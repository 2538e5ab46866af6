"""Figures of what was recorded, one message each. matplotlib comes with the extra ``[lab]``."""

from __future__ import annotations

from collections.abc import Sequence

from minisgl.core import Reused, StepRecord
from minisgl.inspector.figures.picture import Picture, show
from minisgl.inspector.figures.request_lanes import Lanes


def lanes(records: Sequence[StepRecord]) -> Picture:
    """Who ran in which step, of some records; ``trace.plot.lanes`` draws the same of a trace."""
    first, last = records[0].batch.step, records[-1].batch.step
    picture = show(Lanes(records, first, last), None)
    assert isinstance(picture, Picture)
    picture.alt = describe_lanes(records)
    return picture


def describe_lanes(records: Sequence[StepRecord]) -> str:
    """What ``lanes`` draws, in words: a line for each request."""
    prefills: dict[int, list[str]] = {}
    decodes: dict[int, list[int]] = {}
    reused: dict[int, int] = {}
    for record in records:
        for event in record.events:
            if isinstance(event, Reused):
                reused[event.rid] = event.num_tokens
        for row in record.batch.rows:
            if row.token_ids is None:
                decodes.setdefault(row.rid, []).append(record.batch.step)
            else:
                chunk = f"{row.length} in step {record.batch.step}"
                prefills.setdefault(row.rid, []).append(chunk)
    lines = []
    for rid in sorted(prefills.keys() | decodes.keys()):
        parts = [f"{reused[rid]} positions from the cache"] if rid in reused else []
        if rid in prefills:
            parts.append("prefill " + ", ".join(prefills[rid]))
        if rid in decodes:
            parts.append(f"decode in steps {decodes[rid][0]} to {decodes[rid][-1]}")
        lines.append(f"r{rid}: " + "; ".join(parts))
    return "\n".join(lines)
