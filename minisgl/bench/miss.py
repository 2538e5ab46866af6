"""One measured point of a cache's misses, and what a cache could know at best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Miss(NamedTuple):
    """A workload, served once with a pool of some size. All but ``arm`` are positions.

    asked: of all prompts; computed: of those, what the cache did not have; again: of that, what it
    had had and evicted; evicted: all that was evicted, answers included.
    """

    arm: str
    pool: int
    asked: int
    computed: int
    again: int
    evicted: int

    @property
    def share(self) -> float:
        """The part of what was asked that had to be computed, 0 to 1."""
        return self.computed / self.asked


def prefixes(prompts: Iterable[Sequence[int]]) -> list[int]:
    """How many prompts begin with each of the prefixes that there are."""
    numbers: dict[tuple[int | None, int], int] = {}
    counts: list[int] = []
    for tokens in prompts:
        prefix: int | None = None
        for token in tokens:
            prefix = numbers.setdefault((prefix, token), len(numbers))
            if prefix == len(counts):
                counts.append(0)
            counts[prefix] += 1
    return counts
