"""The radix tree over cached token prefixes (RadixAttention, Zheng et al. 2024, section 3).

It knows tokens and page numbers, and in which order to forget them; who else counts a page is the
pool's business. Recency goes by step number, so that a replay evicts alike.

One rule makes eviction cheap and safe: whoever holds a page of a path holds all pages before it.
So holder counts never grow along a path, and a page that only the tree counts can always be
reached by cutting leaves from their tails.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from minisgl.core import as_int
from minisgl.kvcache.base import NodeView


@dataclass(eq=False, slots=True)
class _Node:
    """An edge of the tree: ``tokens`` stored in ``pages``; page_size tokens to a page."""

    id: int
    tokens: list[int]
    pages: list[int]
    parent: _Node | None
    last_used: int
    queued: bool = False  # it stands in the eviction queue
    children: dict[tuple[int, ...], _Node] = field(default_factory=dict)


class RadixCache:
    """Finds the pages of the longest known prefix, and forgets the least recently used leaf first.

    The eviction queue is a heap over (last used, node id). An entry may be out of date, but only
    towards being too old: a leaf that was used since is queued again when it comes up, and one
    that is held or has children is dropped from the queue until that changes. So an eviction costs
    O(log nodes), however large the tree is.
    """

    shares = True

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self._root = _Node(0, [], [], None, 0)
        self._next_id = 1
        self._home: dict[int, _Node] = {}  # page -> the node that has it
        self._queue: list[tuple[int, int, _Node]] = []

    def match(self, tokens: Sequence[int], limit: int) -> list[int]:
        """The pages of the longest cached prefix, ``limit`` at most. Changes nothing."""
        tokens = list(tokens[: limit * self.page_size])
        return [page for node, n in self._walk(self._root, tokens) for page in node.pages[:n]]

    def knows(self, path: int | None, tokens: Sequence[int]) -> bool:
        """Whether a page holds exactly these page_size tokens after a path. Changes nothing."""
        node = self._root if path is None else self._home[path]
        if path is None or node.pages[-1] == path:
            return tuple(tokens) in node.children
        at = (node.pages.index(path) + 1) * self.page_size
        return node.tokens[at : at + self.page_size] == list(tokens)

    def touch(self, path: int | None, now: int) -> None:
        """Note that this path was used in step ``now``; what follows it keeps its own age."""
        node: _Node | None = self._end(path)
        while node is not None:
            node.last_used = now
            node = node.parent

    def insert(
        self, path: int | None, tokens: Sequence[int], pages: Sequence[int], now: int
    ) -> tuple[int, ...]:
        """Remember ``pages`` as the home of the ``tokens`` that follow a path.

        Returns the pages that were new to the tree: a tail, for a twin that it knew it keeps.
        """
        size, node, known = self.page_size, self._end(path), 0
        tokens = list(tokens[: len(pages) * size])
        for child, n in list(self._walk(node, tokens)):
            node = child if n == len(child.pages) else self._split(child, n)
            known += n
        new = list(pages[known:])
        if new:
            rest = tokens[known * size :]
            if node.parent is not None and not node.children:
                node.tokens += rest  # a leaf grows; edges stay as long as they can be
                node.pages += new
            else:
                leaf = self._new(rest, new, node, now)
                node.children[tuple(rest[:size])] = node = leaf
            for page in new:
                self._home[page] = node
        while node.parent is not None:
            node.last_used = now
            node = node.parent
        return tuple(new)

    def node_of(self, page: int) -> NodeView | None:
        """The node that has this page; None if the tree does not know it. Changes nothing."""
        node = self._home.get(page)
        if node is None:
            return None
        depth, above = 0, node.parent
        while above is not None:
            depth, above = depth + len(above.pages), above.parent
        return self._view(node, depth)

    def unheld(self, page: int) -> None:
        """Note that nobody but the tree counts this page any more."""
        node = self._home[page]
        if node.pages[-1] == page and not node.children:
            self._enqueue(node)

    def evict(self, n: int, counts: Sequence[int]) -> list[int]:
        """Forget up to ``n`` pages that only the tree counts: oldest leaf first, tail first."""
        gone: list[int] = []
        while self._queue and len(gone) < n:
            used, _, node = heapq.heappop(self._queue)
            node.queued = False
            if node.children or counts[node.pages[-1]] != 1:
                continue
            if used != node.last_used:
                self._enqueue(node)
                continue
            first = tuple(node.tokens[: self.page_size])
            while node.pages and len(gone) < n and counts[node.pages[-1]] == 1:
                gone.append(node.pages.pop())
                del self._home[gone[-1]]
            del node.tokens[len(node.pages) * self.page_size :]
            if node.pages:
                self._enqueue(node)
                continue
            parent = node.parent
            assert parent is not None
            del parent.children[first]
            if parent.parent is not None and not parent.children:
                self._enqueue(parent)
        return gone

    def clear(self) -> list[int]:
        """Forget everything; returns the pages that were known."""
        pages = list(self._home)
        self._root.children.clear()
        self._home.clear()
        self._queue.clear()
        return pages

    def copy(self) -> RadixCache:
        """An independent twin; it evicts alike."""
        twin = RadixCache(self.page_size)
        twin._next_id = self._next_id
        copies = {self._root.id: twin._root}
        twin._root.last_used = self._root.last_used
        stack = list(reversed(self._root.children.items()))
        while stack:
            first, node = stack.pop()
            assert node.parent is not None
            above, pages = copies[node.parent.id], node.pages.copy()
            mine = _Node(node.id, node.tokens.copy(), pages, above, node.last_used, node.queued)
            above.children[first] = copies[node.id] = mine
            twin._home.update(dict.fromkeys(pages, mine))
            stack += reversed(node.children.items())
        twin._queue = [(used, id_, copies[id_]) for used, id_, _ in self._queue]
        return twin

    def saved(self) -> dict[str, Any]:
        """Its nodes, parents first, and the eviction queue as it stands."""
        above = {view.id: view.parent for view in self.nodes()}
        nodes = [self._home[view.pages[0]] for view in self.nodes()]
        return {
            "next_id": self._next_id,
            "root_used": self._root.last_used,
            "nodes": [[n.id, above[n.id], n.tokens, n.pages, n.last_used] for n in nodes],
            "queue": [[used, id_] for used, id_, _ in self._queue],
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Become what ``saved`` says, from empty; it evicts alike."""

        def whole(numbers: Iterable[object]) -> list[int]:
            return [as_int("a number of the radix tree", n, 0) for n in numbers]

        self._next_id, self._root.last_used = whole((saved["next_id"], saved["root_used"]))
        known: dict[int | None, _Node] = {None: self._root}
        for id_, above, tokens, pages, used in saved["nodes"]:
            age, own = whole((used, id_))
            node = _Node(own, whole(tokens), whole(pages), known[above], age)
            known[above].children[tuple(node.tokens[: self.page_size])] = known[id_] = node
            self._home.update(dict.fromkeys(node.pages, node))
        for used, id_ in saved["queue"]:
            age, own = whole((used, id_))
            self._queue.append((age, own, known[own]))
        for _, _, node in self._queue:
            node.queued = True

    def nodes(self) -> Iterator[NodeView]:
        """Everything the tree knows, parents before children, siblings in order of creation."""
        stack = [(child, 0) for child in reversed(self._root.children.values())]
        while stack:
            node, depth = stack.pop()
            yield self._view(node, depth)
            below = depth + len(node.pages)
            stack += [(child, below) for child in reversed(node.children.values())]

    def check(self, counts: Sequence[int]) -> None:
        """Raise AssertionError where the tree, its index or its eviction queue do not add up."""
        size, seen = self.page_size, 0
        stack = [self._root]
        while stack:
            node = stack.pop()
            stack += node.children.values()
            for first, child in node.children.items():
                assert child.parent is node, f"node {child.id} names another parent"
                assert first == tuple(child.tokens[:size]), f"node {child.id} is filed wrongly"
                assert child.last_used <= node.last_used or node is self._root
                if node.pages:
                    assert counts[node.pages[-1]] >= counts[child.pages[0]], "a prefix is not held"
            if node is self._root:
                continue
            seen += len(node.pages)
            assert node.pages and len(node.tokens) == len(node.pages) * size
            for page in node.pages:
                assert self._home.get(page) is node, f"page {page} is indexed wrongly"
            held = [counts[page] for page in node.pages]
            assert held == sorted(held, reverse=True), f"node {node.id}: a prefix is not held"
            if not node.children and held[-1] == 1:
                assert node.queued, f"node {node.id} could be evicted and is not queued"
        assert seen == len(self._home), "the index knows a page that the tree does not"
        assert len({id(entry[2]) for entry in self._queue}) == len(self._queue), "queued twice"

    def _view(self, node: _Node, depth: int) -> NodeView:
        parent = node.parent
        above = None if parent is None or parent is self._root else parent.id
        tokens, pages = tuple(node.tokens), tuple(node.pages)
        return NodeView(node.id, above, depth, tokens, pages, node.last_used)

    def _walk(self, node: _Node, tokens: list[int]) -> Iterator[tuple[_Node, int]]:
        """(node, matched pages) below ``node``, down the longest path; only the last is partial."""
        size, at = self.page_size, 0
        while child := node.children.get(tuple(tokens[at : at + size])):
            ahead = tokens[at : at + len(child.tokens)]
            if ahead != child.tokens:
                mine, n = child.tokens, 1  # the first page matched through the dict
                while ahead[n * size : (n + 1) * size] == mine[n * size : (n + 1) * size]:
                    n += 1
                yield child, n
                return
            yield child, len(child.pages)
            at, node = at + len(ahead), child

    def _end(self, path: int | None) -> _Node:
        """The node that ends where a path ends, after a split if there was none."""
        if path is None:
            return self._root
        node = self._home[path]
        return node if node.pages[-1] == path else self._split(node, node.pages.index(path) + 1)

    def _split(self, node: _Node, n: int) -> _Node:
        """Cut a node after ``n`` pages; returns the upper half, the lower keeps its identity."""
        cut, parent = n * self.page_size, node.parent
        assert parent is not None and 0 < n < len(node.pages)
        upper = self._new(node.tokens[:cut], node.pages[:n], parent, node.last_used)
        parent.children[tuple(upper.tokens[: self.page_size])] = upper
        del node.tokens[:cut], node.pages[:n]
        node.parent = upper
        upper.children[tuple(node.tokens[: self.page_size])] = node
        for page in upper.pages:
            self._home[page] = upper
        return upper

    def _new(self, tokens: list[int], pages: list[int], parent: _Node, now: int) -> _Node:
        node = _Node(self._next_id, tokens, pages, parent, now)
        self._next_id += 1
        return node

    def _enqueue(self, node: _Node) -> None:
        if not node.queued:
            node.queued = True
            heapq.heappush(self._queue, (node.last_used, node.id, node))
