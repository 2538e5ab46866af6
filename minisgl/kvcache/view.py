"""A read-only look at the prefix cache, for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from minisgl.display import Html, Part, bar, card, counted, escape, table, visible
from minisgl.kvcache.base import NodeView
from minisgl.kvcache.pages import PagePool

_WIDTH = 48  # characters of text shown for a node
_LINES = 200  # nodes of a tree in text
_INDENTS = 12  # levels that a table shows as such


class CacheView:
    """What the prefix cache knows now: iterate over its nodes, or print it as a tree.

    decode: turns token ids into text; without it the ids are shown.
    """

    def __init__(self, pool: PagePool, decode: Callable[[Sequence[int]], str] | None) -> None:
        self._pool, self._decode = pool, decode

    def __iter__(self) -> Iterator[NodeView]:
        """Every node, parents before children."""
        return self._pool.nodes()

    def __len__(self) -> int:
        """How many nodes there are."""
        return sum(1 for _ in self)

    def match(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """The pages of the longest cached prefix of these token ids. Changes nothing."""
        return tuple(self._pool.match(tokens, len(tokens) // self._pool.page_size))

    def __repr__(self) -> str:
        """The tree in text: a line per node with its pages, who else holds them, and its tokens."""
        pool = self._pool
        lines = [f"{pool.num_cached} of {pool.num_pages} pages cached, {pool.num_evictable} idle"]
        for level, node, holders in islice(self._leveled(), _LINES):
            pages = f"{'  ' * level}{len(node.pages)} pages, {holders} holding"
            lines.append(f"{pages}: {self._text(node)}")
        if (more := len(self) - _LINES) > 0:
            lines.append(f"and {more:,} more nodes")
        return "\n".join(lines)

    def _repr_html_(self) -> Html:
        pool, total = self._pool, len(self)
        held = pool.num_cached - pool.num_evictable
        pages = (
            Part("held", held, "prefill"),
            Part("evictable", pool.num_evictable, "evictable"),
            Part("not cached", pool.num_pages - pool.num_cached, "free"),
        )
        rows = (
            (
                Html("&emsp;" * min(level, _INDENTS) + escape(self._text(node))),
                level,
                len(node.pages),
                holders,
                node.last_used,
            )
            for level, node, holders in self._leveled()
        )
        heads = ("text", "level", "pages", "held by", "last used")
        says = f"{counted(total, 'node')}, {pool.num_cached} of {pool.num_pages} pages"
        return card("Prefix cache", says, bar("pages", pages), table(heads, rows, total))

    def _leveled(self) -> Iterator[tuple[int, NodeView, int]]:
        """Every node, parents before children: its level, itself, how many requests hold it."""
        level, counts = dict[int | None, int]({None: -1}), self._pool.counts
        for node in self:
            level[node.id] = level[node.parent] + 1
            yield level[node.id], node, counts[node.pages[0]] - 1

    def _text(self, node: NodeView) -> str:
        text = self._decode(node.tokens) if self._decode else " ".join(map(str, node.tokens))
        return visible(text, _WIDTH)
