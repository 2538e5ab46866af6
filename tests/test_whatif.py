"""Recorded requests under other toggles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import minisgl
from minisgl.core import Sampled
from minisgl.tiny.generate import examples

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


def test_a_toggle_under_which_a_request_cannot_run_says_so(trace: minisgl.Trace) -> None:
    with pytest.raises(ValueError, match="no room for output in a context of 16"):
        minisgl.replay(trace, max_seq_len=16)
