"""Random workloads against the oracle: tokens must not depend on how steps are cut, cached,
preempted or overlapped, and every page and slot adds up after every step."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.core import Preempted, Refusal, Request, SamplingParams
from minisgl.engine.engine import Engine
from minisgl.registry import names
from tests.hash_engine import (
    expected,
    fresh_scheduler,
    hash_engine,
    logprobs_are_right,
    state,
)

prompts = st.lists(st.integers(1, 2), min_size=1, max_size=14)
samplings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 1.0]),
    max_tokens=st.integers(0, 9),
    ignore_eos=st.booleans(),
    seed=st.none() | st.integers(0, 2),
    repetition_penalty=st.sampled_from([1.0, 1.0, 2.0]),
    logprobs=st.none() | st.just(1),
    prompt_logprobs=st.none() | st.none() | st.just(1),
    stop_token_ids=st.just(()) | st.just((5,)),
)
workloads = st.lists(st.tuples(prompts, samplings), min_size=1, max_size=9)
engines = st.fixed_dictionaries(
    {
        "num_pages": st.integers(24, 40),
        "page_size": st.sampled_from([1, 2, 4]),
        "policy": st.sampled_from(names("policy")),
        "depth": st.integers(1, 4),
        "max_running": st.integers(1, 4),
        "max_step_tokens": st.integers(14, 24) | st.integers(1, 6),
        "prefix_cache": st.sampled_from(names("prefix_cache")),
        "admission": st.sampled_from(["reserve", "optimistic"]),
        "expected_output": st.integers(1, 4),
    }
)


Workload = list[tuple[list[int], SamplingParams]]
Options = dict[str, Any]


def drive(engine: Engine, todo: Workload, data: st.DataObject) -> None:
    """Add, abort and step in any order until all is done, then compare with the oracle."""
    asked: list[tuple[Request, list[int]]] = []
    for _ in range(3000):
        if data.draw(st.booleans(), "add") and todo:
            prompt, sampling = todo.pop()
            asked.append((engine.add(prompt, sampling), prompt))
        if data.draw(st.integers(0, 9), "abort") == 0 and asked:
            engine.abort(data.draw(st.sampled_from(asked), "whom")[0].rid)
        if engine.step() is None and not todo:
            break
        engine.check()
    assert not engine._scheduler.busy, "the engine stalled"
    room = engine.config.limits.max_seq_len
    for request, prompt in asked:
        want = expected(prompt, request.sampling, room)
        if request.finish == "abort":
            want = want[: len(request.output)]
        assert request.output == want, request
        assert logprobs_are_right(request), request
    gauges = engine.gauges
    assert gauges.promised_pages == 0
    assert gauges.free_pages + gauges.evictable_pages == engine.config.num_pages


@settings(max_examples=300)
@given(workloads, engines, st.data())
def test_tokens_do_not_depend_on_the_schedule(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    options["chunked_prefill"] = options["max_step_tokens"] < 14 or data.draw(st.booleans())
    engine = hash_engine(**options)
    drive(engine, workload, data)
    again = engine.trace.scheduler()
    assert again.gauges == engine.gauges and again.step == engine._scheduler.step


@settings(max_examples=300)
@given(workloads, engines, st.data())
def test_a_tiny_pool_forces_eviction_and_preemption_and_no_token_changes(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    options |= {"num_pages": data.draw(st.integers(4, 14)), "admission": "optimistic"}
    options |= {"max_seq_len": 23, "max_step_tokens": 23}
    pool = options["num_pages"] * options["page_size"]
    workload = [(prompt, sampling) for prompt, sampling in workload if len(prompt) < pool]
    options["max_seq_len"] = min(23, pool)
    drive(hash_engine(**options), workload, data)


@settings(max_examples=100)
@given(workloads, engines, st.integers(0, 6))
def test_planning_changes_nothing(workload: Workload, options: Options, at: int) -> None:
    engine = hash_engine(**options)
    for prompt, sampling in workload:
        engine.add(prompt, sampling)
    for _ in range(at):
        engine.step()
    before = state(engine)
    for name in names("policy"):
        options["policy"] = name
        engine._scheduler.plan(fresh_scheduler(hash_engine(**options).config).policy)
    for request in engine.queue:
        engine.cache.match(request.prompt)
    assert state(engine) == before


@settings(max_examples=100)
@given(workloads, engines, st.data())
def test_a_plan_edited_by_hand_runs_or_is_refused_whole(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    engine = hash_engine(**options)
    for prompt, sampling in workload:
        engine.add(prompt, sampling)
    for _ in range(40):
        plan = engine.plan()
        rows = tuple(
            (row[0], data.draw(st.integers(1, row[1]) | st.integers(-1, 30)))
            for row in data.draw(st.permutations(plan.rows))
        )
        edited = type(plan)(rows[: data.draw(st.integers(0, len(rows)))], plan.preempt)
        before = state(engine)
        try:
            if edited:
                engine.launch(edited)
        except ValueError as error:
            assert "the plan" in str(error)
            assert state(engine) == before
        if len(engine._in_flight) == engine.depth:
            engine.collect()
        engine.check()
    drive(engine, [], data)
    for request in engine.requests.values():
        assert request.output == expected(
            request.prompt, request.sampling, engine.config.limits.max_seq_len
        )


@settings(max_examples=100)
@given(workloads, engines)
def test_whoever_waits_is_told_why(workload: Workload, options: Options) -> None:
    """Each waiting request is refused by name, or stands behind one that is."""
    engine = hash_engine(**options)
    for prompt, sampling in workload:
        engine.add(prompt, sampling)
    while record := engine.step():
        plan = record.plan
        assert all(isinstance(refusal, Refusal) and str(refusal) for refusal in plan.refusals)
        if engine.queue and (plan := engine.plan()):
            named = {rid for rid, _ in plan.rows} | {refusal.rid for refusal in plan.refusals}
            first = engine.queue[0].rid
            assert first in named or options["policy"] == "longest_prefix"


def test_many_crowded_runs_are_all_right_and_reach_every_corner() -> None:
    """Seeded, so that a failure can be run again; wider than hypothesis' examples are."""
    random, seen = Random(0), Counter[str]()
    for _ in range(400):
        page_size, num_pages = random.choice([1, 2, 4]), random.randint(6, 16)
        engine = hash_engine(
            num_pages=num_pages,
            page_size=page_size,
            policy=random.choice(names("policy")),
            depth=random.randint(1, 4),
            admission=random.choice(["optimistic", "optimistic", "reserve"]),
            expected_output=random.randint(1, 3),
            max_step_tokens=random.randint(3, 24),
            max_seq_len=min(23, num_pages * page_size),
        )
        room = engine.config.limits.max_seq_len
        for _ in range(8):
            prompt = [random.randint(1, 2) for _ in range(random.randint(1, 14))]
            if len(prompt) < room:
                sampling = SamplingParams(
                    temperature=random.choice([0, 1]),
                    max_tokens=random.randint(0, 9),
                    ignore_eos=random.random() < 0.5,
                    frequency_penalty=random.choice([0, 1]),
                    logprobs=random.choice([None, 0]),
                    prompt_logprobs=random.choice([None, None, 0]),
                )
                engine.add(prompt, sampling)
        for record in engine.steps():
            seen.update(type(event).__name__ for event in record.events)
            seen.update(refusal.why.name for refusal in record.plan.refusals)
            preempted = any(isinstance(event, Preempted) for event in record.events)
            seen["preempted in flight"] += preempted and engine.depth > 1
        for request in engine.requests.values():
            assert request.output == expected(request.prompt, request.sampling, room)
            assert logprobs_are_right(request)
    events = {"Reused", "Inserted", "Evicted", "Preempted", "Released"}
    corners = {
        "preempted in flight",
        "KV_PINNED",
        "KV_DRY",
        "PREFIX_IN_PROGRESS",
        "CHUNK_CONTINUES",
    }
    for corner in events | corners | {"AWAITS_RELEASE", "AWAITS_TOKEN", "NO_SLOT", "KV_RESERVE"}:
        assert seen[corner] > 20, f"{corner}: {seen[corner]} times"
