"""Where the time went on the clock: every part has one cause, and the parts sum to the whole."""

from __future__ import annotations

import math
from time import sleep

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minisgl
from minisgl.core import Batch, Gauges, Outcome, Plan, SamplingParams, Span, StepRecord
from minisgl.trace.timeline import CAUSES, account, clocks_agree, gaps
from tests.hash_engine import hash_engine

WORK = ("plan", "commit", "launch", "apply")


def record(step: int, spans: list[Span], requests: int = 1) -> StepRecord:
    gauges = Gauges(0, 0, 0, 0, 0, requests)
    return StepRecord(Plan(), Batch(step, ()), Outcome(step, ()), (), gauges, tuple(spans))


def host(name: str, start: float, end: float) -> Span:
    return Span("host", name, start, end)


def device(start: float, end: float, lane: str = "device") -> Span:
    return Span(lane, "batch", start, end)


def one_after_the_other() -> list[StepRecord]:
    """Two steps of depth 1: the device waits for the host in between."""
    first = [host("plan", 0, 1), host("commit", 1, 2), host("launch", 2, 3), device(3, 10)]
    second = [host("plan", 15, 16), host("commit", 16, 17), host("launch", 17, 18)]
    return [
        record(0, [*first, host("wait", 3, 11), host("apply", 11, 13)]),
        record(1, [*second, device(19, 24), host("wait", 18, 25), host("apply", 25, 26)]),
    ]


def test_a_gap_is_split_by_what_the_host_did() -> None:
    found = [(gap.start, gap.end, gap.cause, gap.step) for gap in gaps(one_after_the_other())]
    assert found == [
        (10, 11, "waiting for a collect", 1),
        (11, 13, "host-bound", 1),
        (13, 15, "between steps", 1),
        (15, 18, "host-bound", 1),
        (18, 19, "waiting for a collect", 1),
    ]


def test_an_account_says_what_was_hidden_and_what_was_exposed() -> None:
    told = account(one_after_the_other())
    assert (told.total, told.busy) == (21, 12)
    assert told.idle == {"host-bound": 5, "waiting for a collect": 2, "between steps": 2}
    assert told.host == {"plan": 2, "commit": 2, "launch": 2, "wait": 15, "apply": 3}
    assert (told.hidden, told.exposed, told.hidden_share) == (0, 9, 0)
    assert repr(told).splitlines()[0] == (
        "devices: 21.00 s: busy 57.1 %, host-bound 23.8 %, waiting for a collect 9.5 %, "
        "between steps 9.5 %"
    )
    assert repr(told).splitlines()[-1] == (
        "host work: 0.0 % hidden behind the devices, 9.00 s exposed"
    )


def test_work_on_another_step_hides_behind_a_batch() -> None:
    first, second = one_after_the_other()
    ahead = record(2, [host("plan", 4, 6), host("launch", 6, 7), host("wait", 30, 31)])
    told = account([first, second, ahead])
    assert (told.hidden, told.exposed) == (3, 9)
    alone = account([first, second, ahead], range(2, 3))
    assert (alone.hidden, alone.exposed, alone.lanes) == (3, 0, ())


def test_without_requests_there_was_nothing_to_run() -> None:
    first, second = one_after_the_other()
    done = StepRecord(
        first.plan, first.batch, first.outcome, (), Gauges(9, 0, 0, 0, 0, 0), first.spans
    )
    idle = account([done, second]).idle
    assert idle == {"host-bound": 5, "waiting for a collect": 2, "nothing to run": 2}


def test_chosen_steps_are_cut_at_their_batches() -> None:
    records = one_after_the_other()
    only = account(records, range(1, 2))
    assert (only.total, only.idle, only.host["wait"]) == (5, {}, 7)
    with pytest.raises(ValueError, match="steps must follow one another"):
        account(records, range(0, 9, 2))


def test_each_device_has_its_lane_and_host_work_hides_behind_any_of_them() -> None:
    spans = [host("launch", 0, 1), device(1, 3, "device 0"), device(2, 6, "device 1")]
    later = [host("apply", 4, 5), device(7, 9, "device 0"), device(7, 8, "device 1")]
    told = account([record(0, spans), record(1, later)])
    assert [lane.name for lane in told.lanes] == ["device 0", "device 1"]
    assert (told.total, told.busy) == (8 + 6, 4 + 5)
    assert told.lanes[0].idle == {"host-bound": 1, "between steps": 3}
    assert (told.hidden, told.exposed) == (1, 1)


@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_clocks_that_do_not_agree_are_named_and_nothing_is_made_up(offset: float) -> None:
    moved = [
        record(r.batch.step, [s if s.lane == "host" else shifted(s, offset) for s in r.spans])
        for r in one_after_the_other()
    ]
    told = account(moved)
    assert not told.clocks_agree and math.isnan(told.hidden_share)
    assert told.idle == {"unknown": 9} and told.total == 21
    assert "clock is not the host's" in repr(told)


def shifted(span: Span, by: float) -> Span:
    return span._replace(start=span.start + by, end=span.end + by)


def test_the_hash_oracle_has_a_clock_of_its_own_and_the_account_says_so() -> None:
    engine = hash_engine()
    engine.add([1, 2, 1], SamplingParams(max_tokens=5, ignore_eos=True))
    engine.run()
    told = engine.trace.timeline()
    assert not told.clocks_agree and told.busy == pytest.approx(told.total)
    assert set(told.host) == {"plan", "commit", "launch", "wait", "apply"}


def test_without_spans_there_is_no_time_to_tell() -> None:
    assert repr(account([])) == repr(account([record(0, [])])) == "no batch was timed"
    assert math.isnan(account([]).hidden_share) and not clocks_agree([])


# Times are small integers, so that a twin can look at every unit of time by itself.
intervals = st.tuples(st.integers(0, 30), st.integers(0, 6)).map(lambda t: (t[0], t[0] + t[1]))
span_lists = st.lists(
    st.builds(lambda name, i: host(name, *i), st.sampled_from([*WORK, "wait"]), intervals)
    | st.builds(
        lambda lane, i: device(i[0], i[1], lane), st.sampled_from(["device", "other"]), intervals
    ),
    max_size=8,
)
runs = st.lists(st.tuples(span_lists, st.integers(0, 1)), max_size=5)


@settings(max_examples=400)
@given(runs, st.integers(0, 3), st.integers(0, 6))
def test_every_moment_has_one_cause_however_spans_overlap(
    spans: list[tuple[list[Span], int]], first: int, end: int
) -> None:
    records = [record(k, many, requests) for k, (many, requests) in enumerate(spans)]
    steps = range(first, end)
    told = account(records, steps)
    all_spans = [span for r in records for span in r.spans]
    agree = clocks_agree(records)
    for lane in told.lanes:
        mine = [s for r in records[first:end] for s in r.spans if s.lane == lane.name]
        assert (lane.start, lane.end) == (min(s.start for s in mine), max(s.end for s in mine))
        assert lane.busy + sum(lane.idle.values()) == pytest.approx(lane.end - lane.start)
        own = [gap for gap in told.gaps if gap.lane == lane.name]
        for moment in range(int(lane.start), int(lane.end)):
            here = [gap for gap in own if gap.start < moment + 0.5 < gap.end]
            busy = any(s.start < moment + 0.5 < s.end for s in mine)
            assert len(here) == (not busy)
            for gap in here:
                doing = {
                    s.name for s in all_spans if s.lane == "host" and s.start < moment + 0.5 < s.end
                }
                if not agree:
                    assert gap.cause == "unknown"
                elif doing & set(WORK):
                    assert gap.cause == "host-bound"
                elif "wait" in doing:
                    assert gap.cause == "waiting for a collect"
                else:
                    assert gap.cause in ("between steps", "nothing to run")
                assert gap.step in steps and gap.cause in CAUSES
    assert told.busy + sum(told.idle.values()) == pytest.approx(told.total)
    if agree:
        work = [s for r in records[first:end] for s in r.spans if s.name in WORK]
        running = [s for s in all_spans if s.lane != "host"]
        seen = [
            any(s.start < m + 0.5 < s.end for s in running)
            for m in range(40)
            if any(s.start < m + 0.5 < s.end for s in work)
        ]
        assert told.hidden == pytest.approx(sum(seen))
        assert told.exposed == pytest.approx(len(seen) - sum(seen))


def test_a_real_run_adds_up() -> None:
    with minisgl.load("tiny", num_pages=64) as engine:
        for _ in range(2):
            engine.add("Once upon a time", SamplingParams(max_tokens=8, ignore_eos=True))
            engine.run(max_steps=3)
            sleep(0.02)
            engine.run()
            sleep(0.03)
        told = engine.trace.timeline()
    assert told.clocks_agree and set(told.host) == {"plan", "commit", "launch", "wait", "apply"}
    assert told.idle["between steps"] > 0.03 and told.idle["nothing to run"] > 0.025
    assert told.busy + sum(told.idle.values()) == pytest.approx(told.total, rel=1e-9)
    assert 0 <= told.hidden_share <= 1
    frame = told.to_frame()
    assert frame[frame.lane == "device"].seconds.sum() == pytest.approx(told.total)
