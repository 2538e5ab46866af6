"""Four figures of what was measured on a GPU and is kept beside the code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from minisgl.bench.table import H200, H200_AWQ, Measured, label, measured
from minisgl.display import STATES
from minisgl.inspector.figures.frame import HAIR, Frame
from minisgl.inspector.figures.lettering import GREY, SMALL
from minisgl.inspector.figures.picture import Picture, show
from minisgl.trace.frames import as_frame

if TYPE_CHECKING:
    import pandas

_SHADES: Final = (STATES["decode"], STATES["prefill"], STATES["waiting"])


def to_frame(path: Path = H200) -> pandas.DataFrame:
    """The table as a pandas frame."""
    return as_frame((row._asdict() for row in measured(path)), Measured._fields)


def plot_toggles(*cases: str) -> Picture:
    """Time per decode step with something off, to the default's, by batch."""
    rows = [row for case in cases for row in measured() if (row.what, row.case) == ("toggle", case)]
    return _picture(_Bars(rows, "times as long per step", "Qwen3-0.6B: a decode step without …", 1))


def plot_decode(case: str = "minisgl") -> Picture:
    """Milliseconds per decode step by model and batch, with the share of what memory allows."""
    rows = [row for row in measured() if row.what == "decode" and row.case == case]
    rows = [row._replace(case=row.model) for row in rows]
    return _picture(_Bars(rows, "ms per step", "Decode steps at a context of about 520"))


def plot_four_bits() -> Picture:
    """Milliseconds per decode step of 8B by batch, in bfloat16 and in four bits."""
    rows = [row for row in measured(H200_AWQ) if row.what == "decode"]
    title = "Qwen3-8B: decode steps at a context of about 520"
    return _picture(_Bars(rows, "ms per step", title, about=label(H200_AWQ)))


def plot_offline() -> Picture:
    """The device's seconds of the offline benchmark by what it computed, a bar for each model."""
    return _picture(_Shares([row for row in measured() if row.what == "offline"]))


def _picture(drawing: _Bars | _Shares) -> Picture:
    picture = show(drawing, None)
    assert isinstance(picture, Picture)
    return picture


class _Bars:
    """Groups of bars, a group for each batch size, with their numbers and where known a range."""

    def __init__(
        self,
        rows: Sequence[Measured],
        unit: str,
        title: str,
        base: float | None = None,
        about: str | None = None,
    ) -> None:
        """base: where a line says what is neither more nor less. about: where it was measured; by
        default as the first table."""
        if not rows:
            raise ValueError("nothing of that kind was measured")
        self.rows, self.unit, self.title, self.base = rows, unit, title, base
        self.about = about or label()
        self.cases = list(dict.fromkeys(row.case for row in rows))
        self.batches = sorted({row.batch for row in rows})

    height = 2.9

    @property
    def alt(self) -> str:
        """Every number."""
        lines = [f"{self.title}, {self.unit}. {self.about}"]
        for case in self.cases:
            mine = [row for row in self.rows if row.case == case]
            lines.append(f"{case}: " + ", ".join(f"{row.batch}: {_says(row)}" for row in mine))
        return "\n".join(lines)

    def draw(self, ax: Axes) -> None:
        """Draw the bars, the numbers over them."""
        wide = 0.8 / len(self.cases)
        for place, case in enumerate(self.cases):
            for row in (row for row in self.rows if row.case == case):
                at = self.batches.index(row.batch) + (place - (len(self.cases) - 1) / 2) * wide
                ax.bar(at, row.value, 0.92 * wide, color=_SHADES[place % len(_SHADES)])
                if row.low is not None and row.high is not None:
                    ax.plot([at, at], [row.low, row.high], color=GREY, lw=1)
                top = max(row.value, row.high or 0)
                text = _short(row)
                ax.annotate(
                    text,
                    (at, top),
                    (0, 2),
                    textcoords="offset points",
                    ha="center",
                    fontsize=SMALL,
                    color=GREY,
                )
        if self.base is not None:
            ax.axhline(self.base, color=GREY, lw=0.8, ls=(0, (2, 2)))
        ax.set_ylim(0, 1.15 * max(max(row.value, row.high or 0) for row in self.rows))
        ax.set_xlim(-0.6, len(self.batches) - 0.4)
        ax.set_xticks(range(len(self.batches)), [f"batch {n}" for n in self.batches])
        ax.set_ylabel(self.unit, fontsize=SMALL, color=GREY)
        ax.grid(axis="y", color=HAIR, lw=0.5)
        ax.set_axisbelow(True)
        keys = [
            Patch(facecolor=_SHADES[place % len(_SHADES)], label=case)
            for place, case in enumerate(self.cases)
        ]
        Frame(self.title, self.about, keys, "").draw(ax)


class _Shares:
    """A bar for each model, of what the device did."""

    height = 2.1
    kinds: Final = {"prompts": "prefill", "decodes": "decode", "idle": "waiting"}
    title: Final = "256 requests, 100 to 1024 tokens in and out: what the device did"

    def __init__(self, rows: Sequence[Measured]) -> None:
        self.rows = rows
        self.models = list(dict.fromkeys(row.model for row in rows))

    @property
    def alt(self) -> str:
        """Every number."""
        lines = [f"{self.title}. {label()}"]
        for model in self.models:
            parts = [f"{row.case} {_says(row)}" for row in self.rows if row.model == model]
            lines.append(f"{model}: {', '.join(parts)}")
        return "\n".join(lines)

    def draw(self, ax: Axes) -> None:
        """Draw each model's time as one bar, with its parts' seconds."""
        for y, model in enumerate(self.models):
            left = 0.0
            for row in (row for row in self.rows if row.model == model):
                state = self.kinds[row.case]
                ax.barh(y, row.value, 0.6, left, color=STATES[state])
                left += row.value
            ax.annotate(
                " + ".join(f"{row.value:.3g}" for row in self.rows if row.model == model) + " s",
                (left, y),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize=SMALL,
                color=GREY,
            )
        ax.set_yticks(range(len(self.models)), self.models)
        ax.set_ylim(len(self.models) - 0.5, -0.5)
        ax.set_xlim(0, 1.2 * sum(row.value for row in self.rows if row.model == self.models[-1]))
        keys = [
            Patch(facecolor=STATES[state], label=kind if kind == "idle" else f"steps: {kind}")
            for kind, state in self.kinds.items()
        ]
        Frame(self.title, label(), keys, "seconds").draw(ax)


def _short(row: Measured) -> str:
    value = f"{row.value:.3g}"
    return value if row.limit_share is None else f"{value}\n{row.limit_share:.0%}"


def _says(row: Measured) -> str:
    unit = "" if row.unit == "ratio" else f" {row.unit}"
    text = f"{row.value:.3g}{unit}"
    if row.low is not None and row.high is not None:
        text += f" ({row.low:.3g} to {row.high:.3g})"
    if row.limit_share is not None:
        text += f", {row.limit_share:.0%} of the limit"
    return text
