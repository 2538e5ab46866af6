"""The prefix cache that is switched off: it finds nothing and keeps nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from minisgl.kvcache.base import NodeView


class NaiveCache:
    """Every request computes its whole prompt. The baseline that reuse is measured against."""

    shares = False

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size

    def match(self, tokens: Sequence[int], limit: int) -> list[int]:
        """Nothing."""
        return []

    def knows(self, path: int | None, tokens: Sequence[int]) -> bool:
        """No."""
        return False

    def touch(self, path: int | None, now: int) -> None:
        """There is nothing to note."""

    def insert(
        self, path: int | None, tokens: Sequence[int], pages: Sequence[int], now: int
    ) -> tuple[int, ...]:
        """Keeps nothing."""
        return ()

    def node_of(self, page: int) -> NodeView | None:
        """None."""
        return None

    def unheld(self, page: int) -> None:
        """It knows no page."""

    def evict(self, n: int, counts: Sequence[int]) -> list[int]:
        """It has no page to give."""
        return []

    def clear(self) -> list[int]:
        """It knew none."""
        return []

    def copy(self) -> NaiveCache:
        """Another that knows nothing."""
        return NaiveCache(self.page_size)

    def saved(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, saved: dict[str, Any]) -> None:
        """There is nothing to be."""

    def nodes(self) -> Iterator[NodeView]:
        """None."""
        return iter(())

    def check(self, counts: Sequence[int]) -> None:
        """Nothing can be wrong."""
