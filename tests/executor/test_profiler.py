"""What the profiler of torch writes is read as kernels of steps, on the host's clock."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import minisgl
from minisgl.core import KernelSpan, SamplingParams, StepRecord
from minisgl.engine.engine import Engine
from minisgl.executor import profiler
from minisgl.executor.profiler import Profiler, read
from minisgl.kernel.functions import functions
from tests.engine.test_travel import facts

# Written by hand, as libkineto would: a prompt kernel by kernel, a copy of pages, decodes as a
# graph whose kernels overlap (programmatic dependent launch), ten marks.
RECORDED = Path(__file__).parent / "kineto_cuda.json"
BEGIN = 5024015498000.0  # what the file's microseconds begin with
FAST = 1 + 100e-6  # the file's clock, to the host's


def host(at: float) -> float:
    """The host's time of one in the file, in seconds."""
    return 50.0 + at * 1e-6 / FAST


def anchors(events: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Taken around each mark, a microsecond before and after."""
    marks = [e for e in events if e["name"].startswith("minisgl clock")]
    at = [(e["ts"] - BEGIN, e["dur"]) for e in marks]
    return [(host(ts) - 1e-6, host(ts + dur) + 1e-6) for ts, dur in at]


@pytest.fixture(scope="module")
def recorded() -> tuple[KernelSpan, ...]:
    events = json.loads(RECORDED.read_text())["traceEvents"]
    return read(RECORDED, "device", True, anchors(events))


def test_kernels_belong_to_the_step_that_launched_them(recorded: tuple[KernelSpan, ...]) -> None:
    by_step: dict[int | None, list[str]] = {}
    for span in recorded:
        by_step.setdefault(span.step, []).append(span.name.split("<")[0])
    assert by_step == {
        4: [
            "Memcpy HtoD (Pinned -> Device)",
            "nvjet_tst_128x64_64x6_2x1_v_bz_TNT",
            "_decode_kernel",
            "void (anonymous namespace)::rms_norm",
            "Memset (Device)",
        ],
        None: ["void at::native::index_elementwise_kernel"],
        5: [
            "Memcpy HtoD (Pinned -> Device)",
            "graph of 4 kernels",
            *("gemv", "attend", "gemv", "argmax"),
            "Memcpy DtoH (Device -> Pinned)",
        ],
    }
    assert {span.lane for span in recorded} == {"device stream 7", "device graphs"}


def test_a_graph_lasts_from_its_first_kernel_to_the_end_of_its_last(
    recorded: tuple[KernelSpan, ...],
) -> None:
    (graph,) = (span for span in recorded if span.lane == "device graphs")
    kernels = [span for span in recorded if span.launched == graph.launched and span != graph]
    assert len(kernels) == 4
    assert graph.start == kernels[0].start and graph.end == kernels[-1].end
    assert kernels[1].start < kernels[0].end, "the next kernel may begin before one has ended"


def test_times_are_the_hosts_though_the_other_clock_runs_faster(
    recorded: tuple[KernelSpan, ...],
) -> None:
    product = next(span for span in recorded if span.name.startswith("nvjet"))
    assert product.launched is not None
    for said, true in (
        (product.start, host(2200)),
        (product.end, host(2350)),
        (product.launched, host(2110)),
    ):
        assert abs(said - true) < 1e-7  # the marks of this file lie in the middle of their anchors


@pytest.mark.parametrize("half", [slice(0, 5), slice(5, 10)], ids=["first", "last"])
def test_a_file_without_the_marks_of_one_end_is_refused(half: slice, tmp_path: Path) -> None:
    written = json.loads(RECORDED.read_text())
    gone = {f"minisgl clock {i}" for i in range(10)[half]}
    around = anchors(written["traceEvents"])
    written["traceEvents"] = [e for e in written["traceEvents"] if e["name"] not in gone]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(written))
    with pytest.raises(ValueError, match="the profiler lost the marks"):
        read(path, "device", True, around)


def test_a_kernel_whose_launch_was_lost_is_nobodys(tmp_path: Path) -> None:
    written = json.loads(RECORDED.read_text())
    around = anchors(written["traceEvents"])
    kept = [
        e for e in written["traceEvents"] if e.get("cat") not in ("cuda_runtime", "cuda_driver")
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(written | {"traceEvents": kept}))
    spans = read(path, "device", True, around)
    assert len(spans) == 12 and {(span.step, span.launched) for span in spans} == {(None, None)}


# ---- on the CPU, for real ------------------------------------------------------------------------


def asked(**toggles: Any) -> Engine:
    """An engine with eight requests, of which some are sampled and some end early."""
    engine = minisgl.load("tiny", threads=1, num_pages=96, check=True, **toggles)
    for i in range(8):
        sampled = SamplingParams(max_tokens=6 + i, temperature=i % 2, seed=i, ignore_eos=i < 6)
        engine.add([5 + i, 6, 7, 8] * (3 + i), sampled)
    return engine


@pytest.mark.parametrize(
    "toggles",
    [{}, {"overlap": False}, {"kernels": "torch", "attention": "torch"}, {"record": False}],
    ids=str,
)
def test_a_profiled_run_is_the_same_run(toggles: dict[str, Any]) -> None:
    with asked(**toggles) as one, asked(**toggles) as other:
        expected = one.run()
        records = other.run(max_steps=2)
        profile = other.profile(steps=5)
        records += [*profile.records, *other.run()]
        assert facts(records) == facts(expected)
        if other.config.record:
            assert facts(list(other.trace)) == facts(list(one.trace))
        for rid, request in one.requests.items():
            assert request.output == other.requests[rid].output


def test_operators_lie_within_their_steps_batch_on_the_hosts_clock() -> None:
    with asked() as engine:
        engine.run(max_steps=2)
        profile = engine.profile(steps=5)
    assert profile.steps == range(3, 8), "one was in flight, and does not count"
    assert [record.batch.step for record in profile.records] == list(range(2, 8))
    batches = {
        record.batch.step: span
        for record in profile.records
        for span in record.spans
        if span.lane == "device"
    }
    assert {span.step for span in profile.spans} == set(profile.steps)
    for span in profile.spans:
        assert span.step is not None and span.lane == "device operators"
        batch = batches[span.step]  # the anchors leave some microseconds open, a busy machine more
        assert batch.start - 2e-4 < span.start <= span.end < batch.end + 2e-4
    calls = Counter((span.step, span.name) for span in profile.spans)
    layers = 6
    for step in profile.steps:
        assert calls[step, "native::attend"] == layers
        assert calls[step, "native::linear"] == 4 * layers + 1
    for before, after in zip(profile.spans, profile.spans[1:], strict=False):
        assert before.end <= after.start + 1e-9, "what others call is not listed"
    assert 0 < profile.covered <= 1


def test_the_functions_are_the_plain_ones_afterwards_and_a_profile_can_follow_another() -> None:
    with asked() as engine:
        before = dict(vars(functions()))
        first, second = engine.profile(steps=2), engine.profile(steps=2)
        assert vars(functions()) == before
        assert first.steps == range(0, 2) and second.steps == range(3, 5)
        assert {span.step for span in second.spans} == {3, 4}


def test_an_engine_at_rest_has_an_empty_profile() -> None:
    with minisgl.load("tiny", threads=1) as engine:
        profile = engine.profile(steps=3)
        assert (profile.steps, profile.records, profile.spans) == (range(0, 0), (), ())
        assert repr(profile) == "no step was run"


def test_a_profile_ends_where_the_work_does_and_at_breakpoints() -> None:
    with asked() as engine:
        engine.break_when("finish")
        stopped = engine.profile(steps=100)
        assert len(stopped.steps) == len(engine.trace) < 20
        rest = engine.run()
        assert rest
        engine.breakpoints[0].remove()
        engine.run()
        assert engine.profile(steps=4).steps == range(len(engine.trace), len(engine.trace))


def test_an_interrupt_ends_the_profiler_and_the_engine_goes_on() -> None:
    with asked() as one, asked() as engine:
        expected = one.run()

        def stops(record: StepRecord) -> bool:
            if record.batch.step == 3:
                raise KeyboardInterrupt
            return False

        handle = engine.break_when(stops)
        with pytest.raises(KeyboardInterrupt):
            engine.profile(steps=8)
        handle.remove()
        assert len(engine.trace) == 4
        assert engine.profile(steps=2).spans
        engine.run()
        assert facts(list(engine.trace)) == facts(expected)


def test_a_batch_that_fails_is_recorded_and_the_profile_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with asked() as engine:
        table, attend = functions(), functions().attend
        left = iter([True, False])

        def fails(*given: Any) -> None:
            if next(left, False):
                raise ValueError("planted")
            attend(*given)

        monkeypatch.setattr(table, "attend", fails)
        with pytest.warns(RuntimeWarning, match="planted"):
            profile = engine.profile(steps=3)
        assert profile.records[0].outcome.error == "ValueError: planted"


def test_two_profilers_in_one_process_are_refused() -> None:
    with asked() as one, asked() as other:
        for somebody in (one._runner.profile(), torch.autograd.profiler.profile()):
            with somebody, pytest.raises(RuntimeError, match="a profiler of torch is on"):
                other.profile()
        assert other.profile(steps=1).spans
    with pytest.raises(RuntimeError, match="closed"):
        other.profile()


def test_a_file_that_cannot_be_read_leaves_no_profiler_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "_ANCHOR", "another name ")
    with asked() as engine:
        with monkeypatch.context() as patch:
            patch.setattr(profiler, "_TRIES", 0)
            with pytest.raises(ValueError, match="lost the marks"):
                engine.profile(steps=1)
        assert engine.profile(steps=1).spans
        engine.run()


def test_steps_must_be_a_number_above_none() -> None:
    with minisgl.load("tiny", threads=1) as engine:
        with pytest.raises(ValueError, match="steps"):
            engine.profile(steps=0)
        four: Any = "4"
        with pytest.raises(TypeError, match="steps"):
            engine.profile(steps=four)


def test_a_device_without_a_gpu_is_watched_by_its_operators() -> None:
    with Profiler("device", torch.device("cpu")) as watching:
        torch.ones(3) + 1  # no batch's, so nobody asked
    assert watching.spans == ()
