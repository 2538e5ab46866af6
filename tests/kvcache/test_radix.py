"""The radix cache against a slow twin that knows every cached page by its whole prefix."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.kvcache.pages import PagePool
from minisgl.kvcache.radix import RadixCache

NUM_PAGES = 24
Prefix = tuple[int, ...]


@dataclass
class Twin:
    """Each cached prefix with its page and the step of its last use; everything by scanning."""

    size: int
    pages: dict[Prefix, int] = field(default_factory=dict)
    used: dict[Prefix, int] = field(default_factory=dict)

    def prefixes(self, tokens: list[int]) -> list[Prefix]:
        ends = range(self.size, len(tokens) + 1, self.size)
        return [tuple(tokens[:end]) for end in ends]

    def match(self, tokens: list[int]) -> list[int]:
        found = []
        for prefix in self.prefixes(tokens):
            if prefix not in self.pages:
                break
            found.append(self.pages[prefix])
        return found

    def use(self, tokens: list[int], now: int) -> None:
        for prefix in self.prefixes(tokens):
            if prefix in self.pages:
                self.used[prefix] = now

    def oldest(self, counts: tuple[int, ...]) -> list[int]:
        """The last-use steps of the pages that may go next: idle ones that nothing follows."""
        leaves = [
            prefix
            for prefix, page in self.pages.items()
            if counts[page] == 1
            and not any(
                len(other) == len(prefix) + self.size and other[: len(prefix)] == prefix
                for other in self.pages
            )
        ]
        return sorted(self.used[prefix] for prefix in leaves)


@settings(max_examples=200)
@given(st.integers(1, 3), st.data())
def test_the_tree_finds_and_forgets_what_the_twin_does(size: int, data: st.DataObject) -> None:
    pool, twin = PagePool(NUM_PAGES, size, RadixCache(size)), Twin(size)
    held: list[list[int]] = []
    prompts = st.lists(st.integers(0, 1), max_size=12)
    for now in range(data.draw(st.integers(1, 25), "steps")):
        tokens = data.draw(prompts, "tokens")
        limit = len(tokens) // size
        shared = pool.match(tokens, limit)
        assert shared == twin.match(tokens)
        match data.draw(st.sampled_from(["run", "run", "hold", "drop", "evict"]), "what"):
            case "run":  # as a request does: hold the match, compute the rest, remember, let go
                pool.hold(shared)
                pool.touch(shared[-1] if shared else None, now)
                twin.use(tokens, now)
                fresh = limit - len(shared)
                if fresh <= pool.num_free + pool.num_evictable:
                    pages, gone = pool.take(fresh)
                    forget(twin, gone)
                    path, row = shared[-1] if shared else None, shared + pages
                    new = pool.insert(path, tokens[len(shared) * size :], pages, now)
                    assert list(new) == pages
                    for prefix, page in zip(twin.prefixes(tokens), row, strict=True):
                        twin.pages[prefix], twin.used[prefix] = page, now
                    pool.drop(pages)
                pool.drop(shared)
            case "hold":
                pool.hold(shared)
                held.append(shared)
            case "drop" if held:
                pool.drop(held.pop(data.draw(st.integers(0, len(held) - 1), "which")))
            case "evict":
                n = data.draw(st.integers(0, pool.num_free + pool.num_evictable), "pages")
                oldest = twin.oldest(pool.counts)
                pages, gone = pool.take(n)
                ages = [twin.used[prefix] for prefix in by_page(twin, gone)]
                assert not ages or ages[0] == oldest[0], "it did not begin with the oldest leaf"
                forget(twin, gone)
                pool.drop(pages)
        pool.check(held)
        assert pool.num_cached == len(twin.pages)


def by_page(twin: Twin, pages: tuple[int, ...]) -> list[Prefix]:
    home = {page: prefix for prefix, page in twin.pages.items()}
    return [home[page] for page in pages]


def forget(twin: Twin, pages: tuple[int, ...]) -> None:
    for prefix in by_page(twin, pages):
        del twin.pages[prefix], twin.used[prefix]
    for prefix in twin.pages:  # what follows a forgotten page must have gone before it
        assert all(shorter in twin.pages for shorter in twin.prefixes(list(prefix)))


def cached(pool: PagePool, tokens: list[int], now: int = 0) -> list[int]:
    """Compute and remember a prompt from nothing; returns its pages, held by nobody."""
    pages, _ = pool.take(len(tokens) // pool.page_size)
    pool.insert(None, tokens, pages, now)
    pool.drop(pages)
    return pages


def test_matching_changes_nothing_even_in_the_middle_of_a_node() -> None:
    pool = PagePool(8, 2, RadixCache(2))
    pages = cached(pool, [1, 1, 2, 2, 3, 3])
    before = list(pool.nodes())
    assert pool.match([1, 1, 2, 2, 9, 9], 3) == pages[:2]
    assert pool.match([1, 1, 2, 2, 3, 3], 1) == pages[:1]
    assert list(pool.nodes()) == before and len(before) == 1


def test_a_prompt_that_parts_inside_a_node_splits_it_there() -> None:
    pool = PagePool(8, 2, RadixCache(2))
    first = cached(pool, [1, 1, 2, 2, 3, 3])
    pages, _ = pool.take(1)
    pool.insert(first[1], [4, 4], pages, 1)
    pool.drop(pages)
    tokens = {node.tokens: node.pages for node in pool.nodes()}
    split = {(1, 1, 2, 2): tuple(first[:2]), (3, 3): (first[2],), (4, 4): tuple(pages)}
    assert tokens == split
    pool.check([])


def test_a_twin_keeps_the_pages_that_were_cached_first() -> None:
    pool = PagePool(8, 2, RadixCache(2))
    first = cached(pool, [1, 1, 2, 2])
    pages, _ = pool.take(3)
    assert pool.insert(None, [1, 1, 2, 2, 3, 3], pages, 1) == (pages[2],)
    assert pool.match([1, 1, 2, 2, 3, 3], 3) == [*first, pages[2]]
    pool.drop(pages)
    pool.check([])


def test_the_tail_of_a_leaf_goes_before_its_head() -> None:
    pool = PagePool(4, 1, RadixCache(1))
    pages = cached(pool, [1, 2, 3, 4])
    _, gone = pool.take(2)
    assert gone == (pages[3], pages[2])
    assert pool.match([1, 2, 3, 4], 4) == pages[:2]


def test_what_is_used_again_stays_and_what_follows_it_keeps_its_age() -> None:
    pool = PagePool(6, 1, RadixCache(1))
    long, other = cached(pool, [1, 2, 3], now=0), cached(pool, [7, 8, 9], now=1)
    pool.touch(long[1], 2)  # the first two tokens of the first prompt, in step 2
    _, gone = pool.take(4)
    assert gone == (long[2], other[2], other[1], other[0])


def test_more_pages_than_there_are_is_a_memory_error_and_takes_none() -> None:
    pool = PagePool(4, 1, RadixCache(1))
    held = cached(pool, [1, 2])
    pool.hold(held)
    with pytest.raises(MemoryError, match="3 KV pages asked, 2 free and 0 evictable"):
        pool.take(3)
    assert pool.num_free == 2
    pool.check([held])


def test_forgetting_everything_leaves_held_pages_to_their_holders() -> None:
    pool = PagePool(6, 1, RadixCache(1))
    held, _ = cached(pool, [1, 2]), cached(pool, [3, 4])
    pool.hold(held)
    pool.forget_all()
    assert pool.match([1, 2], 2) == [] and pool.num_free == 4
    pool.check([held])
    pool.drop(held)
    assert pool.num_free == 6
