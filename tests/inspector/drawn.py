"""Reading figures back: what was really drawn, in the data's own units."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.patches import StepPatch
from matplotlib.text import Text

from minisgl.core import SamplingParams
from minisgl.engine.engine import Engine
from minisgl.inspector.figures.picture import Picture
from minisgl.trace import Trace
from tests.hash_engine import hash_engine

matplotlib.use("agg")

Box = tuple[float, float, float, float]  # left, right, top, bottom


def stressed() -> Engine:
    """A run with reuse, chunks, waiting, eviction, preemption, dropped rows, aborts."""
    engine = hash_engine(
        num_pages=17, page_size=2, max_seq_len=30, max_running=4, max_step_tokens=7,
        admission="optimistic", expected_output=1, policy="mixed",
    )  # fmt: skip
    long = engine.add([9] * 20, SamplingParams(max_tokens=4))
    engine.run(max_steps=1)
    engine.abort(long.rid)
    for i in range(10):
        shared = [1, 2, 3, 4, 5, 6, 7, 8][: 4 + 2 * (i % 3)]
        engine.add([*shared, 1 + i, 2, 3], SamplingParams(max_tokens=13, ignore_eos=i % 2 == 0))
        engine.run(max_steps=2)
        if i in (3, 6):
            engine.abort(i + 1)
            engine.abort(i - 1)
    engine.run()
    return engine


def axes_of(picture: Picture) -> list[Axes]:
    """The axes that are drawn in, panels for the axes that they replace."""
    found = list[Axes]()
    for ax in picture.axes:
        panels = [panel for panel in ax.child_axes if isinstance(panel, Axes)]
        found += panels or [ax]
    return found


def boxes(picture: Picture, name: str) -> list[Box]:
    """The rectangles that were drawn under a name."""
    found = list[Box]()
    for ax in axes_of(picture):
        for shapes in ax.collections:
            if isinstance(shapes, PolyCollection) and shapes.get_gid() == name:
                for path in shapes.get_paths():
                    xs, ys = np.asarray(path.vertices, dtype=float).T
                    found.append((min(xs), max(xs), min(ys), max(ys)))
    return found


def lines(picture: Picture, name: str) -> list[list[tuple[float, float]]]:
    """The lines that were drawn under a name, as points."""
    return [
        [(float(x), float(y)) for x, y in np.asarray(line, dtype=float)]
        for ax in axes_of(picture)
        for shapes in ax.collections
        if isinstance(shapes, LineCollection) and shapes.get_gid() == name
        for line in shapes.get_segments()
    ]


def marks(picture: Picture, name: str) -> list[tuple[float, float]]:
    """The markers that were drawn under a name."""
    return [
        (float(x), float(y))
        for ax in axes_of(picture)
        for line in ax.lines
        if line.get_gid() == name
        for x, y in np.asarray(line.get_xydata(), dtype=float)
    ]


def heights(picture: Picture, name: str) -> list[float]:
    """How high each step of a stack is, or a line's values."""
    (patch,) = (
        patch
        for ax in axes_of(picture)
        for patch in ax.patches
        if isinstance(patch, StepPatch) and patch.get_gid() == name
    )
    values, _, below = patch.get_data()
    return [float(x) for x in np.asarray(values) - (0 if below is None else np.asarray(below))]


def words(picture: Picture) -> Iterator[Text]:
    """Every text that can be seen."""
    for text in picture.findobj(Text):
        assert isinstance(text, Text)
        if text.get_text().strip() and text.get_visible():
            yield text


def of(picture: object) -> Picture:
    """A figure of its own, not somebody's axes."""
    assert isinstance(picture, Picture)
    return picture


def every_figure(trace: Trace) -> dict[str, Picture]:
    """All six."""
    names = ("lanes", "tree", "pages", "batch", "timeline", "budget")
    return {name: of(getattr(trace.plot, name)()) for name in names}


def length(shapes: list[Box]) -> float:
    """How wide these are together."""
    return sum(x1 - x0 for x0, x1, _, _ in shapes)
