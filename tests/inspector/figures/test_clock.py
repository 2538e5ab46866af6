"""The lanes on the clock are the spans, and the gaps between them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from minisgl.core import (
    SamplingParams,
    Span,
    StepRecord,
)
from minisgl.inspector.figures.clock import Clock
from minisgl.inspector.figures.picture import show
from minisgl.trace import Trace, timeline
from minisgl.trace.timeline import CAUSES
from tests.hash_engine import hash_engine
from tests.inspector.drawn import axes_of, boxes, length, of, words
from tests.trace.test_profile import profile


def timed(trace: Trace) -> list[StepRecord]:
    """The same steps on a clock of their own: two devices, and a host that is slow now and then."""
    out, at = [], 100.0
    for record in trace:
        k = record.batch.step
        slow = 3e-3 if k % 3 == 0 else 1e-3
        begin, end = at + slow + 2e-4, at + slow + 5e-3
        spans = [
            Span("host", "plan", at, at + slow),
            Span("host", "launch", at + slow, begin),
            Span("host", "wait", begin, end + 1e-4),
            Span("host", "apply", end + 1e-4, end + 3e-4),
            Span("device 0", "batch", begin, end),
            Span("device 1", "batch", begin + 1e-4, end - 1e-4),
        ]
        out.append(replace(record, spans=tuple(spans)))
        at = end + (8e-3 if k % 4 == 0 else 3e-4)
    return out


def test_lanes_on_the_clock_are_the_spans_and_the_gaps_between_them(trace: Trace) -> None:
    records = timed(trace)
    for steps in (range(len(records)), range(4, 9)):
        account = timeline.account(records, steps)
        assert account.clocks_agree and len(account.idle) > 2
        picture = of(show(Clock(records, steps, account), None))
        drawn = boxes(picture, "prefill") + boxes(picture, "decode")
        whole = sum(  # a batch of both kinds is drawn as two halves
            (y1 - y0) / 0.64 * (x1 - x0) for x0, x1, y0, y1 in drawn
        )
        assert math.isclose(whole, account.busy * 1e3, rel_tol=1e-6)
        for cause in CAUSES:
            seconds = length(boxes(picture, cause)) / 1e3
            assert math.isclose(seconds, account.idle.get(cause, 0.0), rel_tol=1e-6, abs_tol=1e-9)
            assert (cause in picture.alt) == (cause in account.idle)
        assert f"devices busy {account.busy / account.total:.0%}" in picture.alt
        assert f"host work {account.hidden_share:.0%} hidden" in picture.alt
        waits = length(boxes(picture, "waiting")) / 1e3
        assert math.isclose(waits, account.host["wait"], rel_tol=1e-6)
        (ax,) = axes_of(picture)
        assert [t.get_text() for t in ax.get_yticklabels()] == ["host", "device 0", "device 1"]


def test_a_device_with_another_clock_stands_alone(trace: Trace) -> None:
    picture = of(trace.plot.timeline())
    (ax,) = axes_of(picture)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["device"]
    assert "the devices' clock is not the host's" in picture.alt and "Host:" not in picture.alt
    assert len(boxes(picture, "decode")) + len(boxes(picture, "prefill")) >= 12


def test_steps_that_nobody_timed_cannot_be_put_on_a_clock() -> None:
    engine = hash_engine()
    engine.add([1, 2, 3], SamplingParams(max_tokens=2))
    engine.abort(0)
    engine.run()
    with pytest.raises(ValueError, match="steps 0 to 0 were not timed"):
        engine.trace.plot.timeline()


def test_kernels_lie_below_the_devices_named_where_there_is_room() -> None:
    made = profile()
    picture = of(made.plot())
    (ax,) = axes_of(picture)
    lanes = [t.get_text() for t in ax.get_yticklabels()]
    assert lanes == ["host", "device", "device graphs", "device stream 7"]
    drawn = boxes(picture, "decode kernel")
    seconds = math.fsum(span.end - span.start for span in made.spans if span.step is not None)
    assert len(drawn) == 12 and math.isclose(length(drawn), seconds * 1e3, rel_tol=1e-6)
    assert {lanes[round((top + bottom) / 2)] for _, _, top, bottom in drawn} == set(lanes[2:])
    assert "device stream 7: 10 of them, 1.40 ms in all." in picture.alt
    one = of(made.plot(2, 2))
    assert {"gemm", "graph of 2 kernels", "attend"} <= {text.get_text() for text in words(one)}
    assert "Step 2: device busy 100%" in one.alt and "stream 7: 5 of them, 0.70 ms" in one.alt


def test_a_kernel_of_no_batch_is_grey() -> None:
    made = profile()
    copy = made.spans[-1]
    inside = copy._replace(start=copy.start - 2e-4, end=copy.end - 2e-4)
    picture = of(replace(made, spans=(inside,)).plot())
    assert len(boxes(picture, "work kernel")) == 1 and not boxes(picture, "decode kernel")
