"""One step as it was launched: how its token budget was spent, and how far each request is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from minisgl.core import Finished, StepRecord
from minisgl.display import STATES, counted, ink
from minisgl.inspector.figures.frame import HAIR, Frame, panels, points, ticks
from minisgl.inspector.figures.lettering import GREY, INK, TEXT, fitted, text_width
from minisgl.inspector.figures.life import reused_at_admission
from minisgl.inspector.figures.shapes import Rectangle, Words, rectangles, write
from minisgl.request import Request
from minisgl.scheduler.scheduler import Scheduler
from minisgl.trace.explain import part

_PITCH, _HIGHEST = 0.23, 8.5  # inches: of one request, and of all
_BUDGET = 0.28  # inches: of the step's budget
_MANY = 16  # waiting requests; beyond it only the first are shown
_NOTE = 0.24  # the part of the width that the notes take

Share = Literal["reused", "prefill", "decode", "free"]
_SAYS: Final[dict[Share, str]] = {
    "reused": "from the cache",
    "prefill": "prefilled",
    "decode": "decoded",
    "free": "still to come, at most",
}


class Cell(NamedTuple):
    """One row's share of the step's token budget."""

    rid: int
    length: int
    prompt: bool


class Bar(NamedTuple):
    """A request's whole life in tokens, this step included."""

    rid: int
    reused: int
    prefilled: int
    decoded: int
    to_come: int
    waits: bool
    note: str  # what it does in this step, or why nothing


class Step:
    """A step's batch and everybody's progress, at the moment at which the batch was launched.

    records: the steps up to this one, as far as they are known. state: the scheduler just after the
    commit.
    """

    def __init__(self, records: Sequence[StepRecord], state: Scheduler) -> None:
        record = self._record = records[-1]
        self.step, self.budget = record.batch.step, state.limits.max_step_tokens
        self.cells = tuple(
            Cell(row.rid, row.length, row.token_ids is not None) for row in record.batch.rows
        )
        ended = {e.rid: e.reason for e in record.events if isinstance(e, Finished)}
        named = {row.rid: row for row in record.batch.rows}
        batches = [r.batch for r in records]
        order = {rid: at for at, rid in enumerate(named)}
        running = sorted(state.running.values(), key=lambda r: order.get(r.rid, len(order)))
        bars = [self._bar(r, batches, ended.get(r.rid)) for r in running]
        bars += [self._bar(r, (), None) for r in state.waiting.values()]
        self.waiting = len(state.waiting)
        self.bars = tuple(bars[: len(running) + _MANY])
        self.more = len(bars) - len(self.bars)

    def _bar(self, request: Request, batches: Sequence[Any], ended: str | None) -> Bar:
        done = request.scheduled
        reused = reused_at_admission(request, batches) if request.slot is not None else 0
        prompt = max(0, min(done, request.prefill_end) - reused)
        decoded = done - reused - prompt
        waits = request.slot is None
        note = self._note(request, ended)
        return Bar(request.rid, reused, prompt, decoded, request.max_len - done, waits, note)

    def _note(self, request: Request, ended: str | None) -> str:
        doing = part(self._record, request.rid, request.arrival)
        end = f", ends ({ended})" if ended else ""
        for cell in self.cells:
            if cell.rid == request.rid:
                says = f"prefill {cell.length}" if cell.prompt else "decode"
                over = request.finish is not None or ended == "abort"
                return f"{says}, dropped" if over else says + end
        if doing.refusals:
            return doing.words
        if request.preempting or doing.doing == "preempted":
            return "preempted: gives its pages back"
        return "leaving" if request.finish is not None else doing.doing

    @property
    def computed(self) -> int:
        """Positions that the step computes."""
        return sum(cell.length for cell in self.cells)

    @property
    def height(self) -> float:
        """Inches that the figure wants."""
        return self._above.height + self._below.height + _BUDGET + self._bars_height

    @property
    def _bars_height(self) -> float:
        return min(_HIGHEST, _PITCH * self._lines)

    @property
    def _lines(self) -> int:
        return max(1, len(self.bars) + bool(self.more))

    # ---- words -----------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """What the step does."""
        prompts = [cell for cell in self.cells if cell.prompt]
        parts = []
        if prompts:
            parts.append(f"prefill {sum(c.length for c in prompts):,} of {_rids(prompts)}")
        if decodes := len(self.cells) - len(prompts):
            parts.append(f"decode {decodes:,}")
        what = " and ".join(parts) or "nothing to compute"
        waits = f"; {counted(self.waiting, 'request')} waiting" if self.waiting else ""
        return f"Step {self.step}: {what}{waits}"

    @property
    def alt(self) -> str:
        """The budget, and a line for each request."""
        left = self.budget - self.computed
        lines = [f"{self.title}.", f"{self.computed:,} of {self.budget:,} tokens, {left:,} left."]
        for bar in self.bars:
            parts = [
                f"{n:,} {says}"
                for n, says in (
                    (bar.reused, "from the cache"),
                    (bar.prefilled, "prefilled"),
                    (bar.decoded, "decoded"),
                    (bar.to_come, "still to come at most"),
                )
                if n
            ]
            note = f"waits: {bar.note}" if bar.waits else bar.note
            lines.append(f"r{bar.rid}: {note}; {', '.join(parts)}")
        if self.more:
            lines.append(f"and {counted(self.more, 'request')} waiting behind them")
        return "\n".join(lines)

    @property
    def _above(self) -> Frame:
        left = self.budget - self.computed
        says = f"the step's token budget: {self.computed:,} of {self.budget:,}, {left:,} left"
        return Frame(self.title, says, x="")

    @property
    def _below(self) -> Frame:
        return Frame("", "each request's whole life in tokens", self._key(), "")

    # ---- drawing ---------------------------------------------------------------------------------

    def draw(self, ax: Axes) -> None:
        """Draw two panels in the place of ``ax``: the budget, and below it a bar per request."""
        top, below = panels(ax, (_BUDGET, self._bars_height), self._below)
        self._draw_budget(top)
        self._draw_bars(below, self._lines)

    def _draw_budget(self, ax: Axes) -> None:
        ax.set_xlim(0, self.budget)
        ax.set_ylim(1, 0)
        ax.set_yticks([])
        self._above.draw(ax)
        ax.set_xticks([0, self.budget], ["0", f"{self.budget:,}"])
        scale = points(ax)[0] / self.budget
        shapes: dict[str, list[Rectangle]] = {"free": [(self.computed, self.budget, 0, 1)]}
        words, at = list[Words](), 0
        for cell in self.cells:
            name, end = "prefill" if cell.prompt else "decode", at + cell.length
            gap = 0.8 / scale if cell.length * scale > 3 else 0
            shapes.setdefault(name, []).append((at, end - gap, 0, 1))
            full, short = f"r{cell.rid}: {cell.length:,}", f"r{cell.rid}"
            for text in (full, short):
                if text_width(text, TEXT) + 4 <= cell.length * scale:
                    look = {"ha": "center", "color": ink(STATES[name])}
                    words.append(Words((at + end) / 2, 0.5, text, look))
                    break
            at = end
        for name, boxes in shapes.items():
            rectangles(ax, f"budget {name}", boxes, STATES[name])
        write(ax, words)

    def _draw_bars(self, ax: Axes, lines: int) -> None:
        longest = max((_total(bar) for bar in self.bars), default=1)
        ax.set_xlim(0, longest / (1 - _NOTE))
        ax.set_ylim(lines - 0.4, -0.6)
        ax.set_yticks(range(len(self.bars)), [f"r{bar.rid}" for bar in self.bars])
        self._below.draw(ax)
        ticks(ax.xaxis, 0, longest)
        width, height = points(ax)
        scale, pitch = width / (longest / (1 - _NOTE)), height / lines
        shapes: dict[Share, list[Rectangle]] = {}
        for y, bar in enumerate(self.bars):
            at = 0
            for name, length in zip(_SAYS, bar[1:5], strict=True):
                if length:
                    shapes.setdefault(name, []).append((at, at + length, y - 0.32, y + 0.32))
                at += length
        for name, boxes in shapes.items():
            rectangles(ax, name, boxes, STATES[name])
        if pitch < TEXT + 1:
            every = int(-(-1.3 * TEXT // pitch))
            some = range(0, len(self.bars), every)
            ax.set_yticks(some, [f"r{self.bars[y].rid}" for y in some])
            return
        write(ax, self._words(scale, width, longest))

    def _words(self, scale: float, width: float, longest: int) -> Iterator[Words]:
        for y, bar in enumerate(self.bars):
            if bar.waits:
                text = fitted(bar.note, width - 8)
                yield Words(4 / scale, y, text, {"color": INK})
                continue
            at = longest + 6 / scale
            yield Words(at, y, fitted(bar.note, width * _NOTE - 6), {"color": GREY})
        if self.more:
            text = f"and {counted(self.more, 'request')} waiting behind them"
            yield Words(4 / scale, len(self.bars), text, {"color": GREY})

    def _key(self) -> list[Artist]:
        return [
            Patch(facecolor=STATES[name], edgecolor=HAIR, linewidth=0.5, label=label)
            for name, label in _SAYS.items()
            if any(bar[1:5][i] for bar in self.bars for i in [list(_SAYS).index(name)])
        ]


def _total(bar: Bar) -> int:
    return bar.reused + bar.prefilled + bar.decoded + bar.to_come


def _rids(cells: Sequence[Cell]) -> str:
    rids = list(dict.fromkeys(f"r{cell.rid}" for cell in cells))
    return ", ".join(rids) if len(rids) <= 4 else f"{rids[0]} … {rids[-1]} ({len(rids)})"
