"""``trace.plot``: six figures of a run, one message each. matplotlib comes with the extra [lab]."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from minisgl.core import Change, Plan, StepRecord
from minisgl.inspector.figures.clock import Clock
from minisgl.inspector.figures.page_grid import Pages
from minisgl.inspector.figures.picture import Picture, show
from minisgl.inspector.figures.radix_tree import Tree
from minisgl.inspector.figures.request_lanes import Lanes
from minisgl.inspector.figures.step_batch import Step
from minisgl.inspector.figures.step_budget import Budget
from minisgl.scheduler.replay import replay
from minisgl.scheduler.scheduler import Scheduler
from minisgl.trace.trace import Trace

_RECENT = 12  # steps of a timeline that nobody chose
_NEAR = 8  # steps before and after, whose spans may lie in the same time


class Plot:
    """The figures of a trace.

    Each method returns a ``Picture``: a matplotlib Figure that a notebook shows, with all it says
    in words as ``alt``. Given ``ax`` it draws there instead and returns that. A step that is
    negative counts from the end. Each raises ValueError for a trace without steps, and for a step
    that is not kept.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def __repr__(self) -> str:
        return f"figures of {self._trace!r}: lanes, tree, pages, batch, timeline, budget"

    def lanes(
        self, first: int | None = None, last: int | None = None, ax: Axes | None = None
    ) -> Picture | Axes:
        """Who ran in which step: a lane for each request, from waiting through prefill to decode.

        first, last: the steps to show, both included; all that are kept by default.
        """
        steps = self._steps(first, last)
        known = self._records(range(self._trace.history.first, steps.stop))
        return show(Lanes(known, steps[0], steps[-1], self._trace.start()), ax)

    def tree(self, step: int | None = None, ax: Axes | None = None) -> Picture | Axes:
        """The prefix cache as a step's record found it, the last by default; width is tokens.

        With overlap the next step was committed by then.
        """
        k = self._step(step)
        tree = Tree(self._trace[k], self._trace.scheduler(k), self._trace.decode)
        return show(tree, ax)

    def pages(self, step: int | None = None, ax: Axes | None = None) -> Picture | Axes:
        """Every KV page and who holds it, as a step's record found them, the last by default.

        With overlap the next step was committed by then.
        """
        k = self._step(step)
        known = self._records(range(self._trace.history.first, k + 1))
        return show(Pages(known, self._trace.scheduler(k)), ax)

    def batch(self, step: int | None = None, ax: Axes | None = None) -> Picture | Axes:
        """One step as it was launched, the last by default: its token budget, and who waits why."""
        k = self._step(step)
        known = self._records(range(self._trace.history.first, k + 1))
        return show(Step(known, self._launched(k)), ax)

    def timeline(
        self, first: int | None = None, last: int | None = None, ax: Axes | None = None
    ) -> Picture | Axes:
        """Steps on the clock: the host over the devices, and why these were idle.

        first, last: the steps to show, both included; without either the last twelve.
        """
        steps = self._steps(first, last)
        if first is None and last is None:
            steps = steps[-_RECENT:]
        near = range(
            max(self._trace.history.first, steps.start - _NEAR),
            min(len(self._trace), steps.stop + _NEAR),
        )
        return show(Clock(self._records(near), steps, self._trace.timeline(steps)), ax)

    def budget(
        self, first: int | None = None, last: int | None = None, ax: Axes | None = None
    ) -> Picture | Axes:
        """Tokens computed per step below what a step may take, and the pages after it.

        first, last: the steps to show, both included; all that are kept by default.
        """
        steps, num_pages = self._steps(first, last), self._trace.config.limits.num_pages
        return show(Budget(self._records(steps), self._limits(steps), num_pages), ax)

    # ---- which steps -----------------------------------------------------------------------------

    def _steps(self, first: int | None, last: int | None) -> range:
        start = self._trace.history.first if first is None else self._step(first)
        stop = self._step(last) + 1
        if start >= stop:
            raise ValueError(f"steps {start} to {stop - 1} are none; first must not exceed last")
        return range(start, stop)

    def _step(self, k: int | None) -> int:
        """The number of a step that is kept; the last by default."""
        begin, end = self._trace.history.first, len(self._trace)
        if begin == end:
            raise ValueError("this trace has no steps; run the engine first")
        step = end - 1 if k is None else k if k >= 0 else end + k
        if not begin <= step < end:
            raise ValueError(f"step {k} was asked, {begin} to {end - 1} are kept")
        return step

    def _records(self, steps: range) -> Sequence[StepRecord]:
        first = self._trace.history.first
        return self._trace.history.records[steps.start - first : steps.stop - first]

    def _launched(self, step: int) -> Scheduler:
        """The scheduler just after it committed a step."""
        state, history = self._trace.start(), self._trace.history
        for item in history.inputs(history.first_input, history.num_inputs):
            if state.step > step:
                break
            replay([item], state)
        return state

    def _limits(self, steps: range) -> list[int]:
        """What each step might compute: a fork may have begun with another limit."""
        state, history = self._trace.start(), self._trace.history
        limit = state.limits.max_step_tokens
        limits = [limit] * state.step
        for item in history.inputs(history.first_input, history.num_inputs):
            if isinstance(item, Change):
                limit = item.max_step_tokens
            elif isinstance(item, Plan):
                limits.append(limit)
        return limits[steps.start : steps.stop]
