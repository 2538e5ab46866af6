"""Every KV page as a cell, as it stood at a step: who holds it, and whether it can be found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from minisgl.core import Evicted, StepRecord
from minisgl.display import STATES, counted, ink
from minisgl.inspector.figures.frame import HAIR, WIDTH, Frame, points
from minisgl.inspector.figures.lettering import GREY, SMALL, TEXT, fitted
from minisgl.inspector.figures.life import ranges, reused_at_admission
from minisgl.inspector.figures.shapes import Words, rectangles, write
from minisgl.scheduler.scheduler import Scheduler

_CELL, _HIGHEST = 0.3, 4.5  # inches: of a cell at most, and of all
_COLUMNS: Final = (20, 25, 32, 40, 50, 64, 80, 100, 128, 160, 200, 256, 320, 400, 512)
_APART = 3.0  # points that a cell must have to stand apart from the next
_DOTTED = 8.0  # points that a cell must have for a dot in it
_TOLD = 24  # requests whose pages are told one by one
_DASHES: Final[dict[str, Any]] = {
    "edgecolor": STATES["evicted"],
    "linestyle": (0, (2, 1.5)),
    "linewidth": 1.2,
}
_DOT: Final[dict[str, Any]] = {"marker": "o", "color": "white", "linestyle": "none"}

State = Literal["free", "held", "reused", "evictable"]
STATES_OF_PAGES: Final[tuple[State, ...]] = ("free", "held", "reused", "evictable")
_COLOURS: Final[dict[State, str]] = {
    "free": STATES["free"],
    "held": STATES["prefill"],
    "reused": STATES["reused"],
    "evictable": STATES["evictable"],
}
_SAYS: Final[dict[State, str]] = {
    "free": "free",
    "held": "held",
    "reused": "found in the cache",
    "evictable": "evictable",
}


class Cell(NamedTuple):
    """A page. "reused": a running request got it from the prefix cache."""

    state: State
    requests: tuple[int, ...]
    cached: bool  # the prefix cache can find it
    evicted: bool  # in this step, to make room for its new holder


class Pages:
    """The page pool at the moment at which a step's record was made.

    records: the steps up to this one, as far as they are known. state: the scheduler as it stood.
    """

    def __init__(self, records: Sequence[StepRecord], state: Scheduler) -> None:
        record = records[-1]
        self.step, self.gauges = record.batch.step, state.gauges
        events = (event for event in record.events if isinstance(event, Evicted))
        gone = {page for event in events for page in event.pages}
        batches = [*(r.batch for r in records), *(b for b in state.in_flight if b.step > self.step)]
        holders: dict[int, list[int]] = {}
        found = set[int]()
        for request in state.running.values():
            for page in request.pages:
                holders.setdefault(page, []).append(request.rid)
            reused = reused_at_admission(request, batches) // state.pool.page_size
            found.update(request.pages[:reused])
        self.page_size = state.pool.page_size
        self.cells = tuple(
            Cell(
                _state(holders.get(page), page in found, count),
                tuple(holders.get(page, ())),
                state.pool.is_cached(page),
                page in gone,
            )
            for page, count in enumerate(state.pool.counts)
        )

    @property
    def columns(self) -> int:
        """Cells in a row: a round number, so that a page is found by its number."""
        if len(self.cells) < _COLUMNS[0]:
            return len(self.cells)
        for columns in _COLUMNS:
            if -(-len(self.cells) // columns) * min(_CELL, WIDTH / columns) <= _HIGHEST:
                return columns
        return -(-len(self.cells) // 256)

    @property
    def height(self) -> float:
        """Inches that the figure wants."""
        rows, cell = -(-len(self.cells) // self.columns), min(_CELL, 0.93 * WIDTH / self.columns)
        return self._frame(72 * cell).height + rows * cell

    # ---- words -----------------------------------------------------------------------------------

    def count(self, state: State) -> int:
        """Pages in a state."""
        return sum(cell.state == state for cell in self.cells)

    @property
    def title(self) -> str:
        """How full the pool is."""
        free, pages = self.count("free"), len(self.cells)
        return f"{free:,} of {counted(pages, 'page')} free after step {self.step}"

    @property
    def caption(self) -> str:
        """What else is to be known."""
        gauges = self.gauges
        left = gauges.free_pages + gauges.evictable_pages - gauges.promised_pages
        parts = [
            f"{self.page_size} positions a page" if self.page_size > 1 else "a position a page"
        ]
        promised = f"{gauges.promised_pages:,} promised to running requests"
        parts.append(f"{promised}, so {left:,} left of free and evictable")
        if gone := sum(cell.evicted for cell in self.cells):
            parts.append(f"{gone:,} evicted in this step")
        return " · ".join(parts)

    @property
    def alt(self) -> str:
        """The numbers, and who holds which pages."""
        states = [f"{self.count(state):,} {_SAYS[state]}" for state in STATES_OF_PAGES]
        cached = sum(cell.cached for cell in self.cells)
        lines = [f"{self.title}: {'; '.join(states)}.", f"{cached:,} can be found in the cache."]
        lines.append(f"{self.caption}.")
        owned = Counter(rid for cell in self.cells for rid in cell.requests)
        most = sorted(owned, key=lambda rid: (-owned[rid], rid))[:_TOLD]
        for rid in sorted(most):
            mine = [(p, p) for p, cell in enumerate(self.cells) if rid in cell.requests]
            lines.append(f"r{rid} holds {counted(owned[rid], 'page')}: {ranges(mine)}")
        if len(owned) > len(most):
            lines.append(f"and {counted(len(owned) - len(most), 'request')} with fewer")
        return "\n".join(lines)

    def _frame(self, cell: float) -> Frame:
        """What can be said of cells of this size."""
        most = max((len(one.requests) for one in self.cells), default=0)
        legible = f" · {most}×: {most} hold it" if most > 1 and cell >= 2 * SMALL else ""
        return Frame(self.title, self.caption + legible, self._key(cell >= _DOTTED))

    # ---- drawing ---------------------------------------------------------------------------------

    def draw(self, ax: Axes) -> None:
        """Draw the grid; page p lies in row p // columns, from the top."""
        columns, n = self.columns, len(self.cells)
        rows = -(-n // columns)
        ax.set_xlim(-0.5, columns - 0.5)
        ax.set_ylim(rows - 0.5, -0.5)
        ax.set_aspect("equal", anchor="NW")
        every = max(1, -(-1.4 * TEXT // (points(ax, layout=False)[1] / rows)))
        marked = range(0, rows, int(every))
        ax.set_yticks(marked, [f"{row * columns:,}" for row in marked])
        self._frame(points(ax, layout=False)[0] / columns).draw(ax)
        cell = points(ax)[0] / columns
        codes = np.full(rows * columns, np.nan)
        codes[:n] = [STATES_OF_PAGES.index(cell.state) for cell in self.cells]
        colours = ListedColormap([_COLOURS[state] for state in STATES_OF_PAGES])
        look: dict[str, Any] = {"cmap": colours, "vmin": -0.5, "vmax": len(STATES_OF_PAGES) - 0.5}
        if cell >= _APART:
            look |= {"edgecolors": "white", "linewidth": min(1.5, 0.12 * cell)}
        grid = codes.reshape(rows, columns)
        edges = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
        ax.pcolormesh(*edges, np.ma.masked_invalid(grid), gid="pages", **look)
        gone = [self._place(page) for page, one in enumerate(self.cells) if one.evicted]
        around = [(x - 0.4, x + 0.4, y - 0.4, y + 0.4) for x, y in gone]
        rectangles(ax, "evicted", around, "none", **_DASHES)
        private = [
            self._place(page)
            for page, one in enumerate(self.cells)
            if one.requests and not one.cached
        ]
        if private and cell >= _DOTTED:
            x, y = zip(*private, strict=True)
            size = {"markersize": min(3.0, 0.18 * cell)}
            ax.plot([i + 0.3 for i in x], [i - 0.3 for i in y], gid="private", **_DOT | size)
        write(ax, self._words(cell))

    def _place(self, page: int) -> tuple[int, int]:
        return page % self.columns, page // self.columns

    def _words(self, cell: float) -> Iterator[Words]:
        """Who holds a page: one by name, of several how many."""
        for page, one in enumerate(self.cells):
            if not one.requests:
                continue
            who = f"r{one.requests[0]}" if len(one.requests) == 1 else f"{len(one.requests)}×"
            if fitted(who, cell - 3, SMALL) == who:
                x, y = self._place(page)
                look = {"fontsize": SMALL, "ha": "center", "color": ink(_COLOURS[one.state])}
                yield Words(x, y, who, look)

    def _key(self, dotted: bool) -> list[Artist]:
        out: list[Artist] = [
            Patch(facecolor=_COLOURS[state], edgecolor=HAIR, linewidth=0.5, label=_SAYS[state])
            for state in STATES_OF_PAGES
            if self.count(state)
        ]
        if dotted and any(cell.requests and not cell.cached for cell in self.cells):
            edge: dict[str, Any] = {"markeredgecolor": GREY, "markersize": 4}
            out.append(Line2D([], [], label="not in the cache", **_DOT | edge))
        if any(cell.evicted for cell in self.cells):
            out.append(Patch(label="evicted in this step", facecolor="none", **_DASHES))
        return out


def _state(requests: Sequence[int] | None, found: bool, count: int) -> State:
    if requests:
        return "reused" if found else "held"
    return "evictable" if count else "free"
