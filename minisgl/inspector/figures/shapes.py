"""Many boxes as one artist, many texts in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

from minisgl.inspector.figures.lettering import INK, TEXT

Rectangle = tuple[float, float, float, float]  # left, right, and from one y to the other


def rectangles(
    ax: Axes, name: str, boxes: Sequence[Rectangle], colour: str, **look: Any
) -> PolyCollection | None:
    """Draw all boxes of one kind as one artist, named by its ``gid``; None if there are none."""
    if not boxes:
        return None
    x0, x1, y0, y1 = np.array(boxes, dtype=float).T
    corners = np.stack([np.stack([x0, x0, x1, x1]), np.stack([y0, y1, y1, y0])], axis=-1)
    style: dict[str, Any] = {"facecolor": colour, "edgecolor": "none", "linewidth": 0} | look
    shapes = PolyCollection(list(corners.transpose(1, 0, 2)), gid=name, **style)
    ax.add_collection(shapes, autolim=False)
    return shapes


class Words(NamedTuple):
    """A text at a place in data coordinates."""

    x: float
    y: float
    text: str
    look: dict[str, Any]


def write(ax: Axes, words: Iterable[Words]) -> None:
    """Set texts as they are, none of them read as mathematics."""
    for x, y, text, look in words:
        style: dict[str, Any] = {"fontsize": TEXT, "color": INK, "va": "center_baseline"} | look
        ax.text(x, y, text, parse_math=False, **style)
