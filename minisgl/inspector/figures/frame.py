"""The quiet frame that every figure has: a sentence, a line that teaches, a key of what occurs.

Sizes are in points, 72 to the inch, unless said. Colours are states (``display.STATES``); all else
is ink, grey or a hairline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.legend import Legend
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from minisgl.inspector.figures.lettering import GREY, INK, TEXT, TITLE, text_width, wrapped

WIDTH: Final = 7.0  # inches: a notebook's column, or a page's
HAIR = "#c9ced6"
_KEY, _CAPTION, _TITLE = TEXT + 6, TEXT + 2.5, TITLE + 3  # from one line to the next
_INSIDE: Final = 0.93  # the part of a figure's width that is left beside its labels


class Frame(NamedTuple):
    """What stands around a drawing. x: what the horizontal axis counts, None for no axis."""

    title: str
    caption: str
    key: Sequence[Artist] = ()
    x: str | None = None

    @property
    def height(self) -> float:
        """Inches that it takes above and below the drawing, in a figure of the usual width."""
        below = 4.0 if self.x is None else 21.0 if not self.x else 29.0
        return (self.above(_INSIDE * 72 * WIDTH) + below) / 72

    def above(self, width: float) -> float:
        """Points that it takes above a drawing of this width."""
        keys, lines = len(_rows(self.key, width)), len(wrapped(self.caption, width, TEXT))
        titles = len(wrapped(self.title, width, TITLE))
        return 9.0 + _KEY * keys + _CAPTION * lines + _TITLE * titles

    def draw(self, ax: Axes) -> None:
        """Put it around the axes."""
        ax.set_facecolor("white")
        ax.spines[["top", "right", "left", "bottom"]].set_visible(False)
        ax.tick_params(labelsize=TEXT, labelcolor=GREY, color=HAIR, length=0, pad=3)
        if self.x is None:
            ax.set_xticks([])
        else:
            ax.spines["bottom"].set(visible=True, color=HAIR, linewidth=0.8)
            ax.tick_params(axis="x", length=3)
            ax.set_xlabel(self.x, fontsize=TEXT, color=GREY, labelpad=2)
        width, at = points(ax)[0], 5.0
        for row in reversed(_rows(self.key, width)):
            _add_key(ax, row, at)
            at += _KEY
        for line in reversed(wrapped(self.caption, width, TEXT)):
            _above(ax, line, at, TEXT, GREY)
            at += _CAPTION
        for line in reversed(wrapped(self.title, width, TITLE)):
            _above(ax, line, at + 1, TITLE, INK)
            at += _TITLE


def points(ax: Axes, layout: bool = True) -> tuple[float, float]:
    """How wide and high the axes are, once everything around them has found its place."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    if layout:
        figure.draw_without_rendering()
    box = ax.get_window_extent()
    return box.width * 72 / figure.dpi, box.height * 72 / figure.dpi


def panels(ax: Axes, heights: tuple[float, float], between: Frame) -> tuple[Axes, Axes]:
    """Two axes in the place of ``ax``, with room for the frame of the lower one between them.

    heights: in any one unit.
    """
    ax.axis("off")
    width, height = points(ax)
    gap = min(0.6, (between.above(width) + 20) / height)
    top, below = ((1 - gap) * one / sum(heights) for one in heights)
    return ax.inset_axes((0, 1 - top, 1, top)), ax.inset_axes((0, 0, 1, below))


def ticks(axis: Axis, low: float, high: float, most: int = 10, whole: bool = True) -> None:
    """Mark round numbers from ``low`` to ``high``, whole ones if there can be no others."""
    places = MaxNLocator(most, integer=whole, min_n_ticks=1).tick_values(low, high)
    axis.set_ticks([at for at in places if low <= at <= high and not (whole and at % 1)])


def _rows(key: Sequence[Artist], width: float) -> list[list[Artist]]:
    """As many entries to a row as fit."""
    rows, left = list[list[Artist]](), 0.0
    for one in key:
        wide = text_width(str(one.get_label()), TEXT) + 2.7 * TEXT
        if not rows or wide - TEXT > left:
            rows.append([])
            left = width
        rows[-1].append(one)
        left -= wide
    return rows


def _add_key(ax: Axes, row: list[Artist], y: float) -> None:
    """A row of swatches with their names, ``y`` points above the axes."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    above = ax.transAxes + ScaledTranslation(0, y / 72, figure.dpi_scale_trans)
    where: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": len(row)}
    look: dict[str, Any] = {"fontsize": TEXT, "labelcolor": GREY, "frameon": False}
    space: dict[str, Any] = {"handlelength": 1.0, "handletextpad": 0.4, "columnspacing": 1.2}
    space |= {"borderpad": 0, "borderaxespad": 0, "bbox_transform": above}
    names = [str(one.get_label()) for one in row]
    ax.add_artist(Legend(ax, row, names, **where, **look, **space))


def _above(ax: Axes, text: str, y: float, size: float, colour: str) -> None:
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    look: dict[str, Any] = {"fontsize": size, "color": colour, "ha": "left", "va": "baseline"}
    ax.annotate(text, (0, 1), (0, y), annotation_clip=False, parse_math=False, **place, **look)
