"""Over the steps: the tokens that were computed, below what a step may take, and the pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from minisgl.core import StepRecord
from minisgl.display import STATES, counted
from minisgl.inspector.figures.frame import HAIR, Frame, panels, ticks
from minisgl.inspector.figures.lettering import GREY, INK

_MOST = 600  # steps that are drawn one by one; of more, neighbours are averaged
_LINE: Final[dict[str, Any]] = {"color": INK, "linewidth": 1.0}
_TOKENS: Final = ("prefill", "decode")
_PAGES: Final = {
    "held": ("prefill", "held by requests"),
    "evictable": ("evictable", "cached, nobody holds it"),
    "free": ("free", "free"),
}

Column = np.ndarray[tuple[int], np.dtype[np.float64]]


class Budget:
    """Tokens and pages of steps that follow one another.

    limits: what each step may compute. ``tokens`` and ``pages`` hold a column per step.
    """

    def __init__(
        self, records: Sequence[StepRecord], limits: Sequence[int], num_pages: int
    ) -> None:
        self.steps = np.array([record.batch.step for record in records])
        self.limits, self.num_pages = _column(limits), num_pages
        decode = [sum(row.token_ids is None for row in r.batch.rows) for r in records]
        computed = [record.batch.num_tokens for record in records]
        gauges = [record.gauges for record in records]
        free = _column([g.free_pages for g in gauges])
        evictable = _column([g.evictable_pages for g in gauges])
        self.promised = _column([g.promised_pages for g in gauges])
        self.tokens = {"prefill": _column(computed) - _column(decode), "decode": _column(decode)}
        held = num_pages - free - evictable
        self.pages = {"held": held, "evictable": evictable, "free": free}

    height = 3.6

    # ---- words -----------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """How much of the budget was used."""
        computed = sum(int(column.sum()) for column in self.tokens.values())
        share = computed / self.limits.sum()
        steps = counted(len(self.steps), "step")
        return f"{computed:,} tokens in {steps}: {share:.0%} of what the steps could take"

    @property
    def alt(self) -> str:
        """Sums and extremes."""
        first, last = int(self.steps[0]), int(self.steps[-1])
        computed = self.tokens["prefill"] + self.tokens["decode"]
        most = " or ".join(f"{int(limit):,}" for limit in np.unique(self.limits))
        lines = [f"{self.title} (steps {first} to {last}, at most {most} each)."]
        for name, column in self.tokens.items():
            lines.append(f"{name.capitalize()}: {int(column.sum()):,} tokens.")
        full = int((computed >= self.limits).sum())
        fullest = int(computed.argmax())
        lines.append(
            f"Fullest: step {first + fullest} with {int(computed[fullest]):,}; "
            f"{counted(full, 'step')} took all."
        )
        held, spoken = self.pages["held"], self.pages["held"] + self.promised
        lines.append(
            f"Pages held, of {self.num_pages:,}: {int(held.min()):,} to {int(held.max()):,}, "
            f"most in step {first + int(held.argmax())}; with promised ones up to "
            f"{int(spoken.max()):,}."
        )
        for name in ("evictable", "free"):
            column = self.pages[name]
            lines.append(
                f"{name.capitalize()}: {int(column.min()):,} to {int(column.max()):,}, "
                f"{int(column[-1]):,} at the end."
            )
        return "\n".join(lines)

    # ---- drawing ---------------------------------------------------------------------------------

    def draw(self, ax: Axes) -> None:
        """Draw two panels in the place of ``ax``; step k is the place from k - 0.5 to k + 0.5."""
        above, between = self._frames
        top, below = panels(ax, (1, 1), between)
        self._stack(top, {n: (STATES[n], self.tokens[n]) for n in _TOKENS})
        above.draw(top)
        top.tick_params(labelbottom=False)
        self._limit(top, "tokens", self.limits)
        pages = {name: (STATES[colour], self.pages[name]) for name, (colour, _) in _PAGES.items()}
        self._stack(below, pages)
        spoken = self._binned(self.pages["held"] + self.promised)
        below.stairs(spoken, self._edges, baseline=None, gid="promised", **_LINE)
        between.draw(below)
        self._limit(below, "pages", np.full(len(self.steps), float(self.num_pages)))
        used = self.num_pages - self.pages["free"]
        most = 1.15 * float(max(used.max(), (self.pages["held"] + self.promised).max(), 1))
        if most < self.num_pages / 2:  # so empty that only what is used can be seen
            below.set_ylim(0, most)
            ticks(below.yaxis, 0, most, 3)

    @property
    def _frames(self) -> tuple[Frame, Frame]:
        caption = "tokens a step computes, below the line that it may not pass"
        if self._together > 1:
            caption += f" · each place is the mean of {self._together} steps"
        key = [Patch(facecolor=STATES[name], label=name) for name in _TOKENS]
        below: list[Artist] = [
            Patch(facecolor=STATES[colour], edgecolor=HAIR, linewidth=0.5, label=label)
            for colour, label in _PAGES.values()
        ]
        below.append(Line2D([], [], label="held + promised", **_LINE))
        says = f"pages after each step, of {self.num_pages:,}: what lies above the line is left"
        return Frame(self.title, caption, key, ""), Frame("", says, below, "step")

    @property
    def _together(self) -> int:
        """Steps that are drawn as one."""
        return -(-len(self.steps) // _MOST)

    def _stack(self, ax: Axes, columns: dict[str, tuple[str, Column]]) -> None:
        edges = self._edges
        below = np.zeros(len(edges) - 1)
        for name, (colour, column) in columns.items():
            above = below + self._binned(column)
            look: dict[str, Any] = {"fill": True, "color": colour, "linewidth": 0, "gid": name}
            ax.stairs(above, edges, baseline=below, **look)
            below = above
        ax.set_xlim(float(edges[0]), float(edges[-1]))
        ticks(ax.xaxis, int(self.steps[0]), int(self.steps[-1]))

    def _limit(self, ax: Axes, of: str, limits: Column) -> None:
        """What cannot be passed, as a line with its number."""
        most = float(limits.max())
        ax.set_ylim(0, most * 1.06)
        ax.set_yticks([0, most], ["0", f"{int(most):,}"])
        line: dict[str, Any] = {"color": GREY, "linewidth": 0.8, "linestyle": (0, (4, 3))}
        ax.stairs(self._binned(limits), self._edges, baseline=None, gid=f"limit of {of}", **line)

    @property
    def _edges(self) -> Column:
        first, n = float(self.steps[0]), len(self.steps)
        starts = np.arange(0, n, self._together, dtype=np.float64)
        return np.append(starts, float(n)) + first - 0.5

    def _binned(self, column: Column) -> Column:
        """The means of neighbours, the last of those that are left."""
        starts = np.arange(0, len(column), self._together)
        sums = np.add.reduceat(column, starts)
        return _column(sums / np.diff(np.append(starts, len(column))))


def _column(values: Any) -> Column:
    return np.asarray(values, dtype=np.float64)
