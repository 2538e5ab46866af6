"""Miss-ratio curves: exact counts, bounds that hold, figures that show them."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.patches import Rectangle

import minisgl
from minisgl.bench.drive import drive
from minisgl.bench.miss import prefixes
from minisgl.bench.misses import Misses, misses
from minisgl.bench.workload import Workload
from minisgl.config import EngineConfig
from minisgl.scheduler.policy import find_policy
from tests.seen import Seen

matplotlib.use("agg")

SIZES: dict[str, Any] = {"groups": 3, "prefix_len": 40, "prompt_len": 6, "output_len": 2}
TURNS = Workload.synthetic("long_documents", 12, **SIZES)
PREFIX = Workload.synthetic("shared_prefix", 16, prefix_len=(20, 40), output_len=(1, 4))
PREFIX = PREFIX.arriving("poisson", rate=0.2, clock="steps")
POOLS = (80, 96, 160, 1024)


@pytest.fixture(scope="module")
def found() -> Misses:
    toggles: dict[str, list[Any]] = {"policy": ["prefill_first", "longest_prefix"]}
    toggles["page_size"] = [1, 8]
    return misses(PREFIX, POOLS, toggles)


@pytest.mark.parametrize("runner", ["torch", "hash"])
def test_the_oracles_counts_are_those_of_an_engine_that_serves_the_workload_alone(
    runner: str, found: Misses
) -> None:
    (point,) = [p for p in found.curves["policy=longest_prefix, page_size=8"] if p.pool == 96]
    config = EngineConfig(runner=runner, policy="longest_prefix", page_size=8, num_pages=12)
    with minisgl.load("tiny", config) as engine:
        run = drive(engine, PREFIX)
        regret = engine.trace.regret()
    reused = sum(served.reused for served in run.requests)
    asked = sum(served.prompt_len for served in run.requests)
    assert (point.asked, point.computed) == (asked, asked - reused) and asked == found.asked
    assert (point.again, point.evicted) == (regret.tokens, regret.evicted)
    assert point.evicted > point.again > 0, "so small a pool evicts what is asked for again"
    assert point.share == (asked - reused) / asked


def test_with_room_for_all_what_is_new_is_computed_and_nothing_else(found: Misses) -> None:
    for arm, points in found.curves.items():
        largest = points[-1]
        assert largest.again == largest.evicted == 0
        if "page_size=1" in arm:
            assert largest.computed == found.distinct
            assert largest.share == found.floor
        else:
            assert largest.computed > found.distinct, "no page is shared in part"
        assert all(point.computed >= found.distinct for point in points)
        assert [point.pool for point in points] == list(POOLS)


def test_what_comes_in_turn_is_found_once_there_is_room_for_all_of_it() -> None:
    """The worst order for least recently used, of which the tree keeps beginnings longest."""
    base = EngineConfig(runner="hash", page_size=1, max_running=1, overlap=False)
    documents, own = 3 * 40, 6 + 2
    pools = (40 + own, 100, documents, documents + 2 * own)
    result = misses(TURNS, pools, base=base)
    assert result.twice == documents
    assert result.distinct == documents + 12 * 6
    nothing, some, more, all_of_it = result.curves["base"]
    assert nothing.share == 1 and nothing.again == 9 * 40
    assert nothing.again > some.again > more.again > all_of_it.again == 0
    assert all_of_it.share == result.floor and all_of_it.evicted > 0


def test_a_cache_that_forgets_everything_misses_everything() -> None:
    naive = misses(PREFIX, POOLS, {"prefix_cache": ["naive"]}).points
    assert [(point.share, point.again) for point in naive] == [(1.0, 0)] * len(POOLS)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=8))
def test_prefixes_are_counted_as_by_writing_all_of_them_down(prompts: list[list[int]]) -> None:
    every = Counter(tuple(p[: n + 1]) for p in prompts for n in range(len(p)))
    assert sorted(prefixes(prompts)) == sorted(every.values())


def test_what_is_new_and_what_is_asked_again_is_counted_by_position() -> None:
    workload = Workload.from_prompts([[7, 8, 9], [7, 8, 10], [7, 11, 12]], output_len=1)
    result = misses(workload, [64])
    assert (result.asked, result.distinct, result.twice) == (9, 6, 2)


def test_the_words_and_the_frame_tell_every_point(found: Misses) -> None:
    frame = found.to_frame()
    assert list(frame["share"]) == [point.share for point in found.points]
    assert len(frame) == 4 * len(POOLS)
    text, page = repr(found), Seen(found._repr_html_())
    assert f"{found.distinct:,} of them ({found.floor:.1%}) are new" in text
    assert f"{found.twice:,} of the new ones are asked again" in page.words
    for (arm, points), row in zip(found.curves.items(), page.tables[0][1:], strict=True):
        assert row == [arm, *(f"{point.share:.1%}" for point in points)]
        assert "".join(row) in text.replace(" ", "").replace(",page", ", page")


def test_the_curves_are_drawn_as_they_are(found: Misses) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = found.plot()
        picture.draw_without_rendering()
    (ax,) = picture.axes
    drawn: dict[str, Any] = {str(line.get_gid()): line.get_xydata() for line in ax.get_lines()}
    for arm, points in found.curves.items():
        assert drawn[arm].tolist() == [[point.pool, point.share] for point in points]
        assert f"{arm}: {points[0].share:.1%} at {POOLS[0]}" in picture.alt
    assert drawn["floor"][0][1] == found.floor
    assert drawn["working set"][0][0] == found.twice
    looks = {
        (line.get_color(), str(line.get_linestyle()), str(line.get_marker()))
        for line in ax.get_lines()
        if line.get_gid() in found.curves
    }
    assert len(looks) == 4, "each curve can be told from the others"


def test_the_parts_of_a_bar_are_all_that_was_asked(found: Misses) -> None:
    arm = "policy=longest_prefix, page_size=8"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = found.plot_parts(arm)
        picture.draw_without_rendering()
    (ax,) = picture.axes
    bars: dict[str, list[float]] = {}
    for box in ax.patches:
        assert isinstance(box, Rectangle)
        bars.setdefault(str(box.get_gid()), []).append(box.get_height())
    points = found.curves[arm]
    assert bars["found"] == pytest.approx([1 - point.share for point in points])
    assert bars["evicted before"] == pytest.approx([p.again / p.asked for p in points])
    assert bars["beyond the last whole page"][-1] > 0
    assert [sum(column) for column in zip(*bars.values(), strict=True)] == pytest.approx([1] * 4)
    assert "Pool of 1,024" in picture.alt and arm in picture.alt
    first = next(iter(found.curves))
    assert found.plot_parts().alt.startswith(first)
    with pytest.raises(ValueError, match="no arm 'other'; there are policy=prefill_first, page"):
        found.plot_parts("other")


def test_what_cannot_be_counted_is_refused() -> None:
    late = TURNS.arriving("poisson", rate=1.0)
    with pytest.raises(ValueError, match="by the clock on the wall.*clock='steps'"):
        misses(late, POOLS)
    with pytest.raises(ValueError, match="no size"):
        misses(TURNS, [])
    with pytest.raises(ValueError, match="no values for page_size"):
        misses(TURNS, POOLS, {"page_size": []})
    twins = [lambda ledger: find_policy("mixed")(ledger) for _ in range(2)]
    with pytest.raises(ValueError, match="two arms are called policy=<lambda>"):
        misses(TURNS, POOLS, {"policy": twins})
    with pytest.raises(ValueError, match="pages"):
        misses(TURNS, [16], {"page_size": [4]})
