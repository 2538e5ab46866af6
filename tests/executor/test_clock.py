"""The device's work lies on the host's clock: bounded error, whatever the two clocks do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisgl.executor.clock import Anchor, DeviceClock, HostTime


@given(
    rate=st.floats(-200e-6, 200e-6),
    steps=st.lists(
        st.tuples(
            st.floats(0, 5e-4), st.floats(1e-5, 5e-2), st.floats(0, 9e-5), st.floats(0, 100.0)
        ),
        min_size=1,
        max_size=200,
    ),
)
def test_work_that_is_waited_for_lies_within_the_time_of_waking(
    rate: float, steps: list[tuple[float, float, float, float]]
) -> None:
    """rate: how much faster the device's clock runs; each step: the way to the device, its
    duration, how long the host takes to wake, and how long nothing runs before."""
    clock, now, last = DeviceClock(), 100.0, 0.0
    for way, duration, waking, idle in steps:
        launched = now + idle
        start = launched + way
        end, before = start + duration, last
        last, now = end, end + waking
        measured = ((start - before) * (1 + rate), duration * (1 + rate))
        begin, stop = clock.place(*measured, launched, now, True)
        assert launched - begin <= duration * abs(rate) + 1e-9
        assert stop <= now + 1e-9
        assert abs(stop - end) <= 1e-4 + duration * abs(rate) + 1e-9


@given(
    rate=st.floats(-200e-6, 200e-6),
    steps=st.lists(
        st.tuples(st.floats(0, 5e-4), st.floats(1e-5, 5e-2), st.floats(0, 5e-3)), max_size=50
    ),
)
def test_a_host_that_wakes_late_does_not_move_what_it_waited_for(
    rate: float, steps: list[tuple[float, float, float]]
) -> None:
    """Each step: the device idle before it, its duration, how late the host is: the earliest time
    at which it ever woke counts, and what the clocks may have parted since."""
    clock, now, best, since = DeviceClock(), 7.0, 1e-5, 0.0
    clock.place(0.0, 1e-3 * (1 + rate), now, now + 1e-3 + best, True)
    now += 1e-3
    for idle, duration, late in steps:
        start, end = now + idle, now + idle + duration
        since += end - now
        if late < best + 500e-6 * since:
            best, since = late, 0.0
        measured = (idle * (1 + rate), duration * (1 + rate))
        _, stop = clock.place(*measured, start, end + late, True)
        assert -1e-9 <= stop - end + abs(rate) * duration
        assert stop - end <= best + 500e-6 * since + abs(rate) * duration + 1e-9
        now = end


def test_what_nobody_waited_for_finds_its_place_when_somebody_waits() -> None:
    """The host's clock went on for an hour while the device's stood still."""
    clock = DeviceClock()
    clock.place(0.0, 1e-3, 0.0, 0.5, False)
    assert clock.place(1e-6, 1e-3, 0.1, 3600.0, True)[1] == pytest.approx(3600.0, abs=2e-4)
    clock.place(1e-6, 1e-3, 7200.0, 7201.0, False)
    assert clock.place(1e-6, 1e-3, 7200.0, 7200.5, True)[1] == pytest.approx(7200.5, abs=2e-4)
    assert clock.place(1e-6, 1e-3, 9000.0, 9000.5, True)[1] == pytest.approx(9000.5, abs=2e-4)


def test_steps_in_flight_follow_one_another_by_the_device_alone() -> None:
    clock = DeviceClock()
    places = [clock.place(2e-6, 3e-3, 0.0, 0.01, False) for _ in range(3)]
    assert places[0][0] == 0.0
    for before, after in zip(places, places[1:], strict=False):
        assert abs(after[0] - before[1] - 2e-6) < 1e-12


def test_what_was_launched_later_cannot_have_begun_before() -> None:
    clock = DeviceClock()
    clock.place(0.0, 1e-3, 0.0, 0.01, False)
    assert clock.place(1e-6, 1e-3, 5.0, 5.01, False)[0] == 5.0


ANCHORS = st.lists(st.tuples(st.floats(1e-6, 1e-3), st.floats(0, 1)), min_size=1, max_size=5)


@given(
    rate=st.floats(-500e-6, 500e-6),
    change=st.floats(-200e-6, 200e-6),
    offset=st.floats(-1e7, 1e7),
    seconds=st.floats(1e-3, 100.0),
    first=ANCHORS,
    last=ANCHORS,
    where=st.floats(0, 1),
)
def test_times_of_another_clock_are_wrong_by_what_its_anchors_leave_open(
    rate: float,
    change: float,
    offset: float,
    seconds: float,
    first: list[tuple[float, float]],
    last: list[tuple[float, float]],
    where: float,
) -> None:
    """Anchors: how wide each was, and where in it the moment was. The other clock runs at another
    rate, and from the middle on at yet another."""
    begin = 7000.0
    middle = begin + seconds / 2

    def other(host: float) -> float:
        drift = (host - begin) * rate + max(0.0, host - middle) * change
        return offset + (host - begin) + drift

    def anchors(at: float, sizes: list[tuple[float, float]]) -> list[Anchor]:
        return [Anchor(other(at), at - wide * part, at + wide * (1 - part)) for wide, part in sizes]

    to_host = HostTime(anchors(begin, first), anchors(begin + seconds, last))
    widest = max(min(wide for wide, _ in some) for some in (first, last))
    assert to_host.error == pytest.approx(widest / 2, abs=1e-9)
    at = begin + where * seconds
    float_error = 1e-8  # the other clock may count from 1970
    allowed = to_host.error * (1 + 1e-3) + abs(change) * seconds / 2 + float_error
    assert abs(to_host(other(at)) - at) <= allowed


def test_two_marks_at_one_moment_still_tell_the_time() -> None:
    to_host = HostTime([Anchor(5.0, 10.0, 10.2)], [Anchor(5.0, 10.0, 10.1)])
    assert abs(to_host(5.5) - 10.6) < 1e-9 and to_host.error == pytest.approx(0.1)
