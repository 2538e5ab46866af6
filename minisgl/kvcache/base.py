"""What the page pool asks of a prefix cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol


class NodeView(NamedTuple):
    """One node of a prefix cache, copied out for people to look at."""

    id: int
    parent: int | None  # None below the root
    depth: int  # pages before it on its path
    tokens: tuple[int, ...]
    pages: tuple[int, ...]
    last_used: int  # step


class PrefixCache(Protocol):
    """Finds the pages of token prefixes that were computed before.

    Only whole pages are kept. A *path* is the pages of one prefix from its first token on; it is
    named by its last page (None: the empty path), since a page is in the cache once at most.
    """

    shares: bool  # False: it never finds anything, so nobody need wait for a prefix in progress

    def match(self, tokens: Sequence[int], limit: int) -> list[int]:
        """The pages of the longest cached prefix, ``limit`` at most. Changes nothing."""
        ...

    def knows(self, path: int | None, tokens: Sequence[int]) -> bool:
        """Whether a page holds exactly these page_size tokens after a path. Changes nothing."""
        ...

    def touch(self, path: int | None, now: int) -> None:
        """Note that this path was used in step ``now``."""
        ...

    def insert(
        self, path: int | None, tokens: Sequence[int], pages: Sequence[int], now: int
    ) -> tuple[int, ...]:
        """Remember ``pages`` as the home of the ``tokens`` that follow a path.

        Returns the pages that were new to the cache: a tail, for a twin that it knew it keeps.
        """
        ...

    def node_of(self, page: int) -> NodeView | None:
        """The node that has this page; None if the cache does not know it. Changes nothing."""
        ...

    def unheld(self, page: int) -> None:
        """Note that nobody but the cache counts this page any more."""
        ...

    def evict(self, n: int, counts: Sequence[int]) -> list[int]:
        """Forget up to ``n`` pages that only the cache counts (``counts[page] == 1``)."""
        ...

    def clear(self) -> list[int]:
        """Forget everything; returns the pages that were known."""
        ...

    def copy(self) -> PrefixCache:
        """An independent twin."""
        ...

    def saved(self) -> dict[str, Any]:
        """All that it is, as JSON can hold it."""
        ...

    def restore(self, saved: dict[str, Any]) -> None:
        """Become what ``saved`` says, from empty; it evicts alike.

        Raises what a wrong one leads to; ``check`` finds what does not add up.
        """
        ...

    def nodes(self) -> Iterator[NodeView]:
        """Everything it knows, parents before children."""
        ...

    def check(self, counts: Sequence[int]) -> None:
        """Raise AssertionError where its own bookkeeping does not add up."""
        ...
