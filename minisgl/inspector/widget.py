"""The inspector as a notebook widget: it answers what the renderer asks of an engine.

The renderer is ``inspector.js``; what it shows comes as films, which this sends and never reads.
Commands come from the browser: each is checked like any input from outside, and a wrong one gets a
sentence for an answer, never code to run. Needs anywidget (the extra ``[lab]``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import anywidget
import traitlets

from minisgl.config import EngineConfig
from minisgl.core import Plan, StepRecord, as_int
from minisgl.engine.engine import FORKABLE, Engine
from minisgl.engine.follow import without
from minisgl.inspector.run import CONDITIONS, Inspected, Run, told
from minisgl.inspector.served import Served
from minisgl.registry import names
from minisgl.trace.trace import Trace

_HERE: Final = Path(__file__).parent
_PAUSE: Final = 0.1  # seconds between two looks at an engine that runs
_AT_ONCE: Final = 256  # the most steps that one command runs, and
_SECONDS: Final = 0.25  # the longest it takes: then the renderer may ask for more, or pause
_RUNS: Final = 16  # open at the same time
_TOGGLES: Final[dict[str, list[Any]]] = {
    "policy": list(names("policy")),
    "admission": ["reserve", "optimistic"],
    "overlap": [True, False],
    "chunked_prefill": [True, False],
}


class Inspector(anywidget.AnyWidget):
    """One or more runs, to be looked at step by step; ``minisgl.inspect`` makes one.

    cursor: the step whose record is the last that is shown. run: the run in front. selected: the
    request that is marked everywhere, or None. They follow the browser and may be set from Python.
    """

    _esm = _HERE / "inspector.js"
    _css = _HERE / "inspector.css"

    cursor = traitlets.Int(-1).tag(sync=True)
    run = traitlets.Int(0).tag(sync=True)
    selected = traitlets.Int(None, allow_none=True).tag(sync=True)
    status = traitlets.Dict().tag(sync=True)  # mode, runs, and what can be chosen; see _tell
    films: traitlets.List[bytes] = traitlets.List().tag(
        sync=True
    )  # made when it is asked for: see get_state

    def __init__(
        self,
        runs: Sequence[tuple[str, Inspected]],
        divergence: Mapping[str, Any] | None = None,
    ) -> None:
        """runs: names, each with its engine or trace. divergence: where two runs part, or None."""
        self._runs = [Run(name, what) for name, what in runs]
        self._divergence = dict(divergence) if divergence is not None else None
        self._message, self._sent, self._due, self._closed = "", 0.0, False, False
        self._observers = {id(run): partial(self._on_record, run) for run in self._runs}
        super().__init__()
        first = self._runs[0]
        self.cursor = first.last
        if self._divergence is not None:
            self.cursor = min(first.last, self._divergence["step"])
        self.on_msg(self._on_message)
        for run in self._runs:
            self._observe(run)
        self._tell()
        self._look_again()

    # ---- for the notebook ------------------------------------------------------------------------

    @property
    def runs(self) -> tuple[Inspected, ...]:
        """What is inspected: engines that can step, traces, engines of servers."""
        return tuple(run.what for run in self._runs)

    @property
    def engine(self) -> Engine:
        """The engine in front. Raises ValueError if a trace is."""
        engine = self._front.engine
        if engine is None:
            raise ValueError("what is in front has no engine in this process; read .trace")
        return engine

    @property
    def trace(self) -> Trace:
        """The history in front."""
        return self._front.trace

    @property
    def record(self) -> StepRecord:
        """The step at the cursor. Raises IndexError before the first."""
        return self.trace[max(self.cursor, 0)]

    def close(self) -> None:
        """Stop watching and take the widget away. The engines stay open."""
        self._closed = True
        for run in self._runs:
            observer = self._observers[id(run)]
            if run.engine is not None and observer in run.engine.observers:
                run.engine.observers.remove(observer)
        super().close()

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Any]:
        """The widget's state, as every new view of it gets it; the films are made for it."""
        state: dict[str, Any] = super().get_state(key, drop_defaults)
        if key is None or "films" in key:
            state["films"] = [run.film() for run in self._runs]
        return state

    def __repr__(self) -> str:
        run = self._front
        kind = "live" if run.is_live else "replay"
        also = f", {len(self._runs)} runs" if len(self._runs) > 1 else ""
        return f"Inspector({kind}, step {self.cursor} of 0 to {run.last}{also})"

    # ---- to the renderer -------------------------------------------------------------------------

    @property
    def _front(self) -> Run:
        return self._runs[min(max(self.run, 0), len(self._runs) - 1)]

    def _observe(self, run: Run) -> None:
        if run.engine is not None and not run.engine.closed:
            run.engine.observers.append(self._observers[id(run)])

    def _on_record(self, run: Run, record: StepRecord) -> None:
        """An engine made a record: show it soon, but do not slow the engine down."""
        if perf_counter() - self._sent >= _PAUSE:
            self.refresh()
            return
        if self._due:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no notebook: nobody would come back to it
            self.refresh()
            return
        self._due = True
        loop.call_later(_PAUSE, self.refresh)

    def refresh(self) -> None:
        """Show what was recorded since. Called by itself; by hand after a rewind, at once."""
        self._due, self._sent = False, perf_counter()
        for index, run in enumerate(self._runs):
            at_head = run is self._front and self.cursor >= run.last
            try:
                chunk, reset = run.read()
            except ValueError as error:  # of a server whose lines make no sense
                self._message, chunk, reset = str(error), b"", False
            if chunk or reset:
                self.send({"chunk": index, "reset": reset}, [chunk])
            if run is self._front and (at_head or self.cursor > run.last):
                self.cursor = run.last
        self._tell()

    def _look_again(self) -> None:
        """What a server sends arrives whether or not anybody asks: look now and then."""
        if self._closed or not any(run.served and run.is_live for run in self._runs):
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no notebook: ``refresh`` is called by hand
            return

        def look() -> None:
            if not self._closed:
                self.refresh()
                self._look_again()

        loop.call_later(_PAUSE, look)

    def _tell(self) -> None:
        runs, warned = told(lambda: [run.status() for run in self._runs])
        config = self._front.trace.config
        forkable = _TOGGLES | {"max_step_tokens": config.max_step_tokens}
        live = any(run.is_live for run in self._runs)
        self.status = {
            "mode": "live" if live else "replay",
            "runs": runs,
            "conditions": list(CONDITIONS),
            "forkable": forkable,
            "divergence": self._divergence,
            "message": self._message or warned,
        }

    # ---- from the renderer -----------------------------------------------------------------------

    def _on_message(self, _: Any, content: Any, buffers: Any) -> None:
        if not isinstance(content, dict) or "do" not in content:
            return
        answer: dict[str, Any] = {"done": content.get("id"), "error": None}
        try:
            more, warned = told(lambda: self._do(content))
            answer |= more or {}
            self._message = warned
        except (
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            RuntimeError,
            OSError,
            MemoryError,
        ) as error:
            words = error.args[0] if isinstance(error, KeyError) and error.args else error
            self._message = answer["error"] = str(words) or type(error).__name__
        self.refresh()
        self.send(answer)

    def _do(self, content: Mapping[str, Any]) -> dict[str, Any] | None:
        index = as_int("run", content.get("run", self.run), 0)
        if index >= len(self._runs):
            raise IndexError(f"run {index} was asked, there are {len(self._runs)}")
        run = self._runs[index]
        match content["do"]:
            case "step" if run.served is not None:
                run.served.step()
            case "run" if run.served is not None:
                if run.served.paused:  # else it runs by itself
                    run.served.step(as_int("steps", content.get("steps", 64), 1))
                return {"ran": 0, "stopped": "limit"}
            case "pause" | "resume" | "abort" if run.served is not None:
                self._order(run.served, content)
            case "step":
                record = run.step() if self._live(run) else None
                return {"ran": int(record is not None)}
            case "run":
                return self._run(run, as_int("steps", content.get("steps", 64), 1))
            case "rewind":
                self._live(run).rewind(to=as_int("to", content.get("to"), 0))
            case "fork":
                changes = _changes(content.get("changes", {}))
                at = as_int("at", content.get("at"), 0)
                twin = self._live(run).fork(at=at, **changes)
                told_changes = ", ".join(f"{key}={value}" for key, value in changes.items())
                self._open(f"fork at {at}" + (f": {told_changes}" if changes else ""), twin)
            case "skip":
                rid = as_int("rid", content.get("rid"), 0)
                self._open(f"without r{rid}", without(self._live(run), [rid]))
            case "abort":
                self._live(run).abort(as_int("rid", content.get("rid"), 0))
            case "launch":
                self._live(run)
                plan = Plan(_rows(content.get("rows")), _rids(content.get("preempt", [])))
                run.step(plan)
            case "break":
                condition = content.get("condition")
                if condition not in CONDITIONS:
                    known = ", ".join(CONDITIONS)
                    raise ValueError(f"unknown condition {condition!r:.40}; there are {known}")
                run.break_when(str(condition))
            case "break_set":
                on = content.get("on")
                if not isinstance(on, bool):
                    raise TypeError(f"on must be true or false, got {on!r:.40}")
                run.breakpoints[as_int("index", content.get("index"), 0)].enabled = on
            case "break_remove":
                run.breakpoints[as_int("index", content.get("index"), 0)].remove()
            case unknown:
                raise ValueError(f"unknown command {unknown!r:.40}")
        return None

    def _run(self, run: Run, steps: int) -> dict[str, Any]:
        """Some steps, to the next breakpoint at most; the renderer asks again, or pauses."""
        engine, end = self._live(run), perf_counter() + _SECONDS
        ran = 0
        while ran < min(steps, _AT_ONCE) and perf_counter() < end:
            record = engine.step()
            if record is None:
                return {"ran": ran, "stopped": "idle"}
            ran += 1
            if any(breakpoint_.holds(record) for breakpoint_ in run.breakpoints):
                return {"ran": ran, "stopped": "breakpoint"}
        return {"ran": ran, "stopped": "limit"}

    def _order(self, served: Served, content: Mapping[str, Any]) -> None:
        match content["do"]:
            case "pause":
                served.pause()
            case "resume":
                served.resume()
            case _:
                served.abort(as_int("rid", content.get("rid"), 0))

    def _live(self, run: Run) -> Engine:
        if run.served is not None:
            raise ValueError(f"{run.name} is a server's: it can be paused, stepped and watched")
        if run.engine is None:
            raise ValueError(f"{run.name} is a recorded trace: it can be looked at, not run")
        return run.engine

    def _open(self, name: str, engine: Engine) -> None:
        if len(self._runs) >= _RUNS:
            engine.close()
            raise ValueError(f"{_RUNS} runs are open; make a new inspector for more")
        run = Run(name, engine)
        self._observers[id(run)] = partial(self._on_record, run)
        self._runs.append(run)
        self._observe(run)
        self.send({"chunk": len(self._runs) - 1, "reset": True}, [run.film()])
        self._tell()
        self.run, self.cursor = len(self._runs) - 1, run.last


def _rows(value: Any) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, list) or not all(isinstance(r, list) and len(r) == 2 for r in value):
        raise TypeError(f"rows must be a list of [rid, positions], got {value!r:.80}")
    return tuple((as_int("rid", rid, 0), as_int("positions", n, 1)) for rid, n in value)


def _rids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise TypeError(f"preempt must be a list of rids, got {value!r:.80}")
    return tuple(as_int("rid", rid, 0) for rid in value)


def _changes(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"changes must be names and values, got {value!r:.80}")
    if wrong := sorted(set(map(str, value)) - set(FORKABLE)):
        raise ValueError(f"a fork cannot change {wrong[0]!r:.40}; it can {', '.join(FORKABLE)}")
    EngineConfig(**value)  # raises for a value that there is not
    return value
