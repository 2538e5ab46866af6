"""Steps on the clock: the host's lane over each device's, why a device was idle, its kernels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from minisgl.core import KernelSpan, StepRecord
from minisgl.display import STATES, ink
from minisgl.inspector.figures.frame import Frame, points, ticks
from minisgl.inspector.figures.lettering import GREY, SMALL, fitted, text_width
from minisgl.inspector.figures.shapes import Rectangle, Words, rectangles, write
from minisgl.trace.timeline import CAUSES, HOST, Account, Cause, Gap

_WORK: Final = "#5b6472"  # all that the host does but wait
_HATCHES: Final[dict[Cause, str]] = {
    "host-bound": "////",
    "waiting for a collect": "....",
    "between steps": "",
    "nothing to run": "",
    "unknown": "xx",
}
_UNITS: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


class Busy(NamedTuple):
    """A time in which a lane did something. lane: "host" or a device's; seconds from the first."""

    lane: str
    name: str
    step: int | None  # None: of none of these batches
    start: float
    end: float
    prompts: bool  # a batch that computes prompts
    decodes: bool  # a batch that computes single tokens


class Clock:
    """The time from the first batch of some steps to the end of the last.

    records: with some before and after these steps, whose spans lie in that time too. account: of
    these steps. kernels: what a profiler saw of them, if any; they get lanes below the devices.
    Raises ValueError if none of the steps was timed.
    """

    def __init__(
        self,
        records: Sequence[StepRecord],
        steps: range,
        account: Account,
        kernels: Sequence[KernelSpan] = (),
    ) -> None:
        self.account, self.first, self.last = account, steps[0], steps[-1]
        # without a common clock the host has no place beside the devices
        known = [
            (record, span)
            for record in records
            for span in record.spans
            if account.clocks_agree or span.lane != HOST
        ]
        mine = [(record, span) for record, span in known if record.batch.step in steps]
        if not mine:
            raise ValueError(f"steps {self.first} to {self.last} were not timed; choose others")
        batches = [span for _, span in mine if span.lane != HOST] or [span for _, span in mine]
        begin, end = min(span.start for span in batches), max(span.end for _, span in mine)
        self.seconds = end - begin
        self.busy = tuple(
            _busy(record, *span, begin, end)
            for record, span in known
            if span.start < end and span.end > begin
        )
        self.gaps = tuple(
            gap._replace(start=gap.start - begin, end=gap.end - begin) for gap in account.gaps
        )
        devices = sorted({busy.lane for busy in self.busy} - {HOST})
        self.lanes = [HOST] * any(busy.lane == HOST for busy in self.busy) + devices
        by_step: dict[int | None, StepRecord] = {record.batch.step: record for record in records}
        self.kernels = tuple(
            _busy(by_step.get(span.step), *span[:4], begin, end)
            for span in kernels
            if span.start < end and span.end > begin
        )
        self.lanes += sorted({kernel.lane for kernel in self.kernels})

    @property
    def height(self) -> float:
        """Inches that the figure wants."""
        return self._frame.height + 0.42 * len(self.lanes)

    # ---- words -----------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """How busy the devices were, and how much of the host's work they hid."""
        steps = f"steps {self.first} to {self.last}"
        steps = f"step {self.first}" if self.first == self.last else steps
        account, parts = self.account, []
        devices = "device" if len(account.lanes) == 1 else "devices"
        if account.total:
            parts.append(f"{devices} busy {account.busy / account.total:.0%}")
        if not math.isnan(account.hidden_share):
            parts.append(f"host work {account.hidden_share:.0%} hidden")
        return f"{steps.capitalize()}: {', '.join(parts) or 'no batch was timed'}"

    @property
    def caption(self) -> str:
        """Where the idle time went."""
        idle = [f"{cause} {_time(s)}" for cause, s in self.account.idle.items()]
        parts = ["device idle: " + (", ".join(idle) or "never")]
        if not self.account.clocks_agree:
            parts.append("the devices' clock is not the host's, so nothing says why")
        elif not math.isnan(self.account.exposed):
            parts.append(f"host work exposed: {_time(self.account.exposed)}")
        return " · ".join(parts)

    @property
    def alt(self) -> str:
        """Seconds by lane and by what it did."""
        lines = [f"{self.title}.", f"{self.caption[:1].upper()}{self.caption[1:]}."]
        if self.account.host and self.account.clocks_agree:
            did = ", ".join(f"{name} {_time(s)}" for name, s in self.account.host.items())
            lines.append(f"Host: {did}.")
        for lane in self.account.lanes:
            n = sum(busy.lane == lane.name and self._is_mine(busy) for busy in self.busy)
            batches = "1 batch" if n == 1 else f"{n:,} batches"
            idle = "".join(f", {cause} {_time(s)}" for cause, s in lane.idle.items())
            lines.append(f"{lane.name}: {batches}, busy {_time(lane.busy)}{idle}.")
        for name in self.lanes:
            some = [kernel for kernel in self.kernels if kernel.lane == name]
            if some:
                seconds = math.fsum(kernel.end - kernel.start for kernel in some)
                lines.append(f"{name}: {len(some):,} of them, {_time(seconds)} in all.")
        return "\n".join(lines)

    def _is_mine(self, busy: Busy) -> bool:
        return busy.step is not None and self.first <= busy.step <= self.last

    @property
    def _unit(self) -> tuple[float, str]:
        return next((u for u in _UNITS if self.seconds >= u[0]), _UNITS[-1])

    @property
    def _frame(self) -> Frame:
        x = f"{self._unit[1]} since the first of these batches began"
        return Frame(self.title, self.caption, self._key(), x)

    # ---- drawing ---------------------------------------------------------------------------------

    def draw(self, ax: Axes) -> None:
        """Draw the lanes over time, the host's first."""
        unit, _ = self._unit
        ax.set_xlim(0, self.seconds / unit)
        ax.set_ylim(len(self.lanes) - 0.45, -0.55)
        ax.set_yticks(range(len(self.lanes)), self.lanes)
        ticks(ax.xaxis, 0, self.seconds / unit, whole=False)
        self._frame.draw(ax)
        scale = points(ax)[0] * unit / self.seconds  # points to a unit
        shapes: dict[str, list[Rectangle]] = {}
        words = list[Words]()
        for busy in self.busy:
            y, (start, end) = self.lanes.index(busy.lane), (busy.start / unit, busy.end / unit)
            for kind, top, bottom in _parts(busy):
                shapes.setdefault(kind, []).append((start, end, y + top, y + bottom))
            words += _label(busy, (start, end), y, (end - start) * scale)
        for kernel in self.kernels:
            y, (start, end) = self.lanes.index(kernel.lane), (
                kernel.start / unit,
                kernel.end / unit,
            )
            shapes.setdefault(f"{_kind(kernel)} kernel", []).append(
                (start, end, y - 0.22, y + 0.22)
            )
            words += _name(kernel, (start, end), y, (end - start) * scale)
        for kind, boxes in shapes.items():
            seam: dict[str, Any] = {}
            if kind not in ("work", "waiting") and len(boxes) < 200:
                seam["edgecolor"] = "white"
                seam["linewidth"] = [0.5 if (b - a) * scale > 3 else 0 for a, b, _, _ in boxes]
            rectangles(ax, kind, boxes, _colour(kind), **seam)
        for cause in CAUSES:
            some = [gap for gap in self.gaps if gap.cause == cause]
            boxes = [
                (gap.start / unit, gap.end / unit, y - 0.32, y + 0.32)
                for gap in some
                for y in [self.lanes.index(gap.lane)]
            ]
            look = _look(cause)
            look["linewidth"] = [0.5 if (b - a) * scale > 3 else 0 for a, b, _, _ in boxes]
            rectangles(ax, cause, boxes, "none", **look)
            for gap, (start, end, _, _) in zip(some, boxes, strict=True):
                words += self._say(gap, (start, end), (end - start) * scale)
        write(ax, words)

    def _say(self, gap: Gap, place: tuple[float, float], width: float) -> Iterator[Words]:
        if text_width(gap.cause, SMALL) + 6 <= width:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
            look = {"ha": "center", "color": GREY, "fontsize": SMALL, "bbox": box}
            yield Words(sum(place) / 2, self.lanes.index(gap.lane), gap.cause, look)

    def _key(self) -> list[Artist]:
        kinds = {kind for busy in self.busy for kind, _, _ in _parts(busy)}
        says = {"work": "host works", "waiting": "host waits"}
        says |= {"prefill": "batch with prompts", "decode": "batch that decodes"}
        out: list[Artist] = [
            Patch(facecolor=_colour(kind), label=label)
            for kind, label in says.items()
            if kind in kinds
        ]
        causes = {gap.cause for gap in self.gaps}
        return out + [
            Patch(label=cause, facecolor="white", **_look(cause))
            for cause in CAUSES
            if cause in causes
        ]


def _busy(
    record: StepRecord | None,
    lane: str,
    name: str,
    start: float,
    until: float,
    begin: float,
    end: float,
) -> Busy:
    """A span as far as it lies between two times, counted from the first."""
    rows = () if record is None else record.batch.rows
    prompts = any(row.token_ids is not None for row in rows)
    decodes = any(row.token_ids is None for row in rows)
    step = None if record is None else record.batch.step
    place = (max(start, begin) - begin, min(until, end) - begin)
    return Busy(lane, name, step, *place, prompts, decodes)


def _parts(busy: Busy) -> Iterator[tuple[str, float, float]]:
    """(kind, top, bottom): a batch of both kinds is half and half."""
    if busy.lane == HOST:
        yield ("waiting" if busy.name == "wait" else "work"), -0.22, 0.22
        return
    if busy.prompts:
        yield "prefill", -0.32, 0.0 if busy.decodes else 0.32
    if busy.decodes or not busy.prompts:
        yield "decode", 0.0 if busy.prompts else -0.32, 0.32


def _label(busy: Busy, place: tuple[float, float], y: int, width: float) -> Iterator[Words]:
    text = busy.name if busy.lane == HOST else str(busy.step)
    if fitted(text, width - 3, SMALL) != text:
        return
    colour = ink(_colour(next(_parts(busy))[0]))
    mixed = busy.lane != HOST and busy.prompts and busy.decodes
    look = {"ha": "center", "fontsize": SMALL, "color": colour}
    yield Words(sum(place) / 2, y - 0.16 if mixed else y, text, look)


def _name(kernel: Busy, place: tuple[float, float], y: int, width: float) -> Iterator[Words]:
    """A kernel's name without namespaces, templates and arguments, where it fits."""
    text = re.split(r"[<(]", kernel.name.removeprefix("void "))[0].split("::")[-1]
    if text and fitted(text, width - 3, SMALL) == text:
        look = {"ha": "center", "fontsize": SMALL, "color": ink(_colour(_kind(kernel)))}
        yield Words(sum(place) / 2, y, text, look)


def _kind(kernel: Busy) -> str:
    return "prefill" if kernel.prompts else "decode" if kernel.decodes else "work"


def _colour(kind: str) -> str:
    """Of what is drawn under this name; a kernel has its batch's."""
    kind = kind.removesuffix(" kernel")
    return _WORK if kind == "work" else STATES[kind]


def _look(cause: Cause) -> dict[str, Any]:
    line = "solid" if _HATCHES[cause] else (0, (2, 2))
    return {"edgecolor": GREY, "linewidth": 0.5, "hatch": _HATCHES[cause], "linestyle": line}


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"
