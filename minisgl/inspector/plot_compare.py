"""Two runs' lanes, one above the other on one axis of steps, and the step at which they part."""

from __future__ import annotations

from typing import Any, Final

from matplotlib.axes import Axes

from minisgl.inspector.figures.frame import WIDTH
from minisgl.inspector.figures.lettering import INK, TEXT, wrapped
from minisgl.inspector.figures.picture import Picture, show
from minisgl.inspector.figures.request_lanes import Lanes
from minisgl.trace.compare import Comparison
from minisgl.trace.trace import Trace

_MOST: Final = 80  # steps of a run that is shown whole
_BEFORE, _AFTER = 15, 45  # steps around the parting of longer ones


def plot(comparison: Comparison) -> Picture:
    """The lanes of both runs; of long runs, the steps around the one in which they part.

    Raises ValueError if no request lives in these steps in one of the runs.
    """
    first, last = _steps(comparison)
    parting = comparison.divergence
    words = "a and b are the same" if parting is None else f"a and b part in {parting}"
    title = wrapped(words, 72 * WIDTH - 12, TEXT)
    lanes = [_lanes(trace, first, last) for trace in (comparison.a, comparison.b)]
    heights = [one.height for one in lanes]
    size = (WIDTH, sum(heights) + 0.2 * len(title))
    picture = Picture(figsize=size, layout="constrained", facecolor="white")
    panels = picture.subplots(2, 1, height_ratios=heights)
    left: dict[str, Any] = {"x": 0.01, "horizontalalignment": "left"}
    picture.suptitle("\n".join(title), fontsize=TEXT, color=INK, parse_math=False, **left)
    picture.alt = repr(comparison)
    for name, one, ax in zip("ab", lanes, panels, strict=True):
        picture.alt += f"\n\n{name}:"
        ax.set_ylabel(name, fontsize=TEXT, color=INK, fontweight="bold", rotation=0, labelpad=8)
        show(one, ax)
        if parting is not None:
            _mark(ax, parting.step)
    return picture


def _steps(comparison: Comparison) -> tuple[int, int]:
    """The first and the last step to show, which both runs have, or one has ended before."""
    runs = comparison.a, comparison.b
    first, ends = max(run.history.first for run in runs), [len(run) for run in runs]
    shorter = min(runs, key=len)
    left = shorter[-1].gauges if len(shorter) > shorter.history.first else None
    unfinished = left is not None and left.waiting + left.running > 0
    last = (min if unfinished else max)(ends) - 1
    if last - first >= _MOST:
        middle = first if comparison.step is None else comparison.step
        first = max(first, middle - _BEFORE)
        last = min(last, middle + _AFTER)
    return first, last


def _lanes(trace: Trace, first: int, last: int) -> Lanes:
    return Lanes(trace.history.records, first, last, trace.start())


def _mark(ax: Axes, step: int) -> None:
    look: dict[str, Any] = {"color": INK, "linewidth": 0.8, "linestyle": (0, (3, 2))}
    ax.axvline(step - 0.5, gid="parting", zorder=0.5, **look)
