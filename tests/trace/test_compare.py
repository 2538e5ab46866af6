"""Two runs held against each other: the first difference is found, named and explained."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minisgl
from minisgl.core import Abort, Add, Finished, Gauges, Plan, Sampled, SamplingParams
from minisgl.engine.engine import Engine
from minisgl.trace import Trace
from minisgl.trace.compare import compare
from minisgl.trace.divergence import _Side, divergence
from tests.engine.test_engine import Flaky
from tests.hash_engine import hash_engine
from tests.scheduler.test_workloads import Options, Workload, engines, workloads

GREEDY = SamplingParams(max_tokens=6, ignore_eos=True)


def first_difference(a: Trace, b: Trace) -> int | None:
    """The slow twin: a list of facts for each step, compared."""
    here, there = facts(a), facts(b)
    for step, (x, y) in enumerate(zip(here, there, strict=False)):
        if x != y:
            return step
    return None if len(here) == len(there) else min(len(here), len(there))


def facts(trace: Trace) -> list[Any]:
    came: list[list[Any]] = [[]]
    for item in trace.history.inputs(0, trace.history.num_inputs):
        if isinstance(item, Plan):
            came.append([])
        elif isinstance(item, Add):
            came[-1].append((item.rid, item.prompt))
        elif isinstance(item, Abort):
            came[-1].append(item.rid)
    out: list[Any] = []
    for record, before in zip(trace, came, strict=False):
        rows = sorted((row.rid, row.start, row.length) for row in record.batch.rows)
        tokens = sorted(zip((r.rid for r in record.batch.rows), record.outcome.tokens, strict=True))
        ends = sorted(
            (e.rid, e.reason)
            for e in record.events
            if isinstance(e, Finished) and e.reason != "abort"
        )
        out.append((before, rows, sorted(record.plan.preempt), tokens, ends))
    rest = came[len(trace)] if len(came) > len(trace) else []
    return [*out, ("came since", rest)] if rest else out


def served(workload: Workload, abort: int | None, **options: Any) -> Engine:
    engine = hash_engine(**options)
    for k, (prompt, sampling) in enumerate(workload):
        engine.add(prompt, sampling)
        engine.run(max_steps=2)
        if k == abort:
            engine.abort(0)
    engine.run()
    return engine


@settings(max_examples=100)
@given(workloads, engines, st.data())
def test_runs_part_where_a_list_of_facts_does(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    changes: dict[str, Any] = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "policy": st.sampled_from(["mixed", "decode_first"]),
                "depth": st.integers(1, 3),
                "admission": st.sampled_from(["reserve", "optimistic"]),
                "max_step_tokens": st.integers(4, 30),
                "prefix_cache": st.sampled_from(["radix", "naive"]),
                "page_size": st.sampled_from([1, 2]),
            },
        ),
        "changes",
    )
    other = list(workload)
    if data.draw(st.booleans(), "another prompt"):
        other[data.draw(st.integers(0, len(other) - 1), "whose")] = ([2, 2, 2], GREEDY)
    aborts = [data.draw(st.none() | st.integers(0, 3), "abort") for _ in "ab"]
    a = served(workload, aborts[0], **options)
    b = served(other, aborts[1], **options | changes)
    if data.draw(st.booleans(), "unfinished") and len(b.trace) > 2:
        b.rewind(to=data.draw(st.integers(1, len(b.trace) - 1), "to"))
    told = compare(a, b)
    assert told.step == first_difference(a.trace, b.trace), told
    back = compare(b, a)
    assert (back.step is None) == (told.step is None)
    if told.divergence is not None and back.divergence is not None:
        assert (told.divergence.kind, told.step) == (back.divergence.kind, back.step)
        assert told.divergence.what
    for pair in told.requests:
        outputs = [_output(engine.trace, pair.rid) for engine in (a, b)]
        assert pair.equal in (None, outputs[0] == outputs[1])
        assert (pair.equal is None) == (None in (pair.output_a, pair.output_b))
        if pair.first_difference is not None:
            assert outputs[0][: pair.first_difference] == outputs[1][: pair.first_difference]
    steps, computed = told.totals["steps"], told.totals["positions computed"]
    assert steps == (len(a.trace), len(b.trace))
    assert computed[1] == sum(record.batch.num_tokens for record in b.trace)
    assert told.to_frame().computed_b.sum() == computed[1] and repr(told) == repr(compare(a, b))


def _output(trace: Trace, rid: int) -> list[int]:
    events = (event for record in trace for event in record.events)
    return [event.token for event in events if isinstance(event, Sampled) and event.rid == rid]


def crowd(**options: Any) -> Engine:
    fixed: dict[str, Any] = {"depth": 1, "num_pages": 12, "max_seq_len": 12, "expected_output": 1}
    engine = hash_engine(**fixed | options)
    for i in range(3):
        engine.add([1 + i] * 4, GREEDY)
    engine.run()
    return engine


def test_a_request_that_is_not_admitted_is_explained_by_the_refusal_and_the_configuration() -> None:
    told = compare(crowd(), crowd(admission="optimistic"))
    assert told.divergence is not None and told.divergence.kind == "decision"
    assert told.settings == {"admission": ("reserve", "optimistic")}
    assert repr(told).splitlines() == [
        "a and b part in step 0: b prefills r1[0:4], a does not: 9 pages asked, 3 left",
        "they differ in admission: 'reserve' against 'optimistic'",
        "3 requests in both, 3 with the same tokens in both",
        "                                     a         b",
        "steps                               18        15",
        "positions computed                  27        30",
        "positions reused                     0         3",
        "tokens generated                    18        18",
        "steps waited                        18        12",
        "preemptions                          0         1",
        "pages evicted                       15        18",
        "most pages held after a step         8        12",
    ]
    assert "<th" in told._repr_html_() and "step 0: b prefills" in told._repr_html_()


def test_a_run_is_the_same_as_itself_and_as_its_repetition() -> None:
    one, other = crowd(), crowd()
    told = compare(one, other.trace)
    assert told.divergence is None and told.step is None and told.settings == {}
    assert repr(told).splitlines()[:3] == [
        f"a and b are the same in all of {len(one.trace)} steps",
        "they have one configuration",
        "3 requests in both, 3 with the same tokens in both",
    ]


def test_a_fork_parts_from_its_parent_where_it_decides_otherwise() -> None:
    engine = hash_engine(depth=1, max_step_tokens=4)
    for i in range(3):
        engine.add([1 + i] * 6, GREEDY)
    engine.run(max_steps=2)
    twin = engine.fork(policy="decode_first")
    engine.run()
    twin.run()
    told = compare(engine, twin)
    assert told.step is not None and told.step >= 2
    assert told.settings == {"policy": ("prefill_first", "decode_first")}
    assert "does not" in str(told.divergence) and told.requests[0].equal


def test_an_arrival_that_one_run_has_not_is_where_they_part() -> None:
    def run(prompts: list[list[int]], abort: bool = False) -> Engine:
        engine = hash_engine(depth=1)
        for prompt in prompts:
            engine.add(prompt, GREEDY)
            engine.run(max_steps=2)
        if abort:
            engine.abort(0)
        engine.run()
        return engine

    two = run([[1, 2], [2, 2]])
    assert str(divergence(two.trace, run([[1, 2]]).trace)) == (
        "step 2: r1 arrives in a and not in b"
    )
    assert str(divergence(run([[1, 2]]).trace, two.trace)) == (
        "step 2: r1 arrives in b and not in a"
    )
    assert str(divergence(two.trace, run([[1, 2], [3, 2]]).trace)) == (
        "step 2: r1 arrives with another prompt"
    )
    aborted = run([[1, 2], [2, 2]], abort=True)
    assert str(divergence(two.trace, aborted.trace)) == ("step 4: r0 is aborted in b and not in a")
    assert "in a alone: r1" in repr(compare(two, run([[1, 2]])))


def test_another_end_and_another_token_are_outcomes() -> None:
    def run(sampling: SamplingParams) -> Engine:
        engine = hash_engine(depth=1)
        engine.add([1, 2], sampling)
        engine.run()
        return engine

    longer = compare(run(GREEDY), run(SamplingParams(max_tokens=8, ignore_eos=True)))
    assert str(longer.divergence) == "step 5: r0 ends (length) in a, goes on in b"
    assert (longer.requests[0].equal, longer.requests[0].first_difference) == (False, 6)
    hot = [run(SamplingParams(temperature=1, seed=k, max_tokens=3)) for k in (1, 2)]
    told = compare(*hot)
    assert told.divergence is not None and told.divergence.kind == "outcome"
    assert told.divergence.what.startswith("r0's next token is ")


@pytest.mark.filterwarnings("ignore:step .* failed")
def test_a_step_that_failed_in_one_run_is_named() -> None:
    def run(failing: set[int]) -> Engine:
        engine = hash_engine(depth=1, runner=lambda oracle: Flaky(oracle, set(), failing))
        engine.add([1, 2], GREEDY)
        engine.run()
        return engine

    told = compare(run(set()), run({2}))
    assert "step 2: the step failed in b: RuntimeError: device lost" in str(told.divergence)


def test_a_run_that_stands_still_is_not_taken_for_one_that_ended() -> None:
    done, begun = crowd(), hash_engine(depth=1, num_pages=12, max_seq_len=12, expected_output=1)
    for i in range(3):
        begun.add([1 + i] * 4, GREEDY)
    begun.run(max_steps=2)
    assert str(compare(done, begun).divergence) == (
        "step 2: b has no such step, a goes on; 3 requests of b are not over"
    )


def test_a_cached_prefix_explains_what_is_not_computed() -> None:
    def run(**options: Any) -> Engine:
        engine = hash_engine(depth=1, **options)
        for _ in range(2):
            engine.add([1, 2, 3, 4, 5], GREEDY)
            engine.run()
        return engine

    told = compare(run(), run(prefix_cache="naive"))
    assert str(told.divergence) == (
        "step 6: a prefills r1[4:5], b prefills r1[0:5]: 4 positions were in the cache against 0; "
        "before it pages cached 10 against 0"
    )


@settings(max_examples=50)
@given(workloads, engines)
def test_the_state_before_a_step_is_that_of_its_commit(
    workload: Workload, options: Options
) -> None:
    engine = hash_engine(**options)
    for prompt, sampling in workload:
        engine.add(prompt, sampling)
    seen: dict[int, Gauges] = {}
    while engine.plan() or engine._in_flight:  # what step() does, with a look before each launch
        while len(engine._in_flight) < engine.depth and engine.plan():
            seen[engine.next_step] = engine.gauges
            engine.launch()
        engine.collect()
    side = _Side("a", engine.trace)
    for step, gauges in seen.items():
        told = side.state(step)
        left = gauges.free_pages + gauges.evictable_pages - gauges.promised_pages
        assert (told["pages left"], told["running"]) == (left, gauges.running)
        assert (told["pages cached"], told["waiting"]) == (gauges.cached_pages, gauges.waiting)


def test_the_same_number_of_other_positions_is_another_decision() -> None:
    def run(**options: Any) -> Engine:
        engine = hash_engine(depth=1, max_step_tokens=2, page_size=2, **options)
        for _ in range(2):
            engine.add([1, 2, 3, 4, 5, 6], GREEDY)
            engine.run()
        return engine

    told = compare(run(), run(prefix_cache="naive"))
    assert "a prefills r1[4:6], b prefills r1[0:2]: 4 positions were" in str(told.divergence)


def test_what_is_left_of_long_runs_is_compared_and_nothing_in_common_is_said() -> None:
    def run(n: int, history: int | None) -> Engine:
        engine = hash_engine(history=history, check=False, depth=1)
        for i in range(n):
            engine.add([1 + i % 5, 2], GREEDY)
            engine.run()
        return engine

    long, kept = run(40, None), run(40, 20)
    assert kept.trace.history.first > 0
    assert compare(long, kept).divergence is None
    with pytest.raises(ValueError, match="no step in common: a keeps 0 to 5, b keeps "):
        compare(run(1, None), kept)
    kept.add([4, 4, 4], GREEDY)
    kept.run()
    assert "arrives in b and not in a" in str(compare(long, kept).divergence)


def test_only_runs_are_compared() -> None:
    thing: Any = 3
    with pytest.raises(TypeError, match="an engine or a trace is compared, got 3"):
        minisgl.compare(thing, crowd())


def test_nothing_against_nothing_is_the_same() -> None:
    told = compare(hash_engine(), hash_engine())
    assert told.divergence is None and told.to_frame().empty
    assert "equal" in told.to_frame().columns
