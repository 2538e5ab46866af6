"""The same requests under other toggles: what would have happened."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from minisgl.build import load
from minisgl.core import Abort, Add, Input, Plan
from minisgl.engine.engine import Engine
from minisgl.trace import Trace


def replay(trace: Trace, model: str | Path | None = None, **changes: Any) -> Engine:
    """Run a trace's requests again under other toggles; returns the engine, everything done.

    Requests arrive, and are aborted, before the step with the same number as then, or as soon as
    nothing else is left to do. Where ``page_size`` changes alone, the pool keeps its positions.
    model: what to load, that of the trace by default. changes: any field of ``EngineConfig``.
    Close the engine when you are done; its ``trace`` is the new run's.
    Raises ValueError if the beginning of the history was forgotten, and what ``load`` and ``add``
    raise where a request cannot run under the new toggles.
    """
    trace.check_whole()
    if "page_size" in changes and "num_pages" not in changes:
        limits = trace.config.limits
        positions = limits.num_pages * limits.page_size
        changes = {**changes, "num_pages": max(1, positions // changes["page_size"])}
    engine = load(trace.model if model is None else model, trace.config, **changes)
    try:
        todo = _by_step(trace)
        while todo or engine.gauges.waiting or engine.gauges.running:
            busy = engine.gauges.waiting or engine.gauges.running
            while todo and (todo[0][0] <= engine.next_step or not busy):
                busy = _pass(engine, todo.popleft()[1])
            engine.step()
        engine.run()
    except BaseException:
        engine.close()
        raise
    return engine


def _by_step(trace: Trace) -> deque[tuple[int, Input]]:
    """Each arrival and abort with the number of the step that was next to be planned."""
    history, step, out = trace.history, 0, deque[tuple[int, Input]]()
    for item in history.inputs(0, history.num_inputs):
        if isinstance(item, Plan):
            step += 1
        elif isinstance(item, Add | Abort):
            out.append((step, item))
    return out


def _pass(engine: Engine, item: Input) -> bool:
    """Let the engine have it; returns whether it then has something to do."""
    if isinstance(item, Add):
        request = engine.add(item.prompt, item.sampling)
        assert request.rid == item.rid, "requests are numbered in order of arrival"
    elif isinstance(item, Abort):
        engine.abort(item.rid)
    return bool(engine.gauges.waiting or engine.gauges.running)
