"""A profile adds its kernels up, and is written so that Perfetto can show it."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minisgl.core import KernelSpan, SamplingParams, Span, StepRecord
from minisgl.trace.profile import Profile
from tests.hash_engine import hash_engine

FIRST = 100.0  # seconds on the clock


def profile() -> Profile:
    """Steps 2 and 3 of four, 1 ms each: three kernels of 0.2 ms and a graph of two that overlap."""
    engine = hash_engine()
    for i in range(2):
        engine.add([1 + i, 2, 3], SamplingParams(max_tokens=4, ignore_eos=True))
    records = list[StepRecord]()
    for record in engine.run():
        at = FIRST + 1.2e-3 * record.batch.step
        spans = (
            Span("host", "launch", at - 2e-4, at - 1e-4),
            Span("host", "wait", at, at + 1e-3),
            Span("device", f"step {record.batch.step}", at, at + 1e-3),
        )
        records.append(replace(record, spans=spans))
    kernels = list[KernelSpan]()
    for step in (2, 3):
        at, launched = FIRST + 1.2e-3 * step, FIRST + 1.2e-3 * step - 1.5e-4
        for i in range(3):
            start = at + 2e-4 * i
            name, call = f"void gemm<{step}>(int)", launched + 1e-6 * i
            kernels.append(KernelSpan("device stream 7", name, start, start + 1e-4, step, call))
        begin, call = at + 6e-4, launched + 4e-5
        inside = [("attend", begin, begin + 2e-4), ("norm", begin + 1e-4, begin + 3e-4)]
        graph = KernelSpan("device graphs", "graph of 2 kernels", begin, begin + 3e-4, step, call)
        kernels.append(graph)
        kernels += [KernelSpan("device stream 7", *each, step, call) for each in inside]
    after = FIRST + 1.2e-3 * 3 + 1.05e-3
    kernels.append(KernelSpan("device stream 7", "copy", after, after + 5e-5, None))
    return Profile(tuple(records[:4]), range(2, 4), tuple(kernels))


def test_covered_is_the_time_in_which_any_kernel_ran_and_graphs_are_not_counted_twice() -> None:
    made = profile()
    assert math.isclose(made.busy, 2e-3)
    assert math.isclose(made.covered, (3e-4 + 3e-4) / 1e-3)
    assert len(made.kernels) == 11 and len(made.spans) == 13
    totals = made.totals()
    assert [(total.name, total.calls) for total in totals[:2]] == [("attend", 2), ("norm", 2)]
    assert math.isclose(sum(total.seconds for total in totals), 2 * 7e-4)
    assert math.isclose(totals[0].share, 2 * 2e-4 / 2e-3)
    assert made.timeline().total > made.busy  # the gap between the two steps


def test_the_summary_names_the_longest_kernels_and_what_they_leave_free() -> None:
    made = profile()
    says = made.summary(top=3)
    assert says == "\n".join(
        [
            "steps 2 to 3: 10 kernels",
            "2 replays of CUDA graphs",
            "devices computed for 2.00 ms: kernels 60.0%, between them 40.0%",
            "  20.0%       2 x 200.00 µs  attend",
            "  20.0%       2 x 200.00 µs  norm",
            "  15.0%       3 x 100.00 µs  void gemm<2>(int)",
            "  15.0%  1 other kernel",
        ]
    )
    html = made._repr_html_()
    assert "void gemm&lt;2&gt;(int)" in html and "<b>Profile</b> steps 2 to 3" in html
    assert repr(made).startswith("steps 2 to 3")


def test_the_frame_has_a_row_for_each_span() -> None:
    made = profile()
    frame = made.to_frame()
    assert list(frame) == ["step", "lane", "name", "start", "end", "launched"]
    assert len(frame) == len(made.spans)
    assert list(Profile((), range(0), ()).to_frame()) == list(frame)


def test_steps_that_were_not_profiled_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="steps 1 to 2 were asked, there are steps 2 to 3"):
        profile().plot(1, 2)


def test_a_profile_of_nothing_says_so() -> None:
    empty = Profile((), range(0), ())
    assert repr(empty) == "no step was run" and math.isnan(empty.covered)
    assert empty.totals() == []


# ---- Chrome's format -----------------------------------------------------------------------------


def written(tmp_path: Path) -> list[dict[str, Any]]:
    path = tmp_path / "profile.json"
    profile().save_chrome(path)
    events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return events


def test_slices_of_one_thread_never_overlap_and_every_thread_has_a_name(tmp_path: Path) -> None:
    events = written(tmp_path)
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    threads: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in events:
        assert event["ph"] in "MXsf" and isinstance(event["tid"], int)
        if event["ph"] == "X":
            assert event["ts"] >= 0 and event["dur"] >= 0
            slice_ = (event["ts"], event["ts"] + event["dur"])
            threads.setdefault((event["pid"], event["tid"]), []).append(slice_)
    assert set(threads) <= named
    for slices in threads.values():
        slices.sort()
        assert all(a[1] <= b[0] + 1e-6 for a, b in zip(slices, slices[1:], strict=False))
    names = Counter(
        e["args"]["name"] for e in events if e["name"] == "thread_name" and e["pid"] == 3
    )
    assert names == {"device stream 7": 2, "device graphs": 1}  # two kernels overlapped


def test_kernels_say_their_step_and_the_requests_of_its_batch(tmp_path: Path) -> None:
    kernels = [e for e in written(tmp_path) if e["ph"] == "X" and e["pid"] == 3]
    assert [e["args"] for e in kernels if e["name"] == "copy"] == [{}]
    assert all(
        e["args"] == {"step": e["args"]["step"], "requests": [0, 1]}
        for e in kernels
        if e["name"] != "copy"
    )
    assert Counter(e["args"].get("step") for e in kernels) == {2: 6, 3: 6, None: 1}


def test_an_arrow_leads_from_the_hosts_launch_to_each_kernel_and_each_graph(tmp_path: Path) -> None:
    events = written(tmp_path)
    starts = {e["id"]: e for e in events if e["ph"] == "s"}
    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    assert starts.keys() == ends.keys() and len(starts) == 2 * (3 + 1)
    slices = [e for e in events if e["ph"] == "X"]
    for number, start in starts.items():
        end = ends[number]
        assert (start["name"], start["cat"]) == (end["name"], end["cat"]) and end["bp"] == "e"
        assert start["ts"] <= end["ts"]
        for flow, name in ((start, "launch"), (end, None)):  # each within a slice of its thread
            over = [
                e
                for e in slices
                if (e["pid"], e["tid"]) == (flow["pid"], flow["tid"])
                and e["ts"] - 1e-6 <= flow["ts"] <= e["ts"] + e["dur"]
            ]
            assert over and name in (None, over[0]["name"])
    to = Counter(
        e["name"] for end in ends.values() for e in slices if e["pid"] == 3 and e["ts"] == end["ts"]
    )
    assert to["graph of 2 kernels"] == 2 and to["void gemm<2>(int)"] == 3
