from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.core import SamplingParams
from minisgl.engine.engine import Engine
from minisgl.engine.follow import arrivals, follow, without
from tests.engine.test_travel import facts
from tests.hash_engine import expected, hash_engine
from tests.scheduler.test_workloads import Options, Workload, engines, workloads


def driven(options: Options, workload: Workload, data: st.DataObject) -> Engine:
    """A run in which requests arrive and are aborted at any time."""
    engine = hash_engine(**options)
    todo, added = list(workload), 0
    while todo or engine.busy:
        # one that has nothing to do stays as it is until something arrives: that is not drawn out
        if todo and (not engine.busy or data.draw(st.booleans(), "add")):
            engine.add(*todo.pop())
            added += 1
        if added and data.draw(st.integers(0, 9)) == 0:
            engine.abort(data.draw(st.integers(0, added - 1)))
        engine.step()
    engine.run()
    return engine


@settings(max_examples=40, deadline=None)
@given(workloads, engines, st.data())
def test_recorded_arrivals_that_are_followed_give_the_same_run(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    options["chunked_prefill"] = options["max_step_tokens"] < 14
    options["depth"] = min(2, options["depth"])  # what a trace's configuration can say
    first = driven(options, workload, data)
    again = hash_engine(**options)
    follow(again, arrivals(first.trace))
    assert [record.plan for record in again.trace] == [record.plan for record in first.trace]
    outputs = {rid: request.output for rid, request in first.requests.items()}
    assert {rid: request.output for rid, request in again.requests.items()} == outputs


@settings(max_examples=40, deadline=None)
@given(workloads, engines, st.data())
def test_without_a_request_the_others_answer_alike_and_it_never_runs(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    options["chunked_prefill"] = options["max_step_tokens"] < 14
    engine = driven(options, workload, data)
    gone = data.draw(st.sampled_from(sorted(engine.requests)))
    before = facts(list(engine.trace))
    twin = without(engine, [gone])
    assert facts(list(engine.trace)) == before
    assert all(row.rid != gone for record in twin.trace for row in record.batch.rows)
    room = engine.config.limits.max_seq_len
    for rid, request in engine.requests.items():
        if rid != gone and "abort" not in (request.finish, twin.requests[rid].finish):
            want = expected(request.prompt, request.sampling, room)
            assert twin.requests[rid].output == request.output == want


def test_a_request_that_held_another_up_no_longer_does() -> None:
    engine = hash_engine(num_pages=12, page_size=1)
    engine.add([1, 2, 3], SamplingParams(max_tokens=8, ignore_eos=True))
    late = engine.add([4, 5, 6], SamplingParams(max_tokens=8, ignore_eos=True))
    engine.run()
    assert engine.trace.explain(late.rid).latency > 12
    assert without(engine, [0]).trace.explain(late.rid).latency <= 9


def test_a_request_that_never_came_cannot_be_left_out() -> None:
    engine = hash_engine()
    with pytest.raises(KeyError, match="request 3 does not arrive"):
        without(engine, [3])


def test_a_number_of_ones_own_must_be_new() -> None:
    engine = hash_engine()
    assert engine.add([1], rid=5).rid == 5
    assert engine.add([1]).rid == 6
    with pytest.raises(ValueError, match="rid must be at least 7"):
        engine.add([1], rid=6)
