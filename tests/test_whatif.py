"""Recorded requests under other toggles."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minisgl
from minisgl.core import Sampled
from minisgl.engine.engine import Engine
from minisgl.tiny.generate import examples
from minisgl.trace.record import Recorder
from tests.scheduler.test_workloads import Options, Workload, engines, workloads

SAMPLING = minisgl.SamplingParams(max_tokens=24)


@pytest.fixture(scope="module")
def trace() -> minisgl.Trace:
    with minisgl.load("tiny", num_pages=64, max_running=3) as engine:
        for i, (chat, _) in enumerate(examples("role", 6, seed=1)):
            engine.add(chat, SAMPLING)
            engine.run(max_steps=3)
            if i == 3:
                engine.abort(3)
        engine.run()
        return engine.trace


@pytest.mark.parametrize(
    "changes",
    [{}, {"prefix_cache": "naive"}, {"page_size": 4}, {"policy": "mixed", "overlap": False}],
)
def test_the_same_requests_say_the_same_under_other_toggles(
    trace: minisgl.Trace, changes: dict[str, Any]
) -> None:
    said: dict[int, tuple[int, ...]] = {}
    for record in trace:
        for event in record.events:
            if isinstance(event, Sampled):
                said[event.rid] = (*said.get(event.rid, ()), event.token)
    with minisgl.replay(trace, check=True, **changes) as engine:
        assert len(engine.requests) == 6 and engine.requests[3].finish == "abort"
        for rid, request in engine.requests.items():
            assert rid == 3 or request.output == said[rid]
        if not changes:
            assert [r.batch for r in engine.trace] == [r.batch for r in trace]
        if "page_size" in changes:
            assert engine.config.num_pages == 256


def test_a_trace_from_a_file_replays_to_the_same_plans_and_tokens(
    trace: minisgl.Trace, tmp_path: Path
) -> None:
    trace.save(tmp_path / "run.jsonl")
    with minisgl.replay(minisgl.Trace.load(tmp_path / "run.jsonl")) as engine:
        assert [(r.plan, r.batch) for r in engine.trace] == [(r.plan, r.batch) for r in trace]
        assert [r.outcome.tokens for r in engine.trace] == [r.outcome.tokens for r in trace]


def test_what_a_server_recorded_that_keeps_no_records_itself_replays_the_same(
    tmp_path: Path,
) -> None:
    with minisgl.load("tiny", num_pages=64, record=False) as served:
        recorder = Recorder(tmp_path / "run.jsonl", served.header)
        recorder.begin(None)
        served.listeners.append(recorder.listen)
        served.observers.append(recorder.record)
        served.add("Who are you?", SAMPLING)
        served.run()
        recorder.end()
    recorded = minisgl.Trace.load(tmp_path / "run.jsonl")
    with minisgl.replay(recorded) as engine:
        told = minisgl.compare(recorded, engine)
    assert len(recorded) and told.step is None and told.settings == {}


def outputs(engine: Engine) -> dict[int, tuple[int, ...]]:
    return {rid: request.output for rid, request in engine.requests.items()}


def test_recorded_lengths_make_the_same_work_for_any_model(trace: minisgl.Trace) -> None:
    said: Counter[int] = Counter(e.rid for r in trace for e in r.events if isinstance(e, Sampled))
    with minisgl.replay(trace, runner="hash", output_lengths="recorded", policy="mixed") as engine:
        for rid, request in engine.requests.items():
            assert rid == 3 or len(request.output) == said[rid]
            assert rid == 3 or request.finish == "length"
        assert engine.requests[3].finish == "abort"
        assert engine.requests[3].sampling == SAMPLING
    with minisgl.replay(trace, runner="hash") as engine:  # the hash model ends when it likes
        assert any(len(request.output) != said[rid] for rid, request in engine.requests.items())


def test_recorded_lengths_leave_the_model_its_own_words(trace: minisgl.Trace) -> None:
    with minisgl.replay(trace) as once, minisgl.replay(trace, output_lengths="recorded") as again:
        pairs = minisgl.compare(once, again).requests
        assert len(pairs) == 6 and all(pair.equal or pair.rid == 3 for pair in pairs)
        assert "stop" in {pair.finish_a for pair in pairs}
        assert {pair.finish_b for pair in pairs if pair.rid != 3} == {"length"}


def test_whatever_stops_a_request_meets_its_recorded_length_counts() -> None:
    stops = minisgl.SamplingParams(max_tokens=24, stop=("e",), stop_token_ids=(7,))
    with minisgl.load("tiny") as engine:
        request = engine.add("Once upon a time", stops)
        scored = engine.add("Once upon", minisgl.SamplingParams(max_tokens=0, prompt_logprobs=0))
        engine.run()
        assert request.finish == "stop" and scored.finish == "length"
        begun = engine.add("Once upon a time", minisgl.SamplingParams(max_tokens=9))
        engine.run(max_steps=3)
        assert begun.finish is None
        trace = engine.trace
    with minisgl.replay(trace, output_lengths="recorded") as again:
        assert (again.requests[0].output, again.requests[0].finish) == (request.output, "length")
        assert again.requests[1].output == () and again.requests[1].prompt_logprobs
        assert len(again.requests[2].output) == 9


def test_a_request_that_is_skipped_never_comes_and_the_others_keep_their_numbers(
    trace: minisgl.Trace,
) -> None:
    with minisgl.replay(trace, skip={1, 3}) as engine, minisgl.replay(trace) as whole:
        assert list(engine.requests) == [0, 2, 4, 5]
        assert all(engine.requests[rid].output == whole.requests[rid].output for rid in (0, 2, 4))
        told = minisgl.compare(trace, engine)
        assert "r1 arrives in a and not in b" in str(told.divergence)


def test_what_cannot_be_skipped_or_chosen_says_so(trace: minisgl.Trace) -> None:
    with pytest.raises(ValueError, match="request 9 does not arrive in this trace"):
        minisgl.replay(trace, skip=[9])
    lengths: Any = "all"
    with pytest.raises(ValueError, match="must be 'model' or 'recorded', got 'all'"):
        minisgl.replay(trace, output_lengths=lengths)


@settings(max_examples=40)
@given(workloads, engines, st.data())
def test_a_run_replayed_as_it_was_is_the_same_run(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    """On the hash oracle of the embedded model's size, with arrivals and aborts anywhere."""
    options = {name: value for name, value in options.items() if name != "depth"}
    options |= {"max_step_tokens": 24, "max_seq_len": 24, "runner": "hash"}
    with minisgl.load("tiny", **options, overlap=data.draw(st.booleans(), "overlap")) as engine:
        for prompt, sampling in workload:
            engine.add(prompt, sampling)
            engine.run(max_steps=data.draw(st.integers(0, 3), "steps"))
            if data.draw(st.integers(0, 5), "abort") == 0:
                engine.abort(data.draw(st.integers(0, len(engine.requests) - 1), "whom"))
        engine.run()
        with minisgl.replay(engine.trace) as again:
            assert minisgl.compare(engine, again).divergence is None
            assert outputs(again) == outputs(engine)
        with minisgl.replay(engine.trace, output_lengths="recorded") as again:
            for pair in minisgl.compare(engine, again).requests:
                assert pair.equal or pair.finish_a == "abort"


def test_a_toggle_under_which_a_request_cannot_run_says_so(trace: minisgl.Trace) -> None:
    with pytest.raises(ValueError, match="no room for output in a context of 16"):
        minisgl.replay(trace, max_seq_len=16)
