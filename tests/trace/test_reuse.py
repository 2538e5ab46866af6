"""What the prefix cache found, whose it was, and what it saved."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minisgl
from minisgl.core import Batch, Gauges, Outcome, Plan, Reused, Row, SamplingParams, Span, StepRecord
from minisgl.engine.engine import Engine
from minisgl.trace.cost import seconds_per_token
from tests.hash_engine import hash_engine
from tests.scheduler.test_workloads import Options, Workload, engines, workloads

GREEDY = SamplingParams(max_tokens=4, ignore_eos=True)


def run(workload: Workload, options: Options, data: st.DataObject) -> Engine:
    """A crowded run with aborts; requests that cannot run at all are left out."""
    options |= {"num_pages": data.draw(st.integers(6, 30), "pages"), "max_step_tokens": 23}
    options["max_seq_len"] = min(23, options["num_pages"] * options["page_size"])
    engine = hash_engine(**options)
    for prompt, sampling in workload:
        if len(prompt) < options["max_seq_len"]:
            engine.add(prompt, sampling)
        engine.run(max_steps=data.draw(st.integers(0, 3), "steps"))
        if engine.requests and data.draw(st.integers(0, 9), "abort") == 0:
            engine.abort(data.draw(st.sampled_from(sorted(engine.requests)), "whom"))
    engine.run()
    return engine


@settings(max_examples=200)
@given(workloads, engines, st.data())
def test_each_reused_position_was_written_by_the_request_that_is_named(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    trace = run(workload, options, data).trace
    size = trace.config.page_size
    wrote: dict[tuple[int, int], int] = {}  # (page, offset) -> who wrote there last
    tables: dict[int, list[int]] = {}
    want: dict[int, Counter[int]] = {}
    for record in trace:
        for event in record.events:
            if isinstance(event, Reused):
                found = want.setdefault(event.rid, Counter())
                found.update(wrote[page, at] for page in event.pages for at in range(size))
        for row in record.batch.rows:
            table = tables.setdefault(row.slot, [])
            table[row.first_page :] = row.new_pages
            for position in range(row.start, row.start + row.length):
                wrote[table[position // size], position % size] = row.rid
    told = trace.reuse()
    assert {r.rid: Counter(dict(r.sources)) for r in told.requests if r.reused} == want
    reused = [e.num_tokens for r in trace for e in r.events if isinstance(e, Reused)]
    assert told.reused == sum(reused) == sum(r.reused for r in told.requests)
    rows = [row for r in trace for row in r.batch.rows if row.token_ids is not None]
    assert told.computed == sum(row.length for row in rows)
    assert [r.reused for r in told.requests] == [
        sum(dict(r.sources).values()) for r in told.requests
    ]


def test_a_prefix_is_traced_to_those_who_computed_it() -> None:
    engine = hash_engine(page_size=2, depth=1)
    engine.add([1, 2, 3, 4, 9], GREEDY)
    engine.run()
    engine.add([1, 2, 3, 4, 5, 6, 7, 8, 9], GREEDY)  # four of r0, then four of its own
    engine.run()
    engine.add([1, 2, 3, 4, 5, 6, 7, 8, 8], GREEDY)
    engine.add([9, 9], GREEDY)
    engine.run()
    told = engine.trace.reuse()
    assert [request.reused for request in told.requests] == [0, 4, 8, 0]
    assert told.requests[2].sources == ((0, 4), (1, 4))
    assert (told.reused, told.computed, told.share) == (12, 5 + 5 + 1 + 2, 12 / 25)
    assert repr(told).splitlines() == [
        "12 of 25 prompt tokens reused (48.0 %)",
        "r1: 4 tokens: 4 of r0",
        "r2: 8 tokens: 4 of r0, 4 of r1",
    ]
    assert "4 of r0, 4 of r1" in told._repr_html_() and "12 of 25" in told._repr_html_()
    assert list(told.to_frame().columns) == ["rid", "reused", "computed", "sources", "seconds"]


def test_a_twin_is_not_named_whose_copy_was_not_kept() -> None:
    """Two are given the same prompt at once by hand; the cache keeps the first's pages."""
    engine = hash_engine(depth=1)
    for _ in range(2):
        engine.add([1, 2, 3, 4], GREEDY)
    engine.launch(minisgl.Plan(((1, 4), (0, 4))))
    engine.collect()
    engine.add([1, 2, 3, 4], GREEDY)
    engine.run()
    assert engine.trace.reuse().requests[2].sources == ((1, 3),)


def test_the_hash_oracle_saves_a_microsecond_a_token() -> None:
    engine = hash_engine(num_pages=80, max_step_tokens=16)
    for i in range(6):
        engine.add([*range(1, 11), i, i, *range(i)], GREEDY)
        engine.run(max_steps=2)
    engine.run()
    told = engine.trace.reuse()
    assert told.seconds_per_token == pytest.approx(1e-6)
    assert told.seconds == pytest.approx(1e-6 * told.reused) and told.reused > 20
    assert sum(request.seconds for request in told.requests) == pytest.approx(told.seconds)


def timed(prompt: int, decodes: int, seconds: float) -> StepRecord:
    rows = [Row(0, 0, 0, prompt, (1,) * prompt, 0, (), True, GREEDY)] if prompt else []
    rows += [Row(i, i, 5, 1, None, 0, (), True, GREEDY) for i in range(1, decodes + 1)]
    spans = (  # two lanes that work side by side
        Span("device", "batch", 1.0, 1.0 + seconds),
        Span("other", "batch", 1.0, 1.0 + seconds / 2),
    )
    empty = Gauges(0, 0, 0, 0, 0, 0)
    return StepRecord(Plan(), Batch(0, tuple(rows)), Outcome(0, ()), (), empty, spans)


@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(0, 8)), min_size=12, unique=True),
    st.tuples(st.floats(1e-6, 1e-3), st.floats(0, 1e-3), st.floats(0, 1e-1)),
)
def test_the_cost_of_a_token_is_found_again(
    sizes: list[tuple[int, int]], costs: tuple[float, float, float]
) -> None:
    if len({prompt for prompt, _ in sizes}) < 6:
        return  # too much alike to tell the costs apart
    token, decode, step = costs
    records = [timed(p, d, p * token + d * decode + step) for p, d in sizes if p or d]
    if any(p * token + d * decode + step < 1e-9 for p, d in sizes):
        return
    assert seconds_per_token(records) == pytest.approx(token, rel=1e-3, abs=1e-3 * step)


def test_a_cost_that_nothing_tells_is_not_a_number() -> None:
    assert math.isnan(seconds_per_token([]))
    assert math.isnan(seconds_per_token([timed(0, 3, 1e-3)]))
    assert math.isnan(seconds_per_token([timed(8, 3, 0.0)]))
    assert seconds_per_token([timed(8, 0, 4e-3)] * 3) == pytest.approx(5e-4)


def test_what_was_computed_before_the_kept_history_has_no_name() -> None:
    engine = hash_engine(num_pages=60, history=20, check=False)
    engine.add([3, 1, 3, 1], GREEDY)
    engine.run()
    for i in range(30):
        engine.add([1 + i % 5, 2], GREEDY)
        engine.run()
    assert engine.trace.history.first > 0
    engine.add([3, 1, 3, 1, 1], GREEDY)
    engine.run()
    told = engine.trace.reuse()
    assert told.requests[-1].sources == ((None, 4),)
    assert repr(told).splitlines()[-1].endswith("of an earlier time")
