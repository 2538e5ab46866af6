"""The same requests under other toggles: what would have happened."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from minisgl.build import load
from minisgl.core import Add, SamplingParams
from minisgl.engine.engine import Engine
from minisgl.engine.follow import Arrival, arrivals, follow
from minisgl.trace import Trace
from minisgl.trace.lives import lives


def replay(
    trace: Trace,
    model: str | Path | None = None,
    *,
    output_lengths: Literal["model", "recorded"] = "model",
    skip: Collection[int] = (),
    **changes: Any,
) -> Engine:
    """Run a trace's requests again under other toggles; returns the engine, everything done.

    Requests arrive, and are aborted, before the step with the same number as then, or as soon as
    nothing else is left to do. Their rids, seeds and sampling stay. Where ``page_size`` changes
    alone, the pool keeps its positions.
    model: what to load, that of the trace by default. changes: any field of ``EngineConfig``.
    output_lengths: "model" lets each request end as its sampling says; "recorded" lets those that
    ended then generate exactly as many tokens as then, whatever stops they meet, so that another
    model, or none (``runner="hash"``), does the same work. Those that were aborted or failed, or
    are not over, keep what they asked for.
    skip: rids of requests that do not arrive; the others keep theirs.
    Close the engine when you are done; its ``trace`` is the new run's.
    Raises ValueError if the beginning of the history was forgotten or a request to skip is not in
    it, and what ``load`` and ``add`` raise where a request cannot run under the new toggles.
    """
    trace.check_whole()
    if output_lengths not in ("model", "recorded"):
        raise ValueError(f"output_lengths must be 'model' or 'recorded', got {output_lengths!r}")
    todo = arrivals(trace)
    if missing := sorted(set(skip) - {one.item.rid for one in todo if isinstance(one.item, Add)}):
        raise ValueError(
            f"request {missing[0]} does not arrive in this trace; it cannot be skipped"
        )
    todo = deque(arrival for arrival in todo if arrival.item.rid not in skip)
    if output_lengths == "recorded":
        lengths = _lengths(trace)
        todo = deque(_as_long_as_then(arrival, lengths) for arrival in todo)
    if "page_size" in changes and "num_pages" not in changes:
        limits = trace.config.limits
        positions = limits.num_pages * limits.page_size
        changes = {**changes, "num_pages": max(1, positions // changes["page_size"])}
    changes = {"record": True, **changes}  # a server keeps no record in memory
    engine = load(trace.model if model is None else model, trace.config, **changes)
    try:
        follow(engine, todo)
    except BaseException:
        engine.close()
        raise
    return engine


def _lengths(trace: Trace) -> dict[int, int]:
    """Output tokens of the requests that ended by themselves."""
    over = (life for life in lives(trace.history.records).values())
    return {life.rid: len(life.output) for life in over if life.finish in ("stop", "length")}


def _as_long_as_then(arrival: Arrival, lengths: Mapping[int, int]) -> Arrival:
    item = arrival.item
    if not isinstance(item, Add) or item.rid not in lengths:
        return arrival
    sampling: SamplingParams = replace(
        item.sampling,
        max_tokens=lengths[item.rid],
        ignore_eos=True,
        stop=(),
        stop_token_ids=(),
    )
    return arrival._replace(item=item._replace(sampling=sampling))
