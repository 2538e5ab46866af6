"""A matrix of ratios: what each arm changes, in each metric and on each workload, at a glance."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Any, Final

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from minisgl.bench.ablation import Ablation
from minisgl.bench.drive import METRICS
from minisgl.bench.effects import Effect, numbers
from minisgl.bench.forest import COLOURS
from minisgl.display import counted, ink
from minisgl.inspector.figures.frame import HAIR, Frame
from minisgl.inspector.figures.lettering import GREY, INK, SMALL, TEXT, fitted, wrapped
from minisgl.inspector.figures.picture import Picture, show

_STRONGEST: Final = 4.0  # the ratio from which on a colour is at its deepest
_FAINTEST: Final = 0.15  # part of the colour that the smallest difference has
_LABEL: Final = 130.0  # points for the name of an arm
_ROW: Final = 25.0  # points that a row is high
_WIDE: Final = 340.0  # points for all columns
_VERDICTS: Final = ("better", "worse", "equal", "unclear", "too few runs")


def matrix(studies: Mapping[str, Ablation], *metrics: str) -> Picture:
    """Draw what several ablations found: a row for each arm, a column for each metric and study.

    studies: by name, as the columns shall be called; usually one for each workload, all with the
    same toggles. An arm that a study has not is left out of its column. metrics: which ones, by
    default all that any of them looked at. The forest plot of one study has its intervals.
    Raises ValueError if there is nothing to draw.
    """
    return _picture(Matrix(studies, metrics))


class Matrix:
    """The effects of several ablations, arranged. ``cells`` has (arm, metric, study) as keys."""

    def __init__(self, studies: Mapping[str, Ablation], metrics: tuple[str, ...] = ()) -> None:
        self.cells: dict[tuple[str, str, str], Effect] = {
            (found.arm, found.metric, name): found
            for name, study in studies.items()
            for found in study.effects
            if not metrics or found.metric in metrics
        }
        if not self.cells:
            raise ValueError(
                f"there is no effect of {', '.join(metrics) or 'any metric'} to draw: give "
                f"ablations, and metrics that they looked at"
            )
        known = {metric for _, metric, _ in self.cells}
        self.arms = list(dict.fromkeys(arm for arm, _, _ in self.cells))
        self.metrics = [name for name in metrics or METRICS if name in known]
        self.studies = [name for name in studies if any(name == of for _, _, of in self.cells)]

    @property
    def height(self) -> float:
        """Inches that it wants."""
        return self._frame.height + _ROW * (len(self.arms) + self._head) / 72

    @property
    def title(self) -> str:
        """How often which verdict fell."""
        found = [effect.verdict for effect in self.cells.values()]
        count = (f"{found.count(one)} {one}" for one in _VERDICTS if one in found)
        return f"{counted(len(found), 'comparison')} with the base: {', '.join(count)}"

    @property
    def alt(self) -> str:
        """Each cell in words, row by row."""
        lines = [self.title]
        for arm in self.arms:
            for metric in self.metrics:
                for study in self.studies:
                    if found := self.cells.get((arm, metric, study)):
                        says = f"{numbers(found)}, {found.verdict}"
                        lines.append(f"{arm}, {metric}, {study}: {says}")
        return "\n".join(lines)

    def draw(self, ax: Axes) -> None:
        """Draw it: the cell of row r and column c is the square from (c, r) to (c + 1, r + 1)."""
        columns = [(metric, study) for metric in self.metrics for study in self.studies]
        ax.set_xlim(0, len(columns))
        ax.set_ylim(len(self.arms), -self._head)
        names = ["\n".join(_short(wrapped(arm, _LABEL, TEXT))) for arm in self.arms]
        ax.set_yticks([r + 0.5 for r in range(len(self.arms))], names)
        for r, arm in enumerate(self.arms):
            for c, (metric, study) in enumerate(columns):
                _cell(ax, r, c, self.cells.get((arm, metric, study)))
        for at, metric in enumerate(self.metrics):
            self._name_columns(ax, at * len(self.studies), metric)
        self._frame.draw(ax)
        ax.tick_params(axis="y", labelcolor=INK)

    @property
    def _head(self) -> float:
        """Rows that the names of columns take."""
        return 1.1 if len(self.studies) == 1 else 1.9

    @property
    def _frame(self) -> Frame:
        key: list[Artist] = [Patch(facecolor=COLOURS[name], label=name) for name in COLOURS]
        plain: dict[str, Any] = {"facecolor": "white", "edgecolor": HAIR, "linewidth": 0.5}
        key.append(Patch(label="the same, or not to be told apart", **plain))
        says = "each number is a ratio to the base; the deeper the colour, the further from 1"
        return Frame(self.title, says, key)

    def _name_columns(self, ax: Axes, first: int, metric: str) -> None:
        count = len(self.studies)
        width = _WIDE / (len(self.metrics) * count)
        look: dict[str, Any] = {"ha": "center", "va": "center", "parse_math": False}
        bold: dict[str, Any] = {"fontsize": TEXT, "color": INK, "fontweight": "bold"}
        way = "more is better" if METRICS[metric].higher_is_better else "less is better"
        middle, top = first + count / 2, -self._head
        ax.text(middle, top + 0.25, metric, **look, **bold)
        ax.text(middle, top + 0.65, way, fontsize=SMALL, color=GREY, **look)
        if first:
            ax.plot([first, first], [top, len(self.arms)], color=INK, linewidth=0.8)
        if count > 1:
            for c, study in enumerate(self.studies, first):
                name = "\n".join(_short(wrapped(study.replace("_", " "), width, SMALL), width))
                ax.text(c + 0.5, -0.42, name, fontsize=SMALL, color=INK, **look)


def colour(found: Effect) -> str:
    """The colour of a cell: that of its verdict, the fainter the nearer the ratio is to 1."""
    if found.verdict not in COLOURS:
        return "#ffffff"
    strength = 1.0  # of what has no ratio, for one of both is nothing
    if found.interval is not None:
        strength = min(1.0, abs(log(found.interval.ratio)) / log(_STRONGEST))
    share = _FAINTEST + (1 - _FAINTEST) * strength
    full = COLOURS[found.verdict]
    parts = (int(full[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 + share * (part - 255)):02x}" for part in parts)


def _cell(ax: Axes, r: int, c: int, found: Effect | None) -> None:
    fill = "#ffffff" if found is None else colour(found)
    box: dict[str, Any] = {"facecolor": fill, "edgecolor": HAIR, "linewidth": 0.5}
    ax.add_patch(Rectangle((c, r), 1, 1, gid=f"cell {r} {c}", **box))
    if found is None:
        ax.text(c + 0.5, r + 0.5, "–", fontsize=TEXT, color=GREY, ha="center", va="center")
        return
    told = found.verdict in COLOURS
    letters = ink(fill) if told else GREY
    look: dict[str, Any] = {"color": letters, "ha": "center", "va": "center", "parse_math": False}
    number = "=" if found.verdict == "equal" else _ratio(found)
    ax.text(c + 0.5, r + 0.34, number, fontsize=TEXT, **look)
    ax.text(c + 0.5, r + 0.72, found.verdict, fontsize=SMALL, **look)


def _ratio(found: Effect) -> str:
    if not found.base:
        return "from 0"
    ratio = found.interval.ratio if found.interval else found.value / found.base
    if ratio >= 9.95 or not ratio:
        return f"× {ratio:.0f}"
    return f"× {ratio:.2f}" if abs(ratio - 1) >= 0.005 else f"× {ratio:.3f}"


def _short(lines: list[str], width: float = _LABEL) -> list[str]:
    """Two lines at most, each as wide as there is room."""
    return [fitted(line, width) for line in [*lines[:1], " ".join(lines[1:])] if line]


def _picture(drawing: Matrix) -> Picture:
    picture = show(drawing, None)
    assert isinstance(picture, Picture)
    return picture
