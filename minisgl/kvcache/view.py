"""A read-only look at the prefix cache, for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from minisgl.kvcache.base import NodeView
from minisgl.kvcache.pages import PagePool

_WIDTH = 48  # characters of text shown for a node


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
        pool, level = self._pool, dict[int | None, int]({None: -1})
        lines = [f"{pool.num_cached} of {pool.num_pages} pages cached, {pool.num_evictable} idle"]
        counts = pool.counts
        for node in self:
            level[node.id] = level[node.parent] + 1
            holders = counts[node.pages[0]] - 1
            text = self._decode(node.tokens) if self._decode else " ".join(map(str, node.tokens))
            short = " ".join(text.split())
            short = short if len(short) <= _WIDTH else short[: _WIDTH - 1] + "…"
            lines.append(
                f"{'  ' * level[node.id]}{len(node.pages)} pages, {holders} holding: {short}"
            )
        return "\n".join(lines)
