"""An engine in a notebook: its toggles, its pages, its requests."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.core import SamplingParams
from minisgl.display import MOST
from tests.hash_engine import hash_engine
from tests.scheduler.test_workloads import Options, Workload, engines, workloads
from tests.seen import Seen

SHORT = SamplingParams(max_tokens=1, ignore_eos=True)


class Shouts:
    """A codec whose every text is hostile."""

    def decode(self, ids: Any) -> str:
        """Markup for every token."""
        return "<script>&\x07" * len(ids)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a card needs {name} of a codec")


@settings(max_examples=50)
@given(workloads, engines, st.integers(0, 6))
def test_an_engine_shows_its_pages_and_its_requests(
    workload: Workload, options: Options, steps: int
) -> None:
    engine = hash_engine(**options)
    for prompt, sampling in workload:
        engine.add(prompt, sampling)
    engine.run(max_steps=steps)
    page = engine._repr_html_()
    seen = Seen(page)
    assert repr(engine)[len("Engine(") : -1] in seen.words and page == engine._repr_html_()
    gauges, total = engine.gauges, len(engine.pages)
    held = sum(count > 0 for count in engine.pages) - gauges.evictable_pages
    pages = {"held": held, "evictable": gauges.evictable_pages, "free": gauges.free_pages}
    assert sum(pages.values()) == total
    said = ", ".join(f"{name} {n}" for name, n in pages.items() if n)
    assert seen.labels == [f"pages: {said}"]
    rows = seen.tables[0][1:]
    order = ["running", "waiting"]
    ranks = [order.index(row[1]) if row[1] in order else 2 for row in rows]
    assert ranks == sorted(ranks) and len(rows) == len(engine.requests)
    for rid, state, prompt_len, reused, output_len, text in rows:
        request = engine.requests[int(rid[1:])]
        assert (state, text) == (request.state, " ".join(map(str, request.output)))
        numbers = (request.prompt_len, request.cached, len(request.output))
        assert (int(prompt_len), int(reused), int(output_len)) == numbers


def test_an_engine_with_many_requests_shows_the_live_and_the_latest() -> None:
    engine = hash_engine(check=False)
    for _ in range(200):
        engine.add([1, 2], SHORT)
    engine.run()
    engine.add([1, 2], SHORT)
    page = engine._repr_html_()
    names = [row[0] for row in Seen(page).tables[0][1:]]
    assert names == ["r200", *(f"r{rid}" for rid in range(199, 200 - MOST, -1)), "and 181 more"]
    assert len(page) < 12_000


def test_what_a_model_says_stays_text() -> None:
    engine = hash_engine()
    request = engine.add([1, 2], SamplingParams(max_tokens=3, ignore_eos=True))
    engine.run()
    request.decode = Shouts().decode
    assert Seen(engine._repr_html_()).tables[0][1][-1] == "<script>&\\x07" * 3


def test_the_toggles_are_said_in_words_and_a_function_by_its_name() -> None:
    def nobody_first(ledger: Any) -> Any: ...

    engine = hash_engine(policy=nobody_first, depth=1, page_size=4, prefix_cache="naive")
    words = Seen(engine._repr_html_()).words
    toggles = "policy nobody_first · admission reserve · no overlap · naive prefix cache"
    assert f"{toggles} · chunked prefill · 40 pages of 4 positions" in words
    assert "0x" not in words
