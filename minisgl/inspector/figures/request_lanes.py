"""Who ran in which step: a lane for each request, from waiting through prefill to decode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from minisgl.core import FinishReason, StepRecord
from minisgl.display import STATES, counted, ink
from minisgl.inspector.figures.frame import Frame, points, ticks
from minisgl.inspector.figures.lettering import GREY, INK, SMALL, TEXT, fitted, text_width
from minisgl.inspector.figures.life import Box, Life, lives, ranges
from minisgl.inspector.figures.shapes import Rectangle, Words, rectangles, write
from minisgl.scheduler.scheduler import Scheduler

_PITCH, _HIGHEST = 0.25, 8.0  # inches: of one lane, and of all
_APART = 4.0  # points that a step must have for its box to stand apart from the next
_THIN = 3.0  # points below which a lane has room for one height only
_TOLD = 24  # lanes that are described one by one
_TALL, _LOW = 0.4, 0.2  # half the height of a prefill's box and of a decode's, in lanes

Kind = Literal["prefill", "decode", "dropped", "failed"]
_NAMES: Final[dict[Kind, str]] = {
    "prefill": "prefill",
    "decode": "decode",
    "dropped": "result dropped",
    "failed": "failed step",
}


class Lanes:
    """The requests that live in steps ``first`` to ``last``.

    records: all that are known up to ``last``. start: the state before the first of them, if that
    is known. Raises ValueError if no request lives in these steps.
    """

    def __init__(
        self, records: Sequence[StepRecord], first: int, last: int, start: Scheduler | None = None
    ) -> None:
        self.first, self.last = first, last
        known = [record for record in records if record.batch.step <= last]
        lanes = lives(known, start)
        self.lanes = [lane for lane in lanes if self._shown(lane)]
        if not self.lanes:
            raise ValueError(f"no request lives in steps {first} to {last}; choose others")

    def _shown(self, lane: Life) -> bool:
        ends = [] if lane.end is None else [lane.end[0]]
        over = max((*ends, *(box.step for box in lane.boxes)), default=self.last)
        alive = lane.end is None or over >= self.first
        return alive and lane.since <= self.last

    @property
    def height(self) -> float:
        """Inches that the figure wants."""
        return self._frame.height + min(_HIGHEST, _PITCH * len(self.lanes))

    # ---- words -----------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """How many requests and steps."""
        steps = self.last - self.first + 1
        where = f"step {self.first}" if steps == 1 else f"steps {self.first} to {self.last}"
        return f"{counted(len(self.lanes), 'request')} in {where}"

    @property
    def alt(self) -> str:
        """A line for each request; of many, what they have in common."""
        if len(self.lanes) > _TOLD:
            return "\n".join([f"{self.title}.", *self._together()])
        return "\n".join([f"{self.title}.", *map(self._line, self.lanes)])

    def _line(self, lane: Life) -> str:
        parts = []
        waits = self._waits(lane)
        if lane.since >= self.first and lane.arrives:
            parts.append(f"arrives in step {lane.since}")
        if steps := sum(b - a + 1 for a, b in waits):
            parts.append(f"waits {counted(steps, 'step')} ({ranges(waits)})")
        for step, tokens in self._within(lane.reused):
            parts.append(f"{tokens} positions from the cache in step {step}")
        boxes = self._boxes(lane)
        chunks = [b for b in boxes if _kind(b) == "prefill"]
        if chunks:
            parts.append("prefill " + ", ".join(f"{b.tokens} in step {b.step}" for b in chunks))
        told: tuple[Kind, ...] = ("decode", "dropped", "failed")
        for kind in told:
            steps_of = [(b.step, b.step) for b in boxes if _kind(b) == kind]
            if steps_of:
                parts.append(
                    f"{_NAMES[kind]} in {counted(len(steps_of), 'step')} ({ranges(steps_of)})"
                )
        parts += [f"preempted in step {step}" for step in lane.preempted if step >= self.first]
        if lane.end is not None and lane.end[0] >= self.first:
            parts.append(f"ends in step {lane.end[0]} ({lane.end[1]})")
        return f"r{lane.rid}: " + ("; ".join(parts) or "nothing")

    def _together(self) -> Iterator[str]:
        boxes = [box for lane in self.lanes for box in self._boxes(lane)]
        kinds = Counter(_kind(box) for box in boxes)
        prefilled = sum(box.tokens for box in boxes if _kind(box) == "prefill")
        yield f"Prefill: {counted(kinds['prefill'], 'row')}, {prefilled:,} positions computed."
        reused = sum(n for lane in self.lanes for _, n in self._within(lane.reused))
        yield f"From the cache: {reused:,} positions."
        yield f"Decode: {counted(kinds['decode'], 'row')}."
        for kind in ("dropped", "failed"):
            if kinds[kind]:
                yield f"{_NAMES[kind].capitalize()}: {counted(kinds[kind], 'row')}."
        waits = {lane.rid: sum(b - a + 1 for a, b in self._waits(lane)) for lane in self.lanes}
        longest = max(waits, key=lambda rid: waits[rid])
        some = sum(steps > 0 for steps in waits.values())
        yield (
            f"Waiting: {counted(sum(waits.values()), 'step')} of {counted(some, 'request')}, "
            f"r{longest} the longest ({waits[longest]:,})."
        )
        preempted = sum(step >= self.first for lane in self.lanes for step in lane.preempted)
        if preempted:
            yield f"Preempted: {counted(preempted, 'time')}."
        ends = Counter(lane.end[1] for lane in self.lanes if lane.end and lane.end[0] >= self.first)
        live = sum(lane.end is None for lane in self.lanes)
        told = [f"{n:,} by {reason}" for reason, n in sorted(ends.items())]
        yield f"Ended: {', '.join(told) or 'none'}; {live:,} live on."

    # ---- what lies in the window -----------------------------------------------------------------

    def _waits(self, lane: Life) -> list[tuple[int, int]]:
        cut = ((max(a, self.first), b) for a, b in lane.waits(self.last))
        return [(a, b) for a, b in cut if a <= b]

    def _boxes(self, lane: Life) -> list[Box]:
        return [box for box in lane.boxes if box.step >= self.first]

    def _within(self, items: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        return [item for item in items if item[0] >= self.first]

    @property
    def _frame(self) -> Frame:
        caption = "tall: prefill, with its positions · low: decode, one position"
        return Frame(self.title, caption, self._key(), "step")

    # ---- drawing ---------------------------------------------------------------------------------

    def draw(self, ax: Axes) -> None:
        """Draw the lanes; step k is the place from k - 0.5 to k + 0.5."""
        ax.set_xlim(self.first - 0.8, self.last + 1.3)
        ax.set_ylim(len(self.lanes) - 0.3, -0.7)
        ticks(ax.xaxis, self.first, self.last)
        ax.set_yticks(range(len(self.lanes)), [f"r{lane.rid}" for lane in self.lanes])
        self._frame.draw(ax)
        width, height = points(ax)
        step, lane = width / (self.last - self.first + 2.1), height / len(self.lanes)
        every = -(-1.4 * TEXT // lane) if lane < 1.4 * TEXT else 1
        if every > 1:
            some = range(0, len(self.lanes), int(every))
            ax.set_yticks(some, [f"r{self.lanes[y].rid}" for y in some])
        self._draw_waits(ax, lane)
        self._draw_boxes(ax, step, lane)
        self._draw_reused(ax, step, lane)
        self._draw_marks(ax, step, lane)

    def _draw_waits(self, ax: Axes, lane: float) -> None:
        lines = [
            [(a - 0.5, y), (b + 0.5, y)]
            for y, one in enumerate(self.lanes)
            for a, b in self._waits(one)
        ]
        width = min(2.0, 0.5 * lane)
        ax.add_collection(
            LineCollection(
                lines, colors=STATES["waiting"], linewidths=width, zorder=0.5, gid="waiting"
            )
        )

    def _draw_boxes(self, ax: Axes, step: float, lane: float) -> None:
        shapes: dict[tuple[Kind, bool], list[Rectangle]] = {}
        words = list[Words]()
        for y, one in enumerate(self.lanes):
            boxes = self._boxes(one)
            for first, last, box in _runs(boxes) if step < _APART else _single(boxes):
                gap = 0.07 if step >= _APART else 0
                half = 0.5 if lane < _THIN else _TALL if box.prompt else _LOW
                shape = (first - 0.5 + gap, last + 0.5 - gap, y - half, y + half)
                shapes.setdefault((_kind(box), box.prompt), []).append(shape)
                if box.prompt and step >= _APART:
                    words += _label(box, y, 0.86 * step, 2 * _TALL * lane)
        for (kind, prompt), some in shapes.items():
            colour = STATES["prefill" if prompt else "decode"]
            look: dict[str, Any] = {}
            if kind == "dropped":
                look = {"edgecolor": colour, "linewidth": 0.8 if step >= _APART else 0.3}
                colour = "white"
            elif kind == "failed":
                colour = STATES["fault"]
            name = kind if kind in ("prefill", "decode") else f"{kind} {_of(prompt)}"
            rectangles(ax, name, some, colour, **look)
        write(ax, words)

    def _draw_reused(self, ax: Axes, step: float, lane: float) -> None:
        wide = min(max(0.22, 1.5 / step), 6 / step)
        edges, words = [], list[Words]()
        for y, one in enumerate(self.lanes):
            empty = {box.step for box in one.boxes}
            for at, tokens in self._within(one.reused):
                edges.append((at - 0.45 - wide, at - 0.45, y - _TALL, y + _TALL))
                room = step * (1 - wide) if at - 1 not in empty else 0
                room = step * 2 if room and at - 2 not in empty else room
                if lane > SMALL + 2 and text_width(str(tokens), SMALL) + 2 <= room:
                    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
                    look = {"fontsize": SMALL, "ha": "right", "bbox": box}
                    words.append(Words(at - 0.5 - wide, y, str(tokens), look))
        rectangles(ax, "reused", edges, STATES["reused"])
        write(ax, words)

    def _draw_marks(self, ax: Axes, step: float, lane: float) -> None:
        ends: dict[str, list[tuple[float, float]]] = {}
        for y, one in enumerate(self.lanes):
            if one.end is not None and one.end[0] >= self.first:
                at = max((one.end[0], *(b.step for b in one.boxes)))
                ends.setdefault(_mark(one.end[1]), []).append((at + 0.5 + 3.5 / step, y))
            for at in one.preempted:
                if at >= self.first:
                    ends.setdefault("preempted", []).append((at - 0.5, y))
        for name, places in ends.items():
            x, ys = zip(*places, strict=True)
            look = _MARKS[name] | {"markersize": min(5.0, 0.5 * lane), "linestyle": "none"}
            ax.plot(x, ys, gid=name, clip_on=False, **look)

    def _key(self) -> list[Artist]:
        """What occurs, and nothing else."""
        kinds = {_kind(box) for lane in self.lanes for box in self._boxes(lane)}
        out: list[Artist] = []
        if any(self._waits(lane) for lane in self.lanes):
            out.append(Line2D([], [], color=STATES["waiting"], linewidth=2, label="waiting"))
        if any(self._within(lane.reused) for lane in self.lanes):
            out.append(Patch(facecolor=STATES["reused"], label="from the cache"))
        for kind, name in _NAMES.items():
            if kind in kinds:
                colour = STATES["fault" if kind == "failed" else kind if kind in STATES else "free"]
                hollow = {"facecolor": "white", "edgecolor": STATES["decode"], "linewidth": 0.8}
                look = hollow if kind == "dropped" else {"facecolor": colour}
                out.append(Patch(label=name, **look))
        marks = {
            _mark(lane.end[1]) for lane in self.lanes if lane.end and lane.end[0] >= self.first
        }
        if any(step >= self.first for lane in self.lanes for step in lane.preempted):
            marks.add("preempted")
        for name, look in _MARKS.items():
            if name in marks:
                out.append(Line2D([], [], linestyle="none", markersize=4.5, label=name, **look))
        return out


_MARKS: Final[dict[str, dict[str, Any]]] = {
    "ended": {"marker": ">", "color": INK},
    "aborted": {"marker": "x", "color": INK, "markeredgewidth": 1.2},
    "failed": {"marker": "x", "color": STATES["fault"], "markeredgewidth": 1.2},
    "preempted": {"marker": "<", "color": STATES["evicted"]},
}


def _mark(reason: FinishReason) -> str:
    return {"abort": "aborted", "error": "failed"}.get(reason, "ended")


def _of(prompt: bool) -> str:
    return "prefill" if prompt else "decode"


def _kind(box: Box) -> Kind:
    if box.fate != "kept":
        return box.fate
    return "prefill" if box.prompt else "decode"


def _single(boxes: Iterable[Box]) -> Iterator[tuple[int, int, Box]]:
    return ((box.step, box.step, box) for box in boxes)


def _runs(boxes: Sequence[Box]) -> Iterator[tuple[int, int, Box]]:
    """(first, last, a box) of consecutive steps that look the same."""
    first: Box | None = None
    last = 0
    for box in boxes:
        if (
            first
            and box.step == last + 1
            and (_kind(box), box.prompt) == (_kind(first), first.prompt)
        ):
            last = box.step
            continue
        if first:
            yield first.step, last, first
        first, last = box, box.step
    if first:
        yield first.step, last, first


def _label(box: Box, y: int, width: float, height: float) -> Iterator[Words]:
    """The positions that a prefill computed, where there is room for the number."""
    text = str(box.tokens)
    colour = {"prefill": ink(STATES["prefill"]), "failed": ink(STATES["fault"])}.get(
        _kind(box), GREY
    )
    look: dict[str, Any] = {"fontsize": SMALL, "color": colour, "ha": "center"}
    if height >= SMALL and fitted(text, width - 1, SMALL) == text:
        yield Words(box.step, y, text, look)
    elif width >= SMALL + 1 and text_width(text, SMALL) <= height:
        yield Words(box.step, y, text, look | {"rotation": 90, "va": "center"})
