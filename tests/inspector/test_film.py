from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.core import SamplingParams, Why
from minisgl.engine.engine import Engine
from minisgl.inspector.film import HEAD, TAIL, Film
from tests.engine.test_engine import Flaky
from tests.hash_engine import hash_engine
from tests.inspector.films import Seen, holds_against
from tests.scheduler.test_workloads import Options, Workload, engines, workloads


def driven(engine: Engine, todo: Workload, data: st.DataObject) -> Film:
    """Everything that can happen, and a film that is read on at any moment."""
    film, seen = Film(engine.trace), Seen()
    added = 0
    for _ in range(300):
        if data.draw(st.booleans(), "add") and todo:
            engine.add(*todo.pop())
            added += 1
        if added and data.draw(st.integers(0, 9), "abort") == 0:
            engine.abort(data.draw(st.integers(0, added - 1), "whom"))
        if data.draw(st.integers(0, 3), "read") == 0:
            seen.read(film.read())
        if engine.step() is None and not todo:
            break
    seen.read(film.read())
    assert film.read() == b""
    holds_against(engine.trace, seen)
    return film


@settings(max_examples=120, deadline=None)
@given(workloads, engines, st.data())
def test_a_film_says_what_a_whole_replay_says(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    options["chunked_prefill"] = options["max_step_tokens"] < 14 or data.draw(st.booleans())
    engine = hash_engine(**options)
    driven(engine, workload, data)
    again = Seen().read(Film(engine.trace).read())
    holds_against(engine.trace, again)


@settings(max_examples=120, deadline=None)
@given(workloads, engines, st.data())
def test_evictions_preemptions_and_splits_are_told(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    options |= {"num_pages": data.draw(st.integers(4, 14)), "admission": "optimistic"}
    pool = options["num_pages"] * options["page_size"]
    options |= {"max_seq_len": min(23, pool), "max_step_tokens": 23}
    fits = [(prompt, sampling) for prompt, sampling in workload if len(prompt) < pool]
    driven(hash_engine(**options), fits, data)


@pytest.mark.filterwarnings("ignore:step .* failed")
def test_a_failed_step_is_told_with_the_emptied_cache() -> None:
    engine = hash_engine(page_size=2, runner=lambda oracle: Flaky(oracle, {3}, {6}))
    for first in (1, 1, 2, 2, 3, 3):
        engine.add([first] * 9, SamplingParams(max_tokens=4))
        engine.run(max_steps=2)
    engine.run()
    seen = Seen().read(Film(engine.trace).read())
    holds_against(engine.trace, seen)
    assert sum(step["failed"] for step in seen.steps) >= 1
    assert any("the step failed: RuntimeError: " in step["say"] for step in seen.steps)


def test_a_fork_and_a_history_without_its_beginning_are_told_whole() -> None:
    engine = hash_engine(page_size=2, num_pages=30, history=100)
    for first in range(400):
        engine.add([1 + first % 3] * (3 + first % 7), SamplingParams(max_tokens=5, ignore_eos=True))
        engine.run(max_steps=2)
    assert engine.trace.history.first > 0
    seen = Seen().read(Film(engine.trace).read())
    holds_against(engine.trace, seen, every=7)
    twin = engine.fork(policy="mixed", max_step_tokens=8)
    twin.run()
    holds_against(twin.trace, Seen().read(Film(twin.trace).read()), every=7)


def test_refusals_requests_and_spans_come_with_their_numbers() -> None:
    engine = hash_engine(num_pages=12, page_size=2, max_running=3)
    for first in range(1, 6):
        engine.add([first] * 6, SamplingParams(max_tokens=9, ignore_eos=True))
    engine.run()
    seen = Seen().read(Film(engine.trace).read())
    for step, record in zip(seen.steps, engine.trace, strict=True):
        for told, refusal in zip(step["refusals"], record.plan.refusals, strict=True):
            name, template = seen.about["why"][told["why"]]
            assert (name, template) == (refusal.why.name, refusal.why.value)
            words = template.format(asked=told["asked"], left=told["left"], by=told["by"])
            assert f"r{told['rid']} waits: {words}" == str(refusal)
    assert {name for name, _ in seen.about["why"]} == {why.name for why in Why}
    told = [row for step in seen.steps for row in step["requests"]]
    assert [(r["rid"], r["prompt_len"], r["max_tokens"]) for r in told] == [
        (request.rid, 6, 9) for request in engine.requests.values()
    ]
    names, lanes = seen.header["names"], seen.header["lanes"]
    ends = dict.fromkeys(range(len(lanes)), 0)
    origin = seen.about["origin"]
    for step, record in zip(seen.steps, engine.trace, strict=True):
        for told_span, span in zip(step["spans"], record.spans, strict=True):
            lane = told_span["lane"]
            start = ends[lane] + told_span["gap"]
            ends[lane] = start + told_span["length"]
            assert lanes[lane] == span.lane
            assert names[told_span["name"]] == (span.name if span.lane == "host" else "step")
            assert start == pytest.approx((span.start - origin) * 1e9, abs=1)
            assert ends[lane] == pytest.approx((span.end - origin) * 1e9, abs=1)


def test_long_prompts_are_told_by_their_beginning_and_end() -> None:
    engine = hash_engine(num_pages=2000, max_step_tokens=3000, max_seq_len=2000)
    engine.add([1 + i % 7 for i in range(1000)], SamplingParams(max_tokens=2))
    engine.add([1 + i % 5 for i in range(HEAD + 10)], SamplingParams(max_tokens=2))
    engine.run()
    film = Film(engine.trace).read()
    first, second = Seen().read(film).steps[0]["requests"]
    assert (first["head"], first["tail"]) == (HEAD, TAIL)
    assert (second["head"], second["tail"]) == (HEAD, 10)


def test_a_redacted_film_holds_no_token() -> None:
    engine = hash_engine()
    engine.add([11, 12, 11, 12, 11], SamplingParams(max_tokens=6))
    engine.run()
    seen = Seen().read(Film(engine.trace, redact=True).read())
    assert seen.words == {} and seen.about["redacted"]
    assert all(tokens == [] for tokens in seen.node_tokens.values())
    sampled = seen.about["events"].index("sampled")
    rows = [row for step in seen.steps for row in step["events"] if row["kind"] == sampled]
    assert rows and all(row["value"] == -1 for row in rows)
    assert all(row["head"] == row["tail"] == 0 for s in seen.steps for row in s["requests"])
