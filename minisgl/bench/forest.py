"""A forest plot: how an arm's runs compare with the base's, a line for each metric and arm."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from minisgl.bench.drive import METRICS
from minisgl.bench.effects import Effect, numbers
from minisgl.inspector.figures.picture import Picture

# From petroff6, which stays apart under colour blindness; a verdict has a word and a shape, too.
COLOURS = {"better": "#5790fc", "worse": "#f89c20"}
_GREY = "#808080"
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10, 20)


def forest(effects: Sequence[Effect]) -> Picture:
    """Draw each effect's ratio and interval on one logarithmic axis, grouped by metric.

    A filled mark is a difference, a hollow one could be chance. Raises ValueError for no effects.
    """
    if not effects:
        raise ValueError("there is no effect to draw: name metrics that were measured")
    order = list(METRICS)
    lines = sorted(effects, key=lambda e: order.index(e.metric))  # stable: arms keep their order
    groups = [(name, list(some)) for name, some in groupby(lines, key=lambda e: e.metric)]
    height = 0.7 + 0.26 * (len(lines) + 1.2 * len(groups))
    picture = Picture(figsize=(7, height), layout="constrained")
    picture.alt = "\n".join(f"{e.metric}, {e.arm}: {numbers(e)}, {e.verdict}" for e in lines)
    ax = picture.subplots()
    marks, y = list[tuple[float, str]](), 0.0
    for name, some in groups:
        way = "more" if METRICS[name].higher_is_better else "less"
        header: dict[str, Any] = {"fontweight": "bold", "va": "center", "fontsize": 8}
        header["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        ax.text(0, y, f"{name}, {way} is better", transform=ax.get_yaxis_transform(), **header)
        for found in some:
            y += 1
            marks.append((y, found.arm))
            _line(ax, y, found)
        y += 1.2
    ax.axvline(1, color="black", lw=0.8, zorder=0)
    ax.set_xscale("log")
    _limits(ax, lines)
    ax.set_ylim(y - 0.5, -0.6)
    ax.set_yticks([at for at, _ in marks], [label for _, label in marks], fontsize=8)
    ax.set_xlabel("ratio to the base, with its 95 % interval", fontsize=8)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=8)
    return picture


def _line(ax: Axes, y: float, found: Effect) -> None:
    colour = COLOURS.get(found.verdict, _GREY)
    if found.interval is not None:
        ratio, low, high = found.interval
        ax.plot([low, high], [y, y], color=colour, lw=2)
        filled = colour if found.verdict in COLOURS else "white"
        shape = "D" if found.exact else "o"
        ax.plot([ratio], [y], shape, color=colour, markerfacecolor=filled, markersize=6)
    text = f"{numbers(found)}: {found.verdict}"
    ax.text(1.01, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize=7)


def _limits(ax: Axes, effects: Sequence[Effect]) -> None:
    ends = [end for e in effects if e.interval for end in (e.interval.low, e.interval.high)]
    low, high = min([0.9, *ends]) / 1.05, max([1.1, *ends]) * 1.05
    ax.set_xlim(low, high)
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    if high / low > 3:  # keep labels apart
        ticks = [tick for tick in ticks if tick not in (0.7, 0.8, 0.9, 1.1, 1.25)]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
