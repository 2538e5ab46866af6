"""One run under inspection: a live engine or a recorded trace, its film and its breakpoints."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Final

from minisgl.core import Plan, StepRecord
from minisgl.engine.breakpoint import EVENTS, Breakpoint
from minisgl.engine.engine import Engine
from minisgl.inspector.film import Film
from minisgl.inspector.served import Served
from minisgl.trace.trace import Trace

# What a breakpoint can be set on by name.
CONDITIONS: Final = (*EVENTS, "wait", "abort", "error")
_FROM_QUEUE: Final = 16  # waiting requests that are offered for the next plan
_COMPACT: Final = 64  # chunks that are kept for the next view; beyond, it is told anew, as one


# What can be looked at.
Inspected = Engine | Trace | Served


class Run:
    """A run with a name. It owns the film; the engine owns itself and its breakpoints."""

    def __init__(self, name: str, what: Inspected) -> None:
        self.name, self.what = name, what
        self.engine = what if isinstance(what, Engine) else None
        self.served = what if isinstance(what, Served) else None
        self._film = Film(self.trace)
        self._chunks: list[bytes] | None = []  # None: too many, they are told anew when asked for
        self._mine: list[Breakpoint] = []  # of a trace, for which no engine keeps any
        self._hits: dict[Breakpoint, tuple[int, list[int]]] = {}  # records asked, and hits
        self.read()

    @property
    def trace(self) -> Trace:
        """The history as it is now."""
        return self.what if isinstance(self.what, Trace) else self.what.trace

    @property
    def is_live(self) -> bool:
        """Whether it can go on."""
        return not isinstance(self.what, Trace) and not self.what.closed

    @property
    def last(self) -> int:
        """The number of the last recorded step; one less than the first if there is none."""
        return self._film.num_steps - 1

    def read(self) -> tuple[bytes, bool]:
        """What was recorded since, and whether it replaces all that was read before.

        It does after a rewind, which begins another history, and where the engine forgot steps
        before anybody read them.
        """
        trace, film = self.trace, self._film
        new = trace.history is not film.history
        if new:
            self._hits = {}
        if new or film.num_steps < trace.history.first:
            self._film, self._chunks, new = Film(trace), [], True  # for views that begin anew, too
        chunk = self._film.read()
        if chunk and self._chunks is not None:
            self._chunks.append(chunk)
            if len(self._chunks) > _COMPACT:
                self._chunks = None
        return chunk, new

    def film(self) -> bytes:
        """All that was read so far; of an engine with a bounded history, what it still has."""
        if self._chunks is None:
            self._film = Film(self.trace, like=self._film)
            self._chunks = [self._film.read()]
        return b"".join(self._chunks)

    # ---- breakpoints -----------------------------------------------------------------------------

    @property
    def breakpoints(self) -> tuple[Breakpoint, ...]:
        """Those of the engine, or of this view of a trace."""
        return self.engine.breakpoints if self.engine is not None else tuple(self._mine)

    def break_when(self, condition: str | Callable[[StepRecord], object]) -> Breakpoint:
        """Set one more; see ``Engine.break_when``."""
        if self.engine is not None:
            return self.engine.break_when(condition)
        self._mine.append(Breakpoint(condition, self._mine))
        return self._mine[-1]

    def hits(self, breakpoint_: Breakpoint) -> list[int]:
        """The steps for whose records it holds; each record is asked about once."""
        history = self.trace.history
        asked, found = self._hits.get(breakpoint_, (history.first, []))
        if found and found[0] < history.first:
            found = [k for k in found if k >= history.first]
        for k in range(max(asked, history.first), len(history)):
            if not breakpoint_.enabled:
                break
            if breakpoint_.holds(history.record(k)):
                found.append(k)
            asked = k + 1
        self._hits[breakpoint_] = (asked, found)
        return found

    # ---- for the renderer ------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What the renderer is told besides the film; see ``Inspector.status``."""
        return {
            "name": self.name,
            "live": self.is_live,
            "closed": not isinstance(self.what, Trace) and self.what.closed,
            "served": None if self.served is None else {"paused": self.served.paused},
            "plan": self._plan(),
            "breakpoints": [
                {
                    "label": b.label,
                    "on": b.enabled,
                    "hits": None if isinstance(b.condition, str) else self.hits(b),
                }
                for b in self.breakpoints
            ],
        }

    def _plan(self) -> dict[str, Any] | None:
        """What would be launched next, and who else could be added to it by hand."""
        if self.engine is None or self.engine.closed:
            return None
        try:
            plan, failed = self.engine.plan(), []
        except Exception as error:  # the policy is the user's
            plan, failed = Plan(), [f"the policy failed: {error!r}"]
        return {
            "rows": [list(row) for row in plan.rows],
            "preempt": list(plan.preempt),
            "refusals": [*failed, *map(str, plan.refusals)],
            "addable": _addable(self.engine, plan),
        }

    def step(self, plan: Plan | None = None) -> StepRecord | None:
        """One step of the engine: its own next one, or this plan's. Raises what the engine does.

        A plan of one's own is launched after what is in flight, and all of it is collected.
        """
        assert self.engine is not None, "the widget asks only those that are live"
        if plan is None:
            return self.engine.step()
        batch = self.engine.launch(plan)
        record = self.engine.collect()
        while record.batch.step < batch.step:
            record = self.engine.collect()
        return record


def _addable(engine: Engine, plan: Plan) -> list[list[int]]:
    """Who is not in the plan, and as much of it as a step could still take; some from the queue."""
    named = {rid for rid, _ in plan.rows}
    room = engine.config.limits.max_step_tokens - sum(length for _, length in plan.rows)
    out = []
    for request in (*engine.running, *engine.queue[:_FROM_QUEUE]):
        if request.rid in named or request.finish is not None:
            continue
        if request.slot is None:
            known = len(engine.cache.match(request.tokens)) * engine.config.limits.page_size
            left = len(request.tokens) - min(known, len(request.tokens) - 1)
        else:
            left = max(1, request.prefill_end - request.scheduled)
        out.append([request.rid, max(1, min(left, room))])
    return out


def told(action: Callable[[], Any]) -> tuple[Any, str]:
    """What an action returns, and the warnings that it gave, in words."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = action()
    return result, " ".join(str(warning.message) for warning in caught)
