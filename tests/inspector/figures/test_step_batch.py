"""The budget is packed with the step's rows, and a bar is a request's whole life."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.core import (
    Finished,
    Preempted,
    Reused,
    SamplingParams,
)
from minisgl.inspector.figures.step_batch import Step
from minisgl.inspector.plot import Plot
from minisgl.trace import Trace
from tests.hash_engine import hash_engine
from tests.inspector.drawn import axes_of, boxes, length, of
from tests.inspector.figures.runs import driven, events
from tests.scheduler.test_workloads import Options, Workload, engines, workloads


@settings(max_examples=40, deadline=None)
@given(workloads, engines, st.data())
def test_a_life_is_what_was_found_and_computed_and_is_to_come(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    _lives_hold(driven(workload, options, data).trace)


def test_a_preempted_life_begins_with_what_was_found_when_it_came_back(trace: Trace) -> None:
    back = {event.rid for _, event in events(trace, Preempted)}
    found = {(event.rid, event.num_tokens) for _, event in events(trace, Reused)}
    assert any(sum(rid == one for one, _ in found) > 1 for rid in back)
    _lives_hold(trace)


def _lives_hold(trace: Trace) -> None:
    records, plot = list(trace), Plot(trace)
    ends = {event.rid: step for step, event in events(trace, Finished)}
    done: dict[int, int] = {}  # positions, counted from the rows
    for k, record in enumerate(records):
        shown = {bar.rid: bar for bar in Step(records[: k + 1], plot._launched(k)).bars}
        found = {e.rid: e.num_tokens for e in record.events if isinstance(e, Reused)}
        for rid in record.plan.preempt:
            done.pop(rid, None)
        for row in record.batch.rows:
            done[row.rid] = done.get(row.rid, found.get(row.rid, 0)) + row.length
            bar = shown[row.rid]
            assert bar.reused + bar.prefilled + bar.decoded == done[row.rid]
            assert row.rid not in found or bar.reused == found[row.rid]
        for rid, bar in shown.items():
            request = trace.scheduler(k).waiting.get(rid)
            if bar.waits and rid not in record.plan.preempt:
                told = [p for p in trace.explain(rid).steps if p.step == k]
                # with several steps in flight it may have been aborted before this one's record
                assert all(bar.note == (p.words or p.doing) for p in told)
                assert told or ends[rid] < k
                assert request is None or bar.to_come == request.max_len


def test_the_budget_is_packed_with_the_rows_of_the_step(trace: Trace) -> None:
    for step in range(0, len(trace), 6):
        picture, record = of(trace.plot.batch(step)), trace[step]
        rows = boxes(picture, "budget prefill") + boxes(picture, "budget decode")
        assert len(rows) == len(record.batch.rows)
        starts = sorted(x0 for x0, _, _, _ in rows)
        lengths = [row.length for row in record.batch.rows]
        assert starts == [sum(lengths[:i]) for i in range(len(lengths))]
        left = trace.config.limits.max_step_tokens - record.batch.num_tokens
        assert round(length(boxes(picture, "budget free"))) == left
        assert f"{record.batch.num_tokens} of 7 tokens, {left} left" in picture.alt


def test_bars_are_drawn_as_long_as_they_say(trace: Trace) -> None:
    plot = Plot(trace)
    for step in range(0, len(trace), 4):
        picture = of(plot.batch(step))
        bars = Step(list(trace)[: step + 1], plot._launched(step)).bars
        for name, at in (("reused", 1), ("prefill", 2), ("decode", 3), ("free", 4)):
            want = sorted((y, bar[at]) for y, bar in enumerate(bars) if bar[at])
            drawn = boxes(picture, name)
            got = sorted((round((y0 + y1) / 2), round(x1 - x0)) for x0, x1, y0, y1 in drawn)
            assert got == want
        said = {text.get_text() for ax in axes_of(picture) for text in ax.texts}
        assert {bar.note for bar in bars if bar.waits} <= said


def test_those_behind_many_who_wait_are_counted() -> None:
    engine = hash_engine(num_pages=200, max_running=2, max_seq_len=40)
    for i in range(40):
        engine.add([1 + i % 9, 2], SamplingParams(max_tokens=4, ignore_eos=True))
    engine.run(max_steps=2)
    picture = of(engine.trace.plot.batch(1))
    assert "and 22 requests waiting behind them" in picture.alt
    assert "38 requests waiting" in picture.alt
