"""Who holds which KV page: one count per page. Integers only; where a page lies is the device's.

A page is free when nobody counts it. A request counts every page of its row; the prefix cache
counts every page it can find again. A page that the cache alone counts may be evicted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from minisgl.core import as_int
from minisgl.kvcache.base import NodeView, PrefixCache


class PagePool:
    """The pages of one engine and the prefix cache over them. The scheduler is the only writer."""

    def __init__(self, num_pages: int, page_size: int, cache: PrefixCache) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self._cache = cache
        self._counts = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._taken = [0] * num_pages  # how often each page was handed out
        self._cached = bytearray(num_pages)  # 1: the prefix cache knows the page
        self._num_cached = 0
        self._num_evictable = 0

    @property
    def shares(self) -> bool:
        """False if prefixes are never found again."""
        return self._cache.shares

    @property
    def num_free(self) -> int:
        """Pages nobody counts."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Pages the prefix cache counts."""
        return self._num_cached

    @property
    def num_evictable(self) -> int:
        """Pages the prefix cache alone counts."""
        return self._num_evictable

    @property
    def counts(self) -> tuple[int, ...]:
        """Holders of every page."""
        return tuple(self._counts)

    @property
    def used(self) -> list[int]:
        """Pages that anybody counts."""
        return [page for page, count in enumerate(self._counts) if count]

    def full(self, held: Iterable[int]) -> dict[int, int]:
        """The cached pages and these others, all full, each with how often it was handed out.

        A full page keeps its contents until it is handed out again.
        """
        pages = {page for page, cached in enumerate(self._cached) if cached}.union(held)
        return {page: self._taken[page] for page in pages}

    def is_cached(self, page: int) -> bool:
        """Whether the prefix cache counts this page."""
        return bool(self._cached[page])

    def nodes(self) -> Iterator[NodeView]:
        """What the prefix cache knows."""
        return self._cache.nodes()

    def node_of(self, page: int) -> NodeView | None:
        """The prefix cache's node that has this page, if it knows it. Changes nothing."""
        return self._cache.node_of(page)

    def holders(self, page: int) -> int:
        """How many hold this page."""
        return self._counts[page]

    def match(self, tokens: Sequence[int], limit: int) -> list[int]:
        """The pages of the longest cached prefix, ``limit`` at most. Changes nothing."""
        return self._cache.match(tokens, limit)

    def knows(self, path: int | None, tokens: Sequence[int]) -> bool:
        """Whether a cached page holds this page of tokens after a cached path."""
        return self._cache.knows(path, tokens)

    def is_idle(self, page: int) -> bool:
        """Whether the prefix cache alone counts it: holding it costs as much as a fresh page."""
        return self._counts[page] == 1 and bool(self._cached[page])

    def given_back(self, pages: Iterable[int]) -> list[int]:
        """Those pages that would be free or evictable if one holder of all of them dropped them."""
        counts, cached = self._counts, self._cached
        return [page for page in pages if counts[page] == 1 + cached[page]]

    def hold(self, pages: Iterable[int]) -> None:
        """Count cached pages for one more request."""
        counts, cached = self._counts, self._cached
        for page in pages:
            assert cached[page], f"page {page} is held but the prefix cache does not know it"
            if counts[page] == 1:
                self._num_evictable -= 1
            counts[page] += 1

    def drop(self, pages: Iterable[int]) -> None:
        """Count pages for one request less."""
        counts, cached = self._counts, self._cached
        for page in pages:
            left = counts[page] = counts[page] - 1
            assert left >= 0, f"page {page} was dropped more often than held"
            if left == 0:
                self._free.append(page)
            elif left == 1 and cached[page]:
                self._num_evictable += 1
                self._cache.unheld(page)

    def take(self, n: int) -> tuple[list[int], tuple[int, ...]]:
        """``n`` fresh pages, held once, and the cached pages that were evicted for them.

        Raises MemoryError if fewer than ``n`` are free or evictable; then nothing has changed.
        """
        free = self._free
        if n > len(free) + self._num_evictable:
            raise MemoryError(
                f"{n} KV pages asked, {len(free)} free and {self._num_evictable} evictable"
            )
        gone: list[int] = []
        if n > len(free):
            gone = self._cache.evict(n - len(free), self._counts)
            self._num_evictable -= len(gone)
            self._forget(gone)
        pages = [free.pop() for _ in range(n)]
        for page in pages:
            self._counts[page] = 1
            self._taken[page] += 1
        return pages, tuple(gone)

    def copy(self) -> PagePool:
        """An independent twin with the same pages in the same hands."""
        twin = PagePool(0, self.page_size, self._cache.copy())
        twin.num_pages, twin._counts = self.num_pages, self._counts.copy()
        twin._free, twin._cached = self._free.copy(), self._cached.copy()
        twin._taken = self._taken.copy()
        twin._num_cached, twin._num_evictable = self._num_cached, self._num_evictable
        return twin

    def saved(self) -> dict[str, Any]:
        """What does not follow from the rows that hold pages, as JSON can hold it."""
        return {"free": self._free, "cache": self._cache.saved()}

    def restore(self, saved: dict[str, Any], rows: Iterable[Sequence[int]]) -> None:
        """Become what ``saved`` says, from empty, while these rows hold pages.

        How often each page was handed out begins anew. Raises what a wrong one leads to; ``check``
        finds what does not add up.
        """
        self._free = [as_int("a free page", page, 0) for page in saved["free"]]
        self._cache.restore(saved["cache"])
        for node in self._cache.nodes():
            for page in node.pages:
                self._cached[page] = 1
        self._counts = list(self._cached)
        for row in rows:
            for page in row:
                self._counts[page] += 1
        self._num_cached = sum(self._cached)
        pairs = zip(self._counts, self._cached, strict=True)
        self._num_evictable = sum(count == 1 and bool(cached) for count, cached in pairs)

    def touch(self, path: int | None, now: int) -> None:
        """Note that a cached path was used in step ``now``."""
        self._cache.touch(path, now)

    def insert(
        self, path: int | None, tokens: Sequence[int], pages: Sequence[int], now: int
    ) -> tuple[int, ...]:
        """Let the cache find ``pages`` again, as the home of the ``tokens`` after a cached path.

        The caller holds the pages. Returns those that were new to the cache.
        """
        new = self._cache.insert(path, tokens, pages, now)
        for page in new:
            self._cached[page] = 1
            self._counts[page] += 1
        self._num_cached += len(new)
        return new

    def forget_all(self) -> None:
        """Empty the prefix cache: what the pages hold is not to be trusted any more."""
        known = self._cache.clear()
        self._num_evictable = 0
        self._forget(known)

    def _forget(self, pages: Sequence[int]) -> None:
        for page in pages:
            self._cached[page] = 0
        self._num_cached -= len(pages)
        self.drop(pages)

    def check(self, rows: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError at the first page whose count is not its holders: rows and cache."""
        want = [0] * self.num_pages
        for row in rows:
            for page in row:
                want[page] += 1
        known = [page for node in self._cache.nodes() for page in node.pages]
        for page in known:
            want[page] += 1
            assert self._cached[page], f"page {page} is in the prefix cache but not marked so"
        assert len(set(known)) == len(known), "a page is in the prefix cache twice"
        assert (
            len(known) == sum(self._cached) == self._num_cached
        ), "a page is marked cached wrongly"
        for page, (have, should) in enumerate(zip(self._counts, want, strict=True)):
            assert have == should, f"page {page} counts {have} holders and has {should}"
        free = [page for page, count in enumerate(self._counts) if count == 0]
        assert sorted(self._free) == free, "the free list is not the pages that nobody counts"
        idle = sum(self._counts[page] == 1 for page in known)
        assert self._num_evictable == idle, f"{self._num_evictable} evictable, {idle} idle"
        self._cache.check(self._counts)
