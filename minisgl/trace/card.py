"""A run at a glance: what was computed and reused, and its requests."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from minisgl.core import StepRecord
from minisgl.display import MOST, Html, Part, bar, card, counted, table
from minisgl.trace.frames import requests


def trace_card(title: str, model: str, records: Sequence[StepRecord]) -> Html:
    """The positions of a run by what became of them, and its first requests."""
    prefill = decode = 0
    for record in records:
        for row in record.batch.rows:
            if row.token_ids is None:
                decode += 1
            else:
                prefill += row.length
    table_rows = list(requests(records))
    positions = (
        Part("reused", sum(row["reused"] for row in table_rows), "reused"),
        Part("prefill", prefill, "prefill"),
        Part("decode", decode, "decode"),
    )
    over = sum(row["finish"] is not None for row in table_rows)
    preempted = sum(row["preemptions"] for row in table_rows)
    facts = [
        ("model", model or None),
        *((part.label, counted(part.size, "position")) for part in positions),
        ("output", counted(sum(row["output_len"] for row in table_rows), "token")),
        ("requests over", f"{over:,} of {len(table_rows):,}"),
        ("preempted", counted(preempted, "time")),
    ]
    heads = (
        "request",
        "prompt",
        "reused",
        "output",
        "added in",
        "first token in",
        "over in",
        "end",
    )
    fields = ("prompt_len", "reused", "output_len", "added", "first_token", "finished", "finish")
    rows = ((f"r{row['rid']}", *(row[name] for name in fields)) for row in islice(table_rows, MOST))
    return card(
        "Trace",
        title,
        bar("positions", positions),
        table((), facts),
        table(heads, rows, len(table_rows)),
    )
