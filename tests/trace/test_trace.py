"""Frames, explanations, files and timelines of a run; and files that are not what they say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.core import Finished, Plan, Refusal, Sampled, SamplingParams, Why
from minisgl.engine.engine import Engine
from minisgl.scheduler.ledger import Ledger
from minisgl.scheduler.replay import replay
from minisgl.trace import Trace
from tests.engine.test_travel import facts
from tests.hash_engine import fresh_scheduler, hash_engine
from tests.scheduler.test_workloads import Options, Workload, engines, workloads

GREEDY = SamplingParams(max_tokens=6, ignore_eos=True)


@pytest.fixture
def engine() -> Engine:
    """A run with reuse, waiting, eviction, preemption, an abort and a fork's change."""
    engine = hash_engine(
        num_pages=14, max_seq_len=12, max_running=3, admission="optimistic", expected_output=1
    )
    for i in range(4):
        engine.add([1, 2, 1 + i], SamplingParams(max_tokens=8, ignore_eos=True))
    engine.run(max_steps=3)
    engine.abort(1)
    engine.run(max_steps=4)
    twin = engine.fork(policy="mixed", max_step_tokens=32)
    twin.add([4, 4, 4], GREEDY)
    twin.run()
    return twin


# ---- looking -------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(workloads, engines, st.data())
def test_the_parts_of_an_explanation_sum_to_the_latency(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    engine = hash_engine(**options)
    for prompt, sampling in workload:
        engine.add(prompt, sampling)
        engine.run(max_steps=data.draw(st.integers(0, 3), "steps"))
    engine.run()
    for rid in engine.requests:
        added = next(r.batch.step for r in engine.trace if _has(r, "Added", rid))
        over = next(r.batch.step for r in engine.trace if _has(r, "Finished", rid))
        why = engine.trace.explain(rid)
        assert why.latency == over - added + 1 == sum(why.parts.values())
        assert [part.step for part in why.steps] == list(range(added, over + 1))
        assert "not looked at" not in why.parts or options["policy"] == "longest_prefix", why
        decodes = why.parts.get("decode", 0)
        assert decodes + why.parts.get("prefill", 0) >= min(1, len(engine.requests[rid].output))


def _has(record: Any, kind: str, rid: int) -> bool:
    return any(type(e).__name__ == kind and e.rid == rid for e in record.events)


def test_an_explanation_names_what_stood_in_the_way() -> None:
    engine = hash_engine(depth=1, max_running=1)
    engine.add([1, 2], SamplingParams(max_tokens=3, ignore_eos=True))
    engine.add([3, 2], SamplingParams(max_tokens=2, ignore_eos=True))
    engine.add([4, 2], SamplingParams(max_tokens=1, ignore_eos=True))
    engine.run()
    assert engine.trace.explain(0).parts == {"prefill": 1, "decode": 2}
    assert engine.trace.explain(1).parts == {"no_slot": 3, "prefill": 1, "decode": 1}
    assert engine.trace.explain(2).parts == {"head_of_line": 3, "no_slot": 2, "prefill": 1}
    assert repr(engine.trace.explain(1)).splitlines()[0] == "r1: 5 steps"
    with pytest.raises(KeyError, match="request 9 does not arrive"):
        engine.trace.explain(9)


def test_nobody_stands_in_line_behind_a_request_that_runs() -> None:
    engine = hash_engine(depth=1, max_running=2)
    engine.add([1, 2], SamplingParams(max_tokens=4, ignore_eos=True))
    engine.run(max_steps=1)
    for i in range(3, 6):
        engine.add([i, 2], SamplingParams(max_tokens=2, ignore_eos=True))
    record = engine.step()
    assert record is not None
    assert [refusal.rid for refusal in record.plan.refusals] == [2, 0]  # r0 runs, r2 waits
    assert engine.trace.explain(3).steps[0].refusals == (Refusal(3, Why.HEAD_OF_LINE, by=2),)


def test_an_older_request_may_stand_in_line_behind_a_younger_one() -> None:
    def youngest_first(ledger: Ledger) -> Plan:
        for request in reversed(list(ledger.waiting)):
            if not ledger.closed:
                ledger.prefill(request)
        return ledger.plan

    engine = hash_engine(depth=1, max_running=1, policy=youngest_first)
    for _ in range(3):
        engine.add([3, 2], SamplingParams(max_tokens=1, ignore_eos=True))
    engine.step()
    assert engine.trace.explain(0).steps[0].refusals == (Refusal(0, Why.HEAD_OF_LINE, by=1),)


def test_a_story_tells_every_transition(engine: Engine) -> None:
    lines = engine.trace.story(1)
    assert lines[0].startswith("step 0: added (prompt len 3")
    assert any("finished (reason abort)" in line for line in lines)
    with pytest.raises(KeyError, match="request 77"):
        engine.trace.story(77)


def test_frames_agree_with_the_records(engine: Engine) -> None:
    pytest.importorskip("pandas", reason="frames need pandas")
    trace = engine.trace
    steps, requests = trace.to_frame("steps"), trace.to_frame("requests")
    assert list(steps.step) == list(range(len(trace)))
    assert steps.computed.sum() == sum(r.batch.num_tokens for r in trace)
    assert (steps.free_pages.iloc[-1], len(requests)) == (engine.gauges.free_pages, 5)
    for rid, request in engine.requests.items():
        row = requests.set_index("rid").loc[rid]
        assert (row.output_len, row.finish) == (len(request.output), request.finish)
        assert row.preemptions == request.preemptions
    assert set(trace.to_frame("events").event) >= {"added", "sampled", "evicted", "preempted"}
    assert set(trace.to_frame("spans").lane) == {"host", "device"}
    assert trace.to_frame("pages").holders.sum() == sum(engine.pages)
    kind: Any = "pictures"
    with pytest.raises(ValueError, match="unknown frame 'pictures'; there are steps, requests"):
        trace.to_frame(kind)


def test_the_times_of_a_request_are_those_of_its_tokens() -> None:
    pytest.importorskip("pandas", reason="frames need pandas")
    engine = hash_engine(max_running=2)
    for i in range(6):
        engine.add([1, 2, 1 + i], GREEDY if i else SamplingParams(max_tokens=0))
        engine.run(max_steps=2)
    engine.add([1, 2], GREEDY)
    engine.run(max_steps=2)
    trace = engine.trace
    assert any("launched before" in trace.explain(rid).parts for rid in engine.requests)
    frame = trace.to_frame("requests").set_index("rid")
    spans = trace.to_frame("spans")
    host = spans[spans.lane == "host"].set_index(["step", "name"])
    for rid in frame.index:
        row, why = frame.loc[rid], trace.explain(rid)
        busy = ("prefill", "decode", "launched before")
        assert row.waited == sum(part.doing not in busy for part in why.steps)
        arrival = next(p.step for p in why.steps if p.doing != "launched before")
        sampled = [
            record.batch.step
            for record in trace
            for event in record.events
            if isinstance(event, Sampled) and event.rid == rid
        ]
        times = [host.end[step, "wait"] for step in sampled]
        gaps = [later - before for before, later in zip(times, times[1:], strict=False)]
        if not times:
            assert math.isnan(row.ttft)
            continue
        assert row.ttft == times[0] - host.start[arrival, "plan"] > 0
        if not gaps:
            assert math.isnan(row.tpot) and math.isnan(row.itl_p50)
            continue
        assert row.tpot == pytest.approx((times[-1] - times[0]) / len(gaps))
        assert sorted(gaps)[(len(gaps) - 1) // 2] == row.itl_p50 <= row.itl_p99 == max(gaps)
    assert frame.waited.sum() > 0 and frame.tpot.notna().any()


def test_a_trace_reads_like_a_sequence(engine: Engine) -> None:
    trace = engine.trace
    assert trace[-1] is trace[len(trace) - 1] and len(list(trace)) == len(trace)
    assert repr(trace) == f"Trace({len(trace)} steps, 5 requests)"
    with pytest.raises(IndexError, match=f"record {len(trace)} was asked, 0 to"):
        _ = trace[len(trace)]


def test_chrome_slices_of_one_thread_never_overlap(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    engine.trace.save_chrome(path)
    events = json.loads(path.read_text())["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    assert {event["name"] for event in events if event["ph"] == "M"} == {
        "process_name",
        "thread_name",
    }
    for event in slices:
        assert event["ts"] >= 0 and event["dur"] >= 0 and isinstance(event["tid"], int)
    for request in {event["tid"] for event in slices if event["pid"] == 2}:
        lane = sorted(
            (e["ts"], e["ts"] + e["dur"]) for e in slices if e["pid"] == 2 and e["tid"] == request
        )
        assert all(a[1] <= b[0] + 1e-6 for a, b in zip(lane, lane[1:], strict=False))


# ---- files ---------------------------------------------------------------------------------------


def test_a_saved_run_is_the_same_when_loaded(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    engine.trace.save(path)
    again = Trace.load(path)
    assert facts(list(again)) == facts(list(engine.trace))
    assert [r.spans for r in again] == [r.spans for r in engine.trace]
    assert again.scheduler().gauges == engine.gauges
    assert again.explain(1).parts == engine.trace.explain(1).parts
    again.save(tmp_path / "twice.jsonl")
    assert (tmp_path / "twice.jsonl").read_bytes() == path.read_bytes()


@settings(max_examples=40)
@given(workloads, engines)
def test_any_run_survives_a_file(
    tmp_path_factory: pytest.TempPathFactory, workload: Workload, options: Options
) -> None:
    engine = hash_engine(**options)
    for prompt, sampling in workload:
        engine.add(prompt, sampling)
    engine.run()
    path = tmp_path_factory.mktemp("run") / "run.jsonl"
    engine.trace.save(path)
    again = Trace.load(path)
    assert facts(list(again)) == facts(list(engine.trace))
    history = again.history
    inputs = history.inputs(0, history.num_inputs)
    assert replay(inputs, fresh_scheduler(engine.config)).gauges == engine.gauges


@pytest.fixture
def saved(engine: Engine, tmp_path: Path) -> Path:
    path = tmp_path / "run.jsonl"
    engine.trace.save(path)
    return path


def test_a_file_cut_off_anywhere_loads_what_is_whole_or_says_so(saved: Path) -> None:
    whole = saved.read_bytes()
    records = len(Trace.load(saved))
    head = whole.index(b"\n") + 1
    for cut in range(head, len(whole), 53):
        saved.write_bytes(whole[:cut])
        if whole[cut - 1 : cut] == b"\n":
            assert len(Trace.load(saved)) <= records
        else:
            try:
                json.loads(whole[:cut].splitlines()[-1])
            except ValueError:
                with pytest.warns(RuntimeWarning, match="was cut off and is left out"):
                    Trace.load(saved)
    for cut in range(0, head - 1, 97):
        saved.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"line 1 is not JSON|not a minisgl trace"):
            Trace.load(saved)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "has version 2; this minisgl reads version 1"),
        ({"version": None}, "has version None"),
        ({"format": "other"}, "not a minisgl trace"),
        ({"config": {"num_pages": 10**12}}, "the header is wrong"),
        ({"config": {"nonsense": 1}}, "no such option: nonsense"),
        ({"config": 7}, "the header is wrong"),
        ({"eos": "abc"}, "the header is wrong"),
        ({"vocab_size": "many"}, "the header is wrong"),
    ],
)
def test_a_wrong_header_is_refused(saved: Path, change: dict[str, Any], says: str) -> None:
    first, *rest = saved.read_text().splitlines(keepends=True)
    saved.write_text(json.dumps(json.loads(first) | change) + "\n" + "".join(rest))
    with pytest.raises(ValueError, match=says):
        Trace.load(saved)


def test_a_pool_beyond_all_measure_is_refused_before_it_is_made(saved: Path) -> None:
    first, *rest = saved.read_text().splitlines(keepends=True)
    header = json.loads(first)
    header["config"]["num_pages"] = 10**15
    saved.write_text(json.dumps(header) + "\n" + "".join(rest))
    with pytest.raises(ValueError, match="num_pages is 10{15}, at most 4000000 can be read"):
        Trace.load(saved)


@pytest.mark.parametrize(
    "line",
    [
        '{"plan": [[99, 1]], "preempt": [], "refusals": []}',
        '{"plan": 7, "preempt": [], "refusals": []}',
        '{"outcome": {"step": 0, "tokens": [1]}, "spans": []}',
        '{"outcome": {"step": 10000, "tokens": [], "spans": []}, "spans": []}',
        '{"add": 0, "prompt": [], "sampling": {}}',
        '{"add": 50, "prompt": ["x"], "sampling": {}}',
        '{"add": 50, "prompt": [1], "sampling": {"max_tokens": -1}}',
        '{"add": 50, "prompt": [1], "sampling": {"__class__": "os.system"}}',
        '{"abort": "x"}',
        '{"change": {"num_pages": 3}}',
        '{"what": "is this"}',
        "[]",
        "3",
        "null",
        '{"add": 1',
        "\x00\x01\x02",
        "NaN",
    ],
)
def test_a_wrong_line_is_refused_by_its_number(saved: Path, line: str) -> None:
    lines = saved.read_text().splitlines()
    number = len(lines) + 1
    saved.write_text("\n".join([*lines, line]) + "\n")
    with pytest.raises(ValueError, match=f"line {number}"):
        Trace.load(saved)


def test_a_run_whose_beginning_was_forgotten_cannot_be_saved(tmp_path: Path) -> None:
    engine = hash_engine(history=50, check=False)
    for i in range(40):
        engine.add([1 + i % 5, 2], GREEDY)
        engine.run()
    with pytest.raises(ValueError, match="steps were forgotten.*history=None to keep all"):
        engine.trace.save(tmp_path / "run.jsonl")


def test_no_requests_is_a_trace_too(tmp_path: Path) -> None:
    engine = hash_engine()
    engine.trace.save(tmp_path / "empty.jsonl")
    assert len(Trace.load(tmp_path / "empty.jsonl")) == 0
    assert repr(engine.trace) == "Trace(0 steps, 0 requests)"
    assert not [r for r in engine.trace if any(isinstance(e, Finished) for e in r.events)]
