"""Lanes: every row is a box, every wait a line, whatever is drawn a fact of the trace."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from minisgl.core import (
    Evicted,
    Finished,
    Inserted,
    Preempted,
    Reused,
    Sampled,
    SamplingParams,
)
from minisgl.display import STATES
from minisgl.inspector.figures.life import lives
from minisgl.trace import Trace
from minisgl.trace.lives import lives as lives_of
from tests.engine.test_engine import Flaky
from tests.hash_engine import hash_engine
from tests.inspector.drawn import axes_of, boxes, length, lines, marks, of
from tests.inspector.figures.runs import driven, events
from tests.scheduler.test_workloads import Options, Workload, engines, workloads


def test_the_stress_has_everything(trace: Trace) -> None:
    fates = Counter((b.fate, b.prompt) for life in lives(list(trace)) for b in life.boxes)
    assert fates["dropped", True] and fates["dropped", False] and fates["kept", True] > 10
    for kind in (Evicted, Preempted, Reused, Inserted):
        assert events(trace, kind), kind
    assert {e.reason for _, e in events(trace, Finished)} == {"abort", "length", "stop"}
    assert any(record.plan.refusals for record in trace)


def test_every_row_of_every_batch_is_a_box_in_its_lane(trace: Trace) -> None:
    picture, steps = of(trace.plot.lanes()), trace.to_frame("steps")
    rows = {(r.batch.step, row.rid) for r in trace for row in r.batch.rows}
    drawn = [
        (round((x0 + x1) / 2), round((y0 + y1) / 2))
        for name in ("prefill", "decode", "dropped prefill", "dropped decode")
        for x0, x1, y0, y1 in boxes(picture, name)
    ]
    assert len(drawn) == len(rows) and set(drawn) == rows  # here lane y is that of request y
    for kind in ("prefill", "decode"):
        some = len(boxes(picture, kind)) + len(boxes(picture, f"dropped {kind}"))
        assert some == steps[f"{kind}_rows"].sum()


def test_tall_boxes_are_prefills_and_carry_their_positions(trace: Trace) -> None:
    picture = of(trace.plot.lanes(0, 11))
    (ax,) = axes_of(picture)
    said = {(round(t.get_position()[0]), t.get_text()) for t in ax.texts}
    for record in list(trace)[:12]:
        for row in record.batch.rows:
            if row.token_ids is not None:
                assert (record.batch.step, str(row.length)) in said
    tall = min(y1 - y0 for _, _, y0, y1 in boxes(picture, "prefill"))
    low = max(y1 - y0 for _, _, y0, y1 in boxes(picture, "decode"))
    assert tall > 1.5 * low


def test_where_nothing_but_a_line_is_drawn_a_request_waits(trace: Trace) -> None:
    waits = Counter[int]()
    for (x0, y), (x1, _) in lines(of(trace.plot.lanes()), "waiting"):
        waits[round(y)] += round(x1 - x0)
    assert any("launched before" in trace.explain(rid).parts for rid in waits)
    for rid in trace.to_frame("requests").rid:
        assert waits[rid] == waited(trace, rid)


def waited(trace: Trace, rid: int) -> int:
    """Steps without a row, by ``explain``: those launched before it came are none."""
    ran = ("prefill", "decode", "launched before")
    return sum(part.doing not in ran for part in trace.explain(rid).steps)


def test_reuse_ends_and_preemptions_are_marked_where_they_happen(trace: Trace) -> None:
    picture, requests = of(trace.plot.lanes()), trace.to_frame("requests").set_index("rid")
    edges = {(round(x1), round((y0 + y1) / 2)) for _, x1, y0, y1 in boxes(picture, "reused")}
    assert edges == {(step, e.rid) for step, e in events(trace, Reused)}
    preempted = {(round(x + 0.5), round(y)) for x, y in marks(picture, "preempted")}
    assert preempted == {(step, e.rid) for step, e in events(trace, Preempted)}
    aborted = set(requests.index[requests.finish == "abort"])
    assert {round(y) for _, y in marks(picture, "aborted")} == aborted
    assert {round(y) for _, y in marks(picture, "ended")} == set(requests.index) - aborted
    last = {life.rid: max((b.step for b in life.boxes), default=0) for life in lives(list(trace))}
    for x, y in marks(picture, "ended") + marks(picture, "aborted"):
        end = max(requests.finished[round(y)], last[round(y)])
        assert end + 0.5 < x < end + 1.5


@settings(max_examples=60, deadline=None)
@given(workloads, engines, st.data())
def test_a_result_is_dropped_where_nobody_got_its_token(
    workload: Workload, options: Options, data: st.DataObject
) -> None:
    trace = driven(workload, options, data).trace
    got = {(step, event.rid) for step, event in events(trace, Sampled)}
    emits = {(r.batch.step, row.rid) for r in trace for row in r.batch.rows if row.emits}
    for life in lives(list(trace)):
        for box in life.boxes:
            if (box.step, life.rid) in emits:
                assert (box.fate == "dropped") == ((box.step, life.rid) not in got)
        waits = sum(b - a + 1 for a, b in life.waits(len(trace) - 1))
        assert waits == waited(trace, life.rid) == lives_of(list(trace))[life.rid].waited


def test_a_failed_step_is_red_and_nothing_else_is() -> None:
    engine = hash_engine(runner=lambda inner: Flaky(inner, set(), {3}))
    for i in range(3):
        engine.add([1 + i, 2], SamplingParams(max_tokens=9, ignore_eos=True))
    with pytest.warns(RuntimeWarning, match="step 3 failed"):
        engine.run()
    picture = of(engine.trace.plot.lanes())
    assert len(boxes(picture, "failed decode")) == 3
    assert {round(y) for _, y in marks(picture, "failed")} == {0, 1, 2}
    (ax,) = axes_of(picture)
    fills = [(s.get_gid(), np.asarray(s.get_facecolor())) for s in ax.collections]
    red = [name for name, fill in fills if len(fill) and to_hex(fill[0]) == STATES["fault"]]
    assert red == ["failed decode"]
    assert "failed step in 1 step (3)" in picture.alt and "(error)" in picture.alt


def test_boxes_that_are_too_narrow_are_put_together_and_cover_as_much() -> None:
    engine = hash_engine(num_pages=400, max_running=8, check=False, max_seq_len=400)
    for i in range(30):
        engine.add([1 + i % 9, 2], SamplingParams(max_tokens=60 + i, ignore_eos=True))
        engine.run(max_steps=7)
    engine.run()
    steps, picture = engine.trace.to_frame("steps"), of(engine.trace.plot.lanes())
    for kind in ("prefill", "decode"):
        some = boxes(picture, kind) + boxes(picture, f"dropped {kind}")
        assert round(length(some)) == steps[f"{kind}_rows"].sum()
        assert kind == "prefill" or len(some) < steps.decode_rows.sum() / 10
    assert f"Decode: {steps.decode_rows.sum():,} rows" in picture.alt
