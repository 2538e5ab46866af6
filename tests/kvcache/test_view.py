"""The prefix cache as people see it, in text and in a notebook."""

from __future__ import annotations

import pytest

from minisgl.core import SamplingParams
from minisgl.display import MOST
from minisgl.kvcache.pages import PagePool
from minisgl.kvcache.radix import RadixCache
from minisgl.kvcache.view import CacheView
from tests.hash_engine import hash_engine
from tests.seen import Seen


def filled(nodes: int, step: int = 1) -> PagePool:
    """A pool whose tree has so many nodes below the root."""
    pool = PagePool(nodes + 1, 1, RadixCache(1))
    for i in range(nodes):
        pages, _ = pool.take(1)
        pool.insert(None, [i], pages, step)
        pool.drop(pages)
    return pool


def test_a_row_per_node_with_its_place_pages_holders_and_last_use() -> None:
    engine = hash_engine(page_size=2, depth=1)
    long = SamplingParams(max_tokens=9, ignore_eos=True)
    engine.add([1, 2, 3, 4, 5], long)
    engine.step()
    engine.add([1, 2, 6, 7, 5], long)
    engine.step()
    seen = Seen(engine.cache._repr_html_())
    heads, *rows = seen.tables[0]
    assert heads == ["text", "level", "pages", "held by", "last used"]
    assert [row[0] for row in rows] == ["1 2", "\u20033 4", "\u20036 7"]
    assert [row[1:4] for row in rows] == [["0", "1", "2"], ["1", "1", "1"], ["1", "1", "1"]]
    assert [int(row[4]) for row in rows] == [node.last_used for node in engine.cache]
    assert seen.labels == ["pages: held 3, not cached 37"]
    assert "Prefix cache 3 nodes, 3 of 40 pages" in seen.words
    engine.run()
    idle = engine.gauges.evictable_pages
    free = 40 - idle
    assert Seen(engine.cache._repr_html_()).labels == [
        f"pages: evictable {idle}, not cached {free}"
    ]


@pytest.mark.parametrize("nodes", [10_000])
def test_a_large_tree_is_cut_and_says_so(nodes: int) -> None:
    view = CacheView(filled(nodes), None)
    page = view._repr_html_()
    assert f"and {nodes - MOST:,} more" in Seen(page).words and len(page) < 12_000
    lines = repr(view).splitlines()
    assert lines[0] == "10000 of 10001 pages cached, 10000 idle"
    assert (len(lines), lines[-1]) == (202, "and 9,800 more nodes")


def test_what_prompts_said_stays_text() -> None:
    view = CacheView(filled(1), lambda ids: "<img src=x onerror=alert(1)>\n\x1b]0;title\x07")
    assert (
        Seen(view._repr_html_()).tables[0][1][0]
        == "<img src=x onerror=alert(1)> \\x1b]0;title\\x07"
    )
    assert repr(view).endswith(
        "1 pages, 0 holding: <img src=x onerror=alert(1)> \\x1b]0;title\\x07"
    )


def test_an_empty_cache_shows_its_pages() -> None:
    view = CacheView(PagePool(4, 1, RadixCache(1)), None)
    assert (
        Seen(view._repr_html_()).words.split()
        == "Prefix cache 0 nodes, 0 of 4 pages not cached 4".split()
    )
