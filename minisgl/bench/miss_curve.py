"""Figures of what a prefix cache misses: curves over the size of the pool, and what a curve is made
of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from minisgl.bench.miss import Miss
from minisgl.display import STATES
from minisgl.inspector.figures.frame import HAIR, Frame
from minisgl.inspector.figures.lettering import GREY, INK, SMALL
from minisgl.inspector.figures.picture import Picture, show

# petroff6, which stays apart under colour blindness; so do dashes and marks.
# The first toggle decides the colour, the others the dash.
_COLOURS: Final = ("#5790fc", "#f89c20", "#e42536", "#964a8b", "#9c9ca1", "#7a21dd")
_STYLES: Final = (("-", "o"), ((0, (4, 2)), "s"), ((0, (1, 1.2)), "D"), ((0, (5, 1, 1, 1)), "^"))
_X: Final = "pool, in positions"


def curves(name: str, lines: Mapping[str, Sequence[Miss]], floor: float, twice: int) -> Picture:
    """The share that is computed over the size of the pool, a line for each arm.

    name: the workload's. floor: the share that no cache could save. twice: positions that are asked
    for more than once.
    """
    return _picture(Curves(name, lines, floor, twice))


def parts(arm: str, points: Sequence[Miss], distinct: int) -> Picture:
    """What became of all that was asked, a bar for each size of the pool.

    distinct: positions that are asked for the first time.
    """
    return _picture(Parts(arm, points, distinct))


class Curves:
    """The curves of all arms, with the share that nobody could save and the working set."""

    height = 3.4

    def __init__(
        self, name: str, lines: Mapping[str, Sequence[Miss]], floor: float, twice: int
    ) -> None:
        self.name, self.lines, self.floor, self.twice = name, lines, floor, twice
        self.points = [point for points in lines.values() for point in points]

    @property
    def title(self) -> str:
        """The range of what was computed."""
        shares = [point.share for point in self.points]
        return (
            f"{self.name}: {min(shares):.0%} to {max(shares):.0%} of the prompts "
            f"had to be computed"
        )

    @property
    def alt(self) -> str:
        """Every point in words."""
        lines = [f"{self.title}; no cache could go below {self.floor:.1%}."]
        lines.append(f"{self.twice:,} positions are asked more than once.")
        for arm, points in self.lines.items():
            each = ", ".join(f"{point.share:.1%} at {point.pool:,}" for point in points)
            lines.append(f"{arm}: {each}.")
        return "\n".join(lines)

    def draw(self, ax: Axes) -> None:
        """Draw it: x is the logarithm of the pool's size, y the share that is computed."""
        keys = list[Artist]()
        colours, styles = (
            _numbered(arm.partition(", ")[at] for arm in self.lines) for at in (0, 2)
        )
        for arm, points in self.lines.items():
            colour, _, style = arm.partition(", ")
            dash, mark = _STYLES[styles[style] % len(_STYLES)]
            look: dict[str, Any] = {"color": _COLOURS[colours[colour] % len(_COLOURS)]}
            look |= {"linestyle": dash, "marker": mark, "label": arm, "linewidth": 1.3}
            look |= {"markersize": 4, "markerfacecolor": "white"}
            xs, ys = [point.pool for point in points], [point.share for point in points]
            ax.plot(xs, ys, gid=arm, **look)
            keys.append(Line2D([], [], **look))
        _over_pools(ax, sorted({point.pool for point in self.points}))
        ax.set_ylim(0, 1.04)
        quiet: dict[str, Any] = {"color": GREY, "linewidth": 0.8, "zorder": 0}
        ax.axhline(self.floor, linestyle=(0, (1, 2)), gid="floor", **quiet)
        left, right = ax.get_xlim()
        words: dict[str, Any] = {"fontsize": SMALL, "color": GREY}
        ax.text(left, self.floor - 0.01, " asked for the first time", va="top", **words)
        if left < self.twice < right:
            ax.axvline(self.twice, linestyle=(0, (4, 3)), gid="working set", **quiet)
            ax.text(self.twice, 1.0, " all that is asked twice", va="top", **words)
        ax.grid(axis="y", color=HAIR, linewidth=0.4)
        ax.set_axisbelow(True)
        caption = "the part of all prompt positions that was computed: less is better"
        Frame(self.title, caption, keys, _X).draw(ax)


class Parts:
    """What all that was asked came to with one arm. ``columns`` has a share for each pool."""

    height = 2.9

    def __init__(self, arm: str, points: Sequence[Miss], distinct: int) -> None:
        self.arm, self.points, self.distinct = arm, points, distinct
        self.columns = {
            "found": [1 - point.share for point in self.points],
            "asked for the first time": [distinct / point.asked for point in points],
            "evicted before": [point.again / point.asked for point in self.points],
            "beyond the last whole page": [self._rest(point) for point in self.points],
        }

    @property
    def title(self) -> str:
        """The most that eviction cost."""
        most = max(self.points, key=lambda point: point.again)
        if not most.again:
            return f"{self.arm}: nothing is computed again"
        return (
            f"{self.arm}: up to {most.again / most.asked:.0%} of the prompts is computed again "
            f"after eviction"
        )

    @property
    def alt(self) -> str:
        """Every bar in words."""
        lines = [f"{self.title}."]
        for k, point in enumerate(self.points):
            each = ", ".join(f"{name} {column[k]:.1%}" for name, column in self.columns.items())
            lines.append(f"Pool of {point.pool:,}: {each}.")
        return "\n".join(lines)

    def draw(self, ax: Axes) -> None:
        """Draw it: bar k stands for the k-th pool."""
        colours = (STATES["reused"], STATES["prefill"], STATES["evicted"], STATES["waiting"])
        below, places = [0.0] * len(self.points), range(len(self.points))
        keys = list[Artist]()
        for colour, (name, column) in zip(colours, self.columns.items(), strict=True):
            ax.bar(places, column, 0.8, bottom=below, color=colour, gid=name)
            below = [a + b for a, b in zip(below, column, strict=True)]
            keys.append(Patch(facecolor=colour, label=name))
        ax.set_xticks(places, [f"{point.pool:,}" for point in self.points])
        ax.set_ylim(0, 1)
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        caption = "what all prompt positions came to: found, or computed and why"
        Frame(self.title, caption, keys, _X).draw(ax)

    def _rest(self, point: Miss) -> float:
        """Not below 0: a prompt may go on from an answer, which nobody computed as a prompt."""
        rest = point.computed - point.again - self.distinct
        return max(0, rest) / point.asked


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: k for k, name in enumerate(dict.fromkeys(names))}


def _over_pools(ax: Axes, pools: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(pools, [f"{pool:,}" for pool in pools])
    ax.set_xticks([], minor=True)
    ax.set_xlim(pools[0] / 1.08, pools[-1] * 1.08)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.tick_params(labelcolor=INK)


def _picture(drawing: Curves | Parts) -> Picture:
    picture = show(drawing, None)
    assert isinstance(picture, Picture)
    return picture
