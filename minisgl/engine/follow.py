"""What happened once, happening again: recorded arrivals and aborts, passed at their steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from itertools import islice
from typing import Any, NamedTuple

from minisgl.core import Abort, Add, Outcome, Plan
from minisgl.engine.engine import Engine
from minisgl.trace.trace import Trace


class Arrival(NamedTuple):
    """An arrival or an abort, and when it passed the door."""

    step: int  # the number of the step that was next to be planned
    drained: bool  # fewer steps were in flight than may be: nothing was left to launch
    item: Add | Abort


def arrivals(trace: Trace) -> deque[Arrival]:
    """The arrivals and aborts of a trace, in their order."""
    history, depth = trace.history, 2 if trace.config.overlap else 1
    start = trace.start()
    step, in_flight, out = start.step, len(start.in_flight), deque[Arrival]()
    for item in history.inputs(history.first_input, history.num_inputs):
        match item:
            case Plan():
                step, in_flight = step + 1, in_flight + 1
            case Outcome():
                in_flight -= 1
            case Add() | Abort():
                out.append(Arrival(step, in_flight < depth - 1, item))
    return out


def follow(engine: Engine, todo: deque[Arrival]) -> None:
    """Run an engine to the end, and let it have each arrival and abort before the step with its
    number, or as soon as nothing else is left to do. Requests keep their rids.

    Raises ValueError where the engine refuses a request.
    """
    while todo or engine.busy:
        while todo and todo[0].step <= engine.next_step:
            in_flight = engine.next_step - len(engine.trace)
            if todo[0].drained and in_flight >= max(1, engine.depth - 1):
                break
            _pass(engine, todo.popleft().item)
        if engine.step() is None and todo:
            due = todo[0].step
            while todo and todo[0].step == due:
                _pass(engine, todo.popleft().item)
    engine.run()


def _pass(engine: Engine, item: Add | Abort) -> None:
    match item:
        case Add(rid, prompt, sampling):
            engine.add(prompt, sampling, rid=rid)
        case Abort(rid):
            engine.abort(rid)


def without(engine: Engine, rids: Collection[int], **changes: Any) -> Engine:
    """A twin in which these requests never ran and all others arrive as recorded, run to the end.

    It is forked before the first of them could be planned. changes: as for ``Engine.fork``.
    Raises KeyError for a request whose arrival is not in the history, ValueError if that moment
    can no longer be gone back to.
    """
    trace = engine.trace
    history = trace.history
    inputs = history.inputs(history.first_input, history.num_inputs)
    where = {item.rid: at for at, item in enumerate(inputs) if isinstance(item, Add)}
    if missing := sorted(set(rids) - where.keys()):
        raise KeyError(f"request {missing[0]} does not arrive in this history")
    arrival = history.first_input + min(where[rid] for rid in rids)
    planned = (isinstance(item, Plan) for item in history.inputs(arrival, history.num_inputs))
    before = arrival + next((n for n, plan in enumerate(planned) if plan), len(inputs))
    moments = range(history.first, len(history) + 1)
    moment = next(k for k in reversed(moments) if k == history.first or history.end(k) <= before)
    twin = engine.fork(at=moment, **changes)
    try:
        known = history.end(moment) - history.first_input
        for rid in rids:
            if where[rid] < known:
                twin.abort(rid)
        passed = sum(isinstance(item, Add | Abort) for item in inputs[:known])
        rest = islice(arrivals(trace), passed, None)
        follow(twin, deque(entry for entry in rest if entry.item.rid not in rids))
    except BaseException:
        twin.close()
        raise
    return twin
