"""Going back, forking and stopping: the same records come again, and the two never meet."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.core import Abort, Finished, Outcome, SamplingParams, StepRecord
from minisgl.engine import travel
from minisgl.engine.engine import Engine
from minisgl.engine.runner import HashRunner
from minisgl.trace import Trace
from tests.engine.test_engine import Flaky
from tests.hash_engine import expected, hash_engine, state
from tests.scheduler.test_workloads import Options, Workload, engines, workloads

GREEDY = SamplingParams(max_tokens=6, ignore_eos=True)


def facts(records: list[StepRecord]) -> list[Any]:
    """Records without what a clock says."""
    return [(r.plan, r.batch, r.outcome._replace(spans=()), r.events, r.gauges) for r in records]


def filled(workload: Workload, **options: Any) -> Engine:
    engine = hash_engine(**options)
    for prompt, sampling in workload:
        engine.add(prompt, sampling)
    return engine


@settings(max_examples=150)
@given(workloads, engines, st.data())
def test_rewind_then_run_gives_the_same_records(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    options |= {"num_pages": data.draw(st.integers(14, 40)), "max_step_tokens": 23}
    options["max_seq_len"] = min(23, options["num_pages"] * options["page_size"])
    workload = [(p, s) for p, s in workload if len(p) < options["max_seq_len"]]
    engine = filled(workload, **options)
    engine._past.checkpoints.every = data.draw(st.sampled_from([1, 3, 64]), "checkpoints")
    engine.run(max_steps=data.draw(st.integers(0, 12), "steps"))
    for rid in data.draw(st.sets(st.integers(0, 5)), "aborts"):
        engine.abort(rid)
    engine.run()
    whole, texts = facts(list(engine.trace)), outputs(engine)
    for _ in range(3):
        to = data.draw(st.integers(0, len(engine.trace)), "to")
        before = engine.trace
        engine.rewind(to=to)
        engine.check()
        assert facts(list(engine.trace)) == whole[:to] and len(before) == len(whole)
        aborts_later = any(isinstance(i, Abort) for i in rest(before, to))
        engine.run()
        engine.check()
        if aborts_later:  # they were forgotten with the future
            break
        assert facts(list(engine.trace)) == whole
        assert outputs(engine) == texts


def rest(trace: Any, to: int) -> list[Any]:
    history = trace.history
    return list(history.inputs(history.end(to), history.num_inputs))


def outputs(engine: Engine) -> dict[int, Any]:
    return {rid: (r.output, r.finish) for rid, r in engine.requests.items()}


@settings(max_examples=100)
@given(workloads, engines, st.data())
def test_a_fork_and_its_parent_part_for_good(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    engine = filled(workload, **options)
    engine.run(max_steps=data.draw(st.integers(0, 8), "steps"))
    at = data.draw(st.none() | st.integers(0, len(engine.trace)), "at")
    changes: dict[str, Any] = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "policy": st.sampled_from(["mixed", "decode_first"]),
                "overlap": st.booleans(),
                "admission": st.sampled_from(["reserve", "optimistic"]),
                "max_step_tokens": st.integers(4, 30),
            },
        ),
        "changes",
    )
    twin = engine.fork(at=at, **changes)
    here = state(engine)
    twin.add([1, 2, 1], GREEDY)
    twin.run()
    twin.check()
    assert state(engine) == here
    engine.run()
    room = engine.config.limits.max_seq_len
    for one in (engine, twin):
        for request in one.requests.values():
            assert request.output == expected(request.prompt, request.sampling, room)


def test_rewind_drops_what_was_added_later_and_the_old_trace_keeps_it() -> None:
    engine = hash_engine(depth=1)
    first = engine.add([1, 2], GREEDY)
    engine.run(max_steps=3)
    engine.add([2, 2], GREEDY)
    engine.run()
    old = engine.trace
    engine.rewind(to=2)
    assert list(engine.requests) == [first.rid] and engine.requests[0] is not first
    assert len(engine.trace) == 2 and len(old) > 6
    again = engine.add([3, 3], GREEDY)
    assert again.rid == 1
    engine.run()
    assert again.output == expected([3, 3], GREEDY, 40)


def test_rewind_until_goes_to_just_after_the_last_record_that_fits() -> None:
    engine = hash_engine(depth=1)
    for i in range(3):
        engine.add([1, 2 + i], SamplingParams(max_tokens=2 + i, ignore_eos=True))
    engine.run()
    engine.rewind(until="finish")
    assert any(isinstance(event, Finished) for event in engine.trace[-1].events)
    assert engine.gauges.running == 1
    engine.rewind(until=lambda record: record.batch.step == 0)
    assert len(engine.trace) == 1
    with pytest.raises(ValueError, match="'evict' holds for no record"):
        engine.rewind(until="evict")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"to": 99}, ValueError, "no moment 99: one can go back to 0 to 3"),
        ({"to": -1}, ValueError, "at least 0"),
        ({"to": "3"}, TypeError, "to must be an integer"),
        ({}, TypeError, "either to= or until="),
        ({"to": 1, "until": "finish"}, TypeError, "either to= or until="),
        ({"until": "finsh"}, ValueError, "unknown condition 'finsh'; there are add, admit"),
        ({"until": 3}, TypeError, "a name or a function"),
    ],
)
def test_a_moment_that_is_none_is_refused_and_nothing_moves(
    arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    engine = hash_engine(depth=1)
    engine.add([1, 2], GREEDY)
    engine.run(max_steps=3)
    before = state(engine)
    with pytest.raises(error, match=says):
        engine.rewind(**arguments)
    assert state(engine) == before


def test_without_a_record_one_cannot_go_back_but_can_fork_now() -> None:
    engine = hash_engine(record=False)
    request = engine.add([1, 2], GREEDY)
    engine.run(max_steps=2)
    with pytest.raises(RuntimeError, match="record=True"):
        engine.rewind(to=0)
    twin = engine.fork()
    again = twin.requests[request.rid]
    twin.run()
    assert again.output == expected([1, 2], GREEDY, 40)
    assert not twin.requests, "what is over is forgotten where nothing is kept"


def test_a_fork_changes_only_what_its_pages_allow() -> None:
    engine = hash_engine()
    with pytest.raises(ValueError, match="a fork cannot change page_size.*can change policy"):
        engine.fork(page_size=4)
    engine.add([1] * 30, GREEDY)
    with pytest.raises(
        ValueError, match="request 0 has 30 prompt tokens .* a step would compute 8"
    ):
        engine.fork(chunked_prefill=False, max_step_tokens=8)


def test_a_fork_cannot_go_back_to_before_it_began() -> None:
    engine = hash_engine(depth=1)
    engine.add([1, 2], GREEDY)
    engine.run(max_steps=3)
    twin = engine.fork(policy="mixed")
    twin.run()
    twin.rewind(to=3)
    with pytest.raises(ValueError, match="no moment 2"):
        twin.rewind(to=2)


def test_a_device_that_does_not_repeat_itself_is_told() -> None:
    class Moody:
        def __init__(self, inner: HashRunner) -> None:
            self.inner, self.calls = inner, 0

        def launch(self, batch: Any) -> Any:
            launch, self.calls = self.inner.launch(batch), self.calls + 1
            if self.calls < 9:
                return launch
            outcome: Outcome = launch.result()
            return travel.Known(outcome._replace(tokens=tuple(12 for _ in outcome.tokens)))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    engine = hash_engine(depth=1, runner=Moody)
    engine.add([1, 2], GREEDY)
    engine.run()
    with pytest.raises(RuntimeError, match="step 2 computed .* cannot be rewound"):
        engine.rewind(to=5)
    with pytest.raises(RuntimeError, match="closed"):
        engine.step()


def test_history_is_bounded_and_what_is_left_can_be_gone_back_to() -> None:
    engine = hash_engine(history=100, num_pages=60, check=False)
    for i in range(60):
        engine.add([1 + i % 5, 2, 1 + i // 5 % 7], GREEDY)
        engine.run()
    first = engine.trace.history.first
    assert 100 <= len(engine.trace) - first <= 100 + 2 * travel.EVERY
    assert first > 100 and len(engine.requests) < 40
    whole = facts(list(engine.trace))
    engine.rewind(to=first + 30)
    assert facts(list(engine.trace)) == whole[:30]
    engine.run()
    engine.check()
    with pytest.raises(IndexError, match=f"{first} to"):
        _ = engine.trace[0]
    assert engine.trace.scheduler().gauges == engine.gauges
    for k in range(first, len(engine.trace), 50):
        assert engine.trace.scheduler(k).gauges == engine.trace[k].gauges
    with pytest.raises(ValueError, match="the first .* steps were forgotten"):
        engine.trace.check_whole()


def test_a_fork_with_smaller_steps_is_replayed_and_read_back(tmp_path: Path) -> None:
    engine = hash_engine(num_pages=80, page_size=4)
    for first in range(3):
        engine.add([first + 1] * 60, SamplingParams(max_tokens=9))
    engine.run(max_steps=3)
    twin = engine.fork(max_step_tokens=16, policy="mixed")
    twin.add([5] * 50, SamplingParams(max_tokens=5))
    twin.run()
    assert twin.trace.scheduler().gauges == twin.gauges
    twin.trace.save(tmp_path / "twin.jsonl")
    again = Trace.load(tmp_path / "twin.jsonl")
    assert facts(list(again)) == facts(list(twin.trace))
    assert again.config.max_step_tokens == 16


def test_ten_thousand_steps_with_a_bounded_history_keep_memory_flat() -> None:
    steady(10_000)


@pytest.mark.slow
def test_a_hundred_thousand_steps_with_a_bounded_history_keep_memory_flat() -> None:
    steady(100_000)


def steady(steps: int) -> None:
    """Objects alive after a third of the steps and at the end: no more."""
    engine = hash_engine(history=1000, num_pages=400, check=False, max_seq_len=40)
    counts = []
    for i in range(1, steps // 10 + 1):
        for j in range(2):
            engine.add([1 + (7 * i + j) % 11, 2, 3, i % 5], SamplingParams(max_tokens=9))
        engine.run(max_steps=10)
        if i in (steps // 30, steps // 10):
            gc.collect()
            counts.append(len(gc.get_objects()))
    assert counts[1] < counts[0] * 1.15, counts


def test_snapshots_keep_within_their_budget() -> None:
    engine = hash_engine(num_pages=60, check=False)
    engine._past.checkpoints.budget = 6000
    engine.add([1, 2, 3], SamplingParams(max_tokens=36, ignore_eos=True))
    for i in range(40):
        engine.add([1 + i % 5, 2, 1 + i // 5 % 7], SamplingParams(max_tokens=20, ignore_eos=True))
        engine.run()
    kept = engine._past.checkpoints._kept
    assert len(kept) > 2 and engine._past.checkpoints.num_bytes <= 6000
    whole = facts(list(engine.trace))
    engine.rewind(to=333)
    engine.run()
    assert facts(list(engine.trace))[:333] == whole[:333]


def test_a_snapshot_beyond_the_budget_is_not_made_and_going_back_says_what_to_do() -> None:
    engine = hash_engine(num_pages=60, check=False, history=100)
    engine._past.checkpoints.budget = 400
    for i in range(90):
        engine.add([1 + i % 5, 2, 1 + i // 5 % 7], SamplingParams(max_tokens=20, ignore_eos=True))
        engine.run()
    assert engine._past.checkpoints.num_bytes <= 400
    assert len(engine.trace) - engine.trace.history.first < 300, "bounded all the same"
    before = state(engine)
    with pytest.raises(ValueError, match="more than half of the 256 MiB .* larger snapshots"):
        engine.rewind(to=len(engine.trace) - 1)
    assert state(engine) == before
    twin = engine.fork()
    again = twin.add([9, 9], GREEDY)
    twin.run()
    assert again.output == expected([9, 9], GREEDY, 60)


@pytest.mark.filterwarnings("ignore:step .* failed")
@pytest.mark.parametrize("at_launch", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_one_can_go_back_over_a_failed_step(depth: int, at_launch: bool) -> None:
    failing: dict[str, set[int]] = {"at_launch": set(), "at_wait": set()}
    failing["at_launch" if at_launch else "at_wait"].add(3)

    def flaky(inner: HashRunner) -> Flaky:
        return Flaky(inner, **failing)

    engine = hash_engine(runner=flaky, depth=depth, page_size=16, max_running=3)
    for i in range(6):
        engine.add([1, 2, 1 + i], GREEDY)
    engine.run()
    whole = facts(list(engine.trace))
    for to in (len(whole) - 1, 6, 5, 4, 2):
        engine.rewind(to=to)
        assert facts(list(engine.trace)) == whole[:to]
    failing["at_launch"].clear()
    failing["at_wait"].clear()  # this time nothing fails
    engine.run()
    for request in engine.requests.values():  # in flight at depth 3 it failed already
        assert request.finish == "error" or request.output == expected(request.prompt, GREEDY, 640)
    assert depth == 3 or not any(r.finish == "error" for r in engine.requests.values())


def test_a_fork_without_chunks_needs_room_only_for_prompts_that_are_left() -> None:
    engine = hash_engine(chunked_prefill=False, max_step_tokens=8, depth=1)
    request = engine.add([1, 2, 1, 2, 1, 2], SamplingParams(max_tokens=20, ignore_eos=True))
    engine.run(max_steps=12)
    with engine.fork(policy="mixed") as twin:
        twin.run()
        assert twin.requests[request.rid].output == expected(request.prompt, request.sampling, 40)


# ---- breakpoints ---------------------------------------------------------------------------------


def test_run_stops_at_a_breakpoint_until_it_is_disabled_or_removed() -> None:
    engine = hash_engine(depth=1)
    for i in range(3):
        engine.add([1, 2 + i], SamplingParams(max_tokens=2 + i, ignore_eos=True))
    handle = engine.break_when("finish")
    assert handle in engine.breakpoints
    records = engine.run()
    assert any(isinstance(event, Finished) for event in records[-1].events)
    handle.enabled = False
    engine.run(max_steps=1)
    handle.enabled = True
    assert engine.run()
    handle.remove()
    handle.remove()
    engine.run()
    assert not engine.breakpoints and not engine.gauges.running


def test_a_breakpoint_is_called_what_it_is() -> None:
    engine = hash_engine()
    engine.break_when(lambda record: record.batch.step == 3)
    two = [lambda record: record.batch.step == 1, lambda record: record.batch.step == 2]
    for condition in ("evict", bool, eval("lambda record: False"), *two):
        engine.break_when(condition)
    assert [point.label for point in engine.breakpoints] == [
        "lambda record: record.batch.step == 3",
        "evict",
        "bool",
        "<lambda>",  # its text is nowhere, and of two in a line nobody knows which
        "<lambda>",
        "<lambda>",
    ]
    assert repr(engine.breakpoints[0]) == "Breakpoint(lambda record: record.batch.step == 3)"
    assert repr(engine.breakpoints[1]) == "Breakpoint('evict')"


def test_a_breakpoint_that_raises_is_disabled_and_the_engine_goes_on() -> None:
    engine = hash_engine()
    engine.add([1, 2], GREEDY)

    def impossible(record: StepRecord) -> object:
        return 1 // 0

    handle = engine.break_when(impossible)
    said = "breakpoint impossible failed and was disabled: ZeroDivisionError"
    with pytest.warns(RuntimeWarning, match=said):
        engine.run()
    assert not handle.enabled and not engine.gauges.running
    assert repr(handle) == "Breakpoint(impossible, disabled)"
    assert repr(engine.break_when("evict")) == "Breakpoint('evict')"


@pytest.mark.parametrize("name", ["add", "admit", "reuse", "insert", "wait", "abort", "release"])
def test_every_name_stops_where_it_happens(name: str) -> None:
    engine = hash_engine(depth=1, max_running=2)
    for i in range(4):
        engine.add([1, 2, 1, 1 + i], GREEDY)
    engine.run(max_steps=2)
    engine.abort(0)
    if name in ("add", "admit", "reuse"):
        engine.add([1, 2, 1, 9], GREEDY)
    engine.break_when(name)
    engine.run()
    assert engine.gauges.running or engine.gauges.waiting
