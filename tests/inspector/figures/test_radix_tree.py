"""The tree is as wide as what is cached, and stands as its nodes do."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.core import (
    Inserted,
    Reused,
    SamplingParams,
)
from minisgl.inspector.figures.radix_tree import Branch, Tree
from minisgl.trace import Trace
from tests.hash_engine import hash_engine
from tests.inspector.drawn import boxes, length, of
from tests.inspector.figures.runs import driven
from tests.scheduler.test_workloads import Options, Workload, engines, workloads


@settings(max_examples=40, deadline=None)
@given(workloads, engines, st.data())
def test_the_tree_is_as_wide_as_what_is_cached(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    engine = driven(workload, options, data)
    for record in engine.trace:
        state = engine.trace.scheduler(record.batch.step)
        tree, gauges, size = Tree(record, state), state.gauges, state.limits.page_size
        assert tree.tokens() == gauges.cached_pages * size
        new = {page for e in record.events if isinstance(e, Inserted) for page in e.pages}
        hit = {page for e in record.events if isinstance(e, Reused) for page in e.pages}
        idle = [p for p, holders in enumerate(state.pool.counts) if state.pool.is_idle(p)]
        assert tree.tokens("evictable") == len(set(idle) - hit) * size
        assert tree.tokens("reused") == sum(map(state.pool.is_cached, hit)) * size
        assert tree.tokens(inserted=True) == sum(map(state.pool.is_cached, new)) * size
        _stands(tree, size)


def _stands(tree: Tree, size: int) -> None:
    """Children begin where their parent ends and share its rows out among themselves."""
    by_id = {branch.node.id: branch for branch in tree.branches}
    below: dict[int | None, list[tuple[int, int]]] = {}
    for branch in tree.branches:
        node = branch.node
        below.setdefault(node.parent, []).append((branch.top, branch.top + branch.rows))
        assert branch.pieces[0].start == node.depth * size
        assert all(a.start + a.length == b.start for a, b in pairwise(branch.pieces))
        if node.parent is not None:
            above = by_id[node.parent].node
            assert node.depth == above.depth + len(above.pages)
    for parent, rows in below.items():
        whole = (0, tree.leaves) if parent is None else _rows(by_id[parent])
        assert (rows[0][0], rows[-1][1]) == whole
        assert all(a[1] == b[0] for a, b in pairwise(rows))


def _rows(branch: Branch) -> tuple[int, int]:
    return branch.top, branch.top + branch.rows


def test_the_tree_is_drawn_as_it_stands(trace: Trace) -> None:
    for step in range(2, len(trace), 5):
        state, picture = trace.scheduler(step), of(trace.plot.tree(step))
        drawn = sum(length(boxes(picture, name)) for name in ("held", "reused", "evictable"))
        assert round(drawn) == state.gauges.cached_pages * state.limits.page_size
        tree = Tree(trace[step], state)
        assert round(length(boxes(picture, "inserted"))) == tree.tokens(inserted=True)
        assert f"{tree.tokens('evictable'):,} evictable" in picture.alt or not tree.branches
        for branch in tree.branches:
            for rid in branch.holders:
                assert branch.node.pages[0] in state.running[rid].pages


def test_a_tree_of_nothing_says_so() -> None:
    engine = hash_engine(prefix_cache="naive")
    engine.add([1, 2, 3], SamplingParams(max_tokens=2))
    engine.run()
    picture = of(engine.trace.plot.tree())
    assert picture.alt == f"The prefix cache is empty after step {len(engine.trace) - 1}."
