"""The prefix cache as it stood at a step: an icicle from left to right, its width in tokens.

From left to right a path spells a cached prefix. Every leaf has a row; a node is as high as the
leaves that continue it, so what many prompts share is tall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from minisgl.core import Evicted, Inserted, Reused, StepRecord
from minisgl.display import STATES, counted, ink
from minisgl.inspector.figures.frame import Frame, points, ticks
from minisgl.inspector.figures.lettering import GREY, INK, TEXT, fitted, printable, text_width
from minisgl.inspector.figures.shapes import Rectangle, Words, rectangles, write
from minisgl.kvcache.base import NodeView
from minisgl.scheduler.scheduler import Scheduler

_PITCH, _HIGHEST = 0.26, 8.0  # inches: of one leaf, and of all
_TOLD = 24  # nodes that are described one by one
_SAID = 60  # characters of a node's text in a description
_OUTSIDE = 0.4  # the part of the width that is kept for words beside a leaf, at most
_LEGIBLE = 110.0  # points in which a text can be recognised

State = Literal["reused", "held", "evictable"]
_COLOURS: Final[dict[State, str]] = {
    "reused": STATES["reused"],
    "held": STATES["prefill"],
    "evictable": STATES["evictable"],
}
_NAMES: Final[dict[State, str]] = {
    "reused": "reused in this step",
    "held": "held by a request",
    "evictable": "evictable",
}


class Piece(NamedTuple):
    """Neighbouring pages of one node in the same state. start, length: tokens of the prefix."""

    start: int
    length: int
    state: State
    inserted: bool  # in this step


class Branch(NamedTuple):
    """A node in its place: the rows of the leaves that continue it, or its own."""

    node: NodeView
    top: int
    rows: int
    pieces: tuple[Piece, ...]
    holders: tuple[int, ...]  # requests that hold its first page


class Tree:
    """The prefix cache at the moment at which a step's record was made.

    state: the scheduler as it stood then. decode: turns token ids into text; without it the ids are
    shown.
    """

    def __init__(
        self,
        record: StepRecord,
        state: Scheduler,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self.step = record.batch.step
        self._decode, self._size = decode, state.pool.page_size
        hit, new, evicted = set[int](), set[int](), 0
        for event in record.events:
            match event:
                case Reused(pages=pages):
                    hit.update(pages)
                case Inserted(pages=pages):
                    new.update(pages)
                case Evicted(pages=pages):
                    evicted += len(pages)
        self.evicted = evicted
        self.branches = tuple(_branches(state, hit, new))
        self.leaves = max((branch.top + branch.rows for branch in self.branches), default=0)

    def tokens(self, state: State | None = None, inserted: bool | None = None) -> int:
        """Cached tokens: all, or those in one state, or those that this step inserted."""
        return sum(
            piece.length
            for branch in self.branches
            for piece in branch.pieces
            if (state is None or piece.state == state)
            and (inserted is None or piece.inserted == inserted)
        )

    @property
    def height(self) -> float:
        """Inches that the figure wants."""
        return self._frame.height + min(_HIGHEST, _PITCH * max(self.leaves, 1))

    # ---- words -----------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """How much is cached."""
        if not self.branches:
            return f"The prefix cache is empty after step {self.step}"
        nodes = counted(len(self.branches), "node")
        return f"{counted(self.tokens(), 'token')} cached in {nodes} after step {self.step}"

    @property
    def alt(self) -> str:
        """The numbers, and a line for each node; of many, for the longest."""
        held = self.tokens("held") + self.tokens("reused")
        facts = [f"{held:,} held by requests", f"{self.tokens('evictable'):,} evictable"]
        if reused := self.tokens("reused"):
            facts.append(f"{reused:,} reused in this step")
        if new := self.tokens(inserted=True):
            facts.append(f"{new:,} inserted in this step")
        if self.evicted:
            facts.append(f"{counted(self.evicted, 'page')} evicted in this step")
        lines = [f"{self.title}: {', '.join(facts)}." if self.branches else f"{self.title}."]
        if len(self.branches) > _TOLD:
            longest = sorted(self.branches, key=lambda b: (-len(b.node.tokens), b.top, b.node.id))
            lines.append(f"The longest of {counted(len(self.branches), 'node')}:")
            lines += map(self._line, longest[:_TOLD])
            return "\n".join(lines)
        level = dict[int | None, int]({None: -1})
        for branch in self.branches:
            depth = level[branch.node.id] = level[branch.node.parent] + 1
            lines.append(f"{'  ' * depth}{self._line(branch)}")
        return "\n".join(lines)

    def _line(self, branch: Branch) -> str:
        text = self._text(branch.node)
        text = text if len(text) <= _SAID else text[: _SAID - 1] + "…"
        who = f", held by {_rids(branch.holders)}" if branch.holders else ""
        tokens = counted(len(branch.node.tokens), "token")
        return f"{tokens} from {branch.node.depth * self._size}{who}: {text}"

    def _text(self, node: NodeView) -> str:
        most = node.tokens[: 4 * _SAID]
        return printable(self._decode(most) if self._decode else " ".join(map(str, most)))

    @property
    def _frame(self) -> Frame:
        caption = "width = tokens · to the right of a node: what continues it, or who holds it"
        if self.evicted:
            caption += f" · {counted(self.evicted, 'page')} evicted in this step"
        x = "tokens from the beginning of the prompt"
        return Frame(self.title, caption, self._key(), x)

    # ---- drawing ---------------------------------------------------------------------------------

    def draw(self, ax: Axes) -> None:
        """Draw it: x counts the tokens of a prefix, y the leaves from the top."""
        end = max((p.start + p.length for b in self.branches for p in b.pieces), default=1)
        ax.set_xlim(0, end)
        ax.set_ylim(max(self.leaves, 1) - 0.02, -0.02)
        ax.set_yticks([])
        ticks(ax.xaxis, 0, end)
        self._frame.draw(ax)
        if not self.branches:
            ax.set_xticks([])
            return
        width, height = points(ax)
        scale, row = self._scale(width), height / self.leaves
        ax.set_xlim(0, width / scale)
        self._draw_pieces(ax, scale, row)
        write(ax, self._words(scale, row, width))

    def _draw_pieces(self, ax: Axes, scale: float, row: float) -> None:
        shapes: dict[State, list[Rectangle]] = {}
        new, starts = list[Rectangle](), list[Rectangle]()
        gap, line = min(0.06, 1.2 / row), min(0.25, 2.2 / row)
        for branch in self.branches:
            top, bottom = branch.top + gap, branch.top + branch.rows - gap
            for start, length, state, inserted in branch.pieces:
                shapes.setdefault(state, []).append((start, start + length, top, bottom))
                if inserted:
                    new.append((start, start + length, bottom - line, bottom))
            start = branch.node.depth * self._size
            starts.append((start, start + 1.2 / scale, top, bottom))
        for state, boxes in shapes.items():
            rectangles(ax, state, boxes, _COLOURS[state])
        rectangles(ax, "inserted", new, STATES["decode"])
        if len(self.branches) * 3 < scale * 1e3:  # thousands of nodes would be all seams
            rectangles(ax, "seams", starts, "white")

    def _words(self, scale: float, row: float, width: float) -> Iterator[Words]:
        """A node's text where it has most room, and beside a leaf who holds it."""
        if row < TEXT + 1.5:
            return
        leaves = {branch.node.id for branch in self._leaves()}
        for branch in self.branches:
            node, left = branch.node, branch.node.depth * self._size * scale
            wide, high = len(node.tokens) * scale, branch.rows * row
            middle, text = branch.top + branch.rows / 2, self._text(node)
            look: dict[str, Any] = {"color": ink(_COLOURS[branch.pieces[0].state])}
            inside, beside = fitted(text, wide - 6), left + wide + 4
            if node.id in leaves:
                who = fitted(_rids(branch.holders), width - beside)
                yield Words(beside / scale, middle, who, {"color": GREY})
                beside += text_width(who, TEXT) + 5 if who else 0
                if inside != text and width - beside > wide:
                    words = fitted(text, width - beside)
                    yield Words(beside / scale, middle, words, {"color": INK})
                    continue
            elif inside != text and high > wide > TEXT + 2:
                upright = {"rotation": 90, "ha": "center", "va": "center"}
                place = (left + wide / 2) / scale, middle, fitted(text, high - 8)
                yield Words(*place, look | upright)
                continue
            yield Words((left + 4) / scale, middle, inside, look)

    def _leaves(self) -> Iterator[Branch]:
        inner = {branch.node.parent for branch in self.branches}
        return (branch for branch in self.branches if branch.node.id not in inner)

    def _scale(self, width: float) -> float:
        """Points to a token, so that every leaf and what stands beside it have room."""
        scales = []
        for branch in self._leaves():
            end = branch.node.depth * self._size + len(branch.node.tokens)
            beside = text_width(_rids(branch.holders), TEXT) + 6 if branch.holders else 0.0
            if len(branch.node.tokens) * width / end < _LEGIBLE:
                beside += min(_LEGIBLE, text_width(self._text(branch.node), TEXT) + 6)
            scales.append((width - min(beside, _OUTSIDE * width)) / end)
        return min(scales)

    def _key(self) -> list[Artist]:
        out: list[Artist] = [
            Patch(facecolor=_COLOURS[state], label=name)
            for state, name in _NAMES.items()
            if self.tokens(state)
        ]
        if self.tokens(inserted=True):
            line: dict[str, Any] = {"color": STATES["decode"], "linewidth": 2.2}
            out.append(Line2D([], [], label="inserted in this step", **line))
        return out


def _branches(state: Scheduler, hit: set[int], new: set[int]) -> Iterator[Branch]:
    pool, size = state.pool, state.pool.page_size
    counts, nodes = pool.counts, list(pool.nodes())
    holders: dict[int, list[int]] = {}
    for request in state.running.values():
        for page in request.pages:
            holders.setdefault(page, []).append(request.rid)
    rows = _rows(nodes)
    top: dict[int, int] = {}  # the first row of a node that no child has taken yet
    free = 0
    for node in nodes:  # parents before children, siblings one after another
        first = free if node.parent is None else top[node.parent]
        if node.parent is None:
            free += rows[node.id]
        else:
            top[node.parent] += rows[node.id]
        top[node.id] = first
        pieces = list[Piece]()
        for i, page in enumerate(node.pages):
            held = counts[page] > 1
            kind: State = "reused" if page in hit else "held" if held else "evictable"
            last = pieces[-1] if pieces else None
            if last and (last.state, last.inserted) == (kind, page in new):
                pieces[-1] = last._replace(length=last.length + size)
            else:
                pieces.append(Piece((node.depth + i) * size, size, kind, page in new))
        who = tuple(holders.get(node.pages[0], ()))
        yield Branch(node, first, rows[node.id], tuple(pieces), who)


def _rows(nodes: Sequence[NodeView]) -> dict[int, int]:
    """How many leaves continue each node; 1 for a leaf."""
    rows: dict[int, int] = {}
    for node in reversed(nodes):  # children before parents
        own = rows.setdefault(node.id, 1)
        if node.parent is not None:
            rows[node.parent] = rows.get(node.parent, 0) + own
    return rows


def _rids(rids: Sequence[int]) -> str:
    return " ".join(f"r{rid}" for rid in rids)
